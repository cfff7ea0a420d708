"""Log-space arithmetic against float64, and what labels may look like."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_kd import distributions
from tests import references


def test_log_probabilities_are_those_of_softmax_and_of_each_labels_bernoulli(rng):
    z = rng.normal(scale=3.0, size=(4, 5)).astype("float32")
    (log_p,) = distributions.log_probabilities(z)
    np.testing.assert_allclose(log_p, references.log_softmax(z), rtol=1e-5, atol=1e-6)
    yes, no = distributions.log_probabilities(z, "sigmoid")
    np.testing.assert_allclose(yes, references.log_sigmoid(z), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(no, references.log_sigmoid(-z), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e-2, 1.0, 30.0])
def test_relative_entropy_keeps_its_digits_also_where_the_two_nearly_agree(rng, scale):
    t = rng.normal(size=(6, 5))
    log_p = references.log_softmax(t).astype("float32")
    log_q = references.log_softmax(t + scale * rng.normal(size=(6, 5))).astype("float32")
    p, q = (np.exp(log.astype("float64")) for log in (log_p, log_q))
    expected = np.sum(p * (log_p.astype("float64") - log_q) + q - p, axis=-1)
    value = distributions.relative_entropy(tf.constant(log_p), tf.constant(log_q))
    np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-11)


def test_relative_entropy_is_finite_where_the_student_is_sure_and_wrong():
    log_p, log_q = tf.constant([[0.0, -1e4]]), tf.constant([[-1e4, 0.0]])
    assert float(distributions.relative_entropy(log_p, log_q)[0]) == pytest.approx(1e4)


def test_relative_entropy_sums_over_the_axis_that_is_named(rng):
    logs = [references.log_softmax(rng.normal(size=(3, 4, 5))).astype("float32") for _ in range(2)]
    first = distributions.relative_entropy(*(np.moveaxis(z, -1, 1) for z in logs), axis=1)
    np.testing.assert_allclose(first, distributions.relative_entropy(*logs), rtol=1e-6)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_softened_divergence_is_t_squared_kl(rng, activation, temperature):
    t, s = (rng.normal(size=(2, 3, 5)).astype("float32") for _ in range(2))
    value = distributions.softened_divergence(t, s, temperature, activation)
    expected = references.kl_divergence(t, s, temperature, activation)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("labels", "logits"),
    [
        ([2, 0], (2, 3)),
        ([[2], [0]], (2, 3)),
        ([[0, 0, 1], [1, 0, 0]], (2, 3)),
        ([2.0, 0.0], (2, 3)),
        ([[2, 0]], (1, 2, 3)),
        ([[[2], [0]]], (1, 2, 3)),
        ([[[0, 0, 1], [1, 0, 0]]], (1, 2, 3)),
    ],
    ids=str,
)
def test_class_numbers_come_from_numbers_and_from_one_hot_rows(labels, logits):
    numbers = distributions.class_numbers(labels, tf.zeros(logits))
    assert numbers.dtype == tf.int32
    assert numbers.shape == logits[:-1]
    assert np.ravel(numbers).tolist() == [2, 0]
    rows = distributions.one_hot_labels(labels, tf.zeros(logits))
    assert (rows.shape, rows.dtype) == (logits, tf.float32)
    assert np.argmax(rows, -1).ravel().tolist() == [2, 0]
    assert np.sum(rows) == 2.0


def test_a_single_logit_has_class_numbers_and_no_rows():
    assert distributions.class_numbers([[1], [0]], tf.zeros((2, 1))).numpy().tolist() == [1, 0]


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 3, 1), ()], ids=str)
def test_labels_of_another_shape_are_refused(shape):
    words = r"The labels do not fit the classes of the outputs[\s\S]*one-hot rows of shape \(2, 3\)"
    with pytest.raises(ValueError, match=words):
        distributions.class_numbers(np.zeros(shape), tf.zeros((2, 3)))


def test_one_hot_rows_of_a_sequence_of_one_are_class_numbers() -> None:
    y = np.eye(5, dtype="float32")[[[3], [1]]]
    np.testing.assert_array_equal(
        distributions.class_numbers(y, np.zeros((2, 1, 5), "float32")), [[3], [1]]
    )


def test_the_words_for_labels_of_a_sequence_say_both_shapes() -> None:
    words = r"expected: class numbers of shape \(2, 4\), or one-hot rows of shape \(2, 4, 5\)"
    with pytest.raises(ValueError, match=words):
        distributions.class_numbers(np.zeros((2, 3), "int32"), np.zeros((2, 4, 5), "float32"))
