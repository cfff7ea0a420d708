"""Random inputs that a TFLite file can take: for runs whose answers nobody looks at."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from keras_kd import checks
from keras_kd.litert.files import File
from keras_kd.litert.running import TensorInfo

_LOOK_UPS = {"GATHER": (0, 1), "EMBEDDING_LOOKUP": (1, 0)}  # operator: (table, numbers looked up)


def random_inputs(
    file: File, inputs: Mapping[str, TensorInfo], *, open_axes: int = 1, seed: int = 0
) -> dict[str, np.ndarray]:
    """Draw one valid example for every input of a file, in the file's own types.

    Floats are uniform in [-1, 1); quantised whole numbers are uniform over their type. Whole
    numbers that stand for themselves must be rows of every table that the file looks numbers up
    in (embeddings), so they stay below the shortest table; where there is no table they are 0 or
    1, and 8-bit ones (raw images) uniform over their type.

    Args:
        file: What `files.read` gives.
        inputs: Name to `TensorInfo`, as in `Runner.inputs`.
        open_axes: Size of the axes that the file leaves open, above 0.
        seed: Of the random numbers.

    Returns:
        Name to array.

    Raises:
        ValueError: "`open_axes` must be a whole number of 1 or more".

    Example:
        ```python
        from keras_kd.litert.examples import random_inputs
        from keras_kd.litert.files import File
        from keras_kd.litert.running import TensorInfo

        empty = File("a.tflite", 0, 3, (), {}, {})
        image = TensorInfo((1, None), "int8", 0.5, 0, 0)
        print(random_inputs(empty, {"image": image}, open_axes=3)["image"].shape)  # (1, 3)
        ```
    """
    checks.count("open_axes", open_axes)
    rng, rows = np.random.default_rng(seed), _shortest_table(file)
    return {name: _drawn(rng, info, open_axes, rows) for name, info in inputs.items()}


def _drawn(
    rng: np.random.Generator, info: TensorInfo, open_axes: int, rows: int | None
) -> np.ndarray:
    shape, dtype = (
        [open_axes if size is None else size for size in info.shape],
        np.dtype(info.dtype),
    )
    if dtype.kind not in "iu":
        values = rng.uniform(-1, 1, shape)
        return values > 0 if dtype.kind == "b" else values.astype(dtype)
    whole = np.iinfo(dtype)
    if info.scale is not None or (rows is None and dtype.itemsize == 1):
        return rng.integers(whole.min, whole.max, shape, dtype=dtype, endpoint=True)
    return rng.integers(0, min(rows or 2, whole.max), shape, dtype=dtype)


def _shortest_table(file: File) -> int | None:
    """Return the fewest rows of a constant that whole numbers are looked up in."""
    found = []
    for graph, operator in file.operators():
        if operator.name in _LOOK_UPS:
            table, _ = (graph.tensors[operator.inputs[at]] for at in _LOOK_UPS[operator.name])
            if table.constant:
                found.append(table.shape[operator.options.get("axis") or 0] or 1)
    return min(found, default=None)
