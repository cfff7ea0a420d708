"""RelationalDistillation: oracle, laws, gradient, cost and words."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd.losses import relational
from keras_kd.losses.relational import RelationalDistillation
from tests import references


def smooth_l1(u):
    """Park et al. 2019, Huber loss with δ = 1 (smooth_l1_loss of the authors' code)."""
    return np.where(np.abs(u) <= 1.0, 0.5 * u**2, np.abs(u) - 0.5)


def differences(x):
    """xᵢ − xⱼ as [j, i], float64."""
    flat = references.float64(x).reshape(len(x), -1)
    return flat[None, :] - flat[:, None]


def distance_part(t, s):
    """Distance-wise loss: distances over their mean at i ≠ j, the mean over all pairs."""
    relative = []
    for x in (t, s):
        distances = np.linalg.norm(differences(x), axis=-1)
        mean = distances[~np.eye(len(x), dtype=bool)].mean()
        relative.append(distances / mean)
    return smooth_l1(relative[1] - relative[0]).mean()


def angle_part(t, s):
    """Angle-wise loss: cosines at j of all triples, 0 with a vector of length 0, their mean."""
    cosines = []
    for x in (t, s):
        steps = differences(x)
        lengths = np.linalg.norm(steps, axis=-1, keepdims=True)
        unit = np.divide(steps, lengths, out=np.zeros_like(steps), where=lengths > 0)
        cosines.append(np.einsum("jid,jkd->jik", unit, unit))
    return smooth_l1(cosines[1] - cosines[0]).mean()


def rkd(t, s, distance=25.0, angle=50.0):
    """The weights of the authors' classification experiments."""
    return distance * distance_part(t, s) + angle * angle_part(t, s)


@pytest.fixture
def features(rng):
    """A wide teacher's and a narrow student's feature of 7 examples."""
    t, s = rng.normal(size=(7, 6)), rng.normal(size=(7, 2)) ** 3
    return t.astype("float32"), s.astype("float32")


def loss_of(t, s, *, weight=None, **options):
    return float(RelationalDistillation(**options).compute_loss(t, s, sample_weight=weight))


def test_the_defaults_are_the_papers():
    defaults = inspect.signature(RelationalDistillation).parameters
    assert defaults["distance_weight"].default == 25.0
    assert defaults["angle_weight"].default == 50.0
    assert RelationalDistillation().name == "relational_distillation"
    assert RelationalDistillation.paper == "Park et al. 2019 (RKD)"


def test_it_is_the_papers_value(features):
    assert loss_of(*features) == pytest.approx(rkd(*features), rel=1e-5)


def test_each_part_is_the_papers_value(features):
    t, s = features
    distances = [np.linalg.norm(differences(x), axis=-1) for x in features]
    gaps = distances[1] / distances[1].sum() - distances[0] / distances[0].sum()
    assert np.abs(gaps * 7 * 6).max() > 1.0  # beyond the knee of Huber's loss
    only = loss_of(t, s, distance_weight=2.0, angle_weight=0)
    assert only == pytest.approx(2.0 * distance_part(t, s), rel=1e-5)
    only = loss_of(t, s, distance_weight=0, angle_weight=3.0)
    assert only == pytest.approx(3.0 * angle_part(t, s), rel=1e-5)


def test_maps_are_flattened(rng):
    t, s = rng.normal(size=(5, 3, 2, 4)), rng.normal(size=(5, 7, 2))
    assert loss_of(t, s) == pytest.approx(rkd(t, s), rel=1e-5)


@pytest.mark.parametrize("parts", [{}, {"angle_weight": 0}, {"distance_weight": 0}], ids=str)
def test_its_gradient_is_the_slope_of_the_papers_value(features, parts):
    t, s = features
    weights = {"distance": parts.get("distance_weight", 25), "angle": parts.get("angle_weight", 50)}
    variable = tf.Variable(s)
    with tf.GradientTape() as tape:
        value = RelationalDistillation(**parts).compute_loss(t, variable)
    expected = references.gradient(lambda x: rkd(t, x, **weights), s)
    np.testing.assert_allclose(tape.gradient(value, variable), expected, rtol=1e-4, atol=2e-5)


def test_examples_of_weight_zero_leave_the_pairs(features):
    t, s = features
    weight = np.array([1, 0, 1, 1, 0, 1, 1], "float32")
    here = weight > 0
    expected = rkd(t[here], s[here]) * 5 / 7
    assert loss_of(t, s, weight=weight) == pytest.approx(expected, rel=1e-5)
    s = s.copy()
    s[~here] = np.nan
    variable = tf.Variable(s)
    with tf.GradientTape() as tape:
        value = RelationalDistillation().compute_loss(t, variable, sample_weight=weight)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    assert np.isfinite(tape.gradient(value, variable).numpy()[here]).all()


def test_a_rows_value_is_the_examples_own_pairs_and_angles(features):
    t, s = (references.float64(x) for x in features)
    row = np.eye(7, dtype="float32")[2] + 1.0  # the third example counts twice
    lengths = [np.linalg.norm(differences(x), axis=-1) for x in (t, s)]
    relative = [x / x.sum() * 42 for x in lengths]
    distances = smooth_l1(relative[1] - relative[0])[2].mean()
    cosines = []
    for x in (t, s):
        steps = np.delete(x, 2, 0) - x[2]
        unit = steps / np.linalg.norm(steps, axis=-1, keepdims=True)
        cosines.append(unit @ unit.T)
    angles = smooth_l1(cosines[1] - cosines[0]).sum() / 49
    expected = rkd(t, s) + (25.0 * distances + 50.0 * angles) / 7
    assert loss_of(*features, weight=row) == pytest.approx(expected, rel=1e-5)


def test_equal_examples_have_no_distance_and_no_angle(features):
    t, s = (np.concatenate([x, x[:2]]) for x in features)
    assert loss_of(t, s) == pytest.approx(rkd(t, s), rel=1e-5)
    s = s.copy()
    s[-1] += 1e-6  # below the rounding of products: still one point
    assert loss_of(t, s) == pytest.approx(rkd(t, np.concatenate([s[:-1], s[1:2]])), rel=1e-5)


@pytest.mark.parametrize("student", [np.zeros((4, 3)), np.ones((4, 3))], ids=["zeros", "ones"])
def test_a_collapsed_student_has_a_finite_gradient(rng, student):
    t, variable = rng.normal(size=(4, 5)), tf.Variable(student, dtype="float32")
    with tf.GradientTape() as tape:
        value = RelationalDistillation().compute_loss(t, variable)
    distances = np.linalg.norm(differences(t), axis=-1)
    expected = 25.0 * smooth_l1(distances / distances.sum() * 12).mean()
    expected += 50.0 * angle_part(t, student)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(tape.gradient(value, variable), np.zeros((4, 3)))


def test_it_is_zero_for_a_turned_moved_and_scaled_copy(rng, features):
    t, _ = features
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    assert loss_of(t, t) == pytest.approx(0.0, abs=1e-12)
    assert loss_of(t, 3.0 * t @ turn + 1.0) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_no_scale_of_either_side_matters(features, scale):
    t, s = features
    weight = np.array([1, 0, 1, 1, 1, 1, 1], "float32")
    expected = rkd(*(np.delete(x, 1, 0) for x in features)) * 6 / 7
    for pair in ((scale * t, s), (t, scale * s)):
        assert loss_of(*pair, weight=weight) == pytest.approx(expected, rel=1e-5)


def test_the_order_of_examples_does_not_matter(rng, features):
    order = rng.permutation(7)
    mixed = loss_of(*(x[order] for x in features))
    assert mixed == pytest.approx(loss_of(*features), rel=1e-5)


def test_one_example_has_no_relations(features):
    assert loss_of(*(x[:1] for x in features)) == 0.0
    assert loss_of(*features, weight=np.eye(7, dtype="float32")[3]) == 0.0
    assert loss_of(*features, weight=np.zeros(7, "float32")) == 0.0


def test_several_layers_are_added(features):
    t, s = features
    both = RelationalDistillation().compute_loss([t, s], [s, t])
    assert float(both) == pytest.approx(rkd(t, s) + rkd(s, t), rel=1e-5)


def test_a_part_of_weight_zero_is_not_computed(features, monkeypatch):
    def never(*arguments):
        raise AssertionError

    monkeypatch.setattr(relational, "turns", never)
    loss_of(*features, angle_weight=0)
    with pytest.raises(AssertionError):
        loss_of(*features, angle_weight=0.05)
    monkeypatch.undo()
    monkeypatch.setattr(relational, "relative_distances", never)
    loss_of(*features, distance_weight=0)
    with pytest.raises(AssertionError):
        loss_of(*features, distance_weight=0.05)


def test_the_weights_may_be_schedules(features):
    schedule = keras.optimizers.schedules.PolynomialDecay(4.0, 2, 0.0)  # 2 at step 1, 0 at step 2
    loss = RelationalDistillation(distance_weight=schedule, angle_weight=schedule)
    for step, weight in ((0, 4.0), (1, 2.0), (2, 0.0)):
        value = float(loss.compute_loss(*features, step=step))
        assert value == pytest.approx(rkd(*features, weight, weight), rel=1e-5)


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["distance_weight", "angle_weight"])
def test_a_negative_weight_is_refused(argument):
    with pytest.raises(ValueError, match=f"`{argument}` must not be negative"):
        RelationalDistillation(**{argument: -1.0})
    assert getattr(RelationalDistillation(**{argument: 0}), argument) == 0.0
    assert getattr(RelationalDistillation(**{argument: 0.05}), argument) == 0.05


def test_two_weights_of_zero_are_refused():
    with pytest.raises(ValueError, match="RelationalDistillation has no part left to compute"):
        RelationalDistillation(distance_weight=0, angle_weight=0.0)


def test_batches_of_different_size_are_refused():
    words = r"shapes of teacher and student differ[\s\S]*features of the same examples"
    with pytest.raises(ValueError, match=words):
        loss_of(np.ones((4, 3)), np.ones((1, 3)))


@pytest.mark.parametrize("shapes", [((4,), (4, 3)), ((4, 3), (4,))], ids=str)
def test_features_of_one_axis_are_refused(shapes):
    with pytest.raises(ValueError, match="The outputs have no axis but the batch's"):
        loss_of(*map(np.ones, shapes))
