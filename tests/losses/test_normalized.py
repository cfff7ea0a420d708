"""NormalizedDistillation: oracle, laws, gradient and words."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from keras.optimizers.schedules import PiecewiseConstantDecay

from keras_kd.losses.normalized import (
    NormalizedDistillation,
    others_cross_entropy,
    target_cross_entropy,
)
from tests import references

CLASSES = 5


def non_target(t, s, y, temperature=1.0):
    """−Σ N(p)·log N(q) of Yang et al. 2023: N leaves the label's class out and sums to 1."""
    p, q = (references.softmax(references.float64(z) / temperature) for z in (t, s))
    is_target = np.eye(p.shape[-1], dtype=bool)[y]
    p, q = (r[~is_target].reshape(*p.shape[:-1], -1) for r in (p, q))
    p, q = (r / r.sum(-1, keepdims=True) for r in (p, q))
    return -np.sum(p * np.log(q), axis=-1)


def oracle(t, s, y, gamma=1.5, temperature=1.0):
    """L_NKD with the target at temperature 1 and the T² of the authors' code."""
    p_y = np.take_along_axis(references.softmax(t), np.asarray(y)[..., None], -1)[..., 0]
    target = p_y * references.cross_entropy(s, y)
    return target + gamma * temperature**2 * non_target(t, s, y, temperature)


@pytest.fixture
def batch(rng):
    """A teacher's and a student's logits, (8, 5), and labels."""
    t, s = (rng.normal(scale=2.0, size=(8, CLASSES)).astype("float32") for _ in range(2))
    return t, s, rng.integers(CLASSES, size=8)


@pytest.fixture
def tokens(rng):
    """Logits of sequences, (2, 3, 5), and labels."""
    t, s = (rng.normal(scale=2.0, size=(2, 3, CLASSES)).astype("float32") for _ in range(2))
    return t, s, rng.integers(CLASSES, size=(2, 3))


def test_the_defaults_are_the_papers():
    loss = NormalizedDistillation()
    assert (loss.gamma, loss.temperature, loss.needs_labels) == (1.5, 1.0, True)
    assert (loss.name, loss.space) == ("normalized_distillation", "logits")
    assert loss.activation == "softmax"


@pytest.mark.parametrize(
    "options", [{}, {"gamma": 0.5}, {"temperature": 3.0}, {"gamma": 0.0}], ids=str
)
def test_it_is_the_papers_value(batch, options):
    t, s, y = batch
    value = NormalizedDistillation(**options).compute_loss(t, s, y=y)
    assert float(value) == pytest.approx(oracle(t, s, y, **options).mean(), rel=1e-5)


def test_positions_of_a_sequence_are_averaged(tokens):
    t, s, y = tokens
    value = NormalizedDistillation(temperature=2.0).compute_loss(t, s, y=y)
    assert float(value) == pytest.approx(oracle(t, s, y, temperature=2.0).mean(), rel=1e-5)


def test_padding_and_weights_leave_positions_out(tokens):
    t, s, y = tokens
    mask = np.array([[True, True, False], [True, False, False]])
    padded = tf.convert_to_tensor(s)
    padded._keras_mask = tf.convert_to_tensor(mask)
    weight = np.array([2.0, 0.5])
    expected = (weight[:, None] * oracle(t, s, y))[mask].sum() / 3
    labels = np.where(mask, y, -1)  # what stands at a padded position is no class
    value = NormalizedDistillation().compute_loss(t, padded, y=labels, sample_weight=weight)
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_the_parts_agree_with_the_paper_one_by_one(batch):
    t, s, y = batch
    labels = np.eye(CLASSES, dtype="float32")[y]
    np.testing.assert_allclose(
        target_cross_entropy(t, s, labels), oracle(t, s, y, gamma=0.0), rtol=1e-5
    )
    np.testing.assert_allclose(
        others_cross_entropy(t, s, labels), non_target(t, s, y, 1.0), rtol=1e-5
    )


def test_a_one_hot_teacher_at_the_label_leaves_the_cross_entropy(batch):
    _, s, y = batch
    t = 1e3 * np.eye(CLASSES, dtype="float32")[y]
    value = NormalizedDistillation(gamma=0.0).compute_loss(t, s, y=y)
    assert float(value) == pytest.approx(references.cross_entropy(s, y).mean(), rel=1e-5)


def test_the_others_are_least_at_the_teachers_shares_whatever_the_targets_logit(batch):
    t, s, y = batch
    own = np.eye(CLASSES, dtype="float32")[y]
    value = others_cross_entropy(t, t + 3.0 * own, own)
    shares = t[own == 0.0].reshape(8, -1)
    np.testing.assert_allclose(value, references.entropy(shares), rtol=1e-5)
    assert (np.asarray(others_cross_entropy(t, s, own)) > np.asarray(value)).all()


def test_one_hot_labels_are_class_numbers(batch):
    t, s, y = batch
    loss = NormalizedDistillation()
    expected = float(loss.compute_loss(t, s, y=y))
    assert float(loss.compute_loss(t, s, y=np.eye(CLASSES)[y])) == expected


def test_its_gradient_is_that_of_the_papers_value(batch):
    t, s, y = batch
    variable = tf.Variable(s)
    with tf.GradientTape() as tape:
        value = NormalizedDistillation(temperature=2.0).compute_loss(t, variable, y=y)
    expected = references.gradient(lambda z: oracle(t, z, y, temperature=2.0).mean(), s)
    np.testing.assert_allclose(tape.gradient(value, variable), expected, rtol=1e-4, atol=1e-6)


def test_logits_of_ten_thousand_keep_value_and_gradient():
    t, s = np.array([[1e4, 0.0, 0.0]], "float32"), tf.Variable([[0.0, 1e4, 0.0]])
    with tf.GradientTape() as tape:
        value = NormalizedDistillation(gamma=1.0).compute_loss(t, s, y=[0])
    assert float(value) == pytest.approx(1.5e4, rel=1e-6)  # 1e4 and ½·1e4
    np.testing.assert_allclose(tape.gradient(value, s), [[-1.0, 1.5, -0.5]], rtol=1e-6)


def test_temperature_and_weight_may_be_schedules(batch):
    t, s, y = batch
    falling = PiecewiseConstantDecay([10], [6.0, 2.0])
    loss = NormalizedDistillation(gamma=falling, temperature=falling)
    for step, number in ((0, 6.0), (11, 2.0)):
        expected = oracle(t, s, y, number, number).mean()
        value = loss.compute_loss(t, s, y=y, step=step)
        assert float(value) == pytest.approx(expected, rel=1e-5)


def test_two_classes_are_refused_unless_gamma_is_zero():
    t, s = np.array([[1.0, 0.0]]), np.array([[0.0, 2.0]])
    words = r"Two classes leave one class besides the label's[\s\S]*gamma=1.5[\s\S]*fix: "
    with pytest.raises(ValueError, match=words):
        NormalizedDistillation().compute_loss(t, s, y=[0])
    with pytest.raises(ValueError, match=words):  # and of a sequence
        NormalizedDistillation().compute_loss(
            np.stack([t] * 3, 1), np.stack([s] * 3, 1), y=[[0, 1, 0]]
        )
    value = NormalizedDistillation(gamma=0.0).compute_loss(t, s, y=[0])
    assert float(value) == pytest.approx(oracle(t, s, [0], gamma=0.0).mean(), rel=1e-5)


def test_what_it_cannot_compare_is_refused(batch):
    t, s, y = batch
    loss = NormalizedDistillation()
    with pytest.raises(ValueError, match="needs labels"):
        loss.compute_loss(t, s)
    with pytest.raises(ValueError, match="The labels do not fit the classes"):
        loss.compute_loss(t, s, y=y[:3])
    with pytest.raises(ValueError, match="the shapes of teacher and student differ"):
        loss.compute_loss(t, s[:, :4], y=y)
    with pytest.raises(ValueError, match="A softmax over one class is constant"):
        loss.compute_loss(t[:, :1], s[:, :1], y=y)
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        NormalizedDistillation(temperature=-1.0)
    with pytest.raises(TypeError, match="`gamma` must be a number"):
        NormalizedDistillation(gamma=None)


@pytest.mark.parametrize("void", [-1, 5, 255])
def test_a_label_that_is_no_class_teaches_nothing(batch, void):
    t, s, y = batch
    labels, variable = np.where(np.arange(8) < 3, void, y), tf.Variable(s)
    with tf.GradientTape() as tape:
        value = NormalizedDistillation().compute_loss(t, variable, y=labels)
    assert float(value) == pytest.approx(oracle(t[3:], s[3:], y[3:]).sum() / 8, rel=1e-5)
    slopes = tape.gradient(value, variable).numpy()
    assert np.all(slopes[:3] == 0.0) and np.all(slopes[3:] != 0.0)
