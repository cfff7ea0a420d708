"""What one row of a store is: a fingerprint, then the teacher's answer to one example.

A row has no padding and is little-endian: 8 bytes of fingerprint, then one column after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_kd import checks

FINGERPRINT_BYTES = 8
DTYPES = ("float16", "float32")


class Column(NamedTuple):
    """Where one array of a row lies.

    Attributes:
        where: the place in the teacher's answer, for an error: `"output 0"`, `"layer 'conv1'"`.
        start: its first byte in the row.
        dtype: what is stored.
        shape: its shape for one example.
    """

    where: str
    start: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many bytes it takes."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Dense:
    """One tensor, kept whole.

    Args:
        shape: its shape for one example, such as `(1000,)`.
        dtype: `"float16"` or `"float32"`.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def parts(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """Give its arrays as (name, dtype, shape): one without a name."""
        return [("", self.dtype, self.shape)]

    def to_json(self) -> dict[str, Any]:
        """Describe it in plain words and numbers."""
        return {"shape": list(self.shape), "dtype": self.dtype}


@dataclass(frozen=True)
class TopK:
    """The largest logits of one output, their classes, and the log-sum-exp of all of them.

    Args:
        shape: the shape of all the logits of one example, `(…, classes)`.
        dtype: `"float16"` or `"float32"`, for the kept logits.
        kept: how many logits are kept.
        temperatures: for each T there is log Σ exp(z/T) over all classes, in float32.
    """

    shape: tuple[int, ...]
    dtype: str
    kept: int
    temperatures: tuple[float, ...]

    @property
    def parts(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """Give its arrays as (name, dtype, shape)."""
        outer, classes = self.shape[:-1], self.shape[-1]
        number = next(f"uint{bits}" for bits in (8, 16, 32) if classes <= 2**bits)
        return [
            ("logits", self.dtype, (*outer, self.kept)),
            ("classes", number, (*outer, self.kept)),
            ("log_sum_exp", "float32", (*outer, len(self.temperatures))),
        ]

    def to_json(self) -> dict[str, Any]:
        """Describe it in plain words and numbers."""
        top_k = {"kept": self.kept, "temperatures": list(self.temperatures)}
        return {"shape": list(self.shape), "dtype": self.dtype, "top_k": top_k}


Leaf = Dense | TopK


@dataclass(frozen=True)
class Layout:
    """What the rows of one store hold, and the way from bytes to tensors and back.

    Args:
        outputs: the teacher's outputs, flattened: at least one.
        layers: the kept layers by path, in the order of their columns.

    Example:
    ```python
    import numpy as np
    from keras_kd.soft_targets.layout import Dense, Layout

    layout = Layout(outputs=(Dense((3,), "float16"),))
    logits = np.array([[1.0, 2.0, 3.0]], "float16")
    rows = layout.rows_of(np.zeros((1, 8), "uint8"), {"outputs": logits, "layers": {}})
    teacher = layout.teacher_of(rows.view("uint8").reshape(1, layout.row_bytes))
    print(layout.row_bytes, teacher["outputs"])  # 14 [[1. 2. 3.]]
    ```
    """

    outputs: tuple[Leaf, ...]
    layers: Mapping[str, Leaf] = field(default_factory=dict)

    @property
    def several(self) -> bool:
        """Whether `outputs` is a tuple of leaves; one leaf alone stands for itself."""
        return len(self.outputs) > 1

    @property
    def columns(self) -> list[Column]:
        """The columns in the order of their bytes, behind the fingerprint."""
        columns: list[Column] = []
        start = FINGERPRINT_BYTES
        for where, leaf in self._leaves():
            for name, dtype, shape in leaf.parts:
                column = Column(f"{name} of {where}" if name else where, start, dtype, shape)
                columns.append(column)
                start += column.size
        return columns

    @property
    def row_bytes(self) -> int:
        """How many bytes a row takes."""
        return FINGERPRINT_BYTES + sum(column.size for column in self.columns)

    @property
    def record(self) -> np.dtype:
        """A row as NumPy's structured dtype: `fingerprint`, then a field for each column."""
        columns = [
            (str(number), np.dtype(column.dtype).newbyteorder("<"), column.shape)
            for number, column in enumerate(self.columns)
        ]
        return np.dtype([("fingerprint", "u1", (FINGERPRINT_BYTES,)), *columns])

    def rows_of(self, fingerprints: np.ndarray, teacher: Mapping[str, Any]) -> np.ndarray:
        """Put answers and fingerprints together.

        Args:
            fingerprints: `(n, 8)` uint8.
            teacher: the dict `{"outputs": …, "layers": {path: …}}` of NumPy arrays of n rows, in
                the stored dtypes (whole numbers may be wider).

        Returns:
            `(n,)` records of `record`.

        Raises:
            ValueError: "The examples do not have answers of one shape".
        """
        record = self.record
        rows = np.empty(len(fingerprints), record)
        rows["fingerprint"] = fingerprints
        for number, (column, values) in enumerate(
            zip(self.columns, self._arrays(teacher), strict=True)
        ):
            if tuple(values.shape) != (len(rows), *column.shape):
                raise other_shape(column.where, tuple(values.shape)[1:], column.shape)
            rows[str(number)] = values
        return rows

    def teacher_of(self, rows: np.ndarray) -> dict[str, Any]:
        """Read the teacher's answers from rows.

        Args:
            rows: `(n, row_bytes)` uint8.

        Returns:
            `{"outputs": X, "layers": {path: array}}` of NumPy arrays, as `specs` describes it.
        """
        records = np.ascontiguousarray(rows).view(self.record)[:, 0]
        return self._pack(
            [
                np.ascontiguousarray(records[str(number)], _travelling(column.dtype))
                for number, column in enumerate(self.columns)
            ]
        )

    def flat_fields(self) -> list[tuple[str, str]]:
        """Name the field of `record` and the dtype of each flat part of what `teacher_of` gives."""
        order = tf.nest.flatten(self._pack([*range(len(self.columns))]))
        return [(str(number), _travelling(self.columns[number].dtype)) for number in order]

    def specs(self) -> dict[str, Any]:
        """Describe what `teacher_of` gives, as `tf.TensorSpec`s whose batch is not known."""
        return self._pack(
            [tf.TensorSpec((None, *c.shape), _travelling(c.dtype)) for c in self.columns]
        )

    def to_json(self) -> dict[str, Any]:
        """Describe it in plain words and numbers, for a manifest."""
        layers = [{"path": path, **leaf.to_json()} for path, leaf in self.layers.items()]
        return {"outputs": [leaf.to_json() for leaf in self.outputs], "layers": layers}

    @classmethod
    def from_json(cls, words: Mapping[str, Any]) -> Layout:
        """Make it from what `to_json` gave."""
        layers = {entry["path"]: _leaf(entry) for entry in words["layers"]}
        return cls(tuple(map(_leaf, words["outputs"])), layers)

    def _leaves(self) -> Iterator[tuple[str, Leaf]]:
        for number, leaf in enumerate(self.outputs):
            yield f"output {number}", leaf
        for path, leaf in self.layers.items():
            yield f"layer {path!r}", leaf

    def _arrays(self, teacher: Mapping[str, Any]) -> list[np.ndarray]:
        """Take the arrays out of a teacher's dict, in the order of the columns."""
        outputs = teacher["outputs"] if self.several else [teacher["outputs"]]
        given = [*outputs, *(teacher["layers"][path] for path in self.layers)]
        return [
            values[name] if name else values
            for values, (_, leaf) in zip(given, self._leaves(), strict=True)
            for name, _, _ in leaf.parts
        ]

    def _pack(self, flat: list[Any]) -> dict[str, Any]:
        """Put things in the order of the columns into the form of a teacher's dict."""
        waiting, leaves = iter(flat), []
        for _, leaf in self._leaves():
            found = {name: next(waiting) for name, _, _ in leaf.parts}
            leaves.append(found.get("", found))
        count = len(self.outputs)
        outputs = tuple(leaves[:count]) if self.several else leaves[0]
        return {"outputs": outputs, "layers": dict(zip(self.layers, leaves[count:], strict=True))}


def other_shape(where: str, given: tuple, expected: tuple) -> ValueError:
    """Make the error for an answer of another shape than those before it."""
    return checks.bad_value(
        "The examples do not have answers of one shape.",
        given=f"{where}: {given}, before that {expected}",
        expected="the same shape for every example: a row is as long as the others",
        fix="pad or resize the inputs, so that the teacher answers in one shape.",
    )


def _travelling(dtype: str) -> str:
    """Whole numbers travel as int32, which every operation of TensorFlow takes."""
    return "int32" if dtype.startswith("uint") else dtype


def _leaf(words: Mapping[str, Any]) -> Leaf:
    shape, dtype = tuple(words["shape"]), words["dtype"]
    if "top_k" not in words:
        return Dense(shape, dtype)
    top_k = words["top_k"]
    return TopK(shape, dtype, top_k["kept"], tuple(top_k["temperatures"]))
