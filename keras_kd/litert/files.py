"""What is written in a TFLite file: graphs, operators, tensors, constants, metadata."""

from __future__ import annotations

import dataclasses
import functools
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from keras_kd import checks

MAGIC = b"TFL3"
Content = bytes  # `File.bytes` hides the name of the type
_BITS = {"int2": 2, "int4": 4, "uint4": 4}


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """One tensor of a graph.

    Attributes:
        name: As the converter wrote it: paths of the layers it was made from, joined by ";".
        shape: Sizes of its axes; `None` for one that stays open.
        dtype: "float32", "int8", "int4", …: the type in the file.
        buffer: Number of the buffer with its constant; tensors may share one. 0 for none.
        data: Bytes of its constant, empty where it is computed at run time.
        scales: `(n,)` float32: real = scale · (stored − zero point). Empty where not quantised.
        zero_points: `(n,)` int64, as many as scales.
        axis: The axis that has one scale an entry, where there are several scales.
        variable: Whether it keeps its value between runs.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    buffer: int
    data: bytes
    scales: np.ndarray
    zero_points: np.ndarray
    axis: int
    variable: bool

    @property
    def constant(self) -> bool:
        """Whether its value stands in the file."""
        return bool(self.data)

    @property
    def is_float(self) -> bool:
        """Whether it holds floating-point numbers."""
        return "float" in self.dtype

    @property
    def is_quantised(self) -> bool:
        """Whether it holds whole numbers that stand for real ones."""
        return bool(self.scales.size) and not self.is_float

    def stored(self) -> np.ndarray:
        """Return the constant as stored; types below 8 bits come as int8 or uint8.

        Raises:
            ValueError: "has no constant in the file", "cannot be read as numbers".
        """
        if not self.constant:
            raise checks.bad_value(
                f"The tensor {self.name!r} has no constant in the file.",
                given="a tensor that is computed at run time",
                expected="weights, or another constant",
                fix="choose a tensor with `.constant`.",
            )
        shape = tuple(size or 0 for size in self.shape)
        if self.dtype in _BITS:
            values = _unpacked(self.data, self.dtype)[: int(np.prod(shape, dtype="int64"))]
        elif self.dtype in ("string", "resource", "variant") or self.dtype not in np.sctypeDict:
            raise checks.bad_value(
                f"The constant {self.name!r} cannot be read as numbers.",
                given=f"type {self.dtype}",
                expected="a type that NumPy has",
                fix="take the bytes from `.data`.",
            )
        else:
            values = np.frombuffer(self.data, np.dtype(self.dtype).newbyteorder("<"))
        return values.reshape(shape)

    def values(self) -> np.ndarray:
        """Return the constant as real numbers, float32: scale · (stored − zero point)."""
        stored = self.stored().astype("float32")
        if not self.is_quantised:
            return stored
        form = [1] * stored.ndim
        if self.scales.size > 1:
            form[self.axis] = self.scales.size
        return (stored - self.zero_points.reshape(form)) * self.scales.reshape(form)


@dataclasses.dataclass(frozen=True)
class Operator:
    """One step of a graph: its name in the TFLite schema, and tensors by number (−1: none).

    A custom operator is named "CUSTOM" and has its own name in `custom`. `options` are those of
    the schema ("strideW", "keepNumDims", …), by name.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    custom: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Graph:
    """Operators in the order they run, the tensors they are about, and its ends by number."""

    name: str
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class File:
    """A TFLite file, read once.

    Attributes:
        path: Where it was read.
        bytes: Its size.
        version: Of the schema (3).
        graphs: The first one is the one that runs; others are bodies of loops and branches.
        signatures: Name to {"inputs": {name: tensor number}, "outputs": {…}, "graph": number}.
        metadata: Name to bytes.
    """

    path: Path
    bytes: int
    version: int
    graphs: tuple[Graph, ...]
    signatures: Mapping[str, Mapping[str, Any]]
    metadata: Mapping[str, Content]

    def operators(self) -> Iterator[tuple[Graph, Operator]]:
        """Yield every operator with its graph."""
        for graph in self.graphs:
            for operator in graph.operators:
                yield graph, operator


def read(path: str | Path) -> File:
    """Read a TFLite file: every graph, operator, tensor and constant.

    Use it to look into a file without running it. Needs `ai-edge-litert` and NumPy alone.

    Args:
        path: The `.tflite` file.

    Returns:
        A `File`; what is in it does not change when the file does.

    Raises:
        ValueError: "is not a TFLite file", "is damaged".
        FileNotFoundError: where there is no such file.

    Example:
        ```python
        import tempfile

        import keras
        import numpy as np

        import keras_kd as kd
        from keras_kd.litert import files

        student = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3)])
        x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
        with tempfile.TemporaryDirectory() as folder:
            made = kd.export_student(student, folder, ["tflite"], verification_data=x)
            file = files.read(made["tflite"].path)
        print([operator.name for graph, operator in file.operators()])  # ['FULLY_CONNECTED']
        ```
    """
    path = Path(path)
    model = read_model(path)
    graphs = tuple(_graph(model, graph) for graph in model.subgraphs or [])
    signatures = {
        _text(signature.signatureKey): {
            "inputs": {_text(part.name): part.tensorIndex for part in signature.inputs or []},
            "outputs": {_text(part.name): part.tensorIndex for part in signature.outputs or []},
            "graph": signature.subgraphIndex,
        }
        for signature in model.signatureDefs or []
    }
    metadata = {_text(entry.name): _content(model, entry.buffer) for entry in model.metadata or []}
    return File(path, path.stat().st_size, model.version, graphs, signatures, metadata)


def read_model(path: Path) -> schema.ModelT:
    """Read a file as an object of the schema, or say that it is none."""
    content = path.read_bytes()
    if content[4:8] != MAGIC:
        raise checks.bad_value(
            f"{str(path)!r} is not a TFLite file.",
            given=f"a file of {len(content)} bytes that begins with {content[:8]!r}",
            expected=f"the mark {MAGIC.decode()} after four bytes",
            fix="give the `.tflite` file that an export wrote.",
        )
    try:
        return flatbuffer_utils.read_model_from_bytearray(content)
    except (
        struct.error, IndexError, KeyError, TypeError, ValueError, OverflowError, MemoryError,
        AttributeError,
    ) as error:  # fmt: skip
        raise checks.bad_value(
            f"{str(path)!r} is damaged.",
            given=f"{len(content)} bytes whose parts do not fit together ({error})",
            expected="a TFLite file as it was written",
            fix="copy it again, or export the student again.",
        ) from error


def _graph(model: schema.ModelT, graph: schema.SubGraphT) -> Graph:
    return Graph(
        _text(graph.name),
        tuple(_tensor(model, tensor) for tensor in graph.tensors or []),
        tuple(_operator(model, operator) for operator in graph.operators or []),
        _numbers(graph.inputs),
        _numbers(graph.outputs),
    )


def _tensor(model: schema.ModelT, tensor: schema.TensorT) -> Tensor:
    shape = _numbers(tensor.shape)
    signature = _numbers(tensor.shapeSignature) or shape
    quantisation = tensor.quantization or schema.QuantizationParametersT()
    scales = np.array(_some(quantisation.scale), "float32")
    zero_points = np.array(_some(quantisation.zeroPoint), "int64")
    return Tensor(
        name=_text(tensor.name),
        shape=tuple(None if size < 0 else size for size in signature),
        dtype=_types()[tensor.type],
        buffer=tensor.buffer,
        data=_content(model, tensor.buffer),
        scales=scales,
        zero_points=zero_points if zero_points.size else np.zeros(scales.shape, "int64"),
        axis=quantisation.quantizedDimension,
        variable=bool(tensor.isVariable),
    )


def _operator(model: schema.ModelT, operator: schema.OperatorT) -> Operator:
    code = model.operatorCodes[operator.opcodeIndex]
    number = flatbuffer_utils.get_builtin_code_from_operator_code(code)
    options = operator.builtinOptions or operator.builtinOptions2
    return Operator(
        _operators().get(number, f"OPERATOR_{number}"),
        _numbers(operator.inputs),
        _numbers(operator.outputs),
        _text(code.customCode),
        {} if options is None else dict(vars(options)),
    )


@functools.cache
def _operators() -> dict[int, str]:
    named = vars(schema.BuiltinOperator).items()
    return {value: name for name, value in named if isinstance(value, int)}


@functools.cache
def _types() -> dict[int, str]:
    named = vars(schema.TensorType).items()
    return {value: name.lower() for name, value in named if isinstance(value, int)}


def _content(model: schema.ModelT, buffer: int) -> bytes:
    data = model.buffers[buffer].data
    return b"" if data is None else bytes(data)


def _some(values: Any) -> Any:
    return [] if values is None else values


def _numbers(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in _some(values))


def _text(value: bytes | str | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


def _unpacked(data: bytes, dtype: str) -> np.ndarray:
    """Spread types below 8 bits, the first value in the lowest bits of its byte."""
    bits = _BITS[dtype]
    packed = np.frombuffer(data, "uint8")
    shifts = np.arange(0, 8, bits, dtype="uint8")
    values = ((packed[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1).astype("int8")
    if dtype.startswith("u"):
        return values.astype("uint8")
    return np.where(values >= 1 << (bits - 1), values - (1 << bits), values).astype("int8")
