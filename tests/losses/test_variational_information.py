"""VariationalInformation: the likelihood and the authors' network in NumPy, training and words."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd.losses.variational_information import (
    VariationalInformation,
    negative_log_likelihood,
)
from tests import references

SHAPES = [
    pytest.param((3,), id="vectors"),
    pytest.param((3, 5), id="sequences"),
    pytest.param((2, 3, 4), id="maps"),
    pytest.param((2, 2, 3, 2), id="volumes"),
]


def likelihood(t, mean, variance):
    """½·[(t − μ)²/σ² + log σ²] of each element: Ahn et al. 2019, the negative log-likelihood.

    The paper writes log σ for ½·log σ²; VID.py of RepDistiller, from the authors, has this form.
    """
    t, mean = references.float64(t), references.float64(mean)
    return 0.5 * ((t - mean) ** 2 / variance + np.log(variance))


def mean_network(s, kernels):
    """Three 1×1 convolutions without bias, with ReLU between them: VID.py, `regressor`."""
    first, second, third = (references.float64(kernel) for kernel in kernels)
    hidden = np.maximum(references.float64(s) @ first, 0.0)
    return np.maximum(hidden @ second, 0.0) @ third


def made(shape_t, shape_s, rng, **options):
    """A connector, its kernels, features of teacher and student, and the loss."""
    loss = VariationalInformation(**options)
    connector = loss.connector((None, *shape_t[1:]), (None, *shape_s[1:]))
    kernels = [weight.numpy() for weight in connector.trainable_weights if weight.name != "alpha"]
    return connector, kernels, rng.normal(size=shape_t), rng.normal(size=shape_s), loss


def alpha_of(connector):
    (alpha,) = [weight for weight in connector.trainable_weights if weight.name == "alpha"]
    return alpha


def connected(connector, t, s):
    return connector(tf.constant(t, "float32"), tf.constant(s, "float32"))


def test_the_default_variance_is_the_authors():
    assert inspect.signature(VariationalInformation).parameters["initial_variance"].default == 5.0
    assert VariationalInformation().get_config() == {
        "initial_variance": 5.0,
        "teacher_layer_name": None,
        "student_layer_name": None,
        "name": "variational_information",
    }


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("widths", [(4, 6), (5, 5)], ids=["other", "equal"])
def test_it_is_the_authors_network_and_likelihood(rng, kind, widths):
    shapes = [(*kind, width) for width in widths]
    connector, kernels, t, s, loss = made(*shapes, rng)
    assert [kernel.shape for kernel in kernels] == [
        (widths[1], widths[0]),
        (widths[0], widths[0]),
        (widths[0], widths[0]),
    ]
    expected = likelihood(t, mean_network(s, kernels), 5.0).mean()
    value = loss.compute_loss(*connected(connector, t, s))
    assert float(value) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("variance", [0.001, 1.0, 5.0, 2000.0])
def test_the_first_variance_is_the_one_that_is_asked_for(rng, variance):
    connector, kernels, t, s, loss = made((3, 4), (3, 2), rng, initial_variance=variance)
    alpha = references.float64(alpha_of(connector))
    assert alpha.shape == (4,)
    np.testing.assert_allclose(np.logaddexp(0.0, alpha) + 1e-5, variance, rtol=1e-4)
    expected = likelihood(t, mean_network(s, kernels), variance).mean()
    value = float(loss.compute_loss(*connected(connector, t, s)))
    assert value == pytest.approx(expected, rel=1e-4)


def test_the_variance_is_a_softplus_of_each_channel_and_a_hundred_thousandth(rng):
    connector, kernels, t, s, loss = made((3, 2, 2, 4), (3, 2, 2, 2), rng)
    alpha = np.array([-1.0, 0.0, 2.0, 30.0])
    alpha_of(connector).assign(alpha)
    variance = np.log1p(np.exp(alpha)) + 1e-5
    expected = likelihood(t, mean_network(s, kernels), variance).mean()
    value = float(loss.compute_loss(*connected(connector, t, s)))
    assert value == pytest.approx(expected, rel=1e-5)
    alpha_of(connector).assign(np.full(4, -200.0))  # softplus is 0: what is left is 1e-5
    _, student = connected(connector, t, s)
    np.testing.assert_allclose(student[..., 4:], np.log(1e-5), rtol=1e-5)


def test_each_position_has_its_value(rng):
    t, mean = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4))
    variance = rng.uniform(0.1, 3.0, size=(2, 3, 4))
    given = [tf.constant(z, "float32") for z in (t, mean, np.log(variance))]
    values = negative_log_likelihood(*given)
    np.testing.assert_allclose(values, likelihood(t, mean, variance).mean(-1), rtol=1e-5)


def test_it_is_the_density_of_a_normal_distribution_without_its_constant(rng):
    t, mean, variance = rng.normal(size=6), rng.normal(size=6), 0.7
    density = np.exp(-((t - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    expected = -np.log(density) - 0.5 * np.log(2 * np.pi)
    given = [tf.constant(z, "float32") for z in (t, mean, np.full(6, np.log(variance)))]
    assert float(negative_log_likelihood(*given)) == pytest.approx(expected.mean(), rel=1e-5)


def test_gradients_reach_student_network_and_variance_as_in_the_formula(rng):
    connector, kernels, t, s, loss = made((2, 3, 3), (2, 3, 2), rng, initial_variance=0.5)
    student = tf.Variable(s, dtype="float32")
    alpha = alpha_of(connector)
    with tf.GradientTape() as tape:
        value = loss.compute_loss(*connector(tf.constant(t, "float32"), student))
    slopes = tape.gradient(value, [student, alpha, *connector.trainable_weights])
    expected = references.gradient(lambda z: likelihood(t, mean_network(z, kernels), 0.5).mean(), s)
    np.testing.assert_allclose(slopes[0], expected, rtol=1e-3, atol=1e-5)

    def of_alpha(a):
        variance = np.log1p(np.exp(a)) + 1e-5
        return likelihood(t, mean_network(s, kernels), variance).mean()

    np.testing.assert_allclose(
        slopes[1], references.gradient(of_alpha, alpha.numpy()), rtol=1e-3, atol=1e-5
    )
    assert all(np.abs(slope).max() > 0 for slope in slopes[2:])
    assert len(connector.trainable_weights) == 4


def test_the_best_variance_is_the_mean_square_of_what_is_left():
    rng = np.random.default_rng(0)
    t, mean = rng.normal(size=(1000, 2)) * [0.5, 2.0], np.zeros((1000, 2))
    best = np.mean(t**2, axis=0)

    def value(variance):
        log_variance = np.log(variance) * np.ones_like(t)
        given = [tf.constant(z, "float32") for z in (t, mean, log_variance)]
        return float(np.mean(negative_log_likelihood(*given)))

    assert value(best) < min(value(1.05 * best), value(0.95 * best))


@pytest.mark.parametrize("size", [(2, 2), (4, 2)], ids=str)
def test_the_students_feature_is_resized_to_the_teachers(rng, size):
    connector, kernels, t, s, loss = made((2, *size, 3), (2, 4, 4, 5), rng)
    ratio = 4 // size[0], 4 // size[1]  # halving bilinearly is the mean of two neighbours
    blocks = s.reshape(2, size[0], ratio[0], size[1], ratio[1], 5).mean(axis=(2, 4))
    expected = likelihood(t, mean_network(blocks, kernels), 5.0).mean()
    value = float(loss.compute_loss(*connected(connector, t, s)))
    assert value == pytest.approx(expected, rel=1e-5)


def test_several_pairs_of_layers_have_a_network_each_and_are_added(rng):
    names = ["block1", "block2"]
    loss = VariationalInformation(teacher_layer_name=names, student_layer_name=names)
    teacher = [rng.normal(size=(2, 4, 4, 3)), rng.normal(size=(2, 2, 2, 6))]
    student = [rng.normal(size=(2, 4, 4, 2)), rng.normal(size=(2, 2, 2, 4))]
    shapes = [[(None, *layer.shape[1:]) for layer in side] for side in (teacher, student)]
    connector = loss.connector(*shapes)
    kernels = [w.numpy() for w in connector.trainable_weights if w.name != "alpha"]
    assert [kernel.shape for kernel in kernels[::3]] == [(2, 3), (4, 6)]
    pairs = connector(*[[tf.constant(z, "float32") for z in side] for side in (teacher, student)])
    means = [mean_network(student[k], kernels[3 * k : 3 * k + 3]) for k in range(2)]
    expected = sum(likelihood(teacher[k], means[k], 5.0).mean() for k in range(2))
    assert float(loss.compute_loss(*pairs)) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(pairs[0][1], teacher[1].astype("float32"))


def test_weights_are_one_for_each_example(rng):
    connector, kernels, t, s, loss = made((3, 2, 4), (3, 2, 5), rng)
    weight = np.array([0.0, 1.0, 2.5])
    rows = likelihood(t, mean_network(s, kernels), 5.0).mean((1, 2))
    value = loss.compute_loss(*connected(connector, t, s), sample_weight=weight)
    assert float(value) == pytest.approx((weight * rows).sum() / 3, rel=1e-5)


def test_padding_changes_nothing(rng):
    connector, kernels, t, s, loss = made((2, 5, 3), (2, 5, 4), rng)
    real = np.arange(5) < np.array([[3], [5]])
    expected = likelihood(t, mean_network(s, kernels), 5.0).mean(-1)[real].mean()
    for padding in (0, 4):
        pad = [(0, 0), (0, padding), (0, 0)]
        long_t, long_s = (np.pad(z, pad, constant_values=9.0) for z in (t, s))
        variable = tf.Variable(long_s, dtype="float32")
        with tf.GradientTape() as tape:
            teacher, student = connector(tf.constant(long_t, "float32"), variable)
            student._keras_mask = tf.constant(np.pad(real, pad[:2]))
            value = loss.compute_loss(teacher, student)
        assert float(value) == pytest.approx(expected, rel=1e-5)
        slope = tape.gradient(value, variable).numpy()
        assert np.isfinite(slope).all()
        assert np.abs(slope[0, 3:]).max() == 0.0


@pytest.mark.parametrize("extreme", [0.0, 1.0, 1e4, -1e4])
def test_extreme_features_have_finite_gradients(rng, extreme):
    connector, _, _, _, loss = made((2, 3, 4), (2, 3, 5), rng)
    variable = tf.Variable(np.full((2, 3, 5), extreme, "float32"))
    alpha_of(connector).assign(np.full(4, extreme))
    with tf.GradientTape() as tape:
        value = loss.compute_loss(*connector(tf.fill((2, 3, 4), 1e4), variable))
    assert np.isfinite(value)
    slopes = tape.gradient(value, [variable, *connector.trainable_weights])
    assert all(np.isfinite(slope).all() for slope in slopes)


def test_training_learns_which_channels_can_be_predicted():
    keras.utils.set_random_seed(5)
    rng = np.random.default_rng(5)
    s = rng.normal(size=(256, 3)).astype("float32")
    noise = rng.normal(size=(256, 2))
    t = np.concatenate([s[:, :1] + 0.1 * noise[:, :1], 2.0 * noise[:, 1:]], 1).astype("float32")
    loss = VariationalInformation()
    connector = loss.connector((None, 2), (None, 3))
    optimizer = keras.optimizers.Adam(0.05)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            value = loss.compute_loss(*connector(t, s))
        weights = connector.trainable_weights
        optimizer.apply(tape.gradient(value, weights), weights)
        return value

    optimizer.build(connector.trainable_weights)
    first = float(step())
    for _ in range(300):
        last = float(step())
    assert last < first
    variance = np.exp(connected(connector, t, s)[1][0, 2:])
    assert variance[1] > 2.0 > 1.0 > variance[0]  # of 4 and at most 1


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", [0.0, -1.0, 1e-5])
def test_a_variance_that_cannot_be_reached_is_refused(variance):
    with pytest.raises(ValueError, match=r"`initial_variance` must be above 1e-05[\s\S]*5\.0"):
        VariationalInformation(initial_variance=variance)
    assert VariationalInformation(initial_variance=1.1e-5).initial_variance == 1.1e-5
    with pytest.raises(TypeError, match="`initial_variance` must be a number"):
        VariationalInformation(initial_variance="5")


@pytest.mark.parametrize("student", [(2, 4, 3), (2, 4, 12), (2, 3, 6), (1, 4, 6), (2, 6)], ids=str)
def test_a_feature_that_is_no_prediction_is_refused(student):
    words = r"needs its trained prediction[\s\S]*\(…, 6\)[\s\S]*train with kd.Distiller"
    with pytest.raises(ValueError, match=words):
        VariationalInformation().compute_loss(np.ones((2, 4, 3)), np.ones(student))


def test_keras_distiller_is_told_that_there_are_trained_parts():
    words = r"has trained parts[\s\S]*a mean network of three 1x1 convolutions and a variance"
    with pytest.raises(ValueError, match=words):
        VariationalInformation().validate_outputs(np.ones((2, 4)), np.ones((2, 4)))


def test_named_outputs_are_refused():
    shapes = {"a": (None, 4), "b": (None, 5)}
    with pytest.raises(ValueError, match=r"cannot tell which[\s\S]*a, b[\s\S]*layer_name="):
        VariationalInformation().connector(shapes, shapes)


def test_features_of_other_kinds_are_refused():
    with pytest.raises(ValueError, match="Features of different rank cannot be matched"):
        VariationalInformation().connector((None, 4, 4, 3), (None, 3))


def test_outputs_without_channels_are_refused():
    with pytest.raises(ValueError, match="The outputs have no axis but the batch's"):
        VariationalInformation().compute_loss(np.ones(8), np.ones(8))
