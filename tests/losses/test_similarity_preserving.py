"""SimilarityPreserving: oracle, laws, gradient and words."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_kd.losses.similarity_preserving import SimilarityPreserving
from tests import references


def similarity(x):
    """Tung and Mori 2019, equation 1 (and 2): Q·Qᵀ with each row divided by its L2 norm."""
    flat = references.float64(x).reshape(len(x), -1)
    products = flat @ flat.T
    norms = np.linalg.norm(products, axis=1, keepdims=True)
    return np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)


def rows(t, s):
    """Each example's part of equation 3, times the batch."""
    return ((similarity(t) - similarity(s)) ** 2).sum(axis=1) / len(t)


def sp(t, s):
    """Tung and Mori 2019, equation 3: ‖G_T − G_S‖² / b²."""
    return ((similarity(t) - similarity(s)) ** 2).sum() / len(t) ** 2


@pytest.fixture
def features(rng):
    """A teacher's and a student's feature of 7 examples, of different width."""
    return [rng.normal(size=(7, width)).astype("float32") for width in (6, 3)]


def loss_of(t, s, weight=None):
    return float(SimilarityPreserving().compute_loss(t, s, sample_weight=weight))


def test_it_is_the_papers_value(features):
    assert loss_of(*features) == pytest.approx(sp(*features), rel=1e-5)


def test_maps_are_flattened(rng):
    t, s = rng.normal(size=(5, 3, 2, 4)), rng.normal(size=(5, 7, 2))
    assert loss_of(t, s) == pytest.approx(sp(t, s), rel=1e-5)


def test_its_gradient_is_the_slope_of_the_papers_value(features):
    t, s = features
    variable = tf.Variable(s)
    with tf.GradientTape() as tape:
        value = SimilarityPreserving().compute_loss(t, variable)
    expected = references.gradient(lambda x: sp(t, x), s)
    np.testing.assert_allclose(tape.gradient(value, variable), expected, rtol=1e-4, atol=1e-6)


def test_each_example_has_its_row(features):
    weight = np.array([0.5, 2, 1, 3, 1, 1, 1], "float32")
    expected = (weight * rows(*features)).sum() / 7
    assert loss_of(*features, weight) == pytest.approx(expected, rel=1e-5)


def test_examples_of_weight_zero_leave_the_pairs(features):
    t, s = features
    weight = np.array([1, 0, 1, 1, 0, 1, 1], "float32")
    here = weight > 0
    s = s.copy()
    s[~here] = np.nan
    expected = sp(t[here], s[here]) * 5 / 7
    assert loss_of(t, s, weight) == pytest.approx(expected, rel=1e-5)
    assert loss_of(t, features[1], np.zeros(7, "float32")) == 0.0


def test_it_is_zero_for_a_turned_and_scaled_copy(rng, features):
    t, _ = features
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    assert loss_of(t, t) == 0.0
    assert loss_of(t, 3.0 * t @ turn) == pytest.approx(0.0, abs=1e-12)


def test_orthogonal_examples_against_equal_ones():
    # G is the identity against 1/√n everywhere: (1 − 1/√n)² on the diagonal, 1/n beside it
    expected = (4 * (1 - 0.5) ** 2 + 12 * 0.25) / 16
    assert loss_of(np.eye(4), np.ones((4, 1))) == pytest.approx(expected, rel=1e-6)


def test_features_of_zeros_have_a_finite_gradient(features):
    variable = tf.zeros((7, 3))
    with tf.GradientTape() as tape:
        tape.watch(variable)
        value = SimilarityPreserving().compute_loss(features[0], variable)
    assert float(value) == pytest.approx(1.0 / 7, rel=1e-6)  # rows of length 1 against none
    np.testing.assert_array_equal(tape.gradient(value, variable), np.zeros((7, 3)))


def test_several_layers_are_added(features):
    t, s = features
    both = SimilarityPreserving().compute_loss([t, s], [s, t])
    assert float(both) == pytest.approx(2.0 * sp(t, s), rel=1e-5)


def test_it_has_a_name_and_a_paper():
    assert SimilarityPreserving().name == "similarity_preserving"
    assert SimilarityPreserving.paper == "Tung and Mori 2019 (SP)"


def test_batches_of_different_size_are_refused():
    words = r"shapes of teacher and student differ[\s\S]*features of the same examples"
    with pytest.raises(ValueError, match=words):
        loss_of(np.ones((4, 3)), np.ones((1, 3)))


@pytest.mark.parametrize("shapes", [((4,), (4, 3)), ((4, 3), (4,))], ids=str)
def test_features_of_one_axis_are_refused(shapes):
    with pytest.raises(ValueError, match="The outputs have no axis but the batch's"):
        loss_of(*map(np.ones, shapes))
