"""The pruned network answers as the original does with nothing read from the channels that went.

The reference is made here by hand: for each network it is written down which layer reads whose
channels, the filters that are left are found again by their values, and the weights that read the
others are set to zero in the original.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_kd.compress.pruning.pruning import prune_channels
from keras_kd.compress.pruning.report import pruning_report
from tests.compress.masking import check, find, left, randomise


def model(inputs, outputs, name="net") -> keras.Model:
    return keras.Model(inputs, outputs, name=name)


def residual() -> keras.Model:
    """Channels that are added, subtracted, multiplied, averaged and compared."""
    x = inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(x)
    x = layers.BatchNormalization(name="stem_norm")(x)
    stem = x = layers.ReLU()(x)
    kinds = (layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum)
    for number, kind in enumerate((*kinds, layers.Minimum)):
        branch = layers.Conv2D(8, 3, padding="same", activation="tanh", name=f"branch{number}")(x)
        x = kind()([x, branch])
    x = layers.Add()([x, stem, layers.Conv2D(8, 1, name="around")(stem)])
    x = layers.MaxPooling2D()(x)
    return model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x)))


def joined() -> keras.Model:
    """Channels side by side, and others added to them."""
    inputs = keras.Input((6, 6, 3))
    a = layers.Conv2D(6, 3, padding="same", activation="relu", name="a")(inputs)
    b = layers.Conv2D(4, 1, activation="relu", name="b")(a)
    both = layers.Concatenate()([a, b, inputs])
    c = layers.Conv2D(8, 3, padding="same", name="c")(both)
    d = layers.Conv2D(10, 1, name="d")(c)
    x = layers.Add()([layers.Concatenate(axis=3)([a, b]), d])
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.Concatenate(axis=1)([x, layers.ReLU()(x)])  # along positions
    x = layers.SeparableConv2D(6, 3, depth_multiplier=2, name="separable")(x)
    return model(inputs, layers.Conv2D(2, 1, name="head")(x))


def depthwise() -> keras.Model:
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(6, 3, padding="same", name="stem")(inputs)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="deep")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.PReLU(shared_axes=[1, 2], name="slopes")(x)
    x = layers.DepthwiseConv2D(3, use_bias=False, name="deeper")(x)
    x = layers.PReLU(name="own_slopes")(x)
    x = layers.PReLU(shared_axes=[1, 2, 3], name="one_slope")(x)
    x = layers.ZeroPadding2D()(layers.SpatialDropout2D(0.1)(x))
    x = layers.UpSampling2D()(layers.Cropping2D()(x))
    x = layers.Conv2DTranspose(4, 2, strides=2, activation="relu", name="up")(x)
    return model(inputs, layers.Conv2D(2, 1, name="head")(x))


def flattened() -> keras.Model:
    inputs = keras.Input((4, 3, 2))
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="conv")(inputs)
    x = layers.BatchNormalization(name="norm_flat")(layers.Flatten()(x))
    x = layers.Dense(8, activation="gelu", name="dense")(layers.Dropout(0.2)(x))
    x = layers.Reshape((2, -1))(layers.Dense(12, activation="relu", name="wide")(x))
    x = layers.Dense(5, name="narrow")(layers.RepeatVector(2)(layers.Flatten()(x)))
    return model(inputs, layers.Dense(2, name="head")(x))


def squeezed() -> keras.Model:
    """Squeeze and excite, a gate of one channel, and a scale without learning."""
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="conv")(inputs)
    gate = layers.GlobalAveragePooling2D()(x)
    gate = layers.Dense(4, activation="relu", name="squeeze")(gate)
    gate = layers.Dense(8, activation="sigmoid", name="excite")(gate)
    x = layers.Multiply()([x, layers.Reshape((1, 1, 8))(gate)])
    where = layers.Conv2D(1, 1, activation="sigmoid", name="where")(x)
    x = layers.Multiply()([layers.Rescaling(0.5)(x), where])
    short = layers.GlobalMaxPooling2D()(x)
    x = layers.Conv2D(8, 3, padding="same", name="after")(x)
    x = layers.Multiply()([x, short])  # (8,) with (6, 6, 8)
    return model(inputs, layers.Conv2D(2, 1, name="head")(x))


def generator() -> keras.Model:
    """A dense layer whose numbers become pixels of channels."""
    inputs = keras.Input((5,))
    x = layers.Dense(2 * 2 * 6, activation="relu", name="dense")(inputs)
    x = layers.Reshape((2, 2, 6))(x)
    x = layers.Conv2DTranspose(4, 3, strides=2, padding="same", name="up")(x)
    return model(inputs, layers.Conv2D(1, 1, name="head")(x))


def reordered() -> keras.Model:
    """Two halves, in either order, become two positions of one set of channels."""
    inputs = keras.Input((5,))
    a, b, c, d = (layers.Dense(6, activation="relu", name=name)(inputs) for name in "abcd")
    first = layers.Reshape((2, 6))(layers.Concatenate()([b, a]))
    second = layers.Reshape((2, 6))(layers.Concatenate()([d, layers.ReLU()(c)]))
    x = layers.Conv1D(4, 2, name="e")(layers.Concatenate()([first, second]))
    return model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)))


def open_axes() -> keras.Model:
    """Positions that nobody has counted."""
    inputs = keras.Input((None, None, 2))
    x = layers.Conv2D(6, 3, padding="same", name="conv")(inputs)
    x = layers.Conv1D(4, 1, name="rows")(layers.Reshape((-1, 6))(x))
    return model(inputs, layers.Dense(2, name="head")(layers.GlobalMaxPooling1D()(x)))


def shared() -> keras.Model:
    """One convolution (and its normalisation) called on two tensors: what it reads is tied."""
    one, two = keras.Input((8, 2), name="one"), keras.Input((8, 2), name="two")
    convolution = layers.Conv1D(6, 3, padding="same", activation="relu", name="twice")
    norm = layers.BatchNormalization(name="norm")
    a = layers.Conv1D(4, 3, padding="same", name="a")(one)
    b = layers.SeparableConv1D(4, 3, padding="same", name="b")(two)
    x = layers.Concatenate()([norm(convolution(a)), norm(convolution(b))])
    x = layers.Dense(2, name="head")(layers.GlobalAveragePooling1D()(x))
    return model({"one": one, "two": two}, {"head": x})


def nested() -> keras.Model:
    """A Functional and a Sequential model inside, of which the first is called twice."""
    part_in = keras.Input((None, None, 4))
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="inner")(part_in)
    x = layers.Conv2D(4, 1, name="inner_out")(x)
    part = keras.Model(part_in, layers.Add()([x, part_in]), name="part")
    tail = keras.Sequential(
        [layers.GlobalAveragePooling2D(), layers.Dense(6, name="dense"), layers.ReLU()], name="tail"
    )
    inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(4, 3, name="stem")(inputs)
    x = part(layers.ReLU()(part(x)))
    return model(inputs, layers.Dense(2, name="head")(tail(x)))


def passed_on() -> keras.Model:
    """A model without weights that is called on two tensors has one width."""
    inner = keras.Sequential([keras.Input((6,)), layers.ReLU()], name="inner")
    inputs = keras.Input((4,))
    parts = [inner(layers.Dense(6, name=name)(inputs)) for name in "ab"]
    return model(inputs, layers.Dense(2, name="head")(layers.Concatenate()(parts)))


def sequential() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((9, 2), name="signal"),
            layers.Conv1D(6, 3, padding="causal", name="conv"),
            layers.ReLU(),
            layers.MaxPooling1D(),
            layers.Conv1DTranspose(4, 2, strides=2, name="up"),
            layers.ELU(),
            layers.Flatten(),
            layers.Dense(8, activation="selu", name="dense"),
            layers.GaussianNoise(0.1),
            layers.Dense(3, activation="softmax", name="head"),
        ],
        name="chain",
    )


def arithmetic() -> keras.Model:
    """`+`, `*` and `keras.ops` in the place of layers."""
    inputs = keras.Input((5, 2))
    a = layers.Dense(6, name="a")(inputs)
    b = layers.Dense(6, name="b")(inputs)
    x = ops.relu(a * 0.5 + b) * ops.sigmoid(a) - 1.0
    x = ops.concatenate([x, layers.Dense(4, name="c")(inputs)], axis=-1)
    return model(inputs, layers.Dense(2, name="head")(x))


def recurrent() -> keras.Model:
    """Recurrent layers read what is left; their own units stay."""
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Embedding(5, 6, name="embedding")(inputs)
    x, state = layers.GRU(4, return_sequences=True, return_state=True, name="gru")(x)
    x = layers.Dense(6, activation="relu", name="dense")(x)
    x = layers.Bidirectional(layers.LSTM(3, return_sequences=True), name="both")(x)
    x = layers.Dense(4, name="between")(x)
    x = layers.LSTM(5, name="lstm")(x)
    x = layers.Concatenate()([x, state])
    x = layers.Dense(4, activation="relu", name="last")(x)
    return model(inputs, layers.Dense(2, name="head")(x))


def volumes() -> keras.Model:
    inputs = keras.Input((4, 4, 4, 1))
    x = layers.Conv3D(4, 3, padding="same", activation="relu", name="conv")(inputs)
    x = layers.Conv3D(4, 1, name="next")(layers.AveragePooling3D(2)(x))
    return model(inputs, layers.Dense(2, name="head")(layers.GlobalMaxPooling3D()(x)))


@keras.saving.register_keras_serializable(package="tests")
class Odd(layers.Dense):
    """A layer of somebody's own, which may do anything with the channels."""


def unknown() -> keras.Model:
    """Around layers that are not followed all is kept; elsewhere channels go."""
    inputs = keras.Input((6, 4))
    x = layers.Dense(8, activation="relu", name="first")(inputs)
    x = layers.Dense(6, name="kept_for_odd")(x)
    x = Odd(6, name="odd")(x)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 3, name="attention")(x, x)])
    x = layers.LayerNormalization(name="norm")(x)
    hidden = layers.Dense(12, activation="gelu", name="hidden")(x)
    x = layers.Add()([x, layers.Dense(6, name="kept_by_sum")(hidden)])
    x = layers.Lambda(lambda z: z * 2.0, name="twice")(x)
    x = layers.Conv1D(8, 3, groups=2, name="grouped")(x)
    x = layers.Dense(8, activation="softmax", name="mixing")(x)
    x = layers.Permute((2, 1))(layers.Dense(6, name="kept_for_permute")(x))
    return model(inputs, layers.Dense(2, name="head")(x))


CASES = {
    "residual": (
        residual,
        {**{f"branch{n}": ["stem"] for n in range(6)}, "around": ["stem"], "head": ["stem"]},
    ),
    "concatenate": (
        joined,
        {
            "b": ["a"],
            "c": ["a", "b", 3],
            "d": ["c"],
            "separable": ["a", "b"],
            "head": ["separable"],
        },
    ),
    "depthwise": (depthwise, {"up": [("stem", 2)], "head": ["up"]}),
    "flatten": (
        flattened,
        {"dense": (["conv"], 12), "wide": ["dense"], "narrow": ["wide"], "head": ["narrow"]},
    ),
    "squeeze and excite": (
        squeezed,
        {
            "squeeze": ["conv"],
            "excite": ["squeeze"],
            "where": ["conv"],
            "after": ["conv"],
            "head": ["after"],
        },
    ),
    "reshape": (reordered, {"e": ["a", "c"], "head": ["e"]}),
    "shared": (shared, {"twice": ["a"], "head": ["twice", "twice"]}),
    "nested": (
        nested,
        {
            "part/inner": ["stem"],
            "part/inner_out": ["part/inner"],
            "tail/dense": ["part/inner_out"],
            "head": ["tail/dense"],
        },
    ),
    "passed on": (passed_on, {"head": ["a", "b"]}),
    "sequential": (sequential, {"up": ["conv"], "dense": (["up"], 8), "head": ["dense"]}),
    "open axes": (open_axes, {"rows": ["conv"], "head": ["rows"]}),
    "operations": (arithmetic, {"head": ["a", "c"]}),
    "recurrent": (
        recurrent,
        {
            "gru": ["embedding"],
            "both/forward_layer": ["dense"],
            "both/backward_layer": ["dense"],
            "lstm": ["between"],
            "head": ["last"],
        },
    ),
    "3d": (volumes, {"next": ["conv"], "head": ["next"]}),
    "unknown layers": (unknown, {"kept_for_odd": ["first"], "kept_by_sum": ["hidden"]}),
}
TIED = {
    "residual": [["stem", "around", *(f"branch{n}" for n in range(6))]],
    "squeeze and excite": [["conv", "excite", "after"]],
    "reshape": [["a", "b"], ["c", "d"]],
    "passed on": [["a", "b"]],
    "shared": [["a", "b"]],
    "nested": [["stem", "part/inner_out"]],
    "operations": [["a", "b"]],
}


@pytest.mark.parametrize("name", CASES)
def test_pruned_is_the_masked_original(name) -> None:
    before, after = check(*CASES[name])
    for tied in TIED.get(name, []):
        first, *others = (left(before, after, path) for path in tied)
        for other in others:
            np.testing.assert_array_equal(first, other)
    names = [
        sorted(part.name for part in m.layers if not isinstance(part, layers.InputLayer))
        for m in (before, after)
    ]
    assert names[0] == names[1] and before.name == after.name


NORMS = {
    "layer": (
        layers.LayerNormalization,
        lambda h: (h - h.mean(-1, keepdims=True)) / h.std(-1, keepdims=True),
    ),
    "rms": (layers.RMSNormalization, lambda h: h / np.sqrt((h**2).mean(-1, keepdims=True))),
    "unit": (layers.UnitNormalization, lambda h: h / np.sqrt((h**2).sum(-1, keepdims=True))),
}


@pytest.mark.parametrize("name", NORMS)
def test_statistics_over_channels_are_those_of_what_is_left(name) -> None:
    kind, normalise = NORMS[name]
    inputs = keras.Input((5,))
    small = {} if name == "unit" else {"epsilon": 1e-9}
    x = kind(name="norm", **small)(layers.Dense(8, name="dense")(inputs))
    before = randomise(model(inputs, layers.Dense(2, name="head")(x)))
    after = prune_channels(before, keep=0.5, importance="magnitude")
    kept = left(before, after, "dense")
    x = np.random.default_rng(0).normal(size=(4, 5))
    w = {part.name: [np.asarray(v, "float64") for v in part.weights] for part in before.layers}
    hidden = normalise(x @ w["dense"][0][:, kept] + w["dense"][1][kept])
    for index, value in enumerate(w["norm"]):
        hidden = hidden * value[kept] if index == 0 else hidden + value[kept]
    wanted = hidden @ w["head"][0][kept] + w["head"][1]
    np.testing.assert_allclose(after(x.astype("float32")), wanted, rtol=1e-5, atol=1e-5)


WHOLE = {
    "Reshape": (layers.Reshape((-1, 4)), "it reshapes open axes"),
    "Flatten": (layers.Flatten(), "not on a last axis of known size"),
    "Permute": (layers.Permute((2, 1)), "it moves the channels"),
    "Softmax": (layers.Softmax(), "no rule"),
    "activation": (layers.Activation("softmax"), "it is the activation softmax"),
    "Rescaling": (layers.Rescaling(list(range(1, 9))), "by a number in its config"),
    "axis": (layers.BatchNormalization(axis=1), "it normalises along axis 1"),
    "grouped": (layers.Conv1D(8, 1, groups=2), "it convolves in 2 groups"),
    "first": (layers.MaxPooling1D(data_format="channels_first"), "channels_first"),
    "TimeDistributed": (layers.TimeDistributed(layers.Dense(3)), "no rule"),
    "Bidirectional": (layers.Bidirectional(layers.RNN(layers.LSTMCell(3))), "it wraps"),
    "constant": (lambda x: x * np.ones(8, "float32"), "numbers that stand in the graph"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_cannot_be_followed_keeps_its_channels(name) -> None:
    layer, words = WHOLE[name]
    inputs = keras.Input((None if name in ("Reshape", "Flatten") else 6, 3))
    x = layer(layers.Dense(8, name="made")(inputs))
    report = pruning_report(*[keras.Model(inputs, x)] * 2)
    assert words in report.whole["made"]


@pytest.mark.parametrize("order", [1, -1])
def test_a_layer_that_is_once_not_followed_is_never_cut(order) -> None:
    inputs, mask = keras.Input((6, 3)), keras.Input((6,), dtype="bool")
    a, b = (layers.Dense(4, name=name)(inputs) for name in "ab")
    both = layers.BatchNormalization(name="both")
    calls = [lambda: both(a), lambda: both(b, mask=mask)][::order]
    x = layers.Concatenate()([call() for call in calls])
    x = layers.Dense(2)(layers.Dense(4, name="c")(x))
    before = keras.Model([inputs, mask], x)
    after = prune_channels(before, keep=0.5, importance="magnitude")
    assert [after.get_layer(name).units for name in "abc"] == [4, 4, 2]
    report = pruning_report(before, after)
    assert "'both' (BatchNormalization) is not followed" in report.whole["a"]


def test_flags_of_nested_layers_stay() -> None:
    before = nested()
    before.get_layer("part").trainable = False
    before.get_layer("part").get_layer("inner").trainable = True
    after = prune_channels(before, keep=0.5, importance="magnitude")
    for path in ("part", "part/inner", "part/inner_out", "tail", "tail/dense", "stem"):
        assert find(after, path).trainable == find(before, path).trainable, path
    assert len(after.trainable_weights) == len(before.trainable_weights)
