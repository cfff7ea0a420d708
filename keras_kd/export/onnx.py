"""ONNX in float32: for ONNX Runtime and its many hosts, with an open batch axis.

Needs the extra: `pip install keras_kd[onnx]` (tf2onnx, onnx, onnxruntime).
"""

from __future__ import annotations

import importlib
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from keras_kd import checks
from keras_kd.export import base

OPSET = 18
"""The newest set of operators that tf2onnx is tested with; ONNX Runtime reads it since 1.14."""


class ONNX(base.Target):
    """A file for ONNX Runtime; images stay (batch, height, width, channels).

    The batch axis is open, and so is every other axis that is `None` in the student.
    """

    file = "{name}.onnx"

    def refuses(self, student: base.Student) -> str | None:
        """Refuse a student with trained ranges: its FakeQuant operators belong to TFLite."""
        if not student.carries_ranges:
            return None
        return checks.message(
            f"The {self.format} format is not for a student with trained ranges.",
            given=f"{student.model.name!r} holds FakeQuant operators (quantisation-aware training)",
            expected="formats=['tflite_int8'] or ['tflite_uint8'], which use the ranges",
            fix="for this format take the float form: keras_kd.compress.float_student(student).",
        )

    def write(
        self, student: base.Student, path: Path, calibration: base.Calibration | None = None
    ) -> None:
        """Freeze the student's graph and translate it, operator by operator."""
        onnx = _extra("onnx")
        with base.quiet():
            model = _translated(student)
        missing = sorted(set(_unknown(onnx, model)))
        if missing:
            raise checks.bad_value(
                "The student cannot be expressed in ONNX operators.",
                given=f"{student.model.name!r} uses {', '.join(missing)}",
                expected=f"TensorFlow operators that tf2onnx translates to opset {OPSET}",
                fix=f"replace what makes {missing[0]}, or export with formats=['saved_model'].",
            )
        onnx.save(model, str(path))

    def open(self, path: Path) -> base.Opened:
        """Load the file in ONNX Runtime, on the CPU."""
        onnx, runtime = _extra("onnx"), _extra("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors only
        refused = runtime.capi.onnxruntime_pybind11_state
        try:
            session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except (refused.InvalidGraph, refused.Fail, refused.NotImplemented) as error:
            raise _does_not_run(path, error) from error
        outputs = [output.name for output in session.get_outputs()]

        def run(arrays: base.Arrays) -> dict[str, np.ndarray]:
            try:
                values = session.run(outputs, dict(arrays))
            except (refused.InvalidArgument, refused.RuntimeException, refused.Fail) as error:
                raise _does_not_run(path, error) from error
            return dict(zip(outputs, map(np.asarray, values), strict=True))

        ops = Counter(node.op_type for node in _nodes(onnx.load(str(path)).graph))
        return base.Opened(
            run,
            _told(session.get_inputs()),
            _told(session.get_outputs()),
            dict(sorted(ops.items())),
        )


def _extra(name: str) -> ModuleType:
    """Import a package of the extra, or say how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            checks.message(
                "The onnx format needs packages that are not installed.",
                given=f"import {name}: {error}",
                expected="tf2onnx, onnx and onnxruntime",
                fix="pip install 'keras_kd[onnx]'",
            )
        ) from error


def _translated(student: base.Student) -> Any:
    """Turn the student into an `onnx.ModelProto` with clean names."""
    convert, logger = _extra("tf2onnx.convert"), logging.getLogger("tf2onnx")
    graph, inputs, outputs = _frozen(student)
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # what it cannot translate is found by `_unknown`
    try:
        model, _ = convert.from_graph_def(
            graph,
            name=student.model.name,
            input_names=list(inputs),
            output_names=list(outputs),
            opset=OPSET,
            custom_op_handlers={"Erfc": (_erfc, [])},
            tensors_to_rename=inputs | outputs,
        )
    finally:
        logger.setLevel(level)
    for value in model.graph.input:
        _name_axes(value, value.name)
    for value in model.graph.output:
        _name_axes(value, value.name)
    return model


def _frozen(student: base.Student) -> tuple[Any, dict[str, str], dict[str, str]]:
    """Return the graph with its weights inside, and its tensors' names to ours.

    tf2onnx freezes by itself, but takes other tensors that the graph caught (a Normalization
    layer's statistics) for inputs.
    """
    import tensorflow as tf
    from tensorflow.python.framework import convert_to_constants

    specs = {t.name: tf.TensorSpec((None, *t.shape[1:]), t.dtype, t.name) for t in student.inputs}
    function = tf.function(student.answer, input_signature=[specs], autograph=False)
    traced = function.get_concrete_function()
    frozen = convert_to_constants.convert_variables_to_constants_v2(
        traced, lower_control_flow=False, aggressive_inlining=True
    )
    names = [sorted(specs), sorted(student.output_names)]  # TensorFlow sorts the keys of a dict
    inputs, outputs = (
        dict(zip((tensor.name for tensor in tensors), names_, strict=True))
        for tensors, names_ in zip((frozen.inputs, frozen.outputs), names, strict=True)
    )
    return frozen.graph.as_graph_def(add_shapes=True), inputs, outputs


def _erfc(context: Any, node: Any, name: str, args: Any) -> None:
    """Write erfc(x), which exact GELU uses and tf2onnx does not know, as 1 - erf(x)."""
    source, result = node.input[0], node.output[0]
    kind, shape = context.get_dtype(result), context.get_shape(result)
    one = context.make_const(f"{node.name}_one", np.float32(1.0))
    context.remove_node(node.name)
    erf = context.make_node("Erf", [source], dtypes=[kind], shapes=[shape])
    context.make_node(
        "Sub", [one.output[0], erf.output[0]], outputs=[result], dtypes=[kind], shapes=[shape]
    )


def _name_axes(value: Any, name: str) -> None:
    """Name open axes after what they are, where tf2onnx counts them through ("unk__196")."""
    for index, axis in enumerate(value.type.tensor_type.shape.dim):
        if axis.dim_param:
            axis.dim_param = "batch" if index == 0 else f"{name}_{index}"


def _nodes(graph: Any) -> Iterator[Any]:
    """Walk the operators of a graph and of the loops and branches in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _unknown(onnx: ModuleType, model: Any) -> Iterator[str]:
    """Name the operators that ONNX does not have: tf2onnx leaves TensorFlow's in their place."""
    sets = {opset.domain: opset.version for opset in model.opset_import}
    for node in _nodes(model.graph):
        if not onnx.defs.has(node.op_type, sets.get(node.domain, 0), node.domain):
            yield node.op_type


def _told(values: list[Any]) -> dict[str, dict[str, Any]]:
    """Lay out names, shapes and types; an open axis is `None`."""
    told = {}
    for value in sorted(values, key=lambda value: value.name):
        shape = [size if isinstance(size, int) else None for size in value.shape]
        kind = value.type.removeprefix("tensor(").removesuffix(")")
        told[value.name] = {"shape": shape, "dtype": _DTYPES.get(kind, kind)}
    return told


_DTYPES = {"float": "float32", "double": "float64"}


def _does_not_run(path: Path, error: Exception) -> ValueError:
    return checks.bad_value(
        "The ONNX file does not run, so it was not kept.",
        given=f"{path.name}: {error}",
        expected="a file that ONNX Runtime loads and runs on the verification data",
        fix="look for layers that mix open axes and reshapes, or use formats=['saved_model'].",
    )


TARGET = ONNX()
