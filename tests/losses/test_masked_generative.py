"""MaskedGenerative: the paper's block in float64 at a given mask, the masks, and the words."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd as kd
from keras_kd.losses.masked_generative import MaskedGenerative
from tests import references

SHAPES = [
    pytest.param((3, 4, 5, 6), (3, 4, 5, 2), id="maps"),
    pytest.param((3, 5, 6), (3, 5, 2), id="sequences"),
    pytest.param((3, 4, 5, 6), (3, 4, 5, 6), id="equal widths"),
]


# --- the paper, in float64 NumPy ------------------------------------------------------------------


def convolve(x, kernel, bias):
    """A convolution of stride 1 with one zero around, of maps or sequences."""
    x, kernel = references.float64(x), references.float64(kernel)
    if x.ndim == 3:
        return convolve(x[:, None], np.pad(kernel[None], ((1, 1), *[(0, 0)] * 3)), bias)[:, 0]
    height, width = x.shape[1:3]
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.zeros((len(x), height, width, kernel.shape[-1])) + references.float64(bias)
    for i in range(3):
        for j in range(3):
            out += x[:, i : i + height, j : j + width] @ kernel[i, j]
    return out


def generate(s, mask, align, block):
    """G(f_align(S)·M), G = W₂(ReLU(W₁(·))): Yang et al. 2022, section 3."""
    s = references.float64(s)
    if align is not None:
        s = s @ references.float64(align[0]) + references.float64(align[1])
    return convolve(np.maximum(convolve(s * mask, *block[:2]), 0.0), *block[2:])


def distance(t, generated):
    """Σ over channels, height and width of (T − G)²: Yang et al. 2022, the sum in section 3."""
    return ((references.float64(t) - generated) ** 2).reshape(len(t), -1).sum(-1)


def weights_of(connector, index=0):
    """The alignment's weights (or None) and the block's, as arrays."""
    generation = connector.generations[index]
    align = None if generation.align is None else generation.align.get_weights()
    return align, [w for layer in generation.block for w in layer.get_weights()]


def scrambled(connector, rng):
    connector.set_weights([rng.normal(size=w.shape) for w in connector.weights])
    return connector


@pytest.mark.parametrize(("teacher", "student"), SHAPES)
@pytest.mark.parametrize("training", [False, True])
def test_it_is_the_papers_at_the_mask_drawn(rng, monkeypatch, teacher, student, training):
    loss = MaskedGenerative()
    connector = loss.connector((None, *teacher[1:]), (None, *student[1:]))
    scrambled(connector, rng)
    t, s = (rng.normal(size=shape).astype("float32") for shape in (teacher, student))
    mask = (rng.uniform(size=(*student[:-1], 1)) < 0.5).astype("float32")
    asked = []
    monkeypatch.setattr(connector.generations[0], "mask", lambda f: asked.append(f.shape) or mask)
    same, generated = connector(t, s, training=training)
    expected = generate(s, mask if training else 1.0, *weights_of(connector))
    np.testing.assert_allclose(generated, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(same, t)
    value = float(loss.compute_loss(same, generated))
    assert value == pytest.approx(distance(t, expected).mean(), rel=1e-5)
    assert [tuple(shape) for shape in asked] == [teacher] * training
    assert (weights_of(connector)[0] is None) == (teacher[-1] == student[-1])


def test_the_gradient_is_that_of_the_oracle(rng):
    loss = MaskedGenerative()
    connector = scrambled(loss.connector((None, 3, 2, 3), (None, 3, 2, 2)), rng)
    t, s = rng.normal(size=(2, 3, 2, 3)), rng.normal(size=(2, 3, 2, 2))
    variable = tf.Variable(s, dtype="float32")
    with tf.GradientTape() as tape:
        value = loss.compute_loss(*connector(tf.constant(t, "float32"), variable))
    weights = weights_of(connector)
    expected = references.gradient(lambda at: distance(t, generate(at, 1.0, *weights)).mean(), s)
    np.testing.assert_allclose(tape.gradient(value, variable), expected, rtol=1e-3, atol=1e-3)


def test_it_is_the_sum_of_squares_and_zero_where_the_feature_is_generated(rng):
    for shape in ((4, 3, 2, 6), (4, 5, 6)):
        t, s = (rng.normal(size=shape) for _ in range(2))
        value = float(MaskedGenerative().compute_loss(t, s))
        assert value == pytest.approx(2.0 * references.hint(t, s).mean(), rel=1e-6)
        assert float(MaskedGenerative().compute_loss(t, t)) == 0.0


def test_several_layers_are_added_with_a_block_each(rng):
    loss = MaskedGenerative(teacher_layer_name=["a", "b"], student_layer_name=["a", "b"])
    shapes = [(4, 4, 6), (2, 2, 7)], [(4, 4, 5), (2, 2, 7)]
    connector = loss.connector(*([(None, *s) for s in side] for side in shapes))
    t, s = ([rng.normal(size=(3, *x)).astype("float32") for x in side] for side in shapes)
    value = float(loss.compute_loss(*connector(t, s)))
    expected = sum(
        distance(t[i], generate(s[i], 1.0, *weights_of(connector, i))).mean() for i in range(2)
    )
    assert value == pytest.approx(expected, rel=1e-5)
    assert len(connector.trainable_weights) == 2 * 4 + 2


def test_its_parts_are_made_with_it_and_not_by_a_first_call():
    connector = MaskedGenerative().connector((None, 4, 4, 6), (None, 4, 4, 5))
    assert connector.built is True and connector.generations[0].built is True
    assert len(connector.trainable_weights) == 6


# --- masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.65])
def test_so_many_positions_are_hidden_as_the_ratio_says(ratio):
    connector = MaskedGenerative(ratio, seed=1).connector((None, 50, 50, 2), (None, 50, 50, 2))
    mask = np.asarray(connector.generations[0].mask(np.zeros((8, 50, 50, 2), "float32")))
    assert mask.shape == (8, 50, 50, 1)
    assert set(np.unique(mask)) <= {0.0, 1.0}
    assert mask.mean() == pytest.approx(1.0 - ratio, abs=0.02)  # 5 standard deviations
    assert ratio == 0.0 or not np.array_equal(mask[0], mask[1])


def test_masks_follow_the_seed_and_only_training_draws_them(rng):
    t, s = rng.normal(size=(2, 4, 4, 3)), rng.normal(size=(2, 4, 4, 3))

    def fresh(seed):
        keras.utils.set_random_seed(3)
        return MaskedGenerative(seed=seed).connector((None, 4, 4, 3), (None, 4, 4, 3))

    one, two, other = fresh(5), fresh(5), fresh(6)
    first = np.asarray(one(t, s, training=True)[1])
    np.testing.assert_array_equal(first, two(t, s, training=True)[1])
    assert not np.array_equal(first, other(t, s, training=True)[1])
    assert not np.array_equal(first, one(t, s, training=True)[1])
    state = np.asarray(one.generations[0].seed_generator.state)
    np.testing.assert_array_equal(one(t, s)[1], one(t, s, training=False)[1])
    np.testing.assert_array_equal(one.generations[0].seed_generator.state, state)
    assert not np.array_equal(first, one(t, s)[1])


def test_the_distiller_trains_it_and_goes_on_with_the_same_masks(rng, tmp_path):
    layers = keras.layers

    def cnn(width):
        convolution = layers.Conv2D(width, 3, name="map")
        return keras.Sequential(
            [keras.Input((6, 6, 1)), convolution, layers.GlobalAveragePooling2D(), layers.Dense(2)]
        )

    x = rng.normal(size=(8, 6, 6, 1)).astype("float32")
    loss = MaskedGenerative(teacher_layer_name="map", student_layer_name="map")
    distiller = kd.Distiller(cnn(4), cnn(2), loss, [2e-3], student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.1))
    fit = {"batch_size": 8, "verbose": 0, "shuffle": False}
    distiller.fit(x, epochs=2, **fit)
    distiller.save(tmp_path / "distiller.keras")
    loaded = kd.load_distiller(tmp_path / "distiller.keras", teacher=distiller.teacher)
    logs = [one.fit(x, epochs=2, **fit).history["loss"] for one in (distiller, loaded)]
    assert logs[0] == pytest.approx(logs[1], rel=1e-6)
    generation = distiller.connections.connectors[0].generations[0]
    assert len(generation.trainable_weights) == 6
    assert len(distiller.student.weights) == 4


# --- sizes and words ------------------------------------------------------------------------------


def test_another_size_is_resized_to_the_teachers(rng):
    connector = MaskedGenerative().connector((None, 4, 4, 6), (None, 2, 8, 5))
    constant = np.broadcast_to(rng.normal(size=5), (2, 2, 8, 5)).astype("float32")
    generated = connector(np.zeros((2, 4, 4, 6), "float32"), constant)[1]
    wide = np.broadcast_to(constant[0, 0, 0], (2, 4, 4, 5))
    expected = generate(wide, 1.0, *weights_of(connector))
    np.testing.assert_allclose(generated, expected, rtol=1e-4, atol=1e-5)


def test_open_sizes_are_taken_as_they_come():
    connector = MaskedGenerative().connector((None, None, None, 6), (None, None, None, 5))
    t, s = np.zeros((2, 6, 4, 6), "float32"), np.ones((2, 3, 2, 5), "float32")
    assert connector(t, s, training=True)[1].shape == (2, 6, 4, 6)


def test_its_arguments_and_what_it_says_of_itself():
    defaults = [p.default for p in inspect.signature(MaskedGenerative).parameters.values()]
    assert defaults == [0.65, None, None, None, None]
    assert MaskedGenerative.layers == 1 and not MaskedGenerative.takes_all


@pytest.mark.parametrize("ratio", [-0.1, 1.1])
def test_a_ratio_that_is_no_share_is_refused(ratio):
    with pytest.raises(ValueError, match="`mask_ratio` must be between 0 and 1"):
        MaskedGenerative(ratio)


def test_a_ratio_that_hides_everything_is_refused():
    with pytest.raises(ValueError, match="`mask_ratio` must leave something to be seen"):
        MaskedGenerative(1.0)


@pytest.mark.parametrize("shape", [(None, 6), (None, 2, 3, 4, 6)], ids=["vectors", "volumes"])
def test_features_that_are_no_maps_or_sequences_are_refused(shape):
    for pair in ((shape, shape), ([shape], [shape])):
        with pytest.raises(ValueError, match=r"hides positions of maps and sequences[\s\S]*fix: "):
            MaskedGenerative().connector(*pair)


def test_features_of_different_rank_are_refused():
    with pytest.raises(ValueError, match="Features of different rank cannot be matched"):
        MaskedGenerative().connector((None, 4, 4, 6), (None, 6))


def test_different_shapes_are_refused_with_the_distiller_as_the_fix():
    words = r"shapes of teacher and student differ[\s\S]*train with kd.Distiller"
    with pytest.raises(ValueError, match=words):
        MaskedGenerative().compute_loss(np.ones((2, 4, 3)), np.ones((2, 4, 2)))
