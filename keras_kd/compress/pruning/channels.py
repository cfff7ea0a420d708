"""Channels as numbers: which of them stand or fall together, and what hangs on each.

Every channel that a layer makes is an atom, a number. A tensor is known by its labels: the atom of
each place of its last axis. What the graph forces to stand or fall together is tied: the channels
that are added to one another, the places of a channel that was flattened, the two inputs of a layer
that is called twice. Atoms that are tied make a unit, which is removed or kept as one. The units
that the same layers make are a group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

Labels = np.ndarray
WHOLE = 0  # the atom of every channel that is never removed


class Atoms:
    """The channels of a network, and which are tied."""

    def __init__(self) -> None:
        self._parent = [WHOLE]
        self.makers = [-1]
        self.reasons: list[tuple[Labels, str]] = []

    def new(self, count: int, maker: int) -> Labels:
        """Number the channels that a layer makes."""
        first = len(self._parent)
        self._parent += range(first, first + count)
        self.makers += [maker] * count
        return np.arange(first, first + count)

    def tie(self, first: Labels, second: Labels) -> None:
        """Let two tensors' channels stand or fall together, place by place."""
        for pair in np.unique(np.stack([first, second], axis=1), axis=0).tolist():
            low, high = sorted(map(self._root, pair))
            self._parent[high] = low

    def keep(self, labels: Labels | None, why: str) -> None:
        """Keep channels whole, and remember why; `None` is a tensor without channels."""
        if labels is None:
            return
        self.reasons.append((labels, why))
        self.tie(labels, np.full_like(labels, WHOLE))

    def roots(self) -> np.ndarray:
        """Return the first atom of the unit of each atom; `WHOLE` for what is kept."""
        return np.array([self._root(atom) for atom in range(len(self._parent))])

    def _root(self, atom: int) -> int:
        parent = self._parent
        while parent[atom] != atom:
            parent[atom] = parent[parent[atom]]
            atom = parent[atom]
        return atom


@dataclasses.dataclass(frozen=True)
class Slice:
    """One axis of one weight that runs along channels.

    Attributes:
        variable: the weight.
        axis: the axis of it, from 0.
        labels: the atom of each place of the axis.
        role: `"makes"` (the filters that make the channels), `"reads"` (the weights that take them
            in), `"scales"` (the gamma of a batch normalisation) or `"follows"`.
    """

    variable: Any
    axis: int
    labels: Labels
    role: str = "follows"


@dataclasses.dataclass(frozen=True)
class Term:
    """A part of a cost: a number times how many channels are left of each factor.

    Attributes:
        number: MACs or parameters for one channel of each factor; `None` where it is not known.
        factors: labels, counted by what is left of them.
    """

    number: int | None
    factors: tuple[Labels, ...] = ()


@dataclasses.dataclass
class Member:
    """A layer of the network, at whatever depth: what pruning cuts of it, and what it costs.

    Attributes:
        path: its name, below those of the models that it is nested in.
        layer: the layer.
        slices: the axes of its weights that run along channels.
        sizes: the entries of its config that count channels.
        macs: the multiply-accumulates of all its calls.
        calls: how many of its calls were followed.
        whole: whether one was not, so that nothing of it is cut.
    """

    path: str
    layer: Any
    slices: list[Slice] = dataclasses.field(default_factory=list)
    sizes: dict[str, Labels] = dataclasses.field(default_factory=dict)
    macs: list[Term] = dataclasses.field(default_factory=list)
    calls: int = 0
    whole: bool = False

    @property
    def weights(self) -> list[Any]:
        """The weights; an operation that is no layer has none."""
        return self.layer.weights if isinstance(self.layer, keras.layers.Layer) else []

    @property
    def parameters(self) -> list[Term]:
        """The number of weights, in terms of the channels that are left."""
        terms = []
        for variable in self.weights:
            axes = {cut.axis: cut.labels for cut in self.slices if cut.variable is variable}
            sizes = [size for axis, size in enumerate(variable.shape) if axis not in axes]
            terms.append(Term(int(np.prod(sizes, dtype="int64")), tuple(axes.values())))
        return terms


@dataclasses.dataclass(frozen=True)
class Group:
    """Units that the same layers make.

    Attributes:
        makers: the paths of these layers; several where their channels are added, for example.
        units: the numbers of its units, in the order of the channels.
    """

    makers: tuple[str, ...]
    units: np.ndarray

    @property
    def name(self) -> str:
        """The makers, joined."""
        return " + ".join(self.makers)


class Channels:
    """What was found out about a network: its units, their groups, and its layers.

    Attributes:
        members: the layers by path; `"makers"` of the atoms are numbers in this order.
        groups: the groups of units that may be removed.
        units: how many units there are.
        whole: path of a layer -> why all of its channels are kept.
        inputs: the channels of the inputs of nested models, by the id of the symbolic tensor.
    """

    def __init__(
        self, atoms: Atoms, members: Sequence[Member], inputs: Mapping[int, Labels]
    ) -> None:
        self.members = list(members)
        self.inputs = inputs
        roots, makers = atoms.roots(), np.array(atoms.makers)
        free = np.unique(roots[roots != WHOLE])
        self.units = len(free)
        self._unit = np.full(len(roots), -1)
        self._unit[roots != WHOLE] = np.searchsorted(free, roots[roots != WHOLE])
        made_by: dict[tuple[int, ...], list[int]] = {}
        of_unit: list[set[int]] = [set() for _ in range(self.units)]
        for unit, maker in zip(self._unit.tolist(), makers.tolist(), strict=True):
            if unit >= 0:
                of_unit[unit].add(maker)
        for unit, numbers in enumerate(of_unit):
            made_by.setdefault(tuple(sorted(numbers)), []).append(unit)
        self.groups = [
            Group(tuple(self.members[number].path for number in numbers), np.array(units))
            for numbers, units in made_by.items()
        ]
        self.whole = self._reasons(atoms, makers)

    def units_of(self, labels: Labels) -> np.ndarray:
        """Return the unit of each place; -1 where the channel is always kept."""
        return self._unit[labels]

    def left(self, labels: Labels, kept: np.ndarray) -> np.ndarray:
        """Return the places that are left of an axis, `kept` being True for each unit that is."""
        return np.flatnonzero(np.append(kept, True)[self.units_of(labels)])

    def sums(self, labels: Labels, values: np.ndarray) -> np.ndarray:
        """Sum one value for each place over the places of each unit."""
        units = self.units_of(labels)
        free = units >= 0
        return np.bincount(units[free], weights=values[free], minlength=self.units)

    def _reasons(self, atoms: Atoms, makers: np.ndarray) -> dict[str, str]:
        """Say for each layer that makes channels, of which none may go, why; the first reason."""
        roots = atoms.roots()
        made = {int(maker) for maker in makers if maker >= 0}
        whole = made - {int(maker) for maker in makers[self._unit >= 0]}
        found = dict.fromkeys(sorted(whole), "it is tied to channels that are kept")
        for labels, why in reversed(atoms.reasons):
            for maker in {int(m) for m in makers[labels[roots[labels] == WHOLE]]} & whole:
                found[maker] = why
        return {self.members[maker].path: why for maker, why in found.items()}
