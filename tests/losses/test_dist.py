"""DIST: oracle, laws, gradient and words."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from keras.optimizers.schedules import PiecewiseConstantDecay

from keras_kd.losses.dist import DIST, pearson
from tests import references

CLASSES = 5


def correlation(a, b):
    """Pearson's ρ on the last axis, with the 1e-8 of the authors' code."""
    a, b = (z - z.mean(-1, keepdims=True) for z in (a, b))
    return np.sum(a * b, -1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1) + 1e-8)


def oracle(t, s, beta=1.0, gamma=1.0, temperature=1.0):
    """β·L_inter + γ·L_intra of Huang et al. 2022, with the T² of the authors' code."""
    p, q = (references.softmax(references.float64(z) / temperature) for z in (t, s))
    p, q = (z.reshape(-1, z.shape[-1]) for z in (p, q))
    inter = np.mean(1.0 - correlation(p, q))
    intra = np.mean(1.0 - correlation(p.T, q.T))
    return temperature**2 * (beta * inter + gamma * intra)


@pytest.fixture
def logits(rng):
    """A teacher's and a student's logits, (8, 5) float32."""
    return [rng.normal(scale=2.0, size=(8, CLASSES)).astype("float32") for _ in range(2)]


@pytest.fixture
def tokens(rng):
    """Logits of sequences, (2, 3, 5) float32."""
    return [rng.normal(scale=2.0, size=(2, 3, CLASSES)).astype("float32") for _ in range(2)]


def test_the_defaults_are_the_papers():
    loss = DIST()
    assert (loss.beta, loss.gamma, loss.temperature) == (1.0, 1.0, 1.0)
    assert (loss.name, loss.space, loss.activation) == ("dist", "logits", "softmax")
    assert loss.needs_labels is False


@pytest.mark.parametrize(
    "options",
    [{}, {"beta": 2.0}, {"gamma": 0.5}, {"temperature": 4.0}, {"beta": 0.0}, {"gamma": 0.0}],
    ids=str,
)
def test_it_is_the_papers_value(logits, options):
    value = DIST(**options).compute_loss(*logits)
    assert float(value) == pytest.approx(oracle(*logits, **options), rel=1e-5)


def test_the_positions_of_a_sequence_are_examples(tokens):
    assert float(DIST().compute_loss(*tokens)) == pytest.approx(oracle(*tokens), rel=1e-5)


def test_padding_is_in_no_statistic(tokens):
    t, s = tokens
    mask = np.array([[True, True, False], [True, True, False]])
    padded = tf.convert_to_tensor(s)
    padded._keras_mask = tf.convert_to_tensor(mask)
    value = DIST().compute_loss(t, padded)
    assert float(value) == pytest.approx(oracle(t[mask], s[mask]), rel=1e-5)


def test_examples_of_weight_zero_are_in_no_statistic(logits):
    t, s = logits
    weight = np.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    value = DIST().compute_loss(t, s, sample_weight=weight)
    expected = oracle(t[weight > 0], s[weight > 0]) * 6 / 8
    assert float(value) == pytest.approx(expected, rel=1e-5)
    rows = np.asarray(DIST().per_example(tf.constant(t), tf.constant(s), tf.constant(weight > 0)))
    np.testing.assert_array_equal(rows[weight == 0], 0.0)


def test_a_batch_without_examples_is_zero(logits):
    t, s = logits
    assert float(DIST().compute_loss(t, s, sample_weight=np.zeros(8))) == 0.0


@pytest.mark.parametrize("weight", [None, np.linspace(0.1, 2.0, 8)], ids=["plain", "weighted"])
def test_it_is_zero_and_flat_at_teacher_equals_student(logits, weight):
    t, _ = logits
    variable = tf.Variable(t)
    with tf.GradientTape() as tape:
        value = DIST().compute_loss(t, variable, sample_weight=weight)
    assert float(value) == pytest.approx(0.0, abs=1e-5)
    np.testing.assert_allclose(tape.gradient(value, variable), np.zeros((8, 5)), atol=1e-5)


def test_a_correlation_knows_neither_scale_nor_offset(rng):
    a, b = (rng.normal(size=(4, 6)).astype("float32") for _ in range(2))
    for axis in (0, 1):
        ones = np.ones((4, 1), "float32")
        expected = correlation(*(np.moveaxis(z, axis, -1).astype("float64") for z in (a, b)))
        np.testing.assert_allclose(pearson(a, b, ones, axis=axis), expected, rtol=1e-5)
        np.testing.assert_allclose(pearson(a, 3.0 * b + 2.0, ones, axis=axis), expected, rtol=1e-4)
        np.testing.assert_allclose(pearson(a, -b, ones, axis=axis), -expected, rtol=1e-5)
        np.testing.assert_allclose(pearson(a, a, ones, axis=axis), 1.0, rtol=1e-5)
    last = np.stack([a, b])  # the default axis is the last
    np.testing.assert_allclose(
        pearson(last, last[::-1], np.ones((2, 4, 1), "float32")),
        correlation(last.astype("float64"), last[::-1].astype("float64")),
        rtol=1e-5,
    )


def test_the_order_of_classes_and_of_examples_does_not_matter(rng, logits):
    examples, classes = rng.permutation(8), rng.permutation(CLASSES)
    mixed = [z[examples][:, classes] for z in logits]
    assert float(DIST().compute_loss(*mixed)) == pytest.approx(oracle(*logits), rel=1e-5)


def test_a_class_nobody_predicts_counts_as_uncorrelated(logits):
    t, s = (z.copy() for z in logits)
    t[:, 0], s[:, 0] = t[:, 0] - 12.0, t[:, 0] - 13.0
    expected = oracle(t, s, beta=0.0)
    value = DIST(beta=0.0).compute_loss(t, s)
    assert float(value) == pytest.approx(expected, rel=1e-4)
    far = [np.concatenate([z[:, :1] - 40.0, z[:, 1:]], axis=1) for z in (t, t)]
    assert float(DIST(beta=0.0).compute_loss(*far)) == pytest.approx(1.0 / CLASSES, rel=1e-4)


@pytest.mark.parametrize("level", [0.0, 0.1, -3.7, 1e4])
def test_a_student_that_prefers_no_class_gets_no_noise_for_a_gradient(logits, level):
    t, _ = logits
    variable = tf.Variable(np.full((8, CLASSES), level, "float32"))
    with tf.GradientTape() as tape:
        value = DIST().compute_loss(t, variable)
    assert float(value) == 2.0
    np.testing.assert_array_equal(tape.gradient(value, variable), np.zeros((8, CLASSES)))


def test_a_small_preference_is_seen(logits):
    t, s = logits
    faint = (1e-3 * s).astype("float32")
    value = DIST().compute_loss(t, faint)
    assert float(value) == pytest.approx(oracle(t, faint), rel=1e-3)


def test_one_example_has_no_relation_to_others(logits):
    t, s = (z[:1] for z in logits)
    assert float(DIST(beta=0.0).compute_loss(t, s)) == 1.0
    assert float(DIST(gamma=0.0).compute_loss(t, s)) == pytest.approx(
        oracle(t, s, gamma=0.0), rel=1e-5
    )


@pytest.mark.parametrize("options", [{}, {"temperature": 4.0, "beta": 2.0}], ids=str)
def test_its_gradient_is_that_of_the_papers_value(logits, options):
    t, s = logits
    variable = tf.Variable(s)
    with tf.GradientTape() as tape:
        value = DIST(**options).compute_loss(t, variable)
    expected = references.gradient(lambda z: oracle(t, z, **options), s)
    np.testing.assert_allclose(tape.gradient(value, variable), expected, rtol=1e-4, atol=1e-6)


def test_logits_of_ten_thousand_stay_finite():
    t, s = 1e4 * np.eye(3, dtype="float32"), tf.Variable(1e4 * np.eye(3, dtype="float32")[::-1])
    with tf.GradientTape() as tape:
        value = DIST().compute_loss(t, s)
    # rows and columns of the identity: two pairs of three correlate by -1/2, one by 1
    assert float(value) == pytest.approx(2.0, rel=1e-6)
    assert np.isfinite(tape.gradient(value, s)).all()


def test_temperature_and_weights_may_be_schedules(logits):
    falling = PiecewiseConstantDecay([10], [6.0, 2.0])
    loss = DIST(beta=falling, gamma=falling, temperature=falling)
    for step, number in ((0, 6.0), (11, 2.0)):
        expected = oracle(*logits, number, number, number)
        assert float(loss.compute_loss(*logits, step=step)) == pytest.approx(expected, rel=1e-5)


def test_what_it_cannot_compare_is_refused(logits):
    t, s = logits
    with pytest.raises(ValueError, match="the shapes of teacher and student differ"):
        DIST().compute_loss(t, s[:, :4])
    with pytest.raises(ValueError, match="A softmax over one class is constant"):
        DIST().compute_loss(t[:, :1], s[:, :1])
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        DIST(temperature=0.0)
    for name in ("beta", "gamma"):
        with pytest.raises(TypeError, match=f"`{name}` must be a number"):
            DIST(**{name: "1"})
