"""Which formats each recipe's student converts to and runs in, and in which words others refuse."""

from __future__ import annotations

import importlib
import importlib.util

import keras
import numpy as np
import pytest

from keras_kd import export, recipes
from keras_kd.export import base

EXTRA = all(importlib.util.find_spec(name) for name in ("tf2onnx", "onnxruntime"))
FORMATS = [format for format in export.TARGETS if EXTRA or format != "onnx"]
WHOLE = ["tflite_int8", "tflite_uint8", "tflite_int16x8"]
# Every format takes every recipe's student, except these. What a trained student's file keeps of
# its answers is another question, which its certificate answers.
REFUSED = {
    "char_lm": dict.fromkeys(WHOLE, "cannot hold the loops of the student"),
    "char_lm, unrolled": {"tflite_int16x8": "does not take inputs of whole numbers"},
}
# Untrained, calibrated on the examples that are looked at: share of the largest answer.
LOOSE = {"tflite_float16": 0.005, "tflite_dynamic": 0.05} | dict.fromkeys(WHOLE, 0.1)
RECURRENT = 0.3  # of 8-bit activations: the rounding of 48 steps, one after the other, adds up
EXAMPLES = 100


def _student(name):
    """Build a recipe's student, and its recurrent layers without loops where that is asked for."""
    keras.utils.set_random_seed(0)
    model = recipes.load(name.removesuffix(", unrolled")).student()
    if not name.endswith(", unrolled"):
        return model

    def unrolled(layer):
        changes = {"unroll": True} if isinstance(layer, keras.layers.RNN) else {}
        return type(layer).from_config(layer.get_config() | changes)

    clone = keras.models.clone_model(model, clone_function=unrolled)
    clone.set_weights(model.get_weights())
    return clone


def _inputs(model):
    rng = np.random.default_rng(0)

    def draw(tensor):
        shape = (EXAMPLES, *tensor.shape[1:])
        if "int" in tensor.dtype:
            return rng.integers(0, 80, size=shape)
        image = len(shape) > 2 and shape[1] > 20 and shape[-1] in (1, 28)
        return rng.uniform(0, 255, size=shape) if image else rng.normal(size=shape)

    return {tensor.name: draw(tensor) for tensor in model.inputs}


@pytest.fixture(scope="module")
def seen():
    made = {}

    def find(name):
        if name not in made:
            model = _student(name)
            x = _inputs(model)
            student = base.Student(model, x)
            made[name] = student, x, base.Calibration(student, x, EXAMPLES)
        return made[name]

    return find


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", [*recipes.names(), "char_lm, unrolled"])
def test_a_recipes_student_in_a_format(seen, name, format, tmp_path):
    student, x, calibration = seen(name)
    target = importlib.import_module(export.TARGETS[format]).TARGET
    words = REFUSED.get(name, {}).get(format)
    said = target.refuses(student)
    if words is not None:
        assert words in said
        return
    assert said is None
    path = tmp_path / target.file.format(name="student")
    target.write(student, path, calibration if target.needs_calibration(student) else None)
    arrays = {key: value[:20] for key, value in student.flatten(x).items()}
    found, expected = target.open(path).run(arrays), student.run(arrays)
    assert sorted(found) == sorted(expected)
    for key, value in expected.items():
        off = np.abs(found[key] - value).max() / np.abs(value).max()
        repeated = name == "char_lm, unrolled" and format in WHOLE
        assert off <= (RECURRENT if repeated else LOOSE.get(format, 1e-4))


def test_every_refusal_is_of_a_recipe_and_a_format_that_are_there():
    for name, formats in REFUSED.items():
        assert name.removesuffix(", unrolled") in recipes.names()
        assert set(formats) <= set(export.TARGETS)
