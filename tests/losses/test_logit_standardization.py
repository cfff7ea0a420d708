"""LogitStandardization: oracle, laws, wrapping and words."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.optimizers.schedules import PiecewiseConstantDecay

import keras_kd as kd
from keras_kd.losses import FeatureDistillation, LogitMatching, LogitsDistillation, base
from keras_kd.losses.bounded_regression import BoundedRegression
from keras_kd.losses.decoupled import DecoupledDistillation
from keras_kd.losses.dist import DIST
from keras_kd.losses.logit_standardization import LogitStandardization, standardize
from keras_kd.losses.multi_label import MultiLabelDistillation
from tests import references

CLASSES = 5


def z_scores(logits):
    """Algorithm 1 of Sun et al. 2024, with the sample deviation and 1e-7 of the authors' code."""
    z = references.float64(logits)
    return (z - z.mean(-1, keepdims=True)) / (1e-7 + z.std(-1, ddof=1, keepdims=True))


def oracle(t, s, temperature):
    """The classic loss of the standardised logits (algorithm 2)."""
    return references.kl_divergence(z_scores(t), z_scores(s), temperature)


@pytest.fixture
def logits(rng):
    """A teacher's and a student's logits, (8, 5) float32."""
    return [rng.normal(scale=2.0, size=(8, CLASSES)).astype("float32") for _ in range(2)]


def classic(temperature=2.0):
    return LogitStandardization(LogitsDistillation(temperature=temperature))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_it_is_the_papers_value(logits, temperature):
    value = classic(temperature).compute_loss(*logits)
    assert float(value) == pytest.approx(oracle(*logits, temperature).mean(), rel=1e-5)


def test_positions_of_a_sequence_are_standardised_each_and_padding_is_left_out(rng):
    t, s = (rng.normal(scale=2.0, size=(2, 3, CLASSES)).astype("float32") for _ in range(2))
    value = classic().compute_loss(t, s)
    assert float(value) == pytest.approx(oracle(t, s, 2.0).mean(), rel=1e-5)
    mask = np.array([[True, True, False], [True, False, False]])
    padded = tf.convert_to_tensor(s)
    padded._keras_mask = tf.convert_to_tensor(mask)
    value = classic().compute_loss(t, padded)
    assert float(value) == pytest.approx(oracle(t, s, 2.0)[mask].mean(), rel=1e-5)


@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 7)], ids=str)
def test_standardised_logits_have_mean_zero_and_sample_deviation_one(rng, shape):
    z = (3.0 * rng.normal(size=shape) + 1.0).astype("float32")
    scores = np.asarray(standardize(z))
    np.testing.assert_allclose(scores, z_scores(z), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores.mean(-1), 0.0, atol=1e-6)
    np.testing.assert_allclose(scores.std(-1, ddof=1), 1.0, rtol=1e-5)


def test_small_differences_are_standardised_too(logits):
    faint = (1e-4 * logits[0]).astype("float32")
    np.testing.assert_allclose(standardize(faint), z_scores(faint), rtol=1e-3, atol=1e-4)
    shifted = logits[0] * np.float32(0.125) + 8.0  # as large a level as differences may sit on
    np.testing.assert_allclose(standardize(shifted), z_scores(shifted), rtol=1e-3, atol=1e-4)


def test_each_position_varies_on_its_own_scale(logits):
    z = np.stack([1e-3 * logits[0], 1e4 * logits[1], np.ones((8, CLASSES))], axis=1)
    scores = np.asarray(standardize(z.astype("float32")))
    np.testing.assert_allclose(scores[:, :2], z_scores(z[:, :2]), rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(scores[:, 2], 0.0)


def test_neither_scale_nor_offset_matters(logits):
    t, s = logits
    loss = classic()
    expected = float(loss.compute_loss(t, s))
    assert float(loss.compute_loss(3.0 * t + 5.0, 0.25 * s - 2.0)) == pytest.approx(
        expected, rel=1e-4
    )
    assert float(loss.compute_loss(t, t)) == 0.0
    assert float(loss.compute_loss(t, 4.0 * t)) == pytest.approx(0.0, abs=1e-5)
    assert float(LogitsDistillation(2.0).compute_loss(t, 4.0 * t)) > 0.1


def test_its_gradient_is_that_of_the_papers_value(logits):
    t, s = logits
    variable = tf.Variable(s)
    with tf.GradientTape() as tape:
        value = classic().compute_loss(t, variable)
    expected = references.gradient(lambda z: oracle(t, z, 2.0).mean(), s)
    np.testing.assert_allclose(tape.gradient(value, variable), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("level", [0.0, 0.1, -3.7, 1e4])
def test_constant_logits_are_zeros_without_a_gradient(logits, level):
    t, _ = logits
    variable = tf.Variable(np.full((8, CLASSES), level, "float32"))
    with tf.GradientTape() as tape:
        value = classic().compute_loss(t, variable)
    expected = references.kl_divergence(z_scores(t), np.zeros((8, CLASSES)), 2.0).mean()
    assert float(value) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(tape.gradient(value, variable), np.zeros((8, CLASSES)))
    assert np.isfinite(float(classic().compute_loss(variable, t)))


def test_logits_of_ten_thousand_stay_finite():
    t, s = 1e4 * np.eye(3, dtype="float32"), tf.Variable(1e4 * np.eye(3, dtype="float32")[::-1])
    with tf.GradientTape() as tape:
        value = classic().compute_loss(t, s)
    assert float(value) == pytest.approx(oracle(t, s.numpy(), 2.0).mean(), rel=1e-5)
    assert np.isfinite(tape.gradient(value, s)).all()


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_graph_and_xla_with_an_unknown_batch_give_what_eager_gives(logits, jit_compile):
    loss = LogitStandardization(DIST(temperature=2.0))
    spec = tf.TensorSpec((None, CLASSES))

    @tf.function(jit_compile=jit_compile, input_signature=[spec, spec])
    def compiled(teacher, student):
        with tf.GradientTape() as tape:
            tape.watch(student)
            value = loss.compute_loss(teacher, student)
        return value, tape.gradient(value, student)

    value, gradient = compiled(*map(tf.constant, logits))
    expected, slope = compiled.python_function(*map(tf.constant, logits))
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-6)


def test_labels_go_through_to_a_loss_that_needs_them(rng, logits):
    y = rng.integers(CLASSES, size=8)
    loss = LogitStandardization(DecoupledDistillation())
    scores = [z_scores(z).astype("float32") for z in logits]
    expected = DecoupledDistillation().compute_loss(*scores, y=y)
    assert loss.needs_labels is True
    assert float(loss.compute_loss(*logits, y=y)) == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(ValueError, match="LogitStandardization needs labels"):
        loss.compute_loss(*logits)


def test_a_loss_that_relates_examples_learns_which_are_present(logits):
    t, s = logits
    weight = np.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    scores = [z_scores(z).astype("float32") for z in logits]
    expected = DIST().compute_loss(*scores, sample_weight=weight)
    value = LogitStandardization(DIST()).compute_loss(t, s, sample_weight=weight)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("inner", "activation"),
    [
        (LogitsDistillation(), "softmax"),
        (LogitsDistillation(activation="sigmoid"), "sigmoid"),
        (LogitsDistillation(loss="mse"), None),
        (MultiLabelDistillation(), "sigmoid"),
        (LogitMatching(), None),
    ],
    ids=["softmax", "sigmoid", "mse", "labels", "matching"],
)
def test_it_takes_over_what_the_loss_inside_is_for(logits, inner, activation):
    loss = LogitStandardization(inner)
    assert (loss.activation, loss.needs_labels) == (activation, False)
    assert (loss.name, loss.space) == ("logit_standardization", "logits")
    scores = [z_scores(z).astype("float32") for z in logits]
    expected = float(inner.compute_loss(*scores))
    assert float(loss.compute_loss(*logits)) == pytest.approx(expected, rel=1e-5)


def test_a_schedule_inside_is_followed(logits):
    loss = classic(PiecewiseConstantDecay([10], [6.0, 2.0]))
    assert list(loss.schedules()) == ["temperature"]
    for step, temperature in ((0, 6.0), (11, 2.0)):
        value = loss.compute_loss(*logits, step=step)
        assert float(value) == pytest.approx(oracle(*logits, temperature).mean(), rel=1e-5)


@pytest.mark.parametrize(
    "inner",
    [LogitsDistillation(2.5, direction="reverse"), DecoupledDistillation(beta=2.0)],
    ids=["reverse", "decoupled"],
)
def test_a_config_through_json_makes_the_same_loss(logits, inner):
    loss = LogitStandardization(inner, name="mine")
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    again = keras.saving.deserialize_keras_object(config)
    assert (again.name, again.needs_labels) == ("mine", loss.needs_labels)
    assert again.loss.get_config() == inner.get_config()
    y = np.arange(8) % CLASSES
    assert float(again.compute_loss(*logits, y=y)) == float(loss.compute_loss(*logits, y=y))


@pytest.mark.parametrize("inner", [LogitsDistillation(2.0), DecoupledDistillation()])
def test_the_distiller_trains_with_it(rng, inner):
    x, y = rng.normal(size=(8, 6)).astype("float32"), np.arange(8) % CLASSES
    teacher, student = (
        keras.Sequential([keras.Input((6,)), keras.layers.Dense(CLASSES)]) for _ in range(2)
    )
    loss = LogitStandardization(inner)
    distiller = kd.Distiller(teacher=teacher, student=student, distillation_losses=[loss])
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.SGD(0.01), crossentropy)
    expected = float(loss.compute_loss(teacher(x), student(x), y=y))
    history = distiller.fit(x, y, batch_size=8, epochs=1, verbose=0).history
    assert history["logit_standardization"][0] == pytest.approx(expected, rel=1e-5)


def test_keras_distiller_is_told_what_a_loss_with_labels_needs():
    with pytest.raises(ValueError, match="needs labels"):
        LogitStandardization(DecoupledDistillation()).validate_outputs((None, 5), (None, 5))


@pytest.mark.parametrize("given", [None, "kl_divergence", keras.losses.KLDivergence()])
def test_what_is_no_distillation_loss_is_refused(given):
    with pytest.raises(TypeError, match=r"`loss` must be a loss on logits\.[\s\S]*fix: "):
        LogitStandardization(given)


class TrainedParts(base.DistillationLoss):
    """A loss on logits with parts of its own."""

    trained_parts = "a layer"


class AllAtOnce(base.DistillationLoss):
    """A loss on several outputs at once."""

    takes_all = True


@pytest.mark.parametrize(
    "given",
    [
        FeatureDistillation(),
        BoundedRegression(),
        LogitsDistillation(loss=["kl_divergence", None]),
        TrainedParts(),
        AllAtOnce(),
    ],
    ids=lambda given: type(given).__name__,
)
def test_a_loss_on_something_else_than_one_outputs_logits_is_refused(given):
    with pytest.raises(ValueError, match=r"a loss on the logits of one output[\s\S]*fix: "):
        LogitStandardization(given)


def test_what_it_cannot_compare_is_refused(logits):
    t, s = logits
    with pytest.raises(ValueError, match="the shapes of teacher and student differ"):
        classic().compute_loss(t, s[:, :4])
    with pytest.raises(ValueError, match="The outputs have no axis but the batch's"):
        classic().compute_loss(t[:, 0], s[:, 0])
    words = r"Logits of one class have no deviation[\s\S]*use LogitMatching without"
    for one in ([t[:, :1], s[:, :1]], [t[:, :, None], s[:, :, None]]):
        with pytest.raises(ValueError, match=words):
            LogitStandardization(LogitMatching()).compute_loss(*one)
    with pytest.raises(ValueError, match="Two classes leave one class besides the label's"):
        LogitStandardization(DecoupledDistillation()).compute_loss(t[:, :2], s[:, :2], y=[0] * 8)


def test_a_loss_for_one_output_is_refused_inside():
    words = r"`loss` must not be for one output[\s\S]*LogitStandardization\(…\)\.on\('digit'\)"
    with pytest.raises(ValueError, match=words):
        LogitStandardization(LogitsDistillation().on("digit"))
