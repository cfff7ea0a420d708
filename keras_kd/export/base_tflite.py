"""What the TFLite targets share: refusals by name, conversion in a child, running with LiteRT."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import ClassVar

from keras_kd import checks
from keras_kd.export import base
from keras_kd.litert import converting, files, running

LOOPS = ("While", "StatelessWhile")
FLOAT = ("tflite", "tflite_float16", "tflite_dynamic")

STEPS = 20
WHOLE = base.Bounds(
    agreement=0.95, accuracy_drop=0.02, steps=STEPS, saturation=0.01, float_islands=0
)
"""What files of int8 must keep. Calibrated with 300 examples, trained students of the recipes were
4 to 10 steps off at most where they were right, and 37 and 136 where a feature got lost."""


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
        runner = running.Runner(path)
        inputs, outputs = (
            {name: info.to_dict() for name, info in sorted(ends.items())}
            for ends in (runner.inputs, runner.outputs)
        )
        ops = Counter(operator.name for _, operator in files.read(path).operators())
        return base.Opened(runner.run, inputs, outputs, dict(sorted(ops.items())))


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
