"""What the TFLite targets share: refusals by name, conversion in a child, running with LiteRT."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils

from keras_kd import checks
from keras_kd.export import base
from keras_kd.litert import converting

LOOPS = ("While", "StatelessWhile")
FLOAT = ("tflite", "tflite_float16", "tflite_dynamic")


class TFLite(base.Target):
    """A file for LiteRT with builtin operators and a batch of one example.

    Axes other than the batch that are `None` in the student (time, height, width) stay open: the
    runtime resizes them (`interpreter.get_signature_runner()` does so by itself), and the file is
    verified at every size that the verification data has.

    Attributes:
        optimise, float16, ends: What the converter is asked for, as in `converting.Job`.
    """

    optimise: ClassVar[bool] = False
    float16: ClassVar[bool] = False
    ends: ClassVar[str | None] = None

    def refuses(self, student: base.Student) -> str | None:
        """Refuse loops and integer inputs that the quantiser fails on, and trained ranges."""
        if student.carries_ranges and self.ends not in ("int8", "uint8"):
            return _carries_ranges(self, student)
        if self.quantised and any(name in student.operators for name in LOOPS):
            return _loops(self, student)
        if self.quantised and student.carries_ranges and "scaling" in student.options:
            return _scaled_ranges(student)
        whole = [tensor for tensor in student.inputs if "float" not in tensor.dtype]
        if self.ends == "int16" and whole:
            return _whole_inputs(self, student, whole)
        return None

    def write(
        self, student: base.Student, path: Path, calibration: base.Calibration | None = None
    ) -> None:
        """Convert through a SavedModel of batch 1, the way that keeps names clean."""
        if self.needs_calibration(student) and calibration is None:
            raise _uncalibrated(self, student)
        with converting.converter() as converter, tempfile.TemporaryDirectory() as folder:
            converter.start()  # it loads TensorFlow while the SavedModel is written
            source, examples = Path(folder) / "saved_model", Path(folder) / "examples.npz"
            with base.quiet():
                student.write_saved_model(source, batch=1)
            if self.needs_calibration(student) and calibration is not None:
                converting.write_examples(examples, calibration.examples)
            converter.convert(
                converting.Job(
                    model=student.model.name,
                    saved_model=str(source),
                    file=str(path.absolute()),
                    optimise=self.optimise,
                    float16=self.float16,
                    ends=self.ends,
                    examples=str(examples) if examples.exists() else None,
                )
            )

    def open(self, path: Path) -> base.Opened:
        """Load the file in LiteRT and read its operators and its signature."""
        try:
            with base.quiet():
                runner = Interpreter(model_path=str(path)).get_signature_runner(base.ENDPOINT)
        except (RuntimeError, ValueError) as error:
            raise _does_not_run(path, error) from error
        inputs, outputs = runner.get_input_details(), runner.get_output_details()

        def run(arrays: base.Arrays) -> dict[str, np.ndarray]:
            count = len(next(iter(arrays.values())))
            given = {name: _quantised(value, inputs[name]) for name, value in arrays.items()}
            try:
                with base.quiet():
                    rows = [
                        runner(**{name: value[at : at + 1] for name, value in given.items()})
                        for at in range(count)
                    ]
            except (RuntimeError, ValueError) as error:
                raise _does_not_run(path, error) from error
            joined = {name: np.concatenate([row[name] for row in rows]) for name in outputs}
            return {name: _dequantised(value, outputs[name]) for name, value in joined.items()}

        return base.Opened(run, _told(inputs), _told(outputs), _ops(path))


def _quantised(values: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    """Return round(values / scale) + zero point, clipped to the type; others as they are."""
    scale, zero = detail["quantization"]
    if not scale or values.dtype.kind != "f":
        return values
    kind = np.iinfo(detail["dtype"])
    whole = np.rint(values.astype("float64") / scale) + zero
    return np.clip(whole, kind.min, kind.max).astype(detail["dtype"])


def _dequantised(values: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    scale, zero = detail["quantization"]
    return ((values.astype("float32") - zero) * scale).astype("float32") if scale else values


def _told(details: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    told = {}
    for name, detail in sorted(details.items()):
        shape = [None if size < 0 else int(size) for size in detail["shape_signature"]]
        told[name] = {"shape": shape, "dtype": np.dtype(detail["dtype"]).name}
        scale, zero = detail["quantization"]
        if scale:
            told[name] |= {"scale": float(scale), "zero_point": int(zero)}
    return told


def _ops(path: Path) -> dict[str, int]:
    """Count the operators of every subgraph by their names in the TFLite schema."""
    model = flatbuffer_utils.read_model(str(path))
    names = [
        flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex)
        for graph in model.subgraphs
        for operator in graph.operators
    ]
    return dict(sorted(Counter(names).items()))


def _loops(target: TFLite, student: base.Student) -> str:
    import keras

    layers = [
        f"{layer.name!r} ({type(layer).__name__})"
        for layer in student.model._flatten_layers()
        if isinstance(layer, keras.layers.RNN) and not layer.unroll
    ]
    loops = sorted({name for kind in LOOPS for name in student.operators.get(kind, ())})
    return checks.message(
        f"The {target.format} format cannot hold the loops of the student.",
        given=f"{student.model.name!r} loops in {', '.join(layers or map(repr, loops))}",
        expected="layers without a loop: the converter crashes where it quantises one",
        fix="build the student with a fixed number of steps and `unroll=True` in LSTM and GRU, and "
        "give it the weights (`unrolled.set_weights(student.get_weights())`); or use a float "
        f"format: formats={list(FLOAT)}.",
    )


def _carries_ranges(target: TFLite, student: base.Student) -> str:
    return checks.message(
        f"The {target.format} format is not for a student with trained ranges.",
        given=f"{student.model.name!r} holds FakeQuant operators (quantisation-aware training)",
        expected="formats=['tflite_int8'] or ['tflite_uint8'], which use the ranges",
        fix="for this format take the float form: keras_kd.compress.float_student(student).",
    )


def _scaled_ranges(student: base.Student) -> str:
    return checks.message(
        "`scaling` is not for a student with trained ranges.",
        given=f"scaling for {', '.join(student.options['scaling'])}, and no range of the raw "
        f"values in {student.model.name!r}",
        expected="a student whose ranges begin at its raw input",
        fix="put `keras.layers.Rescaling(scale, offset)` first in the student, before "
        "`keras_kd.compress.quantization_aware`, and leave `scaling` out.",
    )


def _whole_inputs(target: TFLite, student: base.Student, whole: list[base.Tensor]) -> str:
    return checks.message(
        f"The {target.format} format does not take inputs of whole numbers.",
        given=", ".join(f"input {tensor.name!r} of type {tensor.dtype}" for tensor in whole),
        expected="inputs of floating-point numbers: the converter finds no range for others",
        fix="use formats=['tflite_int8'] or a float format for this student.",
    )


def _uncalibrated(target: TFLite, student: base.Student) -> ValueError:
    return checks.bad_value(
        f"The {target.format} format needs examples to take its ranges from.",
        given=f"no representative data, and {student.model.name!r} carries no ranges of its own",
        expected="100 or more examples of training data, better 300",
        fix="pass representative_data=..., or train the student with "
        "keras_kd.compress.quantization_aware(student) first.",
    )


def _does_not_run(path: Path, error: Exception) -> ValueError:
    return checks.bad_value(
        "The TFLite file does not run, so it was not kept.",
        given=f"{path.name}: {error}",
        expected="a file that LiteRT loads and runs on the verification data",
        fix="look for layers that mix open axes and reshapes, or use formats=['saved_model'].",
    )
