"""ChannelWiseDistillation: the paper's equations in NumPy, connector, laws and words."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd.losses.channel_wise import ChannelWiseDistillation, channel_wise
from tests import references

SHAPES = [
    pytest.param((3, 5, 4), id="sequences"),
    pytest.param((3, 3, 4, 5), id="maps"),
    pytest.param((2, 2, 3, 2, 4), id="volumes"),
]


def rows(t, s, temperature=4.0):
    """T²/C·Σ_c Σ_i φ(t_ci)·log(φ(t_ci) / φ(s_ci)), φ the softmax over positions i of y/T.

    Shu et al. 2021, the channel-wise softmax and the divergence; criterion.py of the authors'
    repository divides by the number of channels and multiplies by T² as well.
    """
    values = []
    for pair in zip(t, s, strict=True):
        flat = [references.float64(z).reshape(-1, z.shape[-1]).T for z in pair]
        phi_t, phi_s = (references.softmax(z / temperature) for z in flat)
        divergence = np.sum(phi_t * np.log(phi_t / phi_s))
        values.append(temperature**2 * divergence / pair[0].shape[-1])
    return np.array(values)


def value_of(t, s, loss=None, **kwargs):
    return float((loss or ChannelWiseDistillation()).compute_loss(t, s, **kwargs))


@pytest.fixture(params=SHAPES)
def features(request, rng):
    """A teacher's and a student's feature of each kind."""
    return [rng.normal(scale=3.0, size=request.param) for _ in range(2)]


def test_the_default_temperature_is_the_papers(features):
    assert inspect.signature(ChannelWiseDistillation).parameters["temperature"].default == 4.0
    tensors = [tf.constant(z, "float32") for z in features]
    np.testing.assert_allclose(channel_wise(*tensors), rows(*features), rtol=1e-5)


@pytest.mark.parametrize("temperature", [None, 1.0, 4.0, 10.0])
def test_it_is_the_papers_equations(features, temperature):
    options = {} if temperature is None else {"temperature": temperature}
    expected = rows(*features, temperature or 4.0).mean()
    value = value_of(*features, ChannelWiseDistillation(**options))
    assert value == pytest.approx(expected, rel=1e-5)


def test_two_positions_are_a_binary_divergence():
    t, s = np.array([[[0.0], [4.0]]]), np.array([[[4.0], [0.0]]])
    p = 1.0 / (1.0 + np.exp(-1.0))  # T = 4
    expected = 16.0 * (2 * p - 1) * np.log(p / (1 - p))
    assert value_of(t, s) == pytest.approx(expected, rel=1e-5)


def test_high_temperatures_match_centred_maps(rng):
    t, s = (rng.normal(size=(2, 3, 4, 5)) for _ in range(2))
    centred = (s - s.mean((1, 2), keepdims=True)) - (t - t.mean((1, 2), keepdims=True))
    limit = 0.5 * (centred**2).mean()  # half the mean over positions and channels
    value = value_of(t, s, ChannelWiseDistillation(temperature=1000.0))
    assert value == pytest.approx(limit, rel=1e-2)


def test_its_gradient_is_that_of_the_formula(features):
    t, s = features
    variable = tf.Variable(s, dtype="float32")
    with tf.GradientTape() as tape:
        value = ChannelWiseDistillation().compute_loss(t, variable)
    expected = references.gradient(lambda z: rows(t, z).mean(), s)
    np.testing.assert_allclose(tape.gradient(value, variable), expected, rtol=1e-3, atol=1e-6)


def test_its_laws(features):
    t, s = features
    assert value_of(t, t) == 0.0
    offset = np.arange(1.0, t.shape[-1] + 1.0)  # a channel may move as a whole
    assert value_of(t, t + offset) == pytest.approx(0.0, abs=1e-5)
    assert value_of(t, s + offset) == pytest.approx(value_of(t, s), rel=1e-5)
    both = value_of(t[:, ::-1], s[:, ::-1])
    assert both == pytest.approx(value_of(t, s), rel=1e-5)
    assert value_of(t, s) > 0.0


def test_a_temperature_may_be_scheduled(rng):
    t, s = (rng.normal(size=(2, 3, 4)) for _ in range(2))
    schedule = keras.optimizers.schedules.PolynomialDecay(4.0, 10, 2.0)
    loss = ChannelWiseDistillation(temperature=schedule)
    for step, temperature in ((0, 4.0), (5, 3.0), (10, 2.0)):
        expected = rows(t, s, temperature).mean()
        assert value_of(t, s, loss, step=step) == pytest.approx(expected, rel=1e-5)


def test_weights_are_one_for_each_example(rng):
    t, s = (rng.normal(size=(3, 3, 4, 5)) for _ in range(2))
    weight = np.array([0.0, 1.0, 2.5])
    expected = (weight * rows(t, s)).sum() / 3
    assert value_of(t, s, sample_weight=weight) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("extreme", [0.0, 1.0, 1e4, -1e4])
def test_extreme_features_have_finite_gradients(extreme):
    for shape in ((2, 3, 3, 4), (2, 1, 3, 4)):
        alternating = extreme * (-1.0) ** np.arange(np.prod(shape)).reshape(shape)
        for s in (np.full(shape, extreme), alternating):
            variable = tf.Variable(s.astype("float32"))
            for teacher in (np.zeros(shape), -alternating, np.full(shape, 1e4)):
                with tf.GradientTape() as tape:
                    value = ChannelWiseDistillation().compute_loss(teacher, variable)
                assert np.isfinite(value)
                assert np.isfinite(tape.gradient(value, variable)).all()


# --- the connector --------------------------------------------------------------------------------


def test_channels_are_mapped_and_sizes_resized(rng):
    t, s = rng.normal(size=(2, 2, 2, 3)), rng.normal(size=(2, 4, 4, 5))
    loss = ChannelWiseDistillation()
    connector = loss.connector((None, 2, 2, 3), (None, 4, 4, 5))
    kernel, bias = connector.get_weights()
    assert (kernel.shape, bias.shape) == ((5, 3), (3,))
    with tf.GradientTape() as tape:
        same, fitted = connector(tf.constant(t, "float32"), tf.constant(s, "float32"))
        value = loss.compute_loss(same, fitted)
    halved = s.reshape(2, 2, 2, 2, 2, 5).mean(axis=(2, 4)) @ kernel + bias
    np.testing.assert_allclose(fitted, halved, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(same, t.astype("float32"))
    assert float(value) == pytest.approx(rows(t, halved).mean(), rel=1e-4)
    slope, _ = tape.gradient(value, connector.trainable_weights)  # the bias moves whole channels
    assert np.abs(slope).max() > 0


def test_several_layers_have_a_projector_each_where_they_need_one(rng):
    shapes = [((2, 4, 4, 3), (2, 4, 4, 3)), ((2, 2, 2, 6), (2, 2, 2, 4))]
    names = ["block1", "block2"]
    loss = ChannelWiseDistillation(teacher_layer_name=names, student_layer_name=names)
    sides = [[tf.random.normal(shape) for shape in side] for side in zip(*shapes, strict=True)]
    unsized = [[(None, *shape[1:]) for shape in side] for side in zip(*shapes, strict=True)]
    connector = loss.connector(*unsized)
    assert [weight.shape for weight in connector.get_weights()] == [(4, 6), (6,)]
    teacher, student = connector(*sides)
    np.testing.assert_array_equal(student[0], sides[1][0])
    expected = sum(rows(t.numpy(), s.numpy()).mean() for t, s in zip(teacher, student, strict=True))
    assert float(loss.compute_loss(teacher, student)) == pytest.approx(expected, rel=1e-5)
    assert loss.get_config()["teacher_layer_name"] == names


def test_equal_shapes_need_no_connector():
    shape = (None, 4, 4, 3)
    loss = ChannelWiseDistillation()
    assert loss.connector(shape, shape) is None
    assert loss.connector([shape, shape], [shape, shape]) is None
    assert loss.connector({"a": shape}, {"a": shape}) is None
    assert loss.connector(shape, (None, 4, 4, 4)).name == "channel_wise_distillation_connector"


# --- words ----------------------------------------------------------------------------------------


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        ChannelWiseDistillation(temperature=0.0)


@pytest.mark.parametrize("student", [(2, 4, 4, 1), (2, 4, 1, 3), (1, 4, 4, 3), (2, 4, 3)], ids=str)
def test_shapes_that_differ_are_refused_and_never_broadcast(student):
    words = r"the shapes of teacher and student differ[\s\S]*train with kd.Distiller"
    with pytest.raises(ValueError, match=words):
        ChannelWiseDistillation().compute_loss(np.ones((2, 4, 4, 3)), np.ones(student))


@pytest.mark.parametrize("shape", [(2, 5), (2, 1, 5), (2, 1, 1, 5)], ids=str)
def test_a_feature_of_one_position_is_refused(shape):
    words = r"a softmax over one position is constant[\s\S]*before the pooling"
    with pytest.raises(ValueError, match=words):
        ChannelWiseDistillation().compute_loss(np.ones(shape), np.ones(shape))


def test_sizes_may_be_unknown_and_one_may_be_1():
    for shape in ((1, 4, 1, 3), (1, 1, 4, 3)):
        ChannelWiseDistillation().check_shapes(shape, shape)
    ChannelWiseDistillation().check_shapes((None, None, None, 3), (None, None, 1, 3))
    ChannelWiseDistillation().check_shapes((1, 2, 2, 3), (1, 2, 2, 3))


def test_outputs_without_channels_are_refused():
    with pytest.raises(ValueError, match="The outputs have no axis but the batch's"):
        ChannelWiseDistillation().compute_loss(np.ones(8), np.ones(8))


def test_padded_sequences_are_refused_as_padding_would_count():
    student = tf.ones((2, 5, 3))
    student._keras_mask = tf.ones((2, 5), "bool")
    with pytest.raises(ValueError, match="the padding of these sequences would change the loss"):
        ChannelWiseDistillation().compute_loss(np.ones((2, 5, 3)), student)
