"""LogitMatching: oracle, laws, gradient and words."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_kd.losses import LogitMatching, LogitsDistillation
from tests import references


@pytest.fixture
def logits(rng):
    """A teacher's and a student's logits, (16, 10) float32."""
    return [rng.normal(scale=2.0, size=(16, 10)).astype("float32") for _ in range(2)]


def test_logit_matching_is_half_the_squared_distance(logits):
    expected = references.logit_matching(*logits).mean()
    assert float(LogitMatching().compute_loss(*logits)) == pytest.approx(expected, rel=1e-6)


def test_positions_of_a_sequence_are_averaged(rng):
    t, s = (rng.normal(size=(3, 4, 5)) for _ in range(2))
    expected = references.logit_matching(t, s).mean()
    assert float(LogitMatching().compute_loss(t, s)) == pytest.approx(expected, rel=1e-6)


def test_it_is_zero_at_teacher_equals_student_and_symmetric(logits):
    t, s = logits
    loss = LogitMatching()
    assert float(loss.compute_loss(t, t)) == 0.0
    assert float(loss.compute_loss(t, s)) == float(loss.compute_loss(s, t)) > 0.0


def test_the_order_of_classes_and_of_examples_does_not_matter(rng, logits):
    classes, examples = rng.permutation(10), rng.permutation(16)
    mixed = [z[examples][:, classes] for z in logits]
    expected = float(LogitMatching().compute_loss(*logits))
    assert float(LogitMatching().compute_loss(*mixed)) == pytest.approx(expected, rel=1e-6)


def test_softened_kl_tends_to_it_for_centred_logits_at_a_high_temperature(logits):
    t, s = (z - z.mean(-1, keepdims=True) for z in logits)
    hot = float(LogitsDistillation(1000.0).compute_loss(t, s))
    assert hot * 10 == pytest.approx(float(LogitMatching().compute_loss(t, s)), rel=5e-3)


def test_the_gradient_is_the_difference_over_the_batch(logits):
    t, s = logits
    variable = tf.Variable(s)
    with tf.GradientTape() as tape:
        value = LogitMatching().compute_loss(t, variable)
    np.testing.assert_allclose(tape.gradient(value, variable), (s - t) / 16, rtol=1e-6)


def test_a_regression_with_one_value_is_allowed():
    assert float(LogitMatching().compute_loss([[3.0], [0.0]], [[1.0], [0.0]])) == 1.0


def test_outputs_without_an_axis_of_classes_are_refused():
    with pytest.raises(ValueError, match="The outputs have no axis but the batch's"):
        LogitMatching().compute_loss([1.0, 2.0], [1.0, 4.0])
