"""One way of saying no: what was given, what is expected, and the line that fixes it."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Integral, Real


def message(what: str, *, given: object, expected: object, fix: str) -> str:
    """Lay out an error in its three parts, one a line."""
    return f"{what}\n  given:    {given}\n  expected: {expected}\n  fix:      {fix}"


def bad_value(what: str, *, given: object, expected: object, fix: str) -> ValueError:
    """Make the `ValueError` for an argument of the right type and a wrong value."""
    return ValueError(message(what, given=given, expected=expected, fix=fix))


def bad_type(what: str, *, given: object, expected: object, fix: str) -> TypeError:
    """Make the `TypeError` for an argument of a wrong type."""
    return TypeError(message(what, given=given, expected=expected, fix=fix))


def unknown_name(kind: str, name: object, options: Iterable[str]) -> ValueError:
    """Make the `ValueError` for a name that is not among the options, closest one first."""
    known = sorted(set(options))
    close = closest(str(name), known)
    fix = f"did you mean {close[0]!r}?" if close else "choose one of the names above."
    shown = ", ".join(known[:40]) + (f", … ({len(known)} in all)" if len(known) > 40 else "")
    return bad_value(f"There is no {kind} {name!r}.", given=repr(name), expected=shown, fix=fix)


def closest(name: str, options: Iterable[str], count: int = 3) -> list[str]:
    """Order the options that resemble `name`: same last path part first, then by spelling."""
    known = list(options)
    last = name.rsplit("/", 1)[-1]
    same_end = [option for option in known if option.rsplit("/", 1)[-1] == last]
    similar = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    return list(dict.fromkeys([*same_end, *similar]))[:count]


def number(name: str, value: object) -> float:
    """Return a finite real number as a float, or refuse it."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise bad_type(
            f"`{name}` must be a number.",
            given=f"{value!r} ({type(value).__name__})",
            expected="an int or a float",
            fix=f"pass a number, for example {name}=1.0.",
        )
    if not math.isfinite(value):
        raise bad_value(
            f"`{name}` must be finite.",
            given=value,
            expected="a finite number",
            fix=f"pass a number, for example {name}=1.0.",
        )
    return float(value)


def positive(name: str, value: object) -> float:
    """Return a number above zero as a float, or refuse it."""
    if (given := number(name, value)) <= 0:
        raise bad_value(
            f"`{name}` must be positive.",
            given=value,
            expected="a number > 0",
            fix=f"pass a number above zero, for example {name}=1.0.",
        )
    return given


def fraction(name: str, value: object, *, open_ends: bool = False) -> float:
    """Return a number between 0 and 1 as a float, or refuse it."""
    given = number(name, value)
    inside = 0.0 < given < 1.0 if open_ends else 0.0 <= given <= 1.0
    if not inside:
        ends = "0 < value < 1" if open_ends else "0 <= value <= 1"
        raise bad_value(
            f"`{name}` must be between 0 and 1.",
            given=value,
            expected=ends,
            fix=f"pass a number in that range, for example {name}=0.5.",
        )
    return given


def count(name: str, value: object) -> int:
    """Return a whole number of 1 or more, or refuse it."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise bad_value(
            f"`{name}` must be a whole number of 1 or more.",
            given=f"{value!r} ({type(value).__name__})",
            expected="1, 2, 3, …",
            fix=f"pass a whole number, for example {name}=2.",
        )
    return int(value)
