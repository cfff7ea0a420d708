"""NeuronSelectivity: the squared MMD in NumPy, its invariances, sizes, masks and words."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_kd.losses import neuron_selectivity as module
from keras_kd.losses.neuron_selectivity import NeuronSelectivity
from tests import references

# Widths and sizes on both sides of what decides which matrices are made.
SHAPES = [
    pytest.param([(3, 5, 4), (3, 5, 4)], id="sequences"),
    pytest.param([(3, 3, 4, 5), (3, 3, 4, 2)], id="few_channels"),
    pytest.param([(3, 2, 2, 9), (3, 2, 2, 7)], id="many_channels"),
    pytest.param([(2, 2, 3, 2, 4), (2, 2, 3, 2, 3)], id="volumes"),
]


def channel_maps(feature):
    """Each channel's activations over the positions, divided by their L2 norm: (channels, HW)."""
    flat = references.float64(feature).reshape(-1, feature.shape[-1]).T
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def mmd(t, s):
    """MMD²: mean k(tᵢ, tᵢ') + mean k(sⱼ, sⱼ') − 2 mean k(tᵢ, sⱼ), k(x, y) = (xᵀy)², one example.

    Huang and Wang 2017, sections 3.2 and 4; the pairs are written out.
    """
    maps_t, maps_s = channel_maps(t), channel_maps(s)

    def mean_kernel(left, right):
        return np.mean([[np.dot(x, y) ** 2 for y in right] for x in left])

    return (
        mean_kernel(maps_t, maps_t) + mean_kernel(maps_s, maps_s) - 2 * mean_kernel(maps_t, maps_s)
    )


def expected_rows(t, s):
    return np.array([mmd(*pair) for pair in zip(t, s, strict=True)])


def value_of(t, s, **kwargs):
    return float(NeuronSelectivity().compute_loss(t, s, **kwargs))


@pytest.fixture(params=SHAPES, name="features")
def _features(request, rng):
    return [rng.normal(size=shape) for shape in request.param]


@pytest.fixture
def maps(rng):
    """A teacher's and a student's map of other widths."""
    return [rng.normal(size=(3, 3, 4, width)) for width in (5, 2)]


def test_it_is_the_squared_discrepancy_of_the_paper(features):
    assert value_of(*features) == pytest.approx(expected_rows(*features).mean(), rel=1e-5)


def test_both_ways_of_computing_it_are_the_same_number(features):
    sides = [np.stack([channel_maps(row).T for row in side]) for side in features]
    teacher, student = (tf.constant(side, "float32") for side in sides)
    expected = expected_rows(*features)
    np.testing.assert_allclose(module._by_channels(teacher, student), expected, rtol=1e-5)
    np.testing.assert_allclose(module._by_positions(teacher, student), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "widths", "way"),
    [
        ((2, 2), (5, 4), "_by_positions"),
        ((2, 2), (4, 4), "_by_channels"),
        ((2, 2), (2, 7), "_by_positions"),
        ((3, 2), (5, 5), "_by_channels"),
        ((7,), (8, 9), "_by_positions"),
    ],
)
def test_the_smaller_matrices_are_made(monkeypatch, rng, size, widths, way):
    taken = []
    for name in ("_by_channels", "_by_positions"):
        plain = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *given, n=name, f=plain: taken.append(n) or f(*given)
        )
    value_of(*(rng.normal(size=(2, *size, width)) for width in widths))
    assert taken == [way]


def test_its_gradient_is_that_of_the_formula(features):
    t, s = features
    variable = tf.Variable(s, dtype="float32")
    with tf.GradientTape() as tape:
        value = NeuronSelectivity().compute_loss(t, variable)
    expected = references.gradient(lambda z: expected_rows(t, z).mean(), s)
    np.testing.assert_allclose(tape.gradient(value, variable), expected, rtol=1e-3, atol=1e-6)


def test_it_is_zero_where_the_channels_are_distributed_alike(features):
    t, _ = features
    assert value_of(t, t) == 0.0
    assert value_of(t, t[..., ::-1]) == pytest.approx(0.0, abs=1e-6)  # channels do not pair up
    assert value_of(t, -t) == 0.0  # the kernel is even
    scale = np.arange(1, t.shape[-1] + 1)  # each channel's map has length 1
    assert value_of(t, scale * t) == pytest.approx(0.0, abs=1e-6)
    assert value_of(t, np.concatenate([t, t], -1)) == pytest.approx(0.0, abs=1e-6)


def test_channels_that_select_other_positions_are_two_apart():
    t, s = np.zeros((1, 2, 2, 1)), np.zeros((1, 2, 2, 1))
    t[0, 0, 0], s[0, 1, 1] = 7.0, 0.1
    assert value_of(t, s) == pytest.approx(2.0, rel=1e-6)


def test_the_constant_of_the_teacher_is_kept(maps):
    t, _ = maps
    nothing = np.zeros((3, 3, 4, 2))  # then only mean k(tᵢ, tᵢ') is left
    expected = np.mean([np.mean((channel_maps(x) @ channel_maps(x).T) ** 2) for x in t])
    assert value_of(t, nothing) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", [(2, 2), (2, 4), (4, 2)], ids=str)
def test_the_students_feature_is_resized_to_the_teachers(rng, size):
    t, s = rng.normal(size=(2, *size, 3)), rng.normal(size=(2, 4, 4, 2))
    ratio = 4 // size[0], 4 // size[1]  # halving bilinearly is the mean of two neighbours
    blocks = s.reshape(2, size[0], ratio[0], size[1], ratio[1], 2).mean(axis=(2, 4))
    assert value_of(t, s) == pytest.approx(expected_rows(t, blocks).mean(), rel=1e-5)


def test_lengths_may_differ(rng):
    t, s = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 6, 2))
    halved = s.reshape(2, 3, 2, 2).mean(axis=2)
    assert value_of(t, s) == pytest.approx(expected_rows(t, halved).mean(), rel=1e-5)


def test_sizes_may_be_unknown_until_the_graph_runs(rng):
    t, s = rng.normal(size=(2, 2, 2, 9)), rng.normal(size=(2, 4, 4, 8))
    compiled = tf.function(
        NeuronSelectivity().compute_loss,
        input_signature=[tf.TensorSpec((None, None, None, width)) for width in (9, 8)],
    )
    value = compiled(tf.constant(t, "float32"), tf.constant(s, "float32"))
    assert float(value) == pytest.approx(value_of(t, s), rel=1e-5)


def test_several_pairs_of_layers_are_added(rng):
    shapes = [((3, 4, 4, 2), (3, 4, 4, 5)), ((3, 2, 2, 4), (3, 2, 2, 4))]
    pairs = [(rng.normal(size=t), rng.normal(size=s)) for t, s in shapes]
    names = ["block1", "block2"]
    loss = NeuronSelectivity(teacher_layer_name=names, student_layer_name=names)
    value = loss.compute_loss([t for t, _ in pairs], [s for _, s in pairs])
    expected = sum(expected_rows(t, s).mean() for t, s in pairs)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    assert loss.get_config()["teacher_layer_name"] == names


def test_weights_are_one_for_each_example(maps):
    weight = np.array([0.0, 1.0, 2.5])
    expected = (weight * expected_rows(*maps)).sum() / 3
    assert value_of(*maps, sample_weight=weight) == pytest.approx(expected, rel=1e-5)


def test_padding_changes_nothing(rng):
    t, s = rng.normal(size=(2, 5, 4)), rng.normal(size=(2, 5, 3))
    expected = (mmd(t[0, :3], s[0, :3]) + mmd(t[1], s[1])) / 2
    for padding in (0, 4):
        pad = [(0, 0), (0, padding), (0, 0)]
        long_t, long_s = (np.pad(z, pad, constant_values=9.0) for z in (t, s))
        student = tf.constant(long_s, "float32")
        student._keras_mask = tf.constant(np.arange(5 + padding) < np.array([[3], [5]]))
        assert value_of(long_t, student) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("width", [2, 9], ids=["channels", "positions"])
@pytest.mark.parametrize("extreme", [0.0, 1.0, 1e4, -1e4])
def test_constant_features_have_finite_gradients(extreme, width):
    variable = tf.Variable(np.full((2, 2, 2, width), extreme, "float32"))
    for teacher in (np.zeros((2, 2, 2, width)), np.full((2, 2, 2, width), 1e4)):
        with tf.GradientTape() as tape:
            value = NeuronSelectivity().compute_loss(teacher, variable)
        assert np.isfinite(value)
        assert np.isfinite(tape.gradient(value, variable)).all()


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
        NeuronSelectivity().check_shapes(teacher, student)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [((2, 5), (2, 5)), ((2, 1, 1, 5), (2, 4, 4, 5)), ((2, 4, 4, 5), (2, 1, 1, 5))],
    ids=["vectors", "teacher", "student"],
)
def test_a_feature_of_one_position_is_refused(teacher, student):
    with pytest.raises(ValueError, match=r"a feature of one position has nothing[\s\S]*pooling"):
        NeuronSelectivity().compute_loss(np.ones(teacher), np.ones(student))


def test_outputs_without_channels_are_refused():
    with pytest.raises(ValueError, match="The outputs have no axis but the batch's"):
        NeuronSelectivity().compute_loss(np.ones(8), np.ones(8))


def test_padding_of_another_length_than_the_teachers_is_refused(rng):
    student = tf.constant(rng.normal(size=(2, 4, 3)), "float32")
    student._keras_mask = tf.constant([[True, True, False, False], [True] * 4])
    with pytest.raises(ValueError, match="the padding of these sequences would change the loss"):
        NeuronSelectivity().compute_loss(rng.normal(size=(2, 8, 3)), student)
