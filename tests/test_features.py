"""Vectors from features, lengths and distances against float64, and their slopes at 0."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd import features

SHAPES = [(3, 4), (3, 5, 4), (3, 2, 5, 4), (3, 2, 2, 5, 4)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_flat_and_positions_keep_order_and_static_sizes(rng, shape, known):
    x = rng.normal(size=shape).astype("float32")
    spec = shape if known else (None,) * (len(shape) - 1) + shape[-1:]

    @tf.function(input_signature=[tf.TensorSpec(spec)], autograph=False)
    def both(x):
        return features.flat(x), features.positions(x)

    vectors, places = both(x)
    np.testing.assert_array_equal(vectors, x.reshape(3, -1))
    np.testing.assert_array_equal(places, x.reshape(3, -1, 4))
    symbolic = keras.KerasTensor((None, *shape[1:]))
    if known and len(shape) > 2:
        size = int(np.prod(shape[1:]))
        assert features.flat(tf.zeros(shape)).shape == (3, size)
        assert symbolic.shape[1:] == shape[1:]


@pytest.mark.parametrize("axis", [-1, 1, (1, 2)], ids=str)
def test_unit_divides_by_the_euclidean_length(rng, axis):
    x = rng.normal(size=(3, 4, 5)).astype("float32")
    length = np.sqrt(np.sum(x.astype("float64") ** 2, axis=axis, keepdims=True))
    np.testing.assert_allclose(features.norm(x, axis), length, rtol=1e-6)
    np.testing.assert_allclose(features.unit(x, axis), x / length, rtol=1e-5)


@pytest.mark.parametrize(
    "function",
    [features.safe_sqrt, features.norm, features.unit, features.distances],
    ids=lambda function: function.__name__,
)
def test_the_slope_where_there_is_none_is_zero(function):
    x = tf.Variable(tf.zeros((3, 4)))
    with tf.GradientTape() as tape:
        value = function(x * 1.0)
    assert np.all(value.numpy() == 0.0)
    assert np.all(tape.gradient(value, x).numpy() == 0.0)


def test_safe_sqrt_is_the_square_root_with_its_slope():
    x = tf.Variable([0.25, 4.0, 0.0, 1e-20])
    with tf.GradientTape() as tape:
        value = features.safe_sqrt(x * 1.0)
    np.testing.assert_allclose(value, [0.5, 2.0, 0.0, 1e-10], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(value, x), [1.0, 0.25, 0.0, 5e9], rtol=1e-5)


@pytest.mark.parametrize("shift", [0.0, 1e3], ids=["around_0", "far_from_0"])
def test_distances_of_all_pairs(rng, shift):
    x = rng.normal(size=(7, 12)).astype("float32") + np.float32(shift)
    difference = x[:, None].astype("float64") - x[None]
    squares = np.sum(difference**2, axis=-1)
    tolerance = 1e-5 if shift == 0.0 else 1e-3  # float32 keeps 7 digits of the 1000 in each number
    np.testing.assert_allclose(features.squared_distances(x), squares, rtol=tolerance)
    np.testing.assert_allclose(features.distances(x), np.sqrt(squares), rtol=tolerance)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e4, -123.456])
def test_equal_vectors_have_distance_zero_exactly(value):
    x = np.full((5, 30), value, "float32")
    assert np.all(features.distances(x).numpy() == 0.0)


def test_the_gradient_of_distances_is_that_of_float64(rng):
    x = rng.normal(size=(4, 3)).astype("float32")
    weights = rng.normal(size=(4, 4))
    variable = tf.Variable(x)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(features.distances(variable * 1.0) * weights)
    difference = x[:, None].astype("float64") - x[None]
    length = np.linalg.norm(difference, axis=-1, keepdims=True)
    direction = np.divide(difference, length, out=np.zeros_like(difference), where=length > 0)
    both = weights + weights.T
    expected = np.sum(both[:, :, None] * direction, axis=1)
    np.testing.assert_allclose(tape.gradient(value, variable), expected, rtol=1e-4, atol=1e-5)


def test_the_last_axis_is_the_vectors_own(rng):
    x = rng.normal(size=(3, 4, 5)).astype("float32")
    np.testing.assert_array_equal(features.norm(x), features.norm(x, -1))
    np.testing.assert_array_equal(features.unit(x), features.unit(x, -1))


def test_a_short_vector_becomes_one_of_length_1():
    np.testing.assert_allclose(features.unit([[0.03, 0.04]]), [[0.6, 0.8]], rtol=1e-6)


@pytest.mark.parametrize("spec", [(None, 2, 5, 4), (None, None, 5, 4), (None, 2, None, 4)], ids=str)
def test_sizes_that_are_known_stay_known(spec):
    outputs = tf.function(
        lambda x: (features.flat(x), features.positions(x)),
        input_signature=[tf.TensorSpec(spec)],
        autograph=False,
    ).get_concrete_function()
    vectors, places = outputs.output_shapes
    known = None not in spec[1:]
    assert tuple(vectors) == (None, 40 if known else None)
    assert tuple(places) == (None, 10 if known else None, 4)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5, 4)], ids=str)
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_mean_square_and_its_slopes_are_those_of_its_parts(rng, shape, known):
    t, s, upstream = (
        rng.normal(size=size).astype("float32") for size in (shape, shape, shape[:-1])
    )
    spec = tf.TensorSpec(shape if known else (None,) * len(shape))

    @tf.function(input_signature=[spec, spec], autograph=False)
    def slopes(teacher, student):
        with tf.GradientTape() as outer:
            outer.watch(student)
            with tf.GradientTape() as tape:
                tape.watch([teacher, student])
                value = features.mean_square(teacher, student)
                total = tf.reduce_sum(value * upstream)
            first = tape.gradient(total, [teacher, student])
            turned = tf.reduce_sum(first[1] ** 2)
        return value, first[1], outer.gradient(turned, student)

    value, first, second = slopes(t, s)
    difference, up = s.astype("float64") - t, upstream[..., None].astype("float64")
    np.testing.assert_allclose(value, np.mean(difference**2, -1), rtol=1e-5)
    np.testing.assert_allclose(first, 2 / 4 * difference * up, rtol=1e-5)
    np.testing.assert_allclose(second, 2 * (2 / 4 * up) ** 2 * difference, rtol=1e-5)
