"""CorrelationCongruence: oracle, laws, gradient and words."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import tensorflow as tf

from keras_kd.losses.correlation_congruence import CorrelationCongruence, taylor_kernel
from tests import references


def correlation(x, gamma=0.4, order=2):
    """Peng et al. 2019: the P-order Taylor series of the Gaussian RBF kernel, ‖x‖ = 1."""
    flat = references.float64(x).reshape(len(x), -1)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    unit = np.divide(flat, norms, out=np.zeros_like(flat), where=norms > 0)
    products = unit @ unit.T
    terms = [(2 * gamma) ** p / math.factorial(p) * products**p for p in range(order + 1)]
    return math.exp(-2 * gamma) * sum(terms)


def rows(t, s, **options):
    """Each example's part of the loss, times the batch."""
    return ((correlation(t, **options) - correlation(s, **options)) ** 2).sum(axis=1) / len(t)


def cckd(t, s, **options):
    """Peng et al. 2019, correlation congruence: ‖C(t) − C(s)‖² / n²."""
    gap = correlation(t, **options) - correlation(s, **options)
    return (gap**2).sum() / len(t) ** 2


@pytest.fixture
def features(rng):
    """A teacher's and a student's feature of 7 examples, of different width."""
    return [rng.normal(size=(7, width)).astype("float32") for width in (6, 3)]


def loss_of(t, s, weight=None, **options):
    return float(CorrelationCongruence(**options).compute_loss(t, s, sample_weight=weight))


def test_the_defaults_are_the_papers():
    defaults = inspect.signature(CorrelationCongruence).parameters
    assert (defaults["gamma"].default, defaults["order"].default) == (0.4, 2)
    assert CorrelationCongruence().name == "correlation_congruence"
    assert CorrelationCongruence.paper == "Peng et al. 2019 (CCKD)"


@pytest.mark.parametrize("options", [{}, {"gamma": 1.3}, {"order": 1}, {"order": 5}], ids=str)
def test_it_is_the_papers_value(features, options):
    assert loss_of(*features, **options) == pytest.approx(cckd(*features, **options), rel=1e-5)


def test_maps_are_flattened(rng):
    t, s = rng.normal(size=(5, 3, 2, 4)), rng.normal(size=(5, 7, 2))
    assert loss_of(t, s) == pytest.approx(cckd(t, s), rel=1e-5)


def test_its_gradient_is_the_slope_of_the_papers_value(features):
    t, s = features
    variable = tf.Variable(s)
    with tf.GradientTape() as tape:
        value = CorrelationCongruence().compute_loss(t, variable)
    expected = references.gradient(lambda x: cckd(t, x), s)
    np.testing.assert_allclose(tape.gradient(value, variable), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_kernel_is_the_taylor_series(features, order):
    x = features[0] / np.linalg.norm(features[0], axis=1, keepdims=True)
    kernel = taylor_kernel(tf.constant(x @ x.T), 0.4, order)
    np.testing.assert_allclose(kernel, correlation(x, 0.4, order), rtol=1e-5)


def test_the_series_tends_to_the_gaussian_kernel(features):
    x = features[0] / np.linalg.norm(features[0], axis=1, keepdims=True)
    distances = ((x[:, None] - x[None]) ** 2).sum(-1)
    kernel = taylor_kernel(tf.constant(x @ x.T), 0.7, 20)
    np.testing.assert_allclose(kernel, np.exp(-0.7 * distances), rtol=1e-5)


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
    expected = cckd(t[here], s[here]) * 5 / 7
    assert loss_of(t, s, weight) == pytest.approx(expected, rel=1e-5)
    assert loss_of(t, features[1], np.zeros(7, "float32")) == 0.0


def test_no_length_of_any_example_matters(rng, features):
    t, s = features
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    lengths = rng.uniform(0.1, 10.0, size=(7, 1))
    assert loss_of(t, t) == 0.0
    assert loss_of(t, lengths * t @ turn) == pytest.approx(0.0, abs=1e-12)
    assert loss_of(t, s) == loss_of(s, t)


def test_features_of_zeros_have_a_finite_gradient(features):
    variable = tf.zeros((7, 3))
    with tf.GradientTape() as tape:
        tape.watch(variable)
        value = CorrelationCongruence().compute_loss(features[0], variable)
    assert float(value) == pytest.approx(cckd(features[0], np.zeros((7, 3))), rel=1e-5)
    np.testing.assert_array_equal(tape.gradient(value, variable), np.zeros((7, 3)))


def test_several_layers_are_added(features):
    t, s = features
    both = CorrelationCongruence().compute_loss([t, s], [s, t])
    assert float(both) == pytest.approx(2.0 * cckd(t, s), rel=1e-5)


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [0, -1, 1.5, 2.0, True, "2"], ids=repr)
def test_an_order_that_is_no_whole_number_is_refused(order):
    with pytest.raises(ValueError, match="`order` must be a whole number of 1 or more"):
        CorrelationCongruence(order=order)


@pytest.mark.parametrize("gamma", [0.0, -0.4])
def test_a_gamma_that_is_not_positive_is_refused(gamma):
    with pytest.raises(ValueError, match="`gamma` must be positive"):
        CorrelationCongruence(gamma=gamma)


def test_batches_of_different_size_are_refused():
    words = r"shapes of teacher and student differ[\s\S]*features of the same examples"
    with pytest.raises(ValueError, match=words):
        loss_of(np.ones((4, 3)), np.ones((1, 3)))


@pytest.mark.parametrize("shapes", [((4,), (4, 3)), ((4, 3), (4,))], ids=str)
def test_features_of_one_axis_are_refused(shapes):
    with pytest.raises(ValueError, match="The outputs have no axis but the batch's"):
        loss_of(*map(np.ones, shapes))
