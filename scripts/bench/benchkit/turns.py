"""The order in which contenders take their turns; nothing of a framework is loaded here."""

from __future__ import annotations

from collections.abc import Sequence


def turned(names: Sequence[str], number: int) -> list[str]:
    """Return the names turned on by as many places as the number says."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


def order(names: Sequence[str], number: int) -> list[str]:
    """Return the names in the order of a round: turned on, and backwards in every other one."""
    return turned(names, number)[:: -1 if number % 2 else 1]
