"""A pass with BatchNormalization folded away gives what the model gives, and changes nothing."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_kd as kd
from keras_kd.folded import folds
from keras_kd.taps import TappedModel


def with_random_numbers(model: keras.Model) -> keras.Model:
    """Give every weight and statistic a number of its own, variances and factors above 0."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        positive = "variance" in variable.path or "gamma" in variable.path
        low, high = (0.5, 2.0) if positive else (-0.5, 0.5)
        variable.assign(rng.uniform(low, high, variable.shape))
    return model


def one_pair(layer, shape, **kwargs) -> keras.Model:
    inputs = keras.Input(shape)
    normal = layers.BatchNormalization(**kwargs)(layer(inputs))
    return with_random_numbers(keras.Model(inputs, layers.ReLU()(normal)))


def answers(model: keras.Model, paths=()) -> tuple[np.ndarray, dict, list[str]]:
    """Return what a folded pass gives in a graph, its taps, and the layers that really ran."""
    x = tf.constant(np.random.default_rng(1).normal(size=(3, *model.input_shape[1:])), "float32")
    tapped, ran = TappedModel(model, paths), []
    for layer in model._flatten_layers(include_self=False):
        layer.call = _noting(layer.name, layer.call, ran)
    outputs, features = tf.function(tapped.folded, autograph=False)(x)
    np.testing.assert_allclose(outputs, model(x, training=False), rtol=2e-5, atol=2e-5)
    for layer in model._flatten_layers(include_self=False):
        assert type(layer.call).__name__ == "function", "a shadow was left behind"
    return outputs.numpy(), {path: value.numpy() for path, value in features.items()}, ran


def _noting(name, call, ran):
    def noted(*args, **kwargs):
        if not tf.executing_eagerly():
            ran.append(name)
        return call(*args, **kwargs)

    return noted


PAIRS = {
    "conv1d": (layers.Conv1D(4, 3), (9, 3), {}),
    "conv2d, strides": (layers.Conv2D(4, 3, strides=2, padding="same"), (7, 7, 3), {}),
    "conv2d, no bias": (layers.Conv2D(4, 3, use_bias=False), (7, 7, 3), {}),
    "conv2d, groups": (layers.Conv2D(4, 3, groups=2), (7, 7, 4), {"scale": False}),
    "conv2d, dilation": (layers.Conv2D(4, 3, dilation_rate=2), (7, 7, 3), {"center": False}),
    "conv3d": (layers.Conv3D(4, 2), (4, 4, 4, 2), {"epsilon": 0.1}),
    "depthwise1d": (layers.DepthwiseConv1D(3, depth_multiplier=2), (9, 3), {}),
    "depthwise2d": (layers.DepthwiseConv2D(3, depth_multiplier=2), (7, 7, 3), {}),
    "depthwise2d, strides": (layers.DepthwiseConv2D(3, strides=2, padding="same"), (7, 7, 3), {}),
    "dense": (layers.Dense(5), (4,), {"axis": 1}),
    "dense on sequences": (layers.Dense(5, use_bias=False), (6, 4), {}),
}


@pytest.mark.parametrize("name", PAIRS)
def test_each_kind_of_layer_gives_the_same_without_its_batch_normalization(name) -> None:
    layer, shape, kwargs = PAIRS[name]
    model = one_pair(type(layer).from_config(layer.get_config()), shape, **kwargs)
    assert [type(layer) for layer in folds(model)] == [type(layer), layers.BatchNormalization]
    *_, ran = answers(model)
    assert ran == [model.layers[-1].name]  # the ReLU


def test_every_pair_of_nested_models_is_folded() -> None:
    def block(x, width):
        x = layers.BatchNormalization()(layers.Conv2D(width, 3, padding="same")(x))
        y = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(layers.ReLU()(x)))
        return layers.Add()([x, y])

    inner_input, inputs = keras.Input((6, 6, 2)), keras.Input((6, 6, 2))
    inner = keras.Model(inner_input, block(inner_input, 3))
    head = keras.Sequential([layers.Flatten(), layers.Dense(4), layers.BatchNormalization()])
    model = with_random_numbers(keras.Model(inputs, head(block(inner(inputs), 2))))
    assert len(folds(model)) == 2 * 5
    answers(model)


def test_a_tapped_batch_normalization_gives_its_own_output() -> None:
    model = one_pair(layers.Conv2D(3, 3, name="conv"), (6, 6, 2), name="norm")
    _, features, _ = answers(model, ["norm"])
    x = np.random.default_rng(1).normal(size=(3, 6, 6, 2)).astype("float32")
    own = keras.Model(model.input, model.get_layer("norm").output)(x)
    np.testing.assert_allclose(features["norm"], own, rtol=1e-5, atol=1e-5)


def test_a_tapped_layer_is_not_folded() -> None:
    model = one_pair(layers.Conv2D(3, 3, name="conv"), (6, 6, 2), name="norm")
    _, features, ran = answers(model, ["conv"])
    x = np.random.default_rng(1).normal(size=(3, 6, 6, 2)).astype("float32")
    np.testing.assert_allclose(features["conv"], model.get_layer("conv")(x), rtol=1e-5, atol=1e-5)
    assert {"conv", "norm"} <= set(ran)


class Doubled(layers.BatchNormalization):
    """A normalisation that a person changed."""

    def call(self, inputs, training=None, mask=None):
        """Return twice the normalised."""
        return 2.0 * super().call(inputs, training=training, mask=mask)


class Louder(layers.Dense):
    """A layer that a person changed."""

    def call(self, inputs, training=None):
        """Return one more."""
        return super().call(inputs, training=training) + 1.0


def two_takers():
    inputs = keras.Input((4,))
    x = layers.Dense(4)(inputs)
    return keras.Model(inputs, layers.Add()([layers.BatchNormalization()(x), x]))


def given_away():
    inputs = keras.Input((4,))
    x = layers.Dense(4)(inputs)
    return keras.Model(inputs, [layers.BatchNormalization()(x), x])


def called_twice():
    inputs, dense, norm = keras.Input((4,)), layers.Dense(4), layers.BatchNormalization()
    return keras.Model(inputs, layers.BatchNormalization()(dense(norm(dense(inputs)))))


def in_two_graphs():
    dense, norm, first, inputs = (
        layers.Dense(4),
        layers.BatchNormalization(),
        *map(keras.Input, [(4,)] * 2),
    )
    inner = keras.Model(first, norm(dense(first)))
    return keras.Model(inputs, layers.Add()([inner(inputs), dense(inputs)]))


def always_trained():
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.BatchNormalization()(layers.Dense(4)(inputs), training=True))


def trained_as_a_whole():
    first, inputs = keras.Input((4,)), keras.Input((4,))
    inner = keras.Model(first, layers.BatchNormalization()(layers.Dense(4)(first)))
    return keras.Model(inputs, inner(inner(inputs), training=True))


def other_axis():
    inputs = keras.Input((3, 4))
    return keras.Model(inputs, layers.BatchNormalization(axis=1)(layers.Dense(4)(inputs)))


def channels_first():
    inputs = keras.Input((4, 5, 5))
    convolution = layers.Conv2D(5, 1, data_format="channels_first")
    return keras.Model(inputs, layers.BatchNormalization()(convolution(inputs)))


def causal():
    inputs = keras.Input((5, 3))
    convolution = layers.Conv1D(5, 2, padding="causal")
    return keras.Model(inputs, layers.BatchNormalization()(convolution(inputs)))


def chain(*between, dense=None):
    dense = dense or layers.Dense(4)
    return keras.Sequential([keras.Input((4,)), dense, *between])


def in_half_precision():
    policy = keras.DTypePolicy("mixed_float16")
    return chain(layers.BatchNormalization(dtype=policy), dense=layers.Dense(4, dtype=policy))


def subclassed():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense, self.norm = layers.Dense(4), layers.BatchNormalization()
            self.dense.build((None, 4))
            self.norm.build((None, 4))

        def call(self, inputs):
            return self.norm(self.dense(inputs))

    return Own()


STAY = {
    "two layers see it": two_takers,
    "it is an output": given_away,
    "one layer in two places": called_twice,
    "one layer in two graphs": in_two_graphs,
    "a call with training=True": always_trained,
    "a model called with training=True": trained_as_a_whole,
    "another axis": other_axis,
    "channels first": channels_first,
    "causal padding": causal,
    "half precision": in_half_precision,
    "a subclassed model": subclassed,
    "an activation between": lambda: chain(
        layers.BatchNormalization(), dense=layers.Dense(4, activation="relu")
    ),
    "a layer between": lambda: chain(layers.ReLU(), layers.BatchNormalization()),
    "a normalisation of one's own": lambda: chain(Doubled()),
    "a layer of one's own": lambda: chain(layers.BatchNormalization(), dense=Louder(4)),
    "another normalisation": lambda: chain(layers.LayerNormalization()),
    "nothing behind it": chain,
    "not built": lambda: keras.Sequential([layers.Dense(4), layers.BatchNormalization()]),
}


@pytest.mark.parametrize("name", STAY)
def test_what_cannot_be_folded_stays(name) -> None:
    assert folds(STAY[name]()) == {}


def test_quantised_weights_are_not_folded() -> None:
    model = chain(layers.BatchNormalization())
    assert folds(model)
    model.layers[0].quantize("int8")
    assert folds(model) == {}


def test_weights_that_change_later_are_followed() -> None:
    model = one_pair(layers.Dense(3), (4,))
    ask = tf.function(TappedModel(model).folded, autograph=False)
    x = tf.ones((2, 4))
    before = ask(x)[0].numpy()
    for variable in model.weights:
        variable.assign(variable * 1.5)
    np.testing.assert_allclose(ask(x)[0], model(x, training=False), rtol=1e-5, atol=1e-5)
    assert not np.allclose(ask(x)[0], before)


def test_a_distiller_asks_its_teacher_folded_and_trains_its_student_as_it_is(rng) -> None:
    teacher = with_random_numbers(chain(layers.BatchNormalization(), layers.Dense(3)))
    student = keras.models.clone_model(teacher)
    distiller = kd.Distiller(teacher, student, kd.LogitsDistillation(), student_loss_weight=0.0)
    ran: list[str] = []
    for who, model in (("teacher", teacher), ("student", student)):
        model.layers[1].call = _noting(who, model.layers[1].call, ran)
    distiller.compile("sgd")
    distiller.fit(rng.normal(size=(8, 4)).astype("float32"), epochs=1, verbose=0)
    assert set(ran) == {"student"}
