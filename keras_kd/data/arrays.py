"""Arrays of examples: one array or several by name, their checks and their content hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from keras_kd import checks

Arrays = np.ndarray | dict[str, np.ndarray]


def each(function: Callable[[np.ndarray], np.ndarray], arrays: Arrays) -> Arrays:
    """Apply a function to the array, or to each of the arrays of a dict."""
    if isinstance(arrays, dict):
        return {name: function(array) for name, array in arrays.items()}
    return function(arrays)


def named(label: str, arrays: Arrays) -> list[tuple[str, np.ndarray]]:
    """List the arrays with the names that an error calls them by: `x`, or `x['left']`."""
    if isinstance(arrays, dict):
        return [(f"{label}[{name!r}]", array) for name, array in sorted(arrays.items())]
    return [(label, arrays)]


def signature(arrays: Arrays) -> list[tuple[str, str, tuple[int, ...]]]:
    """Describe what one example is: name, dtype and shape of each of its arrays."""
    return [(name, array.dtype.str, array.shape[1:]) for name, array in named("", arrays)]


def whole(name: str, value: object, *, at_least: int) -> int:
    """Return a whole number from `at_least` to 2**63 - 1, or refuse it."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise checks.bad_type(
            f"`{name}` must be a whole number.",
            given=f"{value!r} ({type(value).__name__})",
            expected="an int",
            fix=f"pass a whole number, for example {name}={max(at_least, 1)}.",
        )
    if not at_least <= value < 2**63:
        raise checks.bad_value(
            f"`{name}` is out of range.",
            given=value,
            expected=f"an int from {at_least} to 2**63 - 1",
            fix=f"pass a whole number in that range, for example {name}={max(at_least, 1)}.",
        )
    return int(value)


def standard(arrays: Arrays) -> Arrays:
    """Give read-only views, in this machine's byte order, without touching the caller's arrays."""
    return each(_read_only, arrays)


def _read_only(array: np.ndarray) -> np.ndarray:
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    view = np.ascontiguousarray(native).view()
    view.flags.writeable = False
    return view


def labels(arrays: Arrays) -> Arrays:
    """Give integer and boolean targets as int64, so that equal labels are equal bytes."""
    return each(lambda y: y.astype(np.int64) if y.dtype.kind in "iub" else y, arrays)


def weights(arrays: Arrays) -> Arrays:
    """Give weights as float32, or refuse what is no weight."""
    for name, array in named("weights", arrays):
        if array.dtype.kind not in "biuf" or not (np.isfinite(array) & (array >= 0)).all():
            raise checks.bad_value(
                f"{name} holds what is no weight.",
                given=f"an array of shape {array.shape} and dtype {array.dtype}, with text, NaN, "
                "infinity or numbers below zero in it",
                expected="finite numbers >= 0, where 0 leaves a target out",
                fix="give what is not to be counted a weight of 0.",
            )
    return each(lambda array: array.astype(np.float32), arrays)


def check(label: str, arrays: Arrays) -> None:
    """Refuse arrays that a model cannot learn from: empty, not numbers, NaN or infinite."""
    for name, array in named(label, arrays):
        if array.dtype.kind not in "biuf":
            raise checks.bad_type(
                f"{name} does not hold numbers.",
                given=f"an array of dtype {array.dtype}",
                expected="numbers: bool, integers or floats, the same shape for every example",
                fix="turn text, objects or ragged lists into arrays of numbers first.",
            )
        if array.size == 0:
            raise checks.bad_value(
                f"{name} is empty.",
                given=f"an array of shape {array.shape}",
                expected="at least one example along the first axis, with at least one value",
                fix="check how the data was written: there is nothing to learn from here.",
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
            raise checks.bad_value(
                f"{name} holds NaN or infinite values.",
                given=f"{len(bad)} of {len(array)} examples, the first at index {bad[0]}",
                expected="finite numbers",
                fix="drop those examples or fill their gaps before training.",
            )


def check_lengths(label: str, x: Arrays, y: Arrays, weights: Arrays | None = None) -> int:
    """Return how many examples there are, or refuse arrays that disagree about it."""
    columns = named(f"x_{label}", x) + named(f"y_{label}", y)
    columns += [] if weights is None else named(f"weights_{label}", weights)
    for name, array in columns:
        if array.ndim == 0:
            raise checks.bad_value(
                f"{name} has no axis of examples.",
                given=f"the single value {array}",
                expected="an array with the examples along its first axis",
                fix="give one row an example, also where there is only one.",
            )
    lengths = {name: len(array) for name, array in columns}
    if len(set(lengths.values())) != 1:
        raise checks.bad_value(
            f"The {label} arrays have different lengths.",
            given=", ".join(f"{name}: {length}" for name, length in lengths.items()),
            expected="the same number of examples in each, one target an input",
            fix="check that inputs and targets come from the same files, in the same order.",
        )
    return next(iter(lengths.values()))


def hashes(arrays: Arrays, *, seed: int = 0, purpose: bytes = b"") -> np.ndarray:
    """Hash each example's bytes to a number that depends on nothing but content and seed.

    Args:
        arrays: n examples.
        seed: another seed is another hash function.
        purpose: likewise, at most 16 bytes.

    Returns:
        uint64 numbers, shape (n,). 60,000 images of 28x28 take about 0.1 seconds.
    """
    columns = [_rows(array) for _, array in named("", arrays)]
    salt = seed.to_bytes(16, "little")
    digests: Iterable[bytes]
    if len(columns) == 1:
        digests = (
            hashlib.blake2b(row, digest_size=8, salt=salt, person=purpose).digest()
            for row in columns[0]
        )
    else:
        digests = (
            hashlib.blake2b(b"".join(row), digest_size=8, salt=salt, person=purpose).digest()
            for row in zip(*columns, strict=True)
        )
    return np.frombuffer(b"".join(digests), "<u8")


def _rows(array: np.ndarray) -> np.ndarray:
    flat = np.ascontiguousarray(array).reshape(len(array), int(np.prod(array.shape[1:])))
    return flat.view(np.uint8)


def fingerprint(splits: Mapping[str, tuple[Arrays, ...]]) -> str:
    """Name the content of some splits by 32 hex digits, whatever the order inside each split."""
    total = hashlib.blake2b(digest_size=16)
    for name, parts in splits.items():
        rows = np.stack([hashes(part) for part in parts], axis=1)
        total.update(repr((name, len(rows), *map(signature, parts))).encode())
        total.update(rows[np.lexsort(rows.T[::-1])].tobytes())
    return total.hexdigest()
