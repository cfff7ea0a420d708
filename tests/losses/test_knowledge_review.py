"""KnowledgeReview: the authors' fusion and loss in float64, sizes, and the words."""

from __future__ import annotations

import inspect
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd as kd
from keras_kd.losses import knowledge_review
from keras_kd.losses.knowledge_review import KnowledgeReview, hierarchical_context
from tests import references

# --- the authors' code, in float64 NumPy ----------------------------------------------------------


def pool(x, cells):
    """Adaptive average pooling into cells×cells: from ⌊i·n/c⌋ to ⌈(i+1)·n/c⌉."""

    def bounds(size, i):
        return slice(math.floor(i * size / cells), math.ceil((i + 1) * size / cells))

    height, width = x.shape[1:3]
    rows = [
        [x[:, bounds(height, i), bounds(width, j)].mean((1, 2)) for j in range(cells)]
        for i in range(cells)
    ]
    return np.stack([np.stack(row, axis=1) for row in rows], axis=1)


def hcl(s, t):
    """Hierarchical context loss of one layer, one number for each example."""
    s, t = references.float64(s), references.float64(t)

    def mse(a, b):
        return ((a - b) ** 2).mean((1, 2, 3))

    loss, count, total = mse(s, t), 1.0, 1.0
    for level in [4, 2, 1]:
        if level >= s.shape[1]:
            continue
        count /= 2.0
        loss = loss + count * mse(pool(s, level), pool(t, level))
        total += count
    return loss / total


def enlarge(x, size):
    """Nearest-neighbour interpolation: position i comes from ⌊i·n/m⌋."""
    rows = [math.floor(i * x.shape[1] / size[0]) for i in range(size[0])]
    columns = [math.floor(j * x.shape[2] / size[1]) for j in range(size[1])]
    return x[:, rows][:, :, columns]


def convolve(x, kernel):
    """A convolution of stride 1 with zeros around and no bias."""
    reach = kernel.shape[0] // 2
    x, kernel = references.float64(x), references.float64(kernel)
    height, width = x.shape[1:3]
    x = np.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    out = np.zeros((len(x), height, width, kernel.shape[-1]))
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            out += x[:, i : i + height, j : j + width] @ kernel[i, j]
    return out


def normalise(x, gamma, beta, mean, variance):
    """BatchNorm at its running statistics, ε = 1e-5."""
    return (x - mean) / np.sqrt(references.float64(variance) + 1e-5) * gamma + beta


def review(students, sizes, fusions):
    """Attention-based fusion, deepest first; `sizes` are the teacher's, `fusions` the weights."""
    results, deeper = [], None
    for s, size, w in zip(students[::-1], sizes[::-1], fusions[::-1], strict=True):
        x = normalise(convolve(s, w["reduce"][0]), *w["reduce_norm"])
        if deeper is not None:
            deeper = enlarge(deeper, s.shape[1:3])
            gates = np.concatenate([x, deeper], -1) @ w["attention"][0] + w["attention"][1]
            gates = references.sigmoid(gates)
            x = x * gates[..., 0:1] + deeper * gates[..., 1:2]
        deeper = enlarge(x, size)
        results.insert(0, normalise(convolve(deeper, w["expand"][0]), *w["expand_norm"]))
    return results


def weights_of(connector):
    """The weights of each fusion by the names of its layers, in float64."""
    names = ("reduce", "reduce_norm", "attention", "expand", "expand_norm")
    return [
        {
            name: [references.float64(w) for w in getattr(fusion, name).get_weights()]
            for name in names
            if getattr(fusion, name) is not None
        }
        for fusion in connector.fusions
    ]


def scrambled(connector, rng):
    """Give every weight a value that shows, variances positive ones."""
    connector.set_weights(
        [
            rng.normal(size=w.shape) if w.ndim > 1 else rng.uniform(0.3, 1.0, w.shape)
            for w in connector.weights
        ]
    )
    return connector


TEACHERS = [(8, 8, 6), (5, 5, 7), (4, 4, 9), (9,)]
STUDENTS = [(8, 8, 3), (4, 4, 5), (4, 2, 4), (4,)]


def as_map(x):
    return x if x.ndim == 4 else x[:, None, None]


# --- oracles --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [(9, 7), (8, 8), (5, 5), (4, 4), (5, 3), (3, 6), (2, 2), (1, 1), (1, 4)], ids=str
)
def test_the_hierarchical_context_loss_is_the_authors(rng, size):
    t, s = (rng.normal(size=(3, *size, 5)).astype("float32") for _ in range(2))
    np.testing.assert_allclose(hierarchical_context(t, s), hcl(s, t), rtol=1e-5)
    value = float(KnowledgeReview().compute_loss(t, s))
    assert value == pytest.approx(hcl(s, t).mean(), rel=1e-5)


def test_levels_and_weights_are_those_of_the_paper(rng):
    t = rng.normal(size=(2, 1, 1, 3))
    constant = np.broadcast_to(t, (2, 8, 8, 3))  # every level sees the same difference
    squares = (t**2).mean((1, 2, 3))
    np.testing.assert_allclose(
        hierarchical_context(constant.astype("float32"), np.zeros((2, 8, 8, 3), "float32")),
        squares,
        rtol=1e-5,
    )
    checks = np.indices((8, 8)).sum(0)[None, :, :, None] % 2 * 2.0 - 1.0  # no level but the map's
    value = hierarchical_context(checks.astype("float32"), np.zeros((1, 8, 8, 1), "float32"))
    assert float(value[0]) == pytest.approx(1.0 / 1.875, rel=1e-6)
    assert knowledge_review.LEVELS == (4, 2, 1)


def test_the_review_and_the_loss_are_the_authors(rng):
    loss = KnowledgeReview(5, ["a", "b", "c", "d"], ["a", "b", "c", "d"])
    connector = loss.connector(*([(None, *x) for x in side] for side in (TEACHERS, STUDENTS)))
    scrambled(connector, rng)
    t, s = ([rng.normal(size=(3, *x)).astype("float32") for x in y] for y in (TEACHERS, STUDENTS))
    same, reviewed = connector(t, s)
    sizes = [as_map(x).shape[1:3] for x in t]
    expected = review([as_map(x) for x in s], sizes, weights_of(connector))
    for given, own, wanted, source in zip(reviewed, same, expected, t, strict=True):
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(given, wanted, rtol=1e-4, atol=1e-5 * scale)
        np.testing.assert_array_equal(own, as_map(source))
    value = float(loss.compute_loss(same, reviewed))
    wanted = sum(hcl(a, as_map(b)) for a, b in zip(expected, t, strict=True)).mean()
    assert value == pytest.approx(wanted, rel=1e-5)


def test_a_single_layer_goes_through_its_two_convolutions(rng):
    loss = KnowledgeReview()
    connector = scrambled(loss.connector((None, 5, 4, 6), (None, 5, 4, 3)), rng)
    t, s = (rng.normal(size=(3, 5, 4, width)).astype("float32") for width in (6, 3))
    expected = review([s], [(5, 4)], weights_of(connector))[0]
    value = float(loss.compute_loss(*connector(t, s)))
    assert value == pytest.approx(hcl(expected, t).mean(), rel=1e-5)
    assert connector.fusions[0].attention is None


def test_the_gradient_is_that_of_the_oracle(rng):
    loss = KnowledgeReview()
    shapes = [(None, 3, 2, 2), (None, 2, 2, 3)], [(None, 3, 2, 2), (None, 1, 2, 2)]
    connector = scrambled(loss.connector(*shapes), rng)
    t, s = ([rng.normal(size=(2, *x[1:])) for x in side] for side in shapes)
    weights, sizes = weights_of(connector), [(3, 2), (2, 2)]
    for place in range(2):
        variable = tf.Variable(s[place], dtype="float32")
        with tf.GradientTape() as tape:
            given = [variable if i == place else tf.constant(x, "float32") for i, x in enumerate(s)]
            value = loss.compute_loss(*connector([x.astype("float32") for x in t], given))

        def of(at, place=place):
            mixed = [at if i == place else x for i, x in enumerate(s)]
            results = review(mixed, sizes, weights)
            return sum(hcl(a, b).mean() for a, b in zip(results, t, strict=True))

        expected = references.gradient(of, s[place])
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            tape.gradient(value, variable), expected, rtol=1e-3, atol=1e-4 * scale
        )


def test_it_is_zero_where_the_maps_are_the_teachers(rng):
    maps = [rng.normal(size=(2, 8, 8, 3)), rng.normal(size=(2, 4, 4, 5)), rng.normal(size=(2, 7))]
    assert float(KnowledgeReview().compute_loss(maps, maps)) == 0.0


# --- the connector --------------------------------------------------------------------------------


def test_maps_are_fused_in_the_channels_of_the_students_last_layer():
    shapes = [[(None, *x) for x in side] for side in (TEACHERS, STUDENTS)]
    for channels, expected in ((None, 4), (7, 7)):
        connector = KnowledgeReview(channels).connector(*shapes)
        for fusion, teacher, student in zip(connector.fusions, TEACHERS, STUDENTS, strict=True):
            assert fusion.reduce.kernel.shape == (1, 1, student[-1], expected)
            assert fusion.expand.kernel.shape == (3, 3, expected, teacher[-1])
            assert fusion.reduce.bias is None and fusion.expand.bias is None
        assert [f.attention is None for f in connector.fusions] == [False, False, False, True]
        assert connector.fusions[0].attention.kernel.shape == (2 * expected, 2)
        assert connector.fusions[0].attention.bias.shape == (2,)
        assert connector.built is True and connector.fusions[0].built is True
        assert len(connector.trainable_weights) == 4 * 6 + 3 * 2
    for width, expected in ((511, 511), (513, 512)):
        connector = KnowledgeReview().connector((None, 2), (None, width))
        assert connector.fusions[0].reduce.filters == expected


def test_its_layers_start_as_in_the_authors_code():
    connector = KnowledgeReview(96).connector((None, 2, 2, 64), (None, 2, 2, 48))
    fusion = connector.fusions[0]
    for layer, fan_in in ((fusion.reduce, 48), (fusion.expand, 9 * 96)):
        kernel = np.abs(np.asarray(layer.kernel))
        limit = np.sqrt(3.0 / fan_in)
        assert 0.99 * limit < kernel.max() <= limit
        assert kernel.mean() == pytest.approx(limit / 2.0, rel=0.05)
    for norm in (fusion.reduce_norm, fusion.expand_norm):
        assert (norm.momentum, norm.epsilon) == (0.9, 1e-5)


def test_only_training_moves_its_statistics(rng):
    connector = KnowledgeReview().connector((None, 4, 4, 6), (None, 4, 4, 5))
    t, s = rng.normal(size=(3, 4, 4, 6)), rng.normal(size=(3, 4, 4, 5))
    before = connector.get_weights()
    for arguments in ({}, {"training": False}):
        connector(t, s, **arguments)
        for now, then in zip(connector.get_weights(), before, strict=True):
            np.testing.assert_array_equal(now, then)
    reviewed = np.asarray(connector(t, s, training=True)[1][0])
    np.testing.assert_allclose(reviewed.mean((0, 1, 2)), np.zeros(6), atol=1e-4)
    for norm in (connector.fusions[0].reduce_norm, connector.fusions[0].expand_norm):
        assert np.abs(np.asarray(norm.moving_mean)).max() > 0.0


def test_the_distiller_trains_and_saves_it(rng, tmp_path):
    layers = keras.layers

    def cnn(width):
        return keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(width, 3, activation="relu", padding="same", name="first"),
                layers.MaxPooling2D(),
                layers.Conv2D(2 * width, 3, activation="relu", padding="same", name="second"),
                layers.GlobalAveragePooling2D(name="pooled"),
                layers.Dense(2),
            ]
        )

    x = rng.normal(size=(8, 8, 8, 1)).astype("float32")
    names = ["first", "second", "pooled"]
    loss = KnowledgeReview(teacher_layer_name=names, student_layer_name=names)
    distiller = kd.Distiller(cnn(4), cnn(2), loss, student_loss_weight=0.0)
    distiller.compile(keras.optimizers.Adam(0.01))
    losses = distiller.fit(x, epochs=8, batch_size=8, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    distiller.save(tmp_path / "distiller.keras")
    loaded = kd.load_distiller(tmp_path / "distiller.keras", teacher=distiller.teacher)
    pairs = zip(loaded.connections.get_weights(), distiller.connections.get_weights(), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    assert len(distiller.student.weights) == 6


# --- words ----------------------------------------------------------------------------------------


def test_its_arguments_and_what_it_says_of_itself():
    defaults = [p.default for p in inspect.signature(KnowledgeReview).parameters.values()]
    assert defaults == [None] * 4
    assert KnowledgeReview.takes_all is True and KnowledgeReview.layers == 1


@pytest.mark.parametrize("channels", [0, -4, 2.5, "16", True])
def test_channels_that_are_no_whole_number_are_refused(channels):
    with pytest.raises(ValueError, match="`channels` must be a whole number of 1 or more"):
        KnowledgeReview(channels)


def test_a_single_channel_is_enough():
    assert KnowledgeReview(1).connector((None, 2), (None, 3)).fusions[0].reduce.filters == 1


@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 2, 3, 4, 6), (2,)], ids=str)
def test_features_that_are_no_maps_or_vectors_are_refused(shape):
    words = r"reviews maps \(and vectors\)[\s\S]*fix: "
    fine = (2, 4, 4, 6)
    for pair in ((shape, fine), (fine, shape), ([fine, shape], [fine, fine])):
        with pytest.raises(ValueError, match=words):
            KnowledgeReview().connector(*pair)
    with pytest.raises(ValueError, match=words):
        KnowledgeReview().compute_loss(np.ones(shape), np.ones(shape))
    with pytest.raises(ValueError, match=words):
        KnowledgeReview().compute_loss([np.ones(fine)], [np.ones(shape)])


@pytest.mark.parametrize("shape", [(None, None, 4, 6), (None, 4, None, 6)], ids=str)
def test_maps_of_unknown_size_are_refused(shape):
    words = r"needs maps of known height and width[\s\S]*keras.Input"
    with pytest.raises(ValueError, match=words):
        KnowledgeReview().connector(shape, (None, 4, 4, 6))
    with pytest.raises(ValueError, match=words):
        KnowledgeReview().connector((None, 4, 4, 6), shape)


def test_different_shapes_are_refused_with_the_distiller_as_the_fix():
    words = r"shapes of teacher and student differ[\s\S]*train with kd.Distiller"
    with pytest.raises(ValueError, match=words):
        KnowledgeReview().compute_loss(np.ones((2, 4, 4, 3)), np.ones((2, 4, 4, 2)))
    with pytest.raises(ValueError, match=words):
        KnowledgeReview().compute_loss([np.ones((2, 4, 4, 3))], [np.ones((1, 4, 4, 3))])
