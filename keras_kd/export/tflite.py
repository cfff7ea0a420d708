"""TFLite in float32: for phones, batch 1, builtin operators only; run back with LiteRT.

This is the one module that uses `tf.lite`.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils
from tensorflow.lite.python.convert_phase import ConverterError

from keras_kd import checks
from keras_kd.export import base


class TFLite(base.Target):
    """A file for LiteRT with builtin operators, float32 weights and a batch of one example.

    Axes other than the batch that are `None` in the student (time, height, width) stay open: the
    runtime resizes them (`interpreter.get_signature_runner()` does so by itself), and the file is
    verified at every size that the verification data has.
    """

    file = "{name}.tflite"

    def write(
        self, student: base.Student, path: Path, calibration: base.Calibration | None = None
    ) -> None:
        """Convert through a SavedModel of batch 1, the way that keeps names clean."""
        with tempfile.TemporaryDirectory() as folder, base.quiet() as printed:
            source = Path(folder) / "saved_model"
            student.write_saved_model(source, batch=1)
            converter = tf.lite.TFLiteConverter.from_saved_model(str(source))
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
            try:
                content = converter.convert()
            except (ConverterError, RuntimeError, ValueError) as error:
                raise _refusal(student, f"{error}\n{printed()}") from error
        path.write_bytes(content)

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
            try:
                with base.quiet():
                    rows = [
                        runner(**{name: value[at : at + 1] for name, value in arrays.items()})
                        for at in range(count)
                    ]
            except (RuntimeError, ValueError) as error:
                raise _does_not_run(path, error) from error
            return {name: np.concatenate([row[name] for row in rows]) for name in outputs}

        return base.Opened(run, _told(inputs), _told(outputs), _ops(path))


def _told(details: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "shape": [None if size < 0 else int(size) for size in detail["shape_signature"]],
            "dtype": np.dtype(detail["dtype"]).name,
        }
        for name, detail in sorted(details.items())
    }


def _ops(path: Path) -> dict[str, int]:
    """Count the operators of every subgraph by their names in the TFLite schema."""
    model = flatbuffer_utils.read_model(str(path))
    names = [
        flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex)
        for graph in model.subgraphs
        for operator in graph.operators
    ]
    return dict(sorted(Counter(names).items()))


def _refusal(student: base.Student, text: str) -> ValueError:
    """Say which operators have no builtin kernel, or show the end of what the converter said."""
    listed = re.findall(r"^(?:Custom|TF Select|Flex) ops: (.+)$", text, flags=re.MULTILINE)
    single = re.findall(r"'tf\.(\w+)' op is neither a custom op nor a flex op", text)
    ops = sorted({op.strip() for line in listed for op in line.split(",")} | set(single))
    if ops:
        return checks.bad_value(
            "The student cannot be expressed in TFLite's builtin operators.",
            given=f"{student.model.name!r} uses {', '.join(ops)}",
            expected="operators that LiteRT runs everywhere (no custom, no TF Select operator)",
            fix=f"replace what makes {ops[0]}, or export with formats=['saved_model'].",
        )
    said = re.findall(r"error: (?:loc\(.*\): )?(.+)", text) or [" ".join(text.split())[-500:]]
    return checks.bad_value(
        "The TFLite converter failed on the student.",
        given=f"{student.model.name!r}: {said[0]}",
        expected="a model that converts with a batch of 1",
        fix="unroll its loops (`unroll=True` in LSTM and GRU), or use formats=['saved_model'].",
    )


def _does_not_run(path: Path, error: Exception) -> ValueError:
    return checks.bad_value(
        "The TFLite file does not run, so it was not kept.",
        given=f"{path.name}: {error}",
        expected="a file that LiteRT loads and runs on the verification data",
        fix="look for layers that mix open axes and reshapes, or use formats=['saved_model'].",
    )


TARGET = TFLite()
