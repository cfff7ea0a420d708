"""DecoupledDistillation: oracle, laws, gradient and words."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from keras.optimizers.schedules import PiecewiseConstantDecay

from keras_kd.losses.decoupled import DecoupledDistillation, decoupled
from tests import references

CLASSES = 5


def parts(t, s, y, temperature=1.0):
    """TCKD and NCKD of Zhao et al. 2022, equation 5 with b and p̂ as defined above it."""
    p, q = (references.softmax(references.float64(z) / temperature) for z in (t, s))
    is_target = np.eye(p.shape[-1], dtype=bool)[y]
    p_y, q_y = (np.sum(r * is_target, axis=-1) for r in (p, q))
    target = p_y * np.log(p_y / q_y) + (1 - p_y) * np.log((1 - p_y) / (1 - q_y))
    p_hat, q_hat = (r[~is_target].reshape(*p.shape[:-1], -1) for r in (p, q))
    p_hat, q_hat = (r / r.sum(-1, keepdims=True) for r in (p_hat, q_hat))
    return target, np.sum(p_hat * np.log(p_hat / q_hat), axis=-1)


def oracle(t, s, y, alpha=1.0, beta=8.0, temperature=4.0):
    """Equation 7, with the T² on both parts of the authors' code."""
    target, others = parts(t, s, y, temperature)
    return temperature**2 * (alpha * target + beta * others)


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
    loss = DecoupledDistillation()
    assert (loss.alpha, loss.beta, loss.temperature) == (1.0, 8.0, 4.0)
    assert loss.needs_labels is True
    assert (loss.name, loss.space, loss.activation) == (
        "decoupled_distillation",
        "logits",
        "softmax",
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"alpha": 2.5}, {"beta": 0.5}, {"temperature": 1.5}, {"alpha": 0.0}, {"beta": 0.0}],
    ids=str,
)
def test_it_is_the_papers_value(batch, options):
    t, s, y = batch
    value = DecoupledDistillation(**options).compute_loss(t, s, y=y)
    assert float(value) == pytest.approx(oracle(t, s, y, **options).mean(), rel=1e-5)


def test_positions_of_a_sequence_are_averaged(tokens):
    t, s, y = tokens
    value = DecoupledDistillation().compute_loss(t, s, y=y)
    assert float(value) == pytest.approx(oracle(t, s, y).mean(), rel=1e-5)


def test_padding_and_weights_leave_positions_out(tokens):
    t, s, y = tokens
    mask = np.array([[True, True, False], [True, False, False]])
    padded = tf.convert_to_tensor(s)
    padded._keras_mask = tf.convert_to_tensor(mask)
    weight = np.array([2.0, 0.5])
    expected = (weight[:, None] * oracle(t, s, y))[mask].sum() / 3
    labels = np.where(mask, y, -1)  # what stands at a padded position is no class
    value = DecoupledDistillation().compute_loss(t, padded, y=labels, sample_weight=weight)
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_the_parts_agree_with_the_paper_one_by_one(batch):
    t, s, y = batch
    labels = np.eye(CLASSES, dtype="float32")[y]
    for value, expected in zip(decoupled(t, s, labels), parts(t, s, y), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_classic_divergence_couples_the_parts_by_the_teachers_doubt(batch, temperature):
    t, s, y = batch
    p_y = np.take_along_axis(references.softmax(t / temperature), y[:, None], -1)[:, 0]
    target, others = decoupled(t, s, np.eye(CLASSES, dtype="float32")[y], temperature)
    classic = references.kl_divergence(t, s, temperature) / temperature**2
    np.testing.assert_allclose(target + (1 - p_y) * others, classic, rtol=1e-5)


def test_one_hot_labels_are_class_numbers(batch):
    t, s, y = batch
    loss = DecoupledDistillation()
    expected = float(loss.compute_loss(t, s, y=y))
    assert float(loss.compute_loss(t, s, y=np.eye(CLASSES)[y])) == expected
    assert float(loss.compute_loss(t, s, y=y[:, None])) == expected


def test_it_is_zero_at_teacher_equals_student_and_positive_elsewhere(batch):
    t, s, y = batch
    loss = DecoupledDistillation()
    assert float(loss.compute_loss(t, t, y=y)) == 0.0
    assert float(loss.compute_loss(t, t + 3.0, y=y)) == pytest.approx(0.0, abs=1e-5)
    assert float(loss.compute_loss(t, s, y=y)) > 0.0


def test_without_alpha_the_targets_logit_is_free_and_without_beta_the_others_shares_are(batch):
    t, s, y = batch
    own = np.eye(CLASSES, dtype="float32")[y]
    others = DecoupledDistillation(alpha=0.0)
    assert float(others.compute_loss(t, s + 5.0 * own, y=y)) == pytest.approx(
        float(others.compute_loss(t, s, y=y)), rel=1e-5
    )
    target = DecoupledDistillation(beta=0.0)
    columns = (y[:, None] + np.array([0, 3, 1, 4, 2])) % CLASSES  # the label's logit stays
    shuffled = np.empty_like(s)
    np.put_along_axis(
        shuffled, (y[:, None] + np.arange(5)) % 5, np.take_along_axis(s, columns, -1), -1
    )
    assert float(target.compute_loss(t, shuffled, y=y)) == pytest.approx(
        float(target.compute_loss(t, s, y=y)), rel=1e-5
    )


def test_its_gradient_is_that_of_the_papers_value(batch):
    t, s, y = batch
    variable = tf.Variable(s)
    with tf.GradientTape() as tape:
        value = DecoupledDistillation().compute_loss(t, variable, y=y)
    expected = references.gradient(lambda z: oracle(t, z, y).mean(), s)
    np.testing.assert_allclose(tape.gradient(value, variable), expected, rtol=1e-4, atol=1e-5)


def test_a_certain_teacher_still_shows_how_the_others_compare():
    t, s = np.array([[40.0, 2.0, 1.0]], "float32"), np.array([[0.0, 1.0, 3.0]], "float32")
    p, q = (references.softmax(z[0, 1:]) for z in (t, s))
    expected = np.sum(p * np.log(p / q))
    value = DecoupledDistillation(alpha=0.0, beta=1.0, temperature=1.0).compute_loss(t, s, y=[0])
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_logits_of_ten_thousand_keep_value_and_gradient():
    t, s = np.array([[1e4, 0.0, 0.0]], "float32"), tf.Variable([[0.0, 1e4, 0.0]])
    loss = DecoupledDistillation(alpha=1.0, beta=1.0, temperature=1.0)
    with tf.GradientTape() as tape:
        value = loss.compute_loss(t, s, y=[0])
    # TCKD = 1e4; NCKD = ½·log ½ + ½·(log ½ + 1e4)
    assert float(value) == pytest.approx(1.5e4 - np.log(2.0), rel=1e-6)
    np.testing.assert_allclose(tape.gradient(value, s), [[-1.0, 1.5, -0.5]], rtol=1e-6)


def test_temperature_and_weights_may_be_schedules(batch):
    t, s, y = batch
    falling = PiecewiseConstantDecay([10], [6.0, 2.0])
    loss = DecoupledDistillation(alpha=falling, beta=falling, temperature=falling)
    for step, number in ((0, 6.0), (11, 2.0)):
        expected = oracle(t, s, y, number, number, number).mean()
        value = loss.compute_loss(t, s, y=y, step=step)
        assert float(value) == pytest.approx(expected, rel=1e-5)


def test_two_classes_are_refused_unless_beta_is_zero():
    t, s = np.array([[1.0, 0.0]]), np.array([[0.0, 2.0]])
    words = r"Two classes leave one class besides the label's[\s\S]*beta=8.0[\s\S]*fix: "
    with pytest.raises(ValueError, match=words):
        DecoupledDistillation().compute_loss(t, s, y=[0])
    with pytest.raises(ValueError, match=words):  # and of a sequence
        DecoupledDistillation().compute_loss(
            np.stack([t] * 3, 1), np.stack([s] * 3, 1), y=[[0, 1, 0]]
        )
    value = DecoupledDistillation(beta=0.0).compute_loss(t, s, y=[0])
    assert float(value) == pytest.approx(references.kl_divergence(t, s, 4.0).mean(), rel=1e-5)


def test_what_it_cannot_compare_is_refused(batch):
    t, s, y = batch
    loss = DecoupledDistillation()
    with pytest.raises(ValueError, match="needs labels"):
        loss.compute_loss(t, s)
    with pytest.raises(ValueError, match="The labels do not fit the classes"):
        loss.compute_loss(t, s, y=y[:3])
    with pytest.raises(ValueError, match="the shapes of teacher and student differ"):
        loss.compute_loss(t, s[:, :4], y=y)
    with pytest.raises(ValueError, match="A softmax over one class is constant"):
        loss.compute_loss(t[:, :1], s[:, :1], y=y)
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        DecoupledDistillation(temperature=0.0)
    for name in ("alpha", "beta"):
        with pytest.raises(TypeError, match=f"`{name}` must be a number"):
            DecoupledDistillation(**{name: "1"})


@pytest.mark.parametrize("void", [-1, 5, 255])
def test_a_label_that_is_no_class_teaches_nothing(batch, void):
    t, s, y = batch
    labels, variable = np.where(np.arange(8) < 3, void, y), tf.Variable(s)
    with tf.GradientTape() as tape:
        value = DecoupledDistillation().compute_loss(t, variable, y=labels)
    assert float(value) == pytest.approx(oracle(t[3:], s[3:], y[3:]).sum() / 8, rel=1e-5)
    slopes = tape.gradient(value, variable).numpy()
    assert np.all(slopes[:3] == 0.0) and np.all(slopes[3:] != 0.0)
