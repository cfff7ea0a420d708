"""AttentionTransfer: the authors' formula in NumPy, its invariances, sizes, masks and words."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd.losses.attention_transfer import AttentionTransfer, attention_map, attention_transfer
from tests import references

SHAPES = [
    pytest.param((4, 5, 6), id="sequences"),
    pytest.param((4, 3, 2, 6), id="maps"),
    pytest.param((4, 2, 3, 2, 6), id="volumes"),
]


def paper_map(feature, p):
    """F_sum^p(A) = Σ over channels of |A|ᵖ, as a vector over positions: section 3.1."""
    summed = np.sum(np.abs(references.float64(feature)) ** p, axis=-1)
    return summed.reshape(len(summed), -1)


def authors_loss(t, s, p=2.0):
    """(Q_S/‖Q_S‖₂ − Q_T/‖Q_T‖₂)², mean over positions, as utils.py of the authors' repository."""
    maps = [paper_map(z, p) for z in (t, s)]
    unit_t, unit_s = (q / np.linalg.norm(q, axis=1, keepdims=True) for q in maps)
    return np.mean((unit_s - unit_t) ** 2, axis=1)


def bilinear(values, sizes):
    """Half-pixel bilinear interpolation of the axes after the first, edges repeated."""
    for axis, size in enumerate(sizes, start=1):
        extent = values.shape[axis]
        places = (np.arange(size) + 0.5) * extent / size - 0.5
        values = np.apply_along_axis(
            lambda line, at=places: np.interp(at, np.arange(len(line)), line), axis, values
        )
    return values


def value_of(loss, t, s, **kwargs):
    return float(loss.compute_loss(t, s, **kwargs))


@pytest.fixture(params=SHAPES)
def features(request, rng):
    """A teacher's and a student's feature of each kind."""
    return [rng.normal(size=request.param) for _ in range(2)]


def test_the_default_power_is_the_papers():
    assert inspect.signature(AttentionTransfer).parameters["p"].default == 2
    assert AttentionTransfer().p == 2.0
    assert AttentionTransfer.space == "features"
    assert AttentionTransfer.trained_parts == ""


@pytest.mark.parametrize("p", [None, 1, 2, 3, 1.5])
def test_it_is_the_authors_formula(features, p):
    loss = AttentionTransfer() if p is None else AttentionTransfer(p=p)
    expected = authors_loss(*features, p=2.0 if p is None else p).mean()
    assert value_of(loss, *features) == pytest.approx(expected, rel=1e-5)


def test_the_function_gives_each_position(rng):
    t, s = (rng.normal(size=(3, 4, 5, 2)) for _ in range(2))
    values = attention_transfer(tf.constant(t, "float32"), tf.constant(s, "float32"))
    assert values.shape == (3, 4, 5)
    np.testing.assert_allclose(np.mean(values, axis=(1, 2)), authors_loss(t, s), rtol=1e-5)


def test_its_value_is_the_papers_squared_norm_over_the_number_of_positions(rng):
    t, s = (rng.normal(size=(3, 4, 5, 2)) for _ in range(2))
    maps = [paper_map(z, 2) for z in (t, s)]
    directions = [q / np.linalg.norm(q, axis=1, keepdims=True) for q in maps]
    norms = np.linalg.norm(directions[1] - directions[0], axis=1)  # equation 2, without β/2
    assert value_of(AttentionTransfer(), t, s) == pytest.approx((norms**2).mean() / 20, rel=1e-5)


def test_the_maps_are_means_over_the_channels(rng):
    feature = rng.normal(size=(2, 3, 4))
    np.testing.assert_allclose(
        attention_map(tf.constant(feature, "float32")), (feature**2).mean(-1), rtol=1e-5
    )
    np.testing.assert_allclose(
        attention_map(tf.constant(feature, "float32"), 3.0),
        (np.abs(feature) ** 3).mean(-1),
        rtol=1e-5,
    )


@pytest.mark.parametrize("p", [1, 2, 3])
def test_its_gradient_is_that_of_the_formula(rng, p):
    t, s = rng.normal(size=(2, 3, 2, 4)), rng.normal(size=(2, 3, 2, 5))
    variable = tf.Variable(s, dtype="float32")
    with tf.GradientTape() as tape:
        value = AttentionTransfer(p=p).compute_loss(t, variable)
    expected = references.gradient(lambda z: authors_loss(t, z, p).mean(), s)
    np.testing.assert_allclose(tape.gradient(value, variable), expected, rtol=1e-3, atol=1e-6)


def test_it_is_zero_where_the_maps_agree(features):
    t, _ = features
    assert value_of(AttentionTransfer(), t, t) == 0.0
    assert value_of(AttentionTransfer(), t, -t) == 0.0  # the sign of a feature does not matter
    scale = np.arange(1, 5).reshape((4,) + (1,) * (t.ndim - 1))
    assert value_of(AttentionTransfer(), t, scale * t) == pytest.approx(0.0, abs=1e-12)
    assert value_of(AttentionTransfer(), t, t[..., ::-1]) == pytest.approx(0.0, abs=1e-12)
    twice = np.concatenate([t, t], axis=-1)  # channels are a mean: as many copies as you like
    assert value_of(AttentionTransfer(), t, twice) == pytest.approx(0.0, abs=1e-12)


def test_maps_that_share_no_position_are_two_over_their_number_apart():
    t, s = np.zeros((1, 2, 3, 1)), np.zeros((1, 2, 3, 4))
    t[0, 0, 0], s[0, 1, 2] = 7.0, 0.1
    assert value_of(AttentionTransfer(), t, s) == pytest.approx(2.0 / 6.0, rel=1e-6)


def test_channels_may_differ(rng):
    t, s = rng.normal(size=(4, 3, 2, 6)), rng.normal(size=(4, 3, 2, 3))
    assert value_of(AttentionTransfer(), t, s) == pytest.approx(authors_loss(t, s).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ((2, 4, 4, 3), (2, 8, 8, 2)),
        ((2, 8, 8, 3), (2, 4, 4, 2)),
        ((2, 4, 6, 3), (2, 5, 6, 3)),
        ((2, 6, 4, 3), (2, 6, 3, 3)),
        ((2, 5, 3), (2, 7, 2)),
    ],
    ids=["smaller", "larger", "height", "width", "length"],
)
def test_the_students_map_is_resized_to_the_teachers(rng, teacher, student):
    t, s = rng.normal(size=teacher), rng.normal(size=student)
    resized = bilinear((s**2).mean(-1), teacher[1:-1])
    expected = authors_loss(t, np.sqrt(resized)[..., None]).mean()
    assert value_of(AttentionTransfer(), t, s) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("known", [(None, None), (4, None)], ids=["neither", "teacher"])
def test_sizes_may_be_unknown_until_the_graph_runs(rng, known):
    t, s = rng.normal(size=(2, 4, 4, 3)), rng.normal(size=(2, 8, 8, 2))
    size_t, size_s = known
    compiled = tf.function(
        AttentionTransfer().compute_loss,
        input_signature=[
            tf.TensorSpec((None, size_t, size_t, 3)),
            tf.TensorSpec((None, size_s, size_s, 2)),
        ],
    )
    value = compiled(tf.constant(t, "float32"), tf.constant(s, "float32"))
    assert float(value) == pytest.approx(value_of(AttentionTransfer(), t, s), rel=1e-6)


def test_several_pairs_of_layers_are_added(rng):
    shapes = [((3, 4, 4, 2), (3, 4, 4, 5)), ((3, 2, 2, 4), (3, 2, 2, 4))]
    pairs = [(rng.normal(size=t), rng.normal(size=s)) for t, s in shapes]
    names = ["block1", "block2"]
    loss = AttentionTransfer(teacher_layer_name=names, student_layer_name=names)
    expected = sum(authors_loss(t, s).mean() for t, s in pairs)
    value = value_of(loss, [t for t, _ in pairs], [s for _, s in pairs])
    assert value == pytest.approx(expected, rel=1e-5)
    assert loss.get_config()["student_layer_name"] == names


def test_weights_are_one_for_each_example(rng):
    t, s = (rng.normal(size=(4, 3, 2, 6)) for _ in range(2))
    weight = np.array([0.0, 1.0, 2.0, 0.5])
    expected = (weight * authors_loss(t, s)).sum() / 4
    assert value_of(AttentionTransfer(), t, s, sample_weight=weight) == pytest.approx(
        expected, rel=1e-5
    )


def test_padding_changes_nothing(rng):
    t, s = (rng.normal(size=(2, 5, 3)) for _ in range(2))
    expected = np.concatenate([authors_loss(t[:1, :3], s[:1, :3]), authors_loss(t[1:], s[1:])])
    expected = (expected * [3, 5]).sum() / 8  # the mean over real positions
    for padding in (0, 4):
        pad = [(0, 0), (0, padding), (0, 0)]
        long_t, long_s = (np.pad(z, pad, constant_values=9.0) for z in (t, s))
        student = tf.constant(long_s, "float32")
        lengths = np.array([[3], [5]])
        student._keras_mask = tf.constant(np.arange(5 + padding) < lengths)
        assert value_of(AttentionTransfer(), long_t, student) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("extreme", [0.0, 1.0, 1e4, -1e4])
def test_constant_features_have_finite_gradients(extreme, p):
    variable = tf.Variable(np.full((2, 3, 3, 4), extreme, "float32"))
    for teacher in (np.zeros((2, 3, 3, 5)), np.full((2, 3, 3, 5), 1e4)):
        with tf.GradientTape() as tape:
            value = AttentionTransfer(p=p).compute_loss(teacher, variable)
        assert np.isfinite(value)
        assert np.isfinite(tape.gradient(value, variable)).all()


def test_it_teaches_where_to_look():
    keras.utils.set_random_seed(3)
    t = np.random.default_rng(3).normal(size=(2, 4, 4, 3)).astype("float32")
    student = tf.Variable(tf.random.normal((2, 4, 4, 2), seed=3))
    first = value_of(AttentionTransfer(), t, student)
    for _ in range(60):
        with tf.GradientTape() as tape:
            value = AttentionTransfer().compute_loss(t, student)
        student.assign_sub(20.0 * tape.gradient(value, student))
    assert value_of(AttentionTransfer(), t, student) < 0.05 * first


def test_a_power_below_one_is_refused():
    with pytest.raises(ValueError, match=r"`p` must be at least 1: .* infinite[\s\S]*use p=2"):
        AttentionTransfer(p=0.5)
    with pytest.raises(TypeError, match="`p` must be a number"):
        AttentionTransfer(p="2")


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ((2, 4, 4, 3), (2, 4, 3)),
        ((2, 4, 4, 3), (1, 4, 4, 3)),
        ((2, 4, 4, 4, 3), (2, 4, 4, 2, 3)),
        ((2, 4, None, 4, 3), (2, 4, None, 4, 3)),
    ],
    ids=["kinds", "examples", "volumes", "unknown_volumes"],
)
def test_features_that_cannot_be_compared_are_refused(teacher, student):
    words = r"the shapes of teacher and student differ[\s\S]*may differ[\s\S]*teacher_layer_name="
    with pytest.raises(ValueError, match=words):
        AttentionTransfer().check_shapes(teacher, student)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [((2, 5), (2, 5)), ((2, 1, 1, 5), (2, 4, 4, 5)), ((2, 4, 4, 5), (2, 1, 1, 5))],
    ids=["vectors", "teacher", "student"],
)
def test_a_feature_of_one_position_is_refused(teacher, student):
    words = r"a feature of one position says nothing[\s\S]*before the pooling"
    with pytest.raises(ValueError, match=words):
        AttentionTransfer().compute_loss(np.ones(teacher), np.ones(student))


def test_outputs_without_channels_are_refused():
    with pytest.raises(ValueError, match="The outputs have no axis but the batch's"):
        AttentionTransfer().compute_loss(np.ones(8), np.ones(8))
