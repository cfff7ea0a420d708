"""ProbabilisticTransfer: oracle, laws, gradient, precision and words."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_kd.losses.probabilistic_transfer import FLOOR, ProbabilisticTransfer
from tests import references


def conditional(x):
    """Passalis and Tefas 2018: the kernel (1 + cos)/2, each row over its sum."""
    flat = references.float64(x).reshape(len(x), -1)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    unit = np.divide(flat, norms, out=np.zeros_like(flat), where=norms > 0)
    kernel = (1.0 + np.clip(unit @ unit.T, -1.0, 1.0)) / 2.0
    return kernel / kernel.sum(axis=1, keepdims=True)


def rows(t, s):
    """Each example's part of the mean over b², times the batch."""
    p, q = conditional(t), conditional(s)
    return (p * np.log((p + 1e-7) / (q + 1e-7))).sum(axis=1) / len(t)


def pkt(t, s):
    """The authors' code: the mean over all b² of p·log((p + 1e-7) / (q + 1e-7))."""
    return rows(t, s).mean()


@pytest.fixture
def features(rng):
    """A teacher's and a student's feature of 7 examples, of different width."""
    return [rng.normal(size=(7, width)).astype("float32") for width in (6, 3)]


def loss_of(t, s, weight=None):
    return float(ProbabilisticTransfer().compute_loss(t, s, sample_weight=weight))


def test_it_is_the_authors_value(features):
    assert loss_of(*features) == pytest.approx(pkt(*features), rel=1e-5)


def test_maps_are_flattened(rng):
    t, s = rng.normal(size=(5, 3, 2, 4)), rng.normal(size=(5, 7, 2))
    assert loss_of(t, s) == pytest.approx(pkt(t, s), rel=1e-5)


def test_its_gradient_is_the_slope_of_the_authors_value(features):
    t, s = features
    variable = tf.Variable(s)
    with tf.GradientTape() as tape:
        value = ProbabilisticTransfer().compute_loss(t, variable)
    expected = references.gradient(lambda x: pkt(t, x), s)
    np.testing.assert_allclose(tape.gradient(value, variable), expected, rtol=1e-4, atol=1e-7)


def test_it_is_exact_where_student_and_teacher_nearly_agree(rng):
    t = rng.uniform(size=(16, 6)).astype("float32")
    s = (t + 1e-3 * rng.normal(size=t.shape)).astype("float32")
    assert loss_of(t, s) == pytest.approx(pkt(t, s), rel=1e-3)  # about 1e-9


def test_opposite_examples_have_probability_zero():
    assert FLOOR == 1e-7
    near, opposite = [[1.0], [1.0]], [[1.0], [-1.0]]
    # (½, ½) against (1, 0), and the reverse
    far = 0.5 * np.log((0.5 + 1e-7) / (1 + 1e-7)) + 0.5 * np.log((0.5 + 1e-7) / 1e-7)
    assert loss_of(near, opposite) == pytest.approx(far / 2, rel=1e-5)
    back = np.log((1 + 1e-7) / (0.5 + 1e-7))
    assert loss_of(opposite, near) == pytest.approx(back / 2, rel=1e-5)
    variable = tf.Variable(opposite)
    with tf.GradientTape() as tape:
        value = ProbabilisticTransfer().compute_loss(near, variable)
    assert np.isfinite(tape.gradient(value, variable)).all()


def test_probabilities_of_every_ratio(rng):
    t, s = rng.normal(size=(9, 2)), rng.normal(size=(9, 2))
    ratios = (conditional(s) / conditional(t)).ravel()
    assert ratios.min() < 0.2 and ((ratios > 0.2) & (ratios < 0.48)).any() and ratios.max() > 2.0
    assert loss_of(t, s) == pytest.approx(pkt(t, s), rel=1e-5)


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
    expected = pkt(t[here], s[here]) * 5 / 7
    assert loss_of(t, s, weight) == pytest.approx(expected, rel=1e-5)
    assert loss_of(t, features[1], np.zeros(7, "float32")) == 0.0


def test_no_length_of_any_example_matters(rng, features):
    t, s = features
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    lengths = rng.uniform(0.1, 10.0, size=(7, 1))
    assert loss_of(t, t) == 0.0
    assert loss_of(t, lengths * t @ turn) == pytest.approx(0.0, abs=1e-9)
    assert loss_of(t, 1e-4 * s) == pytest.approx(pkt(t, s), rel=1e-5)


def test_an_example_of_zeros_is_half_as_near_to_all(features):
    t, s = features
    s = s.copy()
    s[2] = 0.0
    assert loss_of(t, s) == pytest.approx(pkt(t, s), rel=1e-5)
    variable = tf.zeros((7, 3))
    with tf.GradientTape() as tape:
        tape.watch(variable)
        value = ProbabilisticTransfer().compute_loss(t, variable)
    assert float(value) == pytest.approx(pkt(t, np.zeros((7, 3))), rel=1e-5)
    np.testing.assert_array_equal(tape.gradient(value, variable), np.zeros((7, 3)))


def test_several_layers_are_added(features):
    t, s = features
    both = ProbabilisticTransfer().compute_loss([t, s], [s, t])
    assert float(both) == pytest.approx(pkt(t, s) + pkt(s, t), rel=1e-5)


def test_it_has_a_name_and_a_paper():
    assert ProbabilisticTransfer().name == "probabilistic_transfer"
    assert ProbabilisticTransfer.paper == "Passalis and Tefas 2018 (PKT)"


def test_batches_of_different_size_are_refused():
    words = r"shapes of teacher and student differ[\s\S]*features of the same examples"
    with pytest.raises(ValueError, match=words):
        loss_of(np.ones((4, 3)), np.ones((1, 3)))


@pytest.mark.parametrize("shapes", [((4,), (4, 3)), ((4, 3), (4,))], ids=str)
def test_features_of_one_axis_are_refused(shapes):
    with pytest.raises(ValueError, match="The outputs have no axis but the batch's"):
        loss_of(*map(np.ones, shapes))
