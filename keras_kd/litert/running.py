"""Run a TFLite file with LiteRT, the way its users do: one example at a time, no TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from keras_kd import checks
from keras_kd.litert.silence import silent


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """One input or output of a file.

    Attributes:
        shape: Sizes of its axes, the batch first; `None` for an open one.
        dtype: The type that the file takes or gives: "float32", "int8", …
        scale: One step of a quantised tensor in real units: real = scale · (stored − zero point).
            `None` where it is not quantised.
        zero_point: The stored number that stands for 0; `None` where it is not quantised.
        index: Number of the tensor in LiteRT.
    """

    shape: tuple[int | None, ...]
    dtype: str
    scale: float | None
    zero_point: int | None
    index: int

    @property
    def range(self) -> tuple[float, float] | None:
        """The smallest and largest real number it can hold; `None` where it is not quantised."""
        if self.scale is None or self.zero_point is None:
            return None
        kind = np.iinfo(self.dtype)
        return (
            (kind.min - self.zero_point) * self.scale,
            (kind.max - self.zero_point) * self.scale,
        )

    def quantise(self, values: np.ndarray) -> np.ndarray:
        """Return what the file takes for real numbers: rounded half to even, clipped to the type.

        Stored = clip(round(real / scale) + zero point). Where the tensor is not quantised, the
        numbers only get its type.
        """
        if self.scale is None or self.zero_point is None:
            return values.astype(self.dtype)
        kind = np.iinfo(self.dtype)
        whole = np.rint(values.astype("float64") / self.scale) + self.zero_point
        return np.clip(whole, kind.min, kind.max).astype(self.dtype)

    def dequantise(self, stored: np.ndarray) -> np.ndarray:
        """Return the real numbers, float32; where the tensor is not quantised, as they are."""
        if self.scale is None or self.zero_point is None:
            return stored
        return (stored.astype("float32") - np.float32(self.zero_point)) * np.float32(self.scale)

    def to_dict(self) -> dict[str, Any]:
        """Return shape, dtype and, where quantised, scale and zero point, ready for JSON."""
        told: dict[str, Any] = {"shape": list(self.shape), "dtype": self.dtype}
        if self.scale is not None:
            told |= {"scale": self.scale, "zero_point": self.zero_point}
        return told


class Runner:
    """A TFLite file, ready to run on arrays of any number of examples.

    Files take one example at a time, so the examples are run one after the other, as on a phone.
    Axes that the file leaves open are resized to what comes in.

    Args:
        path: The `.tflite` file.
        threads: Threads that LiteRT may use. Default 1.
        xnnpack: Whether operators may run in XNNPACK, as LiteRT does by default; else all run
            in LiteRT's own kernels. The two may differ by one output step.

    Attributes:
        inputs: Name to `TensorInfo`, by the signature of the file.
        outputs: The same of what it answers.

    Raises:
        ValueError: "does not run", "does not take these inputs", "takes whole batches of".

    Example:
        ```python
        import tempfile

        import keras
        import numpy as np

        import keras_kd as kd
        from keras_kd.litert.running import Runner

        student = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3)])
        x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
        with tempfile.TemporaryDirectory() as folder:
            made = kd.export_student(student, folder, ["tflite"], verification_data=x)
            runner = Runner(made["tflite"].path)
        print(runner.run({"x": x})["output"].shape)  # (8, 3)
        ```
    """

    def __init__(self, path: str | Path, *, threads: int = 1, xnnpack: bool = True) -> None:
        """Load the file and lay out its memory."""
        self.path = Path(path)
        resolver = OpResolverType.AUTO
        if not xnnpack:
            resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        try:
            with silent():
                self.interpreter = Interpreter(
                    model_path=str(path),
                    num_threads=checks.count("threads", threads),
                    experimental_op_resolver_type=resolver,
                )
                self.interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise self._does_not_run(error) from error
        found = _named(self.interpreter)
        self.inputs, self.outputs = ({n: _info(d) for n, d in part.items()} for part in found)
        self._sizes = {name: tuple(detail["shape"]) for name, detail in found[0].items()}

    def run(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answer real numbers with real numbers.

        Args:
            arrays: Input name to array, batch first, of real numbers; what a quantised input
                takes is rounded half to even and clipped to its range.

        Returns:
            Output name to array, batch first: float32; whole numbers that stand for themselves
            (class numbers) as they are.
        """
        self._check(arrays)
        raw = self.run_raw(
            {name: self.inputs[name].quantise(np.asarray(arrays[name])) for name in self.inputs}
        )
        return {name: self.outputs[name].dequantise(value) for name, value in raw.items()}

    def run_raw(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answer what the file takes with what the file gives, in its own types."""
        self._check(arrays)
        count = len(next(iter(arrays.values())))
        size = next(iter(self.inputs.values())).shape[0] or count
        if count % size:
            raise checks.bad_value(
                f"{self.path.name} takes whole batches of {size}.",
                given=f"{count} examples",
                expected=f"a multiple of {size}",
                fix="give as many, and leave out the answers of those that fill up.",
            )
        rows = []
        with silent():
            for at in range(0, count, size):
                rows.append(self._step({n: v[at : at + size] for n, v in arrays.items()}))
        return {
            name: np.concatenate([np.atleast_1d(row[name]) for row in rows])
            for name in self.outputs
        }

    def _step(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph once."""
        try:
            if any(self._sizes[name] != value.shape for name, value in values.items()):
                for name, value in values.items():
                    self.interpreter.resize_tensor_input(self.inputs[name].index, value.shape)
                    self._sizes[name] = value.shape
                self.interpreter.allocate_tensors()
            for name, value in values.items():
                self.interpreter.set_tensor(self.inputs[name].index, value)
            self.interpreter.invoke()
            return {
                name: self.interpreter.get_tensor(info.index) for name, info in self.outputs.items()
            }
        except (RuntimeError, ValueError) as error:
            raise self._does_not_run(error) from error

    def _check(self, arrays: Mapping[str, np.ndarray]) -> None:
        given = {name: np.shape(value) for name, value in arrays.items()}
        fits = set(given) == set(self.inputs) and len({shape[:1] for shape in given.values()}) == 1
        if not fits or not all(
            len(shape) == len(self.inputs[name].shape)
            and shape[0] > 0
            and all(
                want in (None, have)
                for want, have in zip(self.inputs[name].shape[1:], shape[1:], strict=True)
            )
            for name, shape in given.items()
        ):
            wanted = {name: ("examples", *info.shape[1:]) for name, info in self.inputs.items()}
            raise checks.bad_value(
                f"{self.path.name} does not take these inputs.",
                given=", ".join(f"{name!r}: {shape}" for name, shape in given.items()) or "none",
                expected=", ".join(f"{name!r}: {shape}" for name, shape in wanted.items()),
                fix="give one array an input, by its name, the examples first.",
            )

    def _does_not_run(self, error: Exception) -> ValueError:
        return checks.bad_value(
            "The TFLite file does not run.",
            given=f"{self.path.name}: {error}",
            expected="a file that LiteRT loads and runs",
            fix="look for layers that mix open axes and reshapes, for operators that need Flex or "
            "custom kernels, or use formats=['saved_model'].",
        )


def _named(interpreter: Interpreter) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what LiteRT says of inputs and outputs, by the names of the signature that runs."""
    ends = interpreter.get_input_details(), interpreter.get_output_details()
    numbers = [{detail["index"] for detail in end} for end in ends]
    for key in interpreter.get_signature_list():
        runner = interpreter.get_signature_runner(key)
        found = runner.get_input_details(), runner.get_output_details()
        if [{detail["index"] for detail in part.values()} for part in found] == numbers:
            return found
    inputs, outputs = ({detail["name"]: detail for detail in end} for end in ends)
    return inputs, outputs


def _info(detail: Mapping[str, Any]) -> TensorInfo:
    scale, zero_point = detail["quantization"]
    return TensorInfo(
        shape=tuple(None if size < 0 else int(size) for size in detail["shape_signature"]),
        dtype=np.dtype(detail["dtype"]).name,
        scale=float(scale) if scale else None,
        zero_point=int(zero_point) if scale else None,
        index=int(detail["index"]),
    )
