"""Names, structures and the quiet that every target relies on."""

from __future__ import annotations

import os
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd.export import base

L = keras.layers
X = np.zeros((2, 3), "float32")


def _names(model, x=X):
    student = base.Student(model, x)
    return [t.name for t in student.inputs], student.output_names


def test_counted_names_become_input_and_output():
    for _ in range(2):  # the second model is input_layer_N and dense_N
        inputs = keras.Input((3,))
        assert _names(keras.Model(inputs, L.Dense(2)(inputs))) == (["input"], ["output"])
        assert _names(keras.Sequential([keras.Input((3,)), L.ReLU()])) == (["input"], ["output"])
        assert _names(keras.Model(inputs, inputs + 1)) == (["input"], ["output"])


def test_chosen_names_are_kept_and_made_fit_for_code():
    inputs = keras.Input((3,), name="my image")
    model = keras.Model(inputs, [L.Dense(2, name="2.logits")(inputs), L.Dense(2)(inputs)])
    assert _names(model) == (["my_image"], ["output_2_logits", "output_1"])


def test_names_of_dicts_are_their_keys_nested_ones_joined():
    inputs = {"a": keras.Input((3,), name="a"), "b": keras.Input((3,), name="b")}
    x = inputs["a"] + inputs["b"]
    model = keras.Model(inputs, {"z": {"one": x * 1.0}, "y": x})
    found = _names(model, {"a": X, "b": X})
    assert sorted(found[0]) == ["a", "b"]
    assert sorted(found[1]) == ["y", "z_one"]


def test_names_are_never_twice():
    inputs = keras.Input((3,))
    x = L.Dense(2, name="same")(inputs)
    assert _names(keras.Model(inputs, [x, x]))[1] == ["same", "same_1"]


def test_data_is_matched_by_place_by_key_and_by_name():
    inputs = [keras.Input((3,), name="left"), keras.Input((3,), name="right")]
    model = keras.Model(inputs, inputs[0] - inputs[1])
    left, right = X, X + 1
    for data in ([left, right], (left, right), {"right": right, "left": left, "extra": left}):
        found = base.Student(model, data).flatten(data)
        np.testing.assert_array_equal(found["left"], left)
        np.testing.assert_array_equal(found["right"], right)
    for data in ([left], left, {"left": left}):
        with pytest.raises(ValueError, match="does not have the inputs of the student"):
            base.Student(model, data)


def test_one_input_takes_a_dict_by_name_and_a_list_of_one():
    inputs = keras.Input((3,), name="features")
    student = base.Student(keras.Model(inputs, L.Dense(1)(inputs)), X)
    for data in (X, [X], {"features": X}, X.astype("float64"), X.astype("int64")):
        assert student.flatten(data)["features"].dtype == np.float32


def test_a_last_axis_of_one_is_added_and_taken_away_as_keras_does():
    inputs = keras.Input((3, 1), name="x")
    student = base.Student(keras.Model(inputs, inputs * 2.0), X)
    assert student.flatten(X)["x"].shape == (2, 3, 1)
    flat = keras.Input((3,), name="x")
    student = base.Student(keras.Model(flat, flat * 2.0), X[..., None])
    assert student.flatten(X[..., None])["x"].shape == (2, 3)


def test_quiet_keeps_python_and_native_text_and_gives_stderr_back(capfd):
    with base.quiet() as text:
        os.write(2, b"native\n")
        tf.get_logger().warning("hidden")
        assert "native" in text()
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_quiet_restores_after_an_error(capfd):
    with pytest.raises(KeyError), base.quiet():
        raise KeyError
    print("seen", file=sys.stderr)
    assert "seen" in capfd.readouterr().err
