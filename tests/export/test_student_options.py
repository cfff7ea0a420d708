"""What may differ between a model and its file: names, raw inputs, the reading of outputs."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_kd.export import base

L = keras.layers
X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")


def _model(activation=None, units=3, name="head"):
    inputs = keras.Input((4,), name="features")
    return keras.Model(inputs, L.Dense(units, activation=activation, name=name)(inputs))


def _linear(model, x=X):
    kernel, bias = (w.astype("float64") for w in model.get_weights())
    return x.astype("float64") @ kernel + bias


def _softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _sigmoid(z):
    return 1 / (1 + np.exp(-z))


@pytest.mark.parametrize(
    ("activation", "units", "outputs", "expected"),
    [
        ("softmax", 3, "logits", lambda z: z),
        ("sigmoid", 1, "logits", lambda z: z),
        ("sigmoid", 3, "logits", lambda z: z),
        (None, 3, "logits", lambda z: z),
        (None, 3, "probabilities", _softmax),
        (None, 1, "probabilities", _sigmoid),
        (None, 3, "sigmoid", _sigmoid),
        ("softmax", 3, "probabilities", _softmax),
        ("sigmoid", 3, "probabilities", _sigmoid),
        ("sigmoid", 3, "sigmoid", _sigmoid),
        ("softmax", 3, None, _softmax),
        ("softmax", 3, {"head": None}, _softmax),
        ("softmax", 3, {"head": "logits"}, lambda z: z),
    ],
)
def test_outputs_are_given_as_is_asked(activation, units, outputs, expected):
    model = _model(activation, units)
    student = base.Student(model, X, outputs=outputs)
    found = student.run({"features": X})["head"]
    np.testing.assert_allclose(found, expected(_linear(model)), rtol=1e-5, atol=1e-6)


def test_the_written_graph_holds_no_softmax_that_is_not_asked_for(tmp_path):
    import tensorflow as tf

    base.Student(_model("softmax"), X, outputs="logits").write_saved_model(tmp_path / "m", batch=1)
    served = tf.saved_model.load(str(tmp_path / "m")).signatures["serving_default"]
    found = served(features=tf.constant(X[:1]))["head"]
    assert not np.isclose(float(np.sum(found)), 1.0)


def test_probabilities_without_an_activation_to_be_seen():
    inputs = keras.Input((4,), name="features")
    shares = L.Lambda(lambda v: keras.ops.abs(v) / keras.ops.sum(keras.ops.abs(v), -1, True))
    model = keras.Model(inputs, shares(inputs))
    expected = np.abs(X) / np.abs(X).sum(-1, keepdims=True)
    kept = base.Student(model, X, outputs="probabilities").run({"features": X})["output"]
    np.testing.assert_allclose(kept, expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"(?s)'output' gives probabilities, and its logits are"):
        base.Student(model, X, outputs="logits")


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ((0.5, -1.0), X * 0.5 - 1),
        ({"features": ([1, 2, 3, 4], 0.5)}, X * [1, 2, 3, 4] + 0.5),
        ((2, [1, 2, 3, 4]), X * 2 + np.array([1, 2, 3, 4])),
        ({}, X),
    ],
)
def test_raw_values_are_scaled_in_the_file(scaling, expected):
    model = _model()
    student = base.Student(model, X, scaling=scaling)
    found = student.run({"features": X})["head"]
    np.testing.assert_allclose(found, _linear(model, expected), rtol=1e-5, atol=1e-5)


def test_names_replace_those_of_the_model_and_data_keeps_its_keys():
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((4,), name="b")}
    difference = inputs["a"] - inputs["b"]
    model = keras.Model(inputs, {"same": difference, "half": difference * 0.5})
    student = base.Student(
        model,
        {"a": X, "b": X + 1},
        names={"a": "left", "half": "other", "same": "half"},
        scaling={"a": (3.0, 0.0)},
        labels={"same": list("wxyz")},
        outputs={"half": "sigmoid"},
    )
    assert sorted(t.name for t in student.inputs) == ["b", "left"]
    arrays = student.flatten({"a": X, "b": X + 1})
    found = student.run(arrays)
    assert sorted(found) == ["half", "other"]
    np.testing.assert_allclose(found["half"], 3 * X - (X + 1), atol=1e-5)
    np.testing.assert_allclose(found["other"], _sigmoid(0.5 * (2 * X - 1)), atol=1e-5)
    assert student.labels == {"half": ["w", "x", "y", "z"]}
    assert student.part({"same": "labels of same", "half": "of half"}, "half") == "labels of same"
    assert student.options == {
        "outputs": {"other": "sigmoid"},
        "scaling": {"left": {"scale": 3.0, "offset": 0.0}},
        "labels": {"half": ["w", "x", "y", "z"]},
        "names": {"a": "left", "half": "other", "same": "half"},
    }


def test_names_reach_the_file(tmp_path):
    import tensorflow as tf

    student = base.Student(_model(), X, names={"features": "image", "head": "scores"})
    student.write_saved_model(tmp_path / "m", batch=None)
    served = tf.saved_model.load(str(tmp_path / "m")).signatures["serving_default"]
    assert list(served.structured_input_signature[1]) == ["image"]
    assert list(served.structured_outputs) == ["scores"]


def test_nothing_is_told_where_nothing_was_asked():
    assert base.Student(_model(), X).options == {}


def test_labels_of_one_value_are_two():
    student = base.Student(_model(units=1), X, labels=["no", "yes"])
    assert student.labels == {"head": ["no", "yes"]}


def _two():
    inputs = keras.Input((4,), name="x"), keras.Input((4,), dtype="int32", name="ids")
    x = inputs[0] + keras.ops.cast(inputs[1], "float32")
    return keras.Model(inputs, [L.Dense(2, name="p")(x), L.Dense(3, name="q")(x)])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"outputs": "softmax"}, ValueError, "There is no kind of output 'softmax'"),
        ({"outputs": {"r": "logits"}}, ValueError, "There is no output 'r'"),
        ({"names": {"r": "s"}}, ValueError, "There is no input or output 'r'"),
        ({"names": {"p": "2nd"}}, ValueError, "'2nd' is no name for a tensor"),
        ({"names": {"p": "a b"}}, ValueError, "'a b' is no name for a tensor"),
        ({"names": {"p": "q"}}, ValueError, "name 'q' would be there twice"),
        ({"names": {"x": "ids"}}, ValueError, "name 'ids' would be there twice"),
        ({"names": "p"}, TypeError, "`names` must be a dict"),
        ({"scaling": (1.0, 0.0)}, ValueError, "`scaling` must say which input"),
        ({"scaling": {"y": (1.0, 0.0)}}, ValueError, "There is no input 'y'"),
        ({"scaling": {"ids": (1.0, 0.0)}}, ValueError, "inputs of floating-point numbers"),
        ({"scaling": {"x": 2.0}}, ValueError, r"`scaling` must be \(scale, offset\)"),
        ({"scaling": {"x": (0.0, 1.0)}}, ValueError, r"`scaling` must be \(scale, offset\)"),
        ({"scaling": {"x": (np.nan, 1.0)}}, ValueError, r"`scaling` must be \(scale, offset\)"),
        ({"scaling": {"x": ([1, 2], 1.0)}}, ValueError, r"`scaling` must be \(scale, offset\)"),
        ({"scaling": {"x": ("a", "b")}}, ValueError, r"`scaling` must be \(scale, offset\)"),
        ({"labels": ["a", "b"]}, ValueError, "`labels` must say which output"),
        ({"labels": {"r": ["a", "b"]}}, ValueError, "There is no output 'r'"),
        ({"labels": {"p": ["a", "a"]}}, ValueError, "`labels` must be a list of different names"),
        ({"labels": {"p": "ab"}}, ValueError, "`labels` must be a list of different names"),
        ({"labels": {"p": 2}}, ValueError, "`labels` must be a list of different names"),
        ({"labels": {"q": ["a", "b"]}}, ValueError, "`labels` does not fit the output 'q'"),
    ],
)
def test_refused_in_three_parts(options, error, words):
    with pytest.raises(error, match=words) as refused:
        base.Student(_two(), [X, X.astype("int32")], **options)
    for part in ("given:", "expected:", "fix:"):
        assert part in str(refused.value)


def test_a_softmax_is_not_read_as_separate_labels():
    with pytest.raises(ValueError, match=r"(?s)output 'head' is a softmax.*outputs=\"prob"):
        base.Student(_model("softmax"), X, outputs="sigmoid")


def test_students_that_carry_ranges_are_known_by_their_operators():
    inputs = keras.Input((4,), name="features")
    ranged = L.Lambda(
        lambda v: keras.quantizers.fake_quant_with_min_max_vars(v, -1.0, 1.0, num_bits=8)
    )
    assert base.Student(keras.Model(inputs, ranged(inputs)), X).carries_ranges
    assert not base.Student(_model(), X).carries_ranges
