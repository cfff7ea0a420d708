"""What a certificate says beside the measures of the answers, and certificates as a table."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_kd import __version__
from keras_kd.export import base

Arrays = Mapping[str, np.ndarray]

_PACKAGES = ("keras", "tensorflow", "ai-edge-litert", "numpy")
_COLUMNS = ["format", "kB", "of float32", "metric", "Keras", "teacher"]
_COLUMNS += ["steps", "islands", "arena kB", "ms"]
_NONE = "–"


class Coverage:
    """How much of the verification data lies in the ranges that the calibration saw.

    Args:
        calibration: What `Calibration.coverage()` tells: "inputs" and "outputs", name to
            {"min", "max", …}.
    """

    def __init__(self, calibration: Mapping[str, Any]) -> None:
        self._calibration = calibration
        self._spans: dict[tuple[str, str], list[float]] = {}

    def add(self, inputs: Arrays, file: Arrays, keras: Arrays, y: Any, weight: Any) -> None:
        """Take in one batch."""
        for kind, arrays in (("inputs", inputs), ("outputs", keras)):
            for name, seen in self._calibration.get(kind, {}).items():
                values = arrays[name]
                span = self._spans.setdefault((kind, name), [math.inf, -math.inf, 0, 0])
                if values.size:
                    span[0] = min(span[0], float(values.min()))
                    span[1] = max(span[1], float(values.max()))
                    span[2] += int(((values < seen["min"]) | (values > seen["max"])).sum())
                    span[3] += values.size

    def result(self) -> dict[str, Any]:
        """Return the calibration's telling, each range with "covered" and "outside" added.

        "covered" is the share of the verification data's range that the calibration saw, "outside"
        the share of verification values beyond the calibration's range.
        """
        told = dict(self._calibration)
        for kind in ("inputs", "outputs"):
            told[kind] = {
                name: {**seen, **self._of(kind, name, seen)}
                for name, seen in self._calibration[kind].items()
            }
        return told

    def _of(self, kind: str, name: str, seen: Mapping[str, float]) -> dict[str, float]:
        low, high, outside, count = self._spans.get((kind, name), [0.0, 0.0, 0, 0])
        common = min(high, seen["max"]) - max(low, seen["min"])
        whole = high - low
        covered = max(0.0, common) / whole if whole > 0 else float(outside == 0)
        return {"covered": covered, "outside": outside / max(1, count)}


class Fingerprint:
    """Names the examples that were seen, whatever their order and the size of their batches."""

    def __init__(self) -> None:
        self._sum = 0

    def add(self, inputs: Arrays, file: Arrays, keras: Arrays, y: Any, weight: Any) -> None:
        """Take in one batch: its inputs and its labels."""
        parts = [*inputs.values(), *(leaf for _, leaf in base.leaves(y) if leaf is not None)]
        arrays = [np.ascontiguousarray(part) for part in parts]
        for index in range(len(arrays[0])):
            digest = hashlib.blake2b(digest_size=8)
            for array in arrays:
                row = array[index]
                digest.update(f"{row.shape}{row.dtype}".encode() + row.tobytes())
            self._sum += int.from_bytes(digest.digest(), "little")

    def result(self) -> str:
        """Return the sum of a hash of every example, modulo 2⁶⁴, as 16 hexadecimal digits."""
        return f"{self._sum % (1 << 64):016x}"


def versions() -> dict[str, str]:
    """Return the versions of what wrote and ran the file."""
    own = {"python": platform.python_version(), "keras-kd": __version__}
    return own | {name: importlib.metadata.version(name) for name in _PACKAGES}


def merged(facts: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Put the caller's facts among ours, dict by dict; where both name one, the caller's counts."""
    made = dict(facts)
    for key, value in given.items():
        ours = made.get(key)
        if isinstance(ours, Mapping) and isinstance(value, Mapping):
            value = merged(ours, value)
        made[key] = value
    return made


def table(artifacts: Mapping[str, Any]) -> str:
    """Lay certificates out as a table, a line a file.

    Columns: the size in kB (1000 bytes), and as a share of the `tflite` file where that is there;
    the task metric of the file, of the Keras student and of the teacher; the largest difference
    in output steps (values out of range apart); float islands; the working memory of LiteRT in
    kB; the median time of one run on the machine that wrote the file, in ms, one thread.

    Args:
        artifacts: Format to `Artifact`, as `export_student` returns them, or to certificate.

    Returns:
        The lines of the table.

    Example:
        ```python
        import tempfile

        import keras
        import numpy as np

        import keras_kd as kd
        from keras_kd.export import certificates

        student = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3)])
        x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
        with tempfile.TemporaryDirectory() as folder:
            made = kd.export_student(student, folder, ["tflite"], verification_data=x)
        print(certificates.table(made))
        ```
    """
    told = {
        name: made if isinstance(made, Mapping) else made.certificate
        for name, made in artifacts.items()
    }
    whole = told["tflite"]["bytes"] if "tflite" in told else None
    labels = dict.fromkeys(label for made in told.values() for label in _deciding(made)[:1])
    head = list(_COLUMNS)
    head[3] = next(iter(labels)) if len(labels) == 1 else "metric"
    lines = [head, *([name, *_cells(made, whole)] for name, made in told.items())]
    kept = [
        column
        for column in zip(*lines, strict=True)
        if len(lines) == 1 or any(cell != _NONE for cell in column[1:])
    ]
    widths = [max(map(len, column)) for column in kept]
    rows = [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in zip(*kept, strict=True)
    ]
    return "\n".join(row.rstrip() for row in rows)


def _cells(made: Mapping[str, Any], whole: int | None) -> list[str]:
    verified, audit, latency = made["verified"], made.get("audit"), made.get("latency")
    _, metric = _deciding(made) or (None, {})
    steps = [o["steps"]["max"] for o in verified["outputs"].values() if o.get("steps")]
    arena = made.get("arena_bytes")
    return [
        f"{made['bytes'] / 1000:,.1f}",
        _NONE if whole is None else f"{made['bytes'] / whole:.2f}",
        *(_number(metric.get(key), ".4f") for key in ("file", "keras", "teacher")),
        _number(max(steps, default=None), ".1f"),
        _NONE if audit is None else str(len(audit["islands"])),
        _number(None if arena is None else arena / 1000, ",.1f"),
        _number(latency and latency["p50_ms"], ".3f"),
    ]


def _deciding(made: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | tuple[()]:
    """Return the metric that decides, with its label."""
    return next(iter(made["verified"].get("metrics", {}).items()), ())


def _number(value: float | None, form: str) -> str:
    return _NONE if value is None else format(value, form)
