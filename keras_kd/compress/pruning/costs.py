"""What a network costs with some of its channels: parameters, bytes and multiply-accumulates."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from keras_kd import checks
from keras_kd.compress.pruning.channels import Channels, Term

BYTES = 4  # of a parameter in float32


def total(channels: Channels, terms: Iterable[Term], kept: np.ndarray) -> int | None:
    """Sum terms over the channels that are left; `None` where the size of a term is not known."""
    numbers = []
    for term in terms:
        if term.number is None:
            return None
        left = (len(channels.left(labels, kept)) for labels in term.factors)
        numbers.append(term.number * math.prod(left))
    return sum(numbers)


def macs_of(channels: Channels) -> list[Term]:
    """Return the multiply-accumulates of one example.

    Counted are convolutions, `Dense`, recurrent layers and `MultiHeadAttention`: one for each
    product of a weight and a number, padding included. Normalisation, activations, pooling and
    what is added or multiplied place by place count nothing.
    """
    return [term for member in channels.members for term in member.macs]


def parameters_of(channels: Channels) -> list[Term]:
    """Return the number of weights, those of shared layers once."""
    return [term for member in channels.members for term in member.parameters]


def require_macs(channels: Channels) -> list[Term]:
    """Return the multiply-accumulates where all of them are known.

    Raises:
        ValueError: "The MACs of … are not known", "The model has no MACs to save".
    """
    for member in channels.members:
        if any(term.number is None for term in member.macs):
            raise checks.bad_value(
                f"The MACs of {member.path!r} are not known.",
                given="a model with open axes",
                expected="inputs of a fixed shape, the batch excepted",
                fix="give keras.Input the size that is used, or prune by keep= or bytes=.",
            )
    return macs_of(channels)
