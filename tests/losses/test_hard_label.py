"""HardLabelDistillation: oracle, laws, gradient and words."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_kd.losses import HardLabelDistillation, LogitsDistillation
from tests import references


@pytest.fixture
def logits(rng):
    """A teacher's and a student's logits, (16, 10) float32."""
    return [rng.normal(scale=2.0, size=(16, 10)).astype("float32") for _ in range(2)]


def test_hard_label_is_the_cross_entropy_with_the_teachers_decision(logits):
    expected = references.hard_label(*logits).mean()
    assert float(HardLabelDistillation().compute_loss(*logits)) == pytest.approx(expected, rel=1e-6)


def test_positions_of_a_sequence_are_averaged(rng):
    t, s = (rng.normal(size=(3, 4, 5)) for _ in range(2))
    expected = references.hard_label(t, s).mean()
    assert float(HardLabelDistillation().compute_loss(t, s)) == pytest.approx(expected, rel=1e-6)


def test_only_the_teachers_decision_counts(logits):
    t, s = logits
    loss = HardLabelDistillation()
    assert float(loss.compute_loss(t, s)) == float(loss.compute_loss(3.0 * t + 1.0, s)) > 0.0


def test_it_is_the_kl_of_a_teacher_without_doubt(logits):
    t, s = logits
    certain = 1e3 * np.eye(10, dtype="float32")[t.argmax(-1)]
    expected = float(LogitsDistillation(1.0).compute_loss(certain, s))
    assert float(HardLabelDistillation().compute_loss(t, s)) == pytest.approx(expected, rel=1e-6)


def test_it_ignores_a_shift_and_the_order_of_classes_and_examples(rng, logits):
    t, s = logits
    expected = float(HardLabelDistillation().compute_loss(t, s))
    classes, examples = rng.permutation(10), rng.permutation(16)
    mixed = [z[examples][:, classes] for z in (t - 3.0, s + 5.0)]
    assert float(HardLabelDistillation().compute_loss(*mixed)) == pytest.approx(expected, rel=1e-6)


def test_the_gradient_is_softmax_minus_the_decision(logits):
    t, s = logits
    variable = tf.Variable(s)
    with tf.GradientTape() as tape:
        value = HardLabelDistillation().compute_loss(t, variable)
    expected = (references.softmax(s) - np.eye(10)[t.argmax(-1)]) / 16
    np.testing.assert_allclose(tape.gradient(value, variable), expected, rtol=1e-5, atol=1e-7)


def test_a_softmax_over_one_class_is_refused():
    with pytest.raises(ValueError, match="A softmax over one class is constant"):
        HardLabelDistillation().compute_loss(np.ones((4, 1)), np.ones((4, 1)))
