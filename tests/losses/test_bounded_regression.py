"""BoundedRegression: oracle, laws, gradient and words."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_kd.losses.bounded_regression import BoundedRegression, bounded_regression
from tests import references


def oracle(t, s, y, margin=0.0):
    """L_b of Chen et al. 2017, section 3.3."""
    t, s, y = (references.float64(z) for z in (t, s, y))
    student, teacher = np.sum((s - y) ** 2, -1), np.sum((t - y) ** 2, -1)
    return np.where(student + margin > teacher, student, 0.0)


@pytest.fixture
def boxes(rng):
    """A teacher's, a student's and the true boxes, (16, 4) float32."""
    return [rng.normal(size=(16, 4)).astype("float32") for _ in range(3)]


def test_the_margin_is_zero_unless_it_is_given():
    loss = BoundedRegression()
    assert (loss.margin, loss.name, loss.space) == (0.0, "bounded_regression", "values")
    assert (loss.needs_labels, loss.activation) == (True, None)


@pytest.mark.parametrize("margin", [0.0, 2.0, -2.0])
def test_it_is_the_papers_value(boxes, margin):
    t, s, y = boxes
    expected = oracle(t, s, y, margin)
    assert 0 < np.sum(expected == 0.0) < 16
    value = BoundedRegression(margin).compute_loss(t, s, y=y)
    assert float(value) == pytest.approx(expected.mean(), rel=1e-5)
    np.testing.assert_allclose(bounded_regression(t, s, y, margin), expected, rtol=1e-5)


def test_margins_choose_different_boxes(boxes):
    free = [np.sum(oracle(*boxes, margin) == 0.0) for margin in (-2.0, 0.0, 2.0)]
    assert free[0] > free[1] > free[2]
    np.testing.assert_allclose(bounded_regression(*boxes), oracle(*boxes), rtol=1e-5)


def test_without_a_margin_a_little_better_is_enough():
    t, s, y = (np.array([[value]], "float32") for value in (1.01, 1.0, 0.0))
    assert float(bounded_regression(t, s, y)[0]) == 0.0
    assert float(bounded_regression(s, t, y)[0]) == pytest.approx(1.0201)


def test_a_box_for_each_anchor_is_averaged_over_the_anchors_that_count(rng):
    t, s, y = (rng.normal(size=(2, 3, 4)).astype("float32") for _ in range(3))
    value = BoundedRegression().compute_loss(t, s, y=y)
    assert float(value) == pytest.approx(oracle(t, s, y).mean(), rel=1e-5)
    matched = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    value = BoundedRegression().compute_loss(t, s, y=y, sample_weight=matched)
    assert float(value) == pytest.approx((matched * oracle(t, s, y)).mean(), rel=1e-5)
    masked = tf.convert_to_tensor(s)
    masked._keras_mask = tf.convert_to_tensor(matched > 0)
    value = BoundedRegression().compute_loss(t, masked, y=y)
    assert float(value) == pytest.approx(oracle(t, s, y)[matched > 0].mean(), rel=1e-5)


def test_one_value_each_may_come_without_a_last_axis(rng):
    t, s, y = (rng.normal(size=(8, 1)).astype("float32") for _ in range(3))
    expected = oracle(t, s, y).mean()
    for labels in (y, y[:, 0], y.astype("float64")):
        value = BoundedRegression().compute_loss(t, s, y=labels)
        assert float(value) == pytest.approx(expected, rel=1e-5)
    t, s, y = (rng.normal(size=(2, 3, 1)).astype("float32") for _ in range(3))
    value = BoundedRegression().compute_loss(t, s, y=y[..., 0])
    assert float(value) == pytest.approx(oracle(t, s, y).mean(), rel=1e-5)


def test_a_student_as_good_as_its_teacher_is_left_alone_and_a_perfect_one_too(boxes):
    t, _, y = boxes
    assert float(BoundedRegression().compute_loss(t, t, y=y)) == 0.0
    assert float(BoundedRegression(margin=1.0).compute_loss(t, y, y=y)) == 0.0


def test_beneath_a_perfect_teacher_it_is_the_squared_error(boxes):
    _, s, y = boxes
    expected = np.sum((s - y) ** 2, -1).mean()
    value = BoundedRegression().compute_loss(y, s, y=y)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)


def test_its_gradient_is_that_of_the_papers_value(boxes):
    t, s, y = boxes
    variable = tf.Variable(s)
    with tf.GradientTape() as tape:
        value = BoundedRegression().compute_loss(t, variable, y=y)
    gradient = tape.gradient(value, variable).numpy()
    active = (oracle(t, s, y) > 0)[:, None]
    np.testing.assert_allclose(gradient, active * 2.0 * (s - y) / 16, rtol=1e-5)
    expected = references.gradient(lambda z: oracle(t, z, y).mean(), s)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6)


def test_large_values_stay_finite():
    t, s, y = np.full((2, 4), 1e4), tf.Variable(np.full((2, 4), -1e4, "float32")), np.zeros((2, 4))
    with tf.GradientTape() as tape:
        value = BoundedRegression(margin=1e9).compute_loss(t, s, y=y)
    assert float(value) == pytest.approx(4e8, rel=1e-6)
    np.testing.assert_allclose(tape.gradient(value, s), np.full((2, 4), -1e4), rtol=1e-6)


@pytest.mark.parametrize("shape", [(16,), (16, 3), (4, 4), (16, 1, 4)], ids=str)
def test_labels_of_another_shape_are_refused(boxes, shape):
    t, s, _ = boxes
    with pytest.raises(ValueError, match=r"The labels are no values like the outputs[\s\S]*fix: "):
        BoundedRegression().compute_loss(t, s, y=np.ones(shape))


def test_a_label_is_not_spread_over_several_values(rng):
    t, s = (rng.normal(size=(3, 1, 1)) for _ in range(2))
    with pytest.raises(ValueError, match="The labels are no values like the outputs"):
        BoundedRegression().compute_loss(t, s, y=np.ones(3))


def test_an_unknown_batch_size_is_fine(boxes):
    spec = tf.TensorSpec((None, 4))
    function = tf.function(
        lambda t, s, y: BoundedRegression().compute_loss(t, s, y=y),
        input_signature=[spec, spec, tf.TensorSpec((None, 4), "float64")],
    )
    t, s, y = boxes
    value = function(t, s, y.astype("float64"))
    assert float(value) == pytest.approx(oracle(*boxes).mean(), rel=1e-5)


def test_what_it_cannot_compare_is_refused(boxes):
    t, s, y = boxes
    with pytest.raises(ValueError, match="needs labels"):
        BoundedRegression().compute_loss(t, s)
    with pytest.raises(ValueError, match="the shapes of teacher and student differ"):
        BoundedRegression().compute_loss(t, s[:, :3], y=y)
    with pytest.raises(ValueError, match="The outputs have no axis but the batch's"):
        BoundedRegression().compute_loss(t[:, 0], s[:, 0], y=y[:, 0])
    with pytest.raises(TypeError, match="`margin` must be a number"):
        BoundedRegression(margin="0")
