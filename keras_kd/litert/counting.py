"""What a TFLite file costs on any device: multiplications, parameters, working memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_kd.litert import files
from keras_kd.litert.examples import random_inputs
from keras_kd.litert.running import Runner

ALIGNMENT = 64
"""LiteRT begins every tensor at a multiple of so many bytes (`kDefaultTensorAlignment`)."""

_GRAPHS = (
    "condSubgraphIndex", "bodySubgraphIndex", "thenSubgraphIndex", "elseSubgraphIndex", "subgraph",
)  # fmt: skip
_UNCOUNTED = (
    "BIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_RNN", "CUSTOM", "LSTM", "RNN", "SVDF",
    "UNIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Counts:
    """Multiply-accumulates and parameters of a file.

    Attributes:
        macs: Multiply-accumulates of one run, those in loops and branches apart.
        loop_macs: Those of the bodies of loops and branches, each once. The file does not say how
            often a loop turns.
        by_operator: Operator to its share of `macs` and `loop_macs` together.
        parameters: Numbers in constants that stand for real numbers: weights, biases, scalings.
            Shapes and axes are none. BatchNorm that the converter folded into a convolution is
            in its weights, so there are fewer than `keras.Model.count_params` gives.
        open_axes: Whether an axis of what was counted stays open; it counts as 1, and `macs` is
            the least.
        uncounted: Operators that multiply matrices in a way that is not counted here.
    """

    macs: int
    loop_macs: int
    by_operator: dict[str, int]
    parameters: int
    open_axes: bool
    uncounted: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        return dataclasses.asdict(self) | {"uncounted": list(self.uncounted)}


def count(path: str | Path) -> Counts:
    """Count the multiply-accumulates (MACs) and the parameters of a TFLite file.

    Use it to compare networks apart from any machine. With o the number of values that come out:

        CONV_2D, CONV_3D      o · kernel positions · channels in of a group
        DEPTHWISE_CONV_2D     o · kernel positions
        FULLY_CONNECTED       o · values in
        TRANSPOSE_CONV        values in · kernel positions · channels out
        BATCH_MATMUL          o · columns of the first factor

    Additions of biases, activations, pooling and elementwise operators are not MACs.

    Args:
        path: The `.tflite` file.

    Returns:
        `Counts`.

    Raises:
        ValueError: "is not a TFLite file", "is damaged".

    Example:
        ```python
        import tempfile

        import keras
        import numpy as np

        import keras_kd as kd
        from keras_kd.litert.counting import count

        student = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3)])
        x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
        with tempfile.TemporaryDirectory() as folder:
            made = kd.export_student(student, folder, ["tflite"], verification_data=x)
            print(count(made["tflite"].path).macs)  # 3 · 4 = 12
        ```
    """
    return count_file(files.read(path))


def count_file(file: files.File) -> Counts:
    """Count as `count` does, in a file that was read before."""
    by_operator: dict[str, int] = {}
    macs, open_axes, uncounted = [0, 0], False, set()
    buffers: dict[int, int] = {}
    for number, graph in _reached(file):
        for operator in graph.operators:
            if operator.name in _UNCOUNTED:
                uncounted.add(operator.custom or operator.name)
            if operator.name in _MACS:
                found, is_open = _macs(graph, operator)
                by_operator[operator.name] = by_operator.get(operator.name, 0) + found
                macs[number != 0] += found
                open_axes |= is_open
            for tensor in _tensors(graph, operator.inputs):
                if tensor.constant and (tensor.is_float or tensor.is_quantised):
                    buffers[tensor.buffer] = _size(tensor)  # tensors may share one
    return Counts(
        macs[0], macs[1], dict(sorted(by_operator.items())), sum(buffers.values()), open_axes,
        tuple(sorted(uncounted)),
    )  # fmt: skip


def arena_bytes(path: str | Path, *, open_axes: int = 1) -> int:
    """Return the working memory that LiteRT lays out for a file, in bytes.

    Use it to see whether a file fits a small device. It is measured, not estimated: the file is
    run once by LiteRT's own kernels (without XNNPACK, which keeps memory of its own), and the
    addresses of all tensors that are no constants of the file are read: activations, kernels'
    scratch, weights that are unpacked to float32 at the start. Bytes that several tensors use one
    after the other count once; each tensor is rounded up to 64 bytes, as LiteRT does. The bodies
    of loops are laid out apart where no one sees them: their share is planned (`planned_bytes`).

    Args:
        path: The `.tflite` file.
        open_axes: Size of the axes that the file leaves open. Default 1.

    Raises:
        ValueError: "is not a TFLite file", "is damaged", "does not run", "`open_axes` must be a
            whole number of 1 or more".

    Example:
        ```python
        import tempfile

        import keras
        import numpy as np

        import keras_kd as kd
        from keras_kd.litert.counting import arena_bytes

        student = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3)])
        x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
        with tempfile.TemporaryDirectory() as folder:
            made = kd.export_student(student, folder, ["tflite"], verification_data=x)
            print(arena_bytes(made["tflite"].path))  # 64 for what goes in, 64 for what comes out
        ```
    """
    file = files.read(path)
    runner = Runner(path, xnnpack=False)
    runner.run_raw(random_inputs(file, runner.inputs, open_axes=open_axes))
    constants = {at for at, tensor in enumerate(file.graphs[0].tensors) if tensor.constant}
    spans = []
    for detail in runner.interpreter.get_tensor_details():
        number, bytes_ = detail["index"], np.dtype(detail["dtype"]).itemsize
        bytes_ *= math.prod(map(int, detail["shape"]))
        if number not in constants and bytes_:
            start = _address(runner, number)
            spans += [] if start is None else [(start, start + _aligned(bytes_))]
    bodies = (planned_bytes(graph) for number, graph in _reached(file) if number)
    return _covered(spans) + sum(bodies)


def planned_bytes(graph: files.Graph) -> int:
    """Plan the memory of a graph from its tensors' lifetimes, as LiteRT's planner does.

    Largest first, each into the smallest gap between the tensors that live at the same time
    (greedy by size: Pisarchyk and Lee, 2020, arXiv:2001.03288); what lives throughout comes
    before. Kernels' scratch is not in the file, and results that LiteRT writes over their operand
    get a place of their own here.

    Args:
        graph: One of `files.read(path).graphs`; an open axis counts as 1.

    Returns:
        Bytes from the first to the last.
    """
    lives = _lifetimes(graph)
    last = len(graph.operators)

    def order(number: int) -> tuple:
        first, end = lives[number]
        throughout = (first, end) == (0, last)
        return (not throughout, 0 if throughout else -_bytes(graph.tensors[number]), first)

    placed: list[tuple[int, int, int]] = []  # tensor, start, end
    for number in sorted(lives, key=order):
        first, end = lives[number]
        size = _aligned(_bytes(graph.tensors[number]))
        taken = sorted(
            (start, stop) for other, start, stop in placed
            if lives[other][0] <= end and first <= lives[other][1]
        )  # fmt: skip
        start = _best_gap(taken, size)
        placed.append((number, start, start + size))
    return max((stop for _, _, stop in placed), default=0)


def _best_gap(taken: list[tuple[int, int]], size: int) -> int:
    """Return where `size` bytes leave the least unused, or the end where no gap is large enough."""
    best, least, at = None, math.inf, 0
    for start, stop in taken:
        if size <= start - at < least:
            best, least = at, start - at
        at = max(at, stop)
    return at if best is None else best


def _lifetimes(graph: files.Graph) -> dict[int, tuple[int, int]]:
    """Return the first and last operator that needs each tensor; ends of the graph stay alive."""
    last = len(graph.operators)
    lives: dict[int, list[int]] = {number: [0, last] for number in graph.inputs}
    for at, operator in enumerate(graph.operators):
        for number in (*operator.inputs, *operator.outputs):
            if number >= 0 and not graph.tensors[number].constant:
                life = lives.setdefault(number, [at, at])
                life[1] = max(life[1], at)
    for number, tensor in enumerate(graph.tensors):
        if number in lives and (tensor.variable or number in graph.outputs):
            lives[number][1] = last
    return {number: (first, end) for number, (first, end) in lives.items()}


def _covered(spans: list[tuple[int, int]]) -> int:
    """Return how many bytes lie in one span or more."""
    total, reached = 0, 0
    for start, stop in sorted(spans):
        total += max(0, stop - max(start, reached))
        reached = max(reached, stop)
    return total


def _address(runner: Runner, number: int) -> int | None:
    """Return where a tensor lies; `None` for one that LiteRT gave no memory."""
    try:
        return runner.interpreter.tensor(number)().__array_interface__["data"][0]
    except ValueError:
        return None


def _reached(file: files.File) -> Iterator[tuple[int, files.Graph]]:
    """Yield the graph that runs, and those that its loops and branches run, each once."""
    waiting, seen = [0] if file.graphs else [], set()
    while waiting:
        number = waiting.pop(0)
        if number in seen:
            continue
        seen.add(number)
        yield number, file.graphs[number]
        for operator in file.graphs[number].operators:
            named = (operator.options.get(name) for name in _GRAPHS)
            waiting += [other for other in named if isinstance(other, int)]


def _macs(graph: files.Graph, operator: files.Operator) -> tuple[int, bool]:
    """Return an operator's MACs, and whether an axis in them is open."""
    inputs, (out, *_) = _tensors(graph, operator.inputs), _tensors(graph, operator.outputs)
    return _MACS[operator.name](inputs, out), any(None in t.shape for t in (*inputs, out))


def _convolution(inputs: list[files.Tensor], out: files.Tensor) -> int:
    _, *kernel_and_channels = _shape(inputs[1])  # (out, height, width, in)
    return _size(out) * math.prod(kernel_and_channels)


def _convolution_3d(inputs: list[files.Tensor], out: files.Tensor) -> int:
    *kernel_and_channels, _ = _shape(inputs[1])  # (depth, height, width, in, out)
    return _size(out) * math.prod(kernel_and_channels)


def _depthwise(inputs: list[files.Tensor], out: files.Tensor) -> int:
    _, height, width, _ = _shape(inputs[1])  # (1, height, width, out)
    return _size(out) * height * width


def _dense(inputs: list[files.Tensor], out: files.Tensor) -> int:
    return _size(out) * _shape(inputs[1])[-1]  # (out, in)


def _transposed(inputs: list[files.Tensor], out: files.Tensor) -> int:
    *out_and_kernel, _ = _shape(inputs[1])  # (out, height, width, in); inputs[0] is a shape
    return _size(inputs[2]) * math.prod(out_and_kernel)


def _product(inputs: list[files.Tensor], out: files.Tensor) -> int:
    rows = _shape(out)[-2]
    return _size(out) * (math.prod(_shape(inputs[0])[-2:]) // rows)  # either way up


_MACS = {
    "BATCH_MATMUL": _product,
    "CONV_2D": _convolution,
    "CONV_3D": _convolution_3d,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _dense,
    "TRANSPOSE_CONV": _transposed,
}


def _tensors(graph: files.Graph, numbers: tuple[int, ...]) -> list[files.Tensor]:
    return [graph.tensors[number] for number in numbers if number >= 0]


def _shape(tensor: files.Tensor) -> tuple[int, ...]:
    return tuple(1 if size is None else size for size in tensor.shape)


def _size(tensor: files.Tensor) -> int:
    return math.prod(_shape(tensor))


def _bytes(tensor: files.Tensor) -> int:
    dtype = "uint8" if tensor.dtype not in np.sctypeDict else tensor.dtype
    return _size(tensor) * np.dtype(dtype).itemsize


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
