"""Which units are kept: a share of each group, or what a budget allows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from keras_kd.compress.pruning.channels import Channels, Group

LEAST = 0.1  # of a group stays, whatever the budget
TINY = 1e-30


def width(count: int, keep: float, multiple_of: int = 1) -> int:
    """Say how many of `count` units a share keeps: the nearest multiple, one multiple at least.

    Halves are rounded up. A group that has no more than one multiple stays whole.
    """
    multiples = max(1, math.floor(keep * count / multiple_of + 0.5))
    return min(count, multiples * multiple_of)


def by_share(channels: Channels, scores: np.ndarray, counts: Callable[[Group], int]) -> np.ndarray:
    """Keep the units of the highest scores in each group; of equals, the first.

    Args:
        channels: the units.
        scores: one for each unit.
        counts: group -> how many of its units are kept.

    Returns:
        Whether each unit is kept.
    """
    kept = np.zeros(channels.units, bool)
    for group in channels.groups:
        order = np.argsort(-scores[group.units], kind="stable")
        kept[group.units[order[: counts(group)]]] = True
    return kept


def by_budget(
    channels: Channels,
    scores: np.ndarray,
    fits: Callable[[np.ndarray], bool],
    multiple_of: int = 1,
    between: bool = True,
) -> np.ndarray:
    """Remove the units of the lowest scores, of all groups, until what is left fits.

    Between groups scores are compared as shares of their group's: s / √Σs² (Molchanov et al. 2017,
    section 2.2); those that say nothing between groups, by their place in the group, so that each
    group loses the same share. Dividing by what each removal saves too, which looks better, empties
    whole layers: a hundred channels that do the same are each worth nothing. For the same reason a
    tenth of each group is never removed. The last removal is the one that makes it fit.

    Args:
        channels: the units.
        scores: one for each unit, from 0.
        fits: whether each unit is kept -> whether that is small enough.
        multiple_of: units of a group are removed so many at once; the first time, fewer, so that a
            multiple is left.
        between: whether scores may be compared between groups.

    Returns:
        Whether each unit is kept; that which keeps least where nothing fits.
    """
    lumps: list[tuple[float, np.ndarray]] = []
    for group in channels.groups:
        own = scores[group.units]
        order = np.argsort(-own, kind="stable")[::-1]  # of equals, the last goes first
        count = len(order)
        price = own[order] / max(np.linalg.norm(own), TINY) if between else np.arange(count) / count
        least = max(width(count, LEAST, multiple_of), math.ceil(LEAST * count))
        first = count % multiple_of or multiple_of
        for start, end in itertools.pairwise([0, *range(first, count, multiple_of)]):
            if count - end >= least:
                lumps.append((float(price[start:end].mean()), group.units[order[start:end]]))
    lumps.sort(key=lambda pair: pair[0])

    def without(removed: int) -> np.ndarray:
        kept = np.ones(channels.units, bool)
        for _, lump in lumps[:removed]:
            kept[lump] = False
        return kept

    low, high = 0, len(lumps)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(without(middle)) else (middle + 1, high)
    return without(low)
