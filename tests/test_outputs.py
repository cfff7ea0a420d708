"""What an output is, and the way back to log space."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from keras_kd.outputs import OutputReader, is_distribution, last_activations, to_log_space


def reader(model: keras.Model, stated="auto", activation="softmax") -> OutputReader:
    return OutputReader(model, "teacher 'big'", stated, activation, "say what it is.")


def head(*parts) -> keras.Model:
    return keras.Sequential([keras.Input((4,)), *parts])


def with_op(function) -> keras.Model:
    inputs = keras.Input((4,))
    return keras.Model(inputs, function(layers.Dense(6)(inputs)))


def nested(activation: str) -> keras.Model:
    inner = head(layers.Dense(6), head_of(activation))
    inputs = keras.Input((4,))
    return keras.Model(inputs, inner(inputs))


def head_of(activation: str) -> keras.Model:
    return keras.Sequential([keras.Input((6,)), layers.Dense(6, activation=activation)])


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_the_last_activation_is_read(activation) -> None:
    function = getattr(ops, activation)
    models = {
        "dense": head(layers.Dense(6, activation=activation)),
        "Activation layer": head(layers.Dense(6), layers.Activation(activation)),
        "float32 after it": head(
            layers.Dense(6, activation=activation, dtype="mixed_float16"),
            layers.Activation("linear", dtype="float32"),
        ),
        "dropout after it": head(layers.Dense(6, activation=activation), layers.Dropout(0.1)),
        "reshaped": head(layers.Dense(6, activation=activation), layers.Reshape((1, 6))),
        "a model last": nested(activation),
        "an operation": with_op(function),
    }
    for name, model in models.items():
        assert last_activations(model) == [activation], name


def test_a_softmax_layer_is_read_where_its_axis_is_the_last() -> None:
    assert last_activations(head(layers.Dense(6), layers.Softmax())) == ["softmax"]
    across = head(layers.Dense(6), layers.Reshape((2, 3)), layers.Softmax(axis=1))
    assert last_activations(across) == [None]
    assert last_activations(with_op(lambda x: ops.softmax(x, axis=1))) == ["softmax"]


def test_reshaping_the_classes_away_hides_a_softmax_and_no_sigmoid() -> None:
    for activation, expected in (("softmax", None), ("sigmoid", "sigmoid")):
        model = head(layers.Dense(6, activation=activation), layers.Reshape((2, 3)))
        assert last_activations(model) == [expected]


@pytest.mark.parametrize("activation", [None, "relu", "tanh", "gelu"])
def test_other_activations_of_keras_are_no_probabilities(activation) -> None:
    model = head(layers.Dense(6, activation=activation))
    assert last_activations(model) == ["linear"]
    read = reader(model)
    read.learn(np.linspace(0.1, 0.9, 24).reshape(4, 6))  # may well lie between 0 and 1
    assert read.kinds == ["logits"]


def test_what_cannot_be_read_is_none() -> None:
    class Subclassed(keras.Model):
        pass

    assert last_activations(Subclassed()) == [None]
    assert last_activations(head(layers.Dense(6, activation=tf.nn.sigmoid))) == [None]
    assert last_activations(with_op(lambda x: x + x)) == [None]


class Behind(keras.Model):
    """A subclassed model whose end nobody can read."""

    def __init__(self, function) -> None:
        super().__init__()
        self.dense = layers.Dense(6)
        self.function = function

    def call(self, x):
        return self.function(self.dense(x))


def learned(function, x) -> OutputReader:
    model = Behind(function)
    read = reader(model)
    raw = model(x)
    read(raw)
    read.learn(raw)
    return read


def test_a_subclassed_model_is_read_by_its_values(rng) -> None:
    x = rng.normal(size=(8, 4)).astype("float32")
    assert learned(tf.nn.softmax, x).kinds == ["softmax"]
    assert learned(lambda z: ops.cast(ops.softmax(z), "float16"), x).kinds == ["softmax"]
    assert learned(ops.sigmoid, x).kinds == ["sigmoid"]  # Keras leaves its logits on the tensor
    assert learned(lambda z: z, x).kinds == ["logits"]


def test_values_between_0_and_1_that_nothing_explains_are_refused(rng) -> None:
    x = rng.normal(size=(8, 4)).astype("float32")
    words = r"Output 0 of teacher 'big' may be probabilities or logits[\s\S]*fix: +say what it is"
    with pytest.raises(ValueError, match=words):
        learned(tf.nn.sigmoid, x)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("stated", ["auto", "logits", "probabilities", "values"])
def test_nan_and_infinity_are_refused(bad, stated) -> None:
    raw = np.zeros((2, 6), "float32")
    raw[1, 2] = bad
    words = r"Output 0 of teacher 'big' is not finite on the first batch[\s\S]*1 of 12 values"
    with pytest.raises(ValueError, match=words):
        reader(head(layers.Dense(6)), stated).learn(raw)


def test_stated_probabilities_must_be_some() -> None:
    model = head(layers.Dense(3))
    words = r"holds no probabilities, though they were stated[\s\S]*softmax probabilities"
    with pytest.raises(ValueError, match=words):
        reader(model, "probabilities").learn(np.array([[0.5, 0.6, 0.2]]))
    with pytest.raises(ValueError, match=r"values from -1 to 0\.6[\s\S]*sigmoid probabilities"):
        reader(model, "probabilities", "sigmoid").learn(np.array([[-1.0, 0.6, 0.2]]))
    read = reader(model, "probabilities", "sigmoid")
    read.learn(np.array([[0.5, 0.6, 0.2]]))
    assert read.kinds == ["sigmoid"]


def test_what_is_stated_holds_whatever_the_values_are() -> None:
    probabilities = np.full((8, 2), 0.5, "float32")
    for stated in ("logits", "values"):
        read = reader(Behind(tf.nn.softmax), stated)
        read.learn(probabilities)
        assert read.kinds == [stated]
        np.testing.assert_array_equal(read(probabilities), probabilities)


def two_outputs() -> keras.Model:
    inputs = keras.Input((4,))
    outputs = {
        "kind": layers.Dense(3, activation="softmax")(inputs),
        "size": layers.Dense(1)(inputs),
        "tags": layers.Dense(2, activation="sigmoid")(inputs),
    }
    return keras.Model(inputs, outputs)


def test_each_of_several_outputs_is_read_or_stated(rng) -> None:
    model = two_outputs()
    raw = model(rng.normal(size=(8, 4)).astype("float32"))
    read = reader(model)
    read.learn(raw)
    assert read.kinds == ["softmax", "logits", "sigmoid"]
    stated = {"tags": "probabilities", "size": "values", "kind": "logits"}
    read = reader(model, stated)
    read.learn(raw)
    assert read.kinds == ["logits", "values", "sigmoid"]
    result = read(raw)
    assert list(result) == list(raw)
    np.testing.assert_array_equal(result["kind"], raw["kind"])


def test_statements_must_fit_the_outputs() -> None:
    raw = two_outputs()(np.ones((2, 4), "float32"))
    with pytest.raises(ValueError, match=r"another number of outputs[\s\S]*for 3 outputs"):
        reader(two_outputs(), ["values", "logits"])(raw)
    words = r"outputs of other names than was stated[\s\S]*\['kind', 'size', 'tags'\]"
    with pytest.raises(ValueError, match=words):
        reader(two_outputs(), {"kind": "logits", "size": "values", "tag": "logits"})(raw)
    with pytest.raises(ValueError, match="no names: its output is no dict"):
        reader(head(layers.Dense(3)), {"kind": "logits"})(np.ones((2, 3)))


@pytest.mark.parametrize(("activation", "sign"), [("softmax", 1.0), ("sigmoid", 1.0)])
def test_the_gradient_of_a_confidently_wrong_student_is_exact(activation, sign) -> None:
    """−log p of the right answer, 200 nats away: its gradient is −1, where clipping gives 0."""
    model = head(layers.Dense(2, activation=activation))
    model.set_weights([np.zeros((4, 2)), np.array([-100.0, 100.0])])
    read = reader(model)
    with tf.GradientTape() as tape:
        z = read(model(np.zeros((1, 4), "float32")))
        log_p = ops.log_softmax(z) if activation == "softmax" else ops.log_sigmoid(z)
        loss = -log_p[0, 0]
    bias = tape.gradient(loss, model.trainable_weights)[1].numpy()
    other = 1.0 if activation == "softmax" else 0.0
    np.testing.assert_allclose(bias, [-1.0, other], atol=1e-6)
    assert float(loss) == pytest.approx(200.0 if activation == "softmax" else 100.0)


def test_log_space_is_what_it_says() -> None:
    p = np.array([[0.7, 0.2, 0.1], [1.0, 0.0, 0.0]])
    z = np.asarray(to_log_space(tf.constant(p, "float32"), "softmax"))
    np.testing.assert_allclose(z[0], np.log(p[0]), rtol=1e-6)
    z = np.asarray(to_log_space(tf.constant(p, "float32"), "sigmoid"))
    np.testing.assert_allclose(z[0], np.log(p[0] / (1 - p[0])), rtol=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_exact_zeros_and_ones_stay_finite(kind, dtype) -> None:
    p = tf.constant([[1.0, 0.0], [0.0, 1.0]], dtype)
    with tf.GradientTape() as tape:
        tape.watch(p)
        z = to_log_space(p, kind)
    assert z.dtype == tf.float32
    assert np.isfinite(z).all()
    assert np.isfinite(tape.gradient(z, p)).all()
    assert (z[0, 0] > z[0, 1]) and (z[1, 1] > z[1, 0])


def test_a_mask_stays_on_the_output() -> None:
    p = tf.constant([[[0.5, 0.5], [0.1, 0.9]]], "float16")
    p._keras_mask = tf.constant([[True, False]])
    for kind in ("softmax", "sigmoid", "logits", "values"):
        assert to_log_space(p, kind)._keras_mask is p._keras_mask


def test_a_distribution_sums_to_one() -> None:
    assert is_distribution(np.array([[0.5, 0.5], [1.0, 0.0]]))
    assert not is_distribution(np.array([[0.5, 0.6]]))
    assert not is_distribution(np.array([[-0.5, 1.5]]))
    assert not is_distribution(np.zeros((0, 3)))
