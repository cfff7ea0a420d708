"""MultiLabelDistillation: oracle, laws, gradient and words."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import tensorflow as tf

from keras_kd.losses import LogitsDistillation
from keras_kd.losses.multi_label import MultiLabelDistillation
from tests import references


def oracle(t, s):
    """L_MLD of Yang et al. 2023: Σₖ KL((p, 1 − p) ‖ (q, 1 − q)) with p and q the sigmoid."""
    p, q = (references.sigmoid(z) for z in (t, s))
    return np.sum(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)), axis=-1)


@pytest.fixture
def logits(rng):
    """A teacher's and a student's logits, (8, 5) float32."""
    return [rng.normal(scale=2.0, size=(8, 5)).astype("float32") for _ in range(2)]


def test_it_is_the_papers_value(logits):
    value = MultiLabelDistillation().compute_loss(*logits)
    assert float(value) == pytest.approx(oracle(*logits).mean(), rel=1e-5)


def test_it_takes_a_name_alone_and_works_on_the_sigmoid():
    loss = MultiLabelDistillation()
    assert list(inspect.signature(MultiLabelDistillation).parameters) == ["name"]
    assert (loss.name, loss.activation) == ("multi_label_distillation", "sigmoid")
    assert (loss.space, loss.needs_labels) == ("logits", False)


def test_positions_of_a_sequence_are_averaged_and_padding_is_left_out(rng):
    t, s = (rng.normal(scale=2.0, size=(2, 3, 5)).astype("float32") for _ in range(2))
    value = MultiLabelDistillation().compute_loss(t, s)
    assert float(value) == pytest.approx(oracle(t, s).mean(), rel=1e-5)
    mask = np.array([[True, True, False], [True, False, False]])
    padded = tf.convert_to_tensor(s)
    padded._keras_mask = tf.convert_to_tensor(mask)
    value = MultiLabelDistillation().compute_loss(t, padded)
    assert float(value) == pytest.approx(oracle(t, s)[mask].mean(), rel=1e-5)


def test_it_is_the_sigmoid_form_of_the_classic_loss_at_temperature_one(logits):
    classic = LogitsDistillation(temperature=1.0, activation="sigmoid").compute_loss(*logits)
    value = MultiLabelDistillation().compute_loss(*logits)
    assert float(value) == pytest.approx(float(classic), rel=1e-6)


def test_labels_are_added_up_one_by_one(logits):
    t, s = logits
    single = [
        MultiLabelDistillation().compute_loss(t[:, k : k + 1], s[:, k : k + 1]) for k in range(5)
    ]
    value = MultiLabelDistillation().compute_loss(t, s)
    assert float(value) == pytest.approx(float(sum(single)), rel=1e-6)


def test_it_is_zero_at_teacher_equals_student_and_the_same_for_the_opposite_question(logits):
    t, s = logits
    loss = MultiLabelDistillation()
    assert float(loss.compute_loss(t, t)) == 0.0
    expected = float(loss.compute_loss(t, s))
    assert expected > 0.0
    assert float(loss.compute_loss(-t, -s)) == pytest.approx(expected, rel=1e-6)


def test_its_gradient_is_the_difference_of_the_probabilities(logits):
    t, s = logits
    variable = tf.Variable(s)
    with tf.GradientTape() as tape:
        value = MultiLabelDistillation().compute_loss(t, variable)
    gradient = tape.gradient(value, variable).numpy()
    analytic = (references.sigmoid(s) - references.sigmoid(t)) / 8
    np.testing.assert_allclose(gradient, analytic, rtol=1e-4, atol=1e-7)
    expected = references.gradient(lambda z: oracle(t, z).mean(), s)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)


def test_logits_of_ten_thousand_keep_value_and_gradient():
    t, s = np.array([[1e4, -1e4, 0.0]], "float32"), tf.Variable([[-1e4, 1e4, 0.0]])
    with tf.GradientTape() as tape:
        value = MultiLabelDistillation().compute_loss(t, s)
    assert float(value) == pytest.approx(2e4, rel=1e-6)
    np.testing.assert_allclose(tape.gradient(value, s), [[-1.0, 1.0, 0.0]], rtol=1e-6)


def test_what_it_cannot_compare_is_refused(logits):
    t, s = logits
    with pytest.raises(ValueError, match="the shapes of teacher and student differ"):
        MultiLabelDistillation().compute_loss(t, s[:, :4])
    with pytest.raises(ValueError, match="The outputs have no axis but the batch's"):
        MultiLabelDistillation().compute_loss(t[:, 0], s[:, 0])
