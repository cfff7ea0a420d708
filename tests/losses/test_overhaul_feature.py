"""OverhaulFeature: the paper in float64, its margin as state, its transform, and its words."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd as kd
from keras_kd.losses import overhaul_feature
from keras_kd.losses.overhaul_feature import MarginReLU, OverhaulFeature
from tests import references

# --- the paper, in float64 NumPy ------------------------------------------------------------------


def margins(seen):
    """E[x | x < 0] of each channel (Heo et al. 2019, equation 3); 0 where nothing is negative."""
    flat = references.float64(seen).reshape(-1, seen.shape[-1])
    return np.array([c[c < 0].mean() if (c < 0).any() else 0.0 for c in flat.T])


def partial(t, s):
    """Partial L2 of Heo et al. 2019: nothing where s ≤ t ≤ 0, else (t − s)², summed."""
    t, s = references.float64(t), references.float64(s)
    return np.where((s <= t) & (t <= 0), 0.0, (t - s) ** 2).reshape(len(t), -1).sum(-1)


def transform(s, kernel, gamma, beta, mean, variance):
    """A 1×1 convolution and BatchNorm at given statistics, ε = 1e-5 as in the authors' code."""
    s = references.float64(s) @ references.float64(kernel)
    return (s - mean) / np.sqrt(references.float64(variance) + 1e-5) * gamma + beta


def overhaul(teachers, students):
    """The authors' code: Σᵢ distanceᵢ / 2^(n−i−1), i from 0, over the batch and 1000."""
    n = len(teachers)
    parts = [
        partial(t, s) / 2 ** (n - i - 1)
        for i, (t, s) in enumerate(zip(teachers, students, strict=True))
    ]
    return sum(parts) / 1000


@pytest.fixture(params=[(4, 3, 2, 6), (4, 5, 6), (4, 6)], ids=["maps", "sequences", "vectors"])
def features(request, rng):
    """A teacher's feature behind the margin ReLU, and a student's of the same shape."""
    t, s = (rng.normal(size=request.param).astype("float32") for _ in range(2))
    return np.maximum(t, -0.7), s


def test_the_distance_is_the_papers(features):
    value = OverhaulFeature().compute_loss(*features)
    assert float(value) == pytest.approx(overhaul([features[0]], [features[1]]).mean(), rel=1e-5)


def test_where_both_are_silent_and_the_student_is_below_nothing_counts():
    for t, s, expected in (
        (-1.0, -2.0, 0.0),
        (-1.0, -1.0, 0.0),
        (-1.0, 0.5, 2.25),
        (-1.0, -0.5, 0.25),
        (0.0, -3.0, 0.0),
        (2.0, -1.0, 9.0),
        (2.0, 3.0, 1.0),
    ):
        value = OverhaulFeature().compute_loss(np.full((1, 1), t), np.full((1, 1), s))
        assert float(value) == pytest.approx(expected / 1000.0, rel=1e-6)


def test_the_last_of_several_layers_counts_most(rng):
    teachers = [rng.normal(size=(4, 3, 3, width)).astype("float32") for width in (2, 3, 5)]
    students = [rng.normal(size=t.shape).astype("float32") for t in teachers]
    value = OverhaulFeature().compute_loss(teachers, students)
    assert float(value) == pytest.approx(overhaul(teachers, students).mean(), rel=1e-5)
    last = OverhaulFeature().compute_loss([teachers[2], teachers[2]], [students[2], students[2]])
    assert float(last) == pytest.approx(1.5 * partial(teachers[2], students[2]).mean() / 1000)


def test_the_gradient_is_that_of_the_oracle(rng):
    t, s = np.maximum(rng.normal(size=(2, 2, 2, 3)), -0.7), rng.normal(size=(2, 2, 2, 3))
    variable = tf.Variable(s, dtype="float32")
    with tf.GradientTape() as tape:
        value = OverhaulFeature().compute_loss(t, variable)
    expected = references.gradient(lambda at: overhaul([t], [at]).mean(), s)
    np.testing.assert_allclose(tape.gradient(value, variable), expected, rtol=1e-4, atol=1e-8)


def test_it_is_zero_where_the_student_is_the_teacher(features):
    assert float(OverhaulFeature().compute_loss(features[0], features[0])) == 0.0


# --- the margin -----------------------------------------------------------------------------------


def test_the_first_step_has_the_margin_of_its_own_batch_and_later_ones_of_all(rng):
    layer = MarginReLU()
    batches = [rng.normal(size=(3, 2, 4, 5)).astype("float32") for _ in range(3)]
    batches[0][..., 2] = np.abs(batches[0][..., 2])  # nothing negative, yet
    for count in range(1, 4):
        seen = np.concatenate(batches[:count])
        expected = np.maximum(batches[count - 1], margins(seen))
        np.testing.assert_allclose(layer(batches[count - 1], training=True), expected, rtol=1e-5)
    assert margins(batches[0])[2] == 0.0
    assert layer.trainable_weights == [] and len(layer.weights) == 2


def test_only_training_moves_the_margin(rng):
    layer = MarginReLU()
    batch = rng.normal(size=(3, 5)).astype("float32")
    np.testing.assert_array_equal(layer(batch), np.maximum(batch, 0.0))
    layer(batch, training=True)
    state = layer.get_weights()
    layer(10.0 * batch)
    layer(10.0 * batch, training=False)
    for now, then in zip(layer.get_weights(), state, strict=True):
        np.testing.assert_array_equal(now, then)
    flat = batch.reshape(-1, 5)
    np.testing.assert_allclose(state[0], np.where(flat < 0, flat, 0).sum(0), rtol=1e-5)
    np.testing.assert_array_equal(state[1], (flat < 0).sum(0))


def test_a_zero_is_not_negative():
    layer = MarginReLU()
    layer(np.zeros((4, 2), "float32"), training=True)
    np.testing.assert_array_equal(layer.get_weights()[1], [0.0, 0.0])


# --- the connector --------------------------------------------------------------------------------


def scrambled(connector, rng):
    """Give every weight a value that shows, variances positive ones."""
    connector.set_weights(
        [
            rng.normal(size=w.shape) if w.ndim > 1 else rng.uniform(0.3, 1.0, w.shape)
            for w in connector.weights
        ]
    )
    for margin in connector.margins:
        margin.negative_sum.assign(-margin.negative_sum)


def norm_of(connector, index):
    """γ, β and the running statistics of one layer's BatchNorm."""
    norm = connector.norms[index]
    return [np.asarray(v) for v in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)]


def test_the_connector_and_the_distance_are_the_papers(rng):
    shapes = [(4, 4, 6), (2, 2, 7)], [(4, 4, 5), (2, 2, 3)]
    loss = OverhaulFeature(["a", "b"], ["c", "d"])
    connector = loss.connector(*([(None, *s) for s in side] for side in shapes))
    scrambled(connector, rng)
    t, s = ([rng.normal(size=(3, *shape)) for shape in side] for side in shapes)
    levels = [
        np.asarray(m.negative_sum, "float64") / np.asarray(m.negative_count)
        for m in connector.margins
    ]
    targets = [np.maximum(x, level) for x, level in zip(t, levels, strict=True)]
    sources = [
        transform(x, np.asarray(dense.kernel), *norm_of(connector, i))
        for i, (x, dense) in enumerate(zip(s, connector.transforms, strict=True))
    ]
    out = connector(*([x.astype("float32") for x in side] for side in (t, s)))
    for given, expected in zip((*out[0], *out[1]), (*targets, *sources), strict=True):
        np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)
    value = float(loss.compute_loss(*out))
    assert value == pytest.approx(overhaul(targets, sources).mean(), rel=1e-5)


def test_in_training_the_student_is_normalised_by_its_batch(rng):
    loss = OverhaulFeature()
    connector = loss.connector((None, 4, 4, 6), (None, 4, 4, 5))
    t, s = rng.normal(size=(8, 4, 4, 6)), rng.normal(1.0, 3.0, size=(8, 4, 4, 5))
    source = np.asarray(connector(t, s, training=True)[1][0])
    kernel = np.asarray(connector.transforms[0].kernel)
    plain = s @ kernel
    mean, variance = plain.mean((0, 1, 2)), plain.var((0, 1, 2))
    expected = (plain - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(source, expected, rtol=1e-3, atol=1e-4)
    norm = connector.norms[0]
    np.testing.assert_allclose(norm.moving_mean, 0.1 * mean, rtol=1e-3, atol=1e-5)
    assert (norm.momentum, norm.epsilon) == (0.9, 1e-5)
    assert len(connector.trainable_weights) == 3
    assert len(connector.non_trainable_weights) == 4


def test_the_convolution_starts_as_in_the_authors_code():
    connector = OverhaulFeature().connector((None, 200), (None, 300))
    assert connector.built is True
    kernel = np.asarray(connector.transforms[0].kernel)
    assert kernel.std() == pytest.approx(np.sqrt(2.0 / 200.0), rel=0.02)
    assert np.abs(kernel).max() > 3.0 * kernel.std()  # normal, not truncated
    assert connector.transforms[0].bias is None


def test_another_size_is_resized_to_the_teachers(rng):
    connector = OverhaulFeature().connector((None, 4, 4, 6), (None, 2, 8, 5))
    constant = np.broadcast_to(rng.normal(size=5), (2, 2, 8, 5)).astype("float32")
    source = connector(np.zeros((2, 4, 4, 6), "float32"), constant)[1][0]
    assert source.shape == (2, 4, 4, 6)
    expected = constant[:, :1, :1] @ np.asarray(connector.transforms[0].kernel)
    expected = np.broadcast_to(expected / np.sqrt(1.0 + 1e-5), source.shape)
    np.testing.assert_allclose(source, expected, rtol=1e-4, atol=1e-6)


def test_open_sizes_are_resized_when_they_are_known(rng):
    connector = OverhaulFeature().connector((None, None, None, 6), (None, None, None, 5))
    source = connector(np.zeros((2, 6, 4, 6), "float32"), np.ones((2, 3, 2, 5), "float32"))[1][0]
    assert source.shape == (2, 6, 4, 6)


def test_the_margin_is_trained_saved_and_never_exported(rng, tmp_path):
    layers = keras.layers
    teacher, student = (
        keras.Sequential(
            [
                keras.Input((6,)),
                layers.Dense(w, name="a"),
                layers.ReLU(),
                layers.Dense(w, name="b"),
                layers.ReLU(),
                layers.Dense(2),
            ]
        )
        for w in (5, 3)
    )
    x = rng.normal(size=(8, 6)).astype("float32")
    loss = OverhaulFeature(["a", "b"], ["a", "b"])
    distiller = kd.Distiller(teacher, student, loss, student_loss_weight=0.0)
    distiller.compile("sgd")
    distiller.fit(x, epochs=2, batch_size=8, verbose=0)
    connector = distiller.connections.connectors[0]
    seen = np.asarray(teacher.get_layer("a")(x))
    margin = connector.margins[0]
    level = np.divide(
        margin.negative_sum,
        margin.negative_count,
        out=np.zeros(5, "float32"),
        where=np.asarray(margin.negative_count) > 0,
    )
    np.testing.assert_allclose(
        level[margins(seen) < 0], margins(seen)[margins(seen) < 0], rtol=1e-5
    )
    np.testing.assert_array_equal(margin.negative_count, 2 * (seen < 0).sum(0))
    distiller.save(tmp_path / "distiller.keras")
    loaded = kd.load_distiller(tmp_path / "distiller.keras", teacher=teacher)
    again = loaded.connections.connectors[0].margins[0]
    np.testing.assert_array_equal(again.negative_sum, margin.negative_sum)
    assert len(distiller.student.weights) == 6


def test_replicas_share_one_margin(rng):
    together = tf.distribute.ReductionToOneDevice()  # no collective keys, which a process shares
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=together)
    with strategy.scope():
        layer = MarginReLU()
        layer.build((None, 3))
    batch = rng.normal(size=(6, 3)).astype("float32")

    @tf.function
    def step():
        def one():
            index = tf.distribute.get_replica_context().replica_id_in_sync_group
            return layer(tf.gather(tf.split(tf.constant(batch), 2), index), training=True)

        return strategy.run(one)

    results = strategy.experimental_local_results(step())
    assert len(results) == 2
    np.testing.assert_allclose(
        np.concatenate(results), np.maximum(batch, margins(batch)), rtol=1e-5
    )
    np.testing.assert_array_equal(layer.negative_count, (batch < 0).sum(0))


# --- words ----------------------------------------------------------------------------------------


def test_its_arguments_and_what_it_says_of_itself():
    parameters = inspect.signature(OverhaulFeature).parameters
    assert [p.default for p in parameters.values()] == [None] * 3
    assert overhaul_feature.SCALE == 1000.0
    assert OverhaulFeature.takes_all is True and OverhaulFeature.layers == 1
    assert OverhaulFeature.ignores_padding is False


def test_different_shapes_are_refused_with_the_distiller_as_the_fix(rng):
    words = r"shapes of teacher and student differ[\s\S]*train with kd.Distiller"
    with pytest.raises(ValueError, match=words):
        OverhaulFeature().compute_loss(np.ones((2, 4)), np.ones((2, 3)))
    with pytest.raises(ValueError, match=words):
        OverhaulFeature().compute_loss([np.ones((2, 4, 3))], [np.ones((1, 4, 3))])


def test_features_of_different_rank_are_refused():
    with pytest.raises(ValueError, match="Features of different rank cannot be matched"):
        OverhaulFeature().connector((None, 4, 4, 6), (None, 6))


@pytest.mark.parametrize("shapes", [((None,), (None, 3)), ((None, 3), (None,))], ids=str)
def test_features_of_one_axis_are_refused(shapes):
    with pytest.raises(ValueError, match="The outputs have no axis but the batch's"):
        OverhaulFeature().connector(*shapes)
