"""What a rule sees of one call of a layer, and what it says of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_kd.compress.pruning.channels import WHOLE, Atoms, Labels, Slice, Term

Shape = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class View:
    """One call of a layer as a rule sees it.

    Attributes:
        layer: the layer or operation.
        labels: the channels of each input.
        shapes: the shape of each input.
        outputs: the shape of each output.
        numbers: the arguments of the call that are no tensors of the graph.
        atoms: to tie channels, or to keep them.
        make: count -> the channels that the layer makes, the same in each of its calls.
    """

    layer: Any
    labels: Sequence[Labels]
    shapes: Sequence[Shape]
    outputs: Sequence[Shape]
    numbers: Sequence[Any]
    atoms: Atoms
    make: Callable[[int], Labels]

    @property
    def output(self) -> Shape:
        """The shape of the first output."""
        return self.outputs[0]

    @property
    def places(self) -> int | None:
        """How many positions an output has for one example."""
        return positions(self.output)


@dataclasses.dataclass(frozen=True)
class Followed:
    """What a rule found out about a call.

    Attributes:
        outputs: the channels of each output.
        slices: the axes of the layer's weights that run along channels.
        sizes: the entries of its config that count channels.
        macs: what the call costs, in multiply-accumulates for one example.
    """

    outputs: list[Labels | None]
    slices: list[Slice] = dataclasses.field(default_factory=list)
    sizes: dict[str, Labels] = dataclasses.field(default_factory=dict)
    macs: list[Term] = dataclasses.field(default_factory=list)


Rule = Callable[[View], Followed | str]
"""A rule follows a call, or says in words why it cannot."""


def positions(shape: Shape) -> int | None:
    """Multiply the axes between batch and channels; `None` where one is open."""
    return product(*shape[1:-1])


def product(*sizes: int | None) -> int | None:
    """Multiply sizes; `None` where one of them is open."""
    known = [size for size in sizes if size is not None]
    return math.prod(known) if len(known) == len(sizes) else None


def whole(shape: Sequence[int | None]) -> Labels | None:
    """Label a tensor whose channels are kept; `None` where its last axis is none of channels."""
    return None if len(shape) < 2 or shape[-1] is None else np.full(shape[-1], WHOLE)
