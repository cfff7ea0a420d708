"""Audit a TFLite file: which operators and types it holds, what its bytes are, where it is float.

A file that was asked to be all int8 may still compute parts in float: the converter leaves what it
cannot quantise (ELU, LayerNormalization, …) between a DEQUANTIZE and a QUANTIZE, and says nothing.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from keras_kd.litert import files

_ENDS = ("QUANTIZE", "DEQUANTIZE")
_SCALE_BYTES, _ZERO_POINT_BYTES = 4, 8  # float32 and int64 in the schema


@dataclasses.dataclass(frozen=True)
class Island:
    """Operators that hang together and compute in float, in a file of whole numbers.

    Attributes:
        layers: The layers they come from, as far as names tell.
        ops: Their operators, in order.
    """

    layers: tuple[str, ...]
    ops: tuple[str, ...]

    def __str__(self) -> str:
        return f"{', '.join(map(repr, self.layers)) or 'unnamed'} ({', '.join(self.ops)})"


@dataclasses.dataclass(frozen=True)
class Audit:
    """What is in a file.

    Attributes:
        ops: Operator name to how often it is there.
        custom: Names of the operators without a builtin kernel; a file with one does not run.
        types: Type to how many tensors are computed in it while the file runs.
        weights: Type to bytes of constants.
        scale_bytes: Bytes of scales and zero points.
        other_bytes: The rest of the file: tables, names, metadata.
        islands: The float islands; none in a file that is float throughout.
    """

    ops: dict[str, int]
    custom: tuple[str, ...]
    types: dict[str, int]
    weights: dict[str, int]
    scale_bytes: int
    other_bytes: int
    islands: tuple[Island, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain Python, ready for JSON."""
        told = dataclasses.asdict(self)
        islands = [{"layers": [*i.layers], "ops": [*i.ops]} for i in self.islands]
        return told | {"custom": [*self.custom], "islands": islands}


def audit(path: str | Path, layers: Collection[str] = ()) -> Audit:
    """Say which operators and types a TFLite file holds, what its bytes are, where it is float.

    Use it before a file goes to a device that has no floating-point unit, and to see what makes
    the size. A float island is a part that computes in float in a file whose other parts compute
    in whole numbers; the quantising and dequantising steps themselves are no island.

    Args:
        path: The `.tflite` file.
        layers: Names of the model's layers; with them, islands are named exactly. Without, by the
            paths that the converter wrote.

    Returns:
        An `Audit`.

    Raises:
        ValueError: "is not a TFLite file", "is damaged".

    Example:
        ```python
        import tempfile

        import keras
        import numpy as np

        import keras_kd as kd
        from keras_kd.litert.auditing import audit

        student = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3)])
        x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
        with tempfile.TemporaryDirectory() as folder:
            made = kd.export_student(student, folder, ["tflite"], verification_data=x)
            found = audit(made["tflite"].path)
        print(found.ops, found.weights)  # {'FULLY_CONNECTED': 1} {'float32': 60}
        ```
    """
    return of_file(files.read(path), layers)


def of_file(file: files.File, layers: Collection[str] = ()) -> Audit:
    """Audit a file that was read already."""
    operators = [operator for _, operator in file.operators()]
    types = Counter(
        graph.tensors[number].dtype
        for graph, operator in file.operators()
        for number in operator.outputs
        if number >= 0
    )
    weights, scale_bytes = _constants(file)
    return Audit(
        ops=dict(sorted(Counter(operator.name for operator in operators).items())),
        custom=tuple(sorted({operator.custom for operator in operators if operator.custom})),
        types=dict(sorted(types.items())),
        weights=weights,
        scale_bytes=scale_bytes,
        other_bytes=file.bytes - sum(weights.values()) - scale_bytes,
        islands=tuple(_islands(file, layers)),
    )


def _constants(file: files.File) -> tuple[dict[str, int], int]:
    """Count the bytes of constants by type, shared buffers once, and those of scales."""
    seen: dict[int, tuple[str, int]] = {}
    scales = 0
    for graph in file.graphs:
        for tensor in graph.tensors:
            if tensor.constant:
                seen.setdefault(tensor.buffer, (tensor.dtype, len(tensor.data)))
            scales += tensor.scales.size * _SCALE_BYTES
            scales += tensor.zero_points.size * _ZERO_POINT_BYTES
    weights: Counter[str] = Counter()
    for dtype, size in seen.values():
        weights[dtype] += size
    return dict(sorted(weights.items())), scales


def _islands(file: files.File, layers: Collection[str]) -> Iterator[Island]:
    """Group the float operators of each graph that hand tensors on to each other."""
    if not _computes_in_whole_numbers(file):
        return
    for graph in file.graphs:
        groups: list[tuple[set[int], list[files.Operator]]] = []
        for operator in graph.operators:
            touched = _computed_floats(graph, operator)
            if operator.name in _ENDS or not touched:
                continue
            joined = [group for group in groups if group[0] & touched]
            groups = [group for group in groups if not group[0] & touched]
            numbers = touched.union(*(group[0] for group in joined))
            members = [member for group in joined for member in group[1]]
            groups.append((numbers, [*members, operator]))
        for _, members in groups:
            found = dict.fromkeys(layer_of(graph, member, layers) for member in members)
            yield Island(
                tuple(name for name in found if name), tuple(member.name for member in members)
            )


def _computes_in_whole_numbers(file: files.File) -> bool:
    """Say whether the ends of a file, or an operator's both sides, are quantised.

    Weights of whole numbers that are unpacked to float, and rows looked up in a table of such, are
    no computing: those files are float throughout.
    """

    def some(graph: files.Graph, numbers: tuple[int, ...]) -> bool:
        tensors = [graph.tensors[number] for number in numbers if number >= 0]
        return any(tensor.is_quantised and not tensor.constant for tensor in tensors)

    ends = any(some(graph, (*graph.inputs, *graph.outputs)) for graph in file.graphs[:1])
    return ends or any(
        some(graph, operator.inputs) and some(graph, operator.outputs)
        for graph, operator in file.operators()
    )


def _computed_floats(graph: files.Graph, operator: files.Operator) -> set[int]:
    numbers = [number for number in (*operator.inputs, *operator.outputs) if number >= 0]
    return {
        number
        for number in numbers
        if graph.tensors[number].is_float and not graph.tensors[number].constant
    }


def layer_of(graph: files.Graph, operator: files.Operator, layers: Collection[str] = ()) -> str:
    """Name the layer that an operator comes from, by its outputs, its constants, its inputs.

    Args:
        graph: The graph of the operator.
        operator: The operator.
        layers: The names that there are; Keras and TensorFlow add "_1", "_2" to them.

    Returns:
        The name, or "" where no tensor tells it.
    """
    inputs = [number for number in operator.inputs if number >= 0]
    constants = [number for number in inputs if graph.tensors[number].constant]
    for number in (*operator.outputs, *constants, *inputs):
        for path in graph.tensors[number].name.split(";") if number >= 0 else ():
            found = _layer(path.split("/"), layers)
            if found:
                return found
    return ""


def _layer(parts: list[str], layers: Collection[str]) -> str:
    if not layers:
        return "/".join(parts[1:-1])
    for part in reversed(parts[:-1]):
        for name in (part, re.sub(r"_\d+$", "", part)):
            if name in layers:
                return name
    return ""
