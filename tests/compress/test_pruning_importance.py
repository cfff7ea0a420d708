"""What channels are worth, against the papers' formulas in NumPy and against finite differences."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from keras_kd.compress.pruning import importance, labelled, tracing
from keras_kd.compress.pruning.pruning import prune_channels
from tests.compress.masking import left, randomise
from tests.models import LOGITS


def scores_of(channels, scores, name: str) -> np.ndarray:
    (group,) = [group for group in channels.groups if name in group.makers]
    return scores[group.units]


def branches() -> keras.Model:
    """Two convolutions that are added: the channels of both are one group."""
    inputs = keras.Input((4, 4, 2))
    a = layers.Conv2D(6, 3, padding="same", use_bias=False, name="a")(inputs)
    a = layers.BatchNormalization(name="norm_a")(a)
    b = layers.Conv2D(6, 1, name="b")(inputs)
    b = layers.BatchNormalization(name="norm_b")(b)
    x = layers.ReLU()(layers.Add()([a, b]))
    x = layers.Flatten()(layers.Dense(4, activation="relu", name="c")(x))
    return randomise(keras.Model(inputs, layers.Dense(3, name="head")(x)))


def mlp() -> keras.Model:
    inputs = keras.Input((5,))
    x = layers.Dense(6, activation="relu", name="one")(inputs)
    x = layers.Dense(4, activation="relu", name="two")(x)
    return randomise(keras.Model(inputs, layers.Dense(3, name="head")(x)))


def data(model: keras.Model, count: int = 20, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(count, *model.inputs[0].shape[1:])).astype("float32")
    return x, rng.integers(0, classes, count)


def test_magnitude_sums_the_filters_of_all_makers() -> None:
    model = branches()
    channels = tracing.trace(model)
    scores = importance.magnitude(channels)
    a, b, c = (np.asarray(model.get_layer(name).kernel, "float64") for name in "abc")
    l1 = np.abs(a).sum((0, 1, 2)) + np.abs(b).sum((0, 1, 2))  # Li et al. 2017, section 3.1
    np.testing.assert_allclose(scores_of(channels, scores, "a"), l1, rtol=1e-6)
    np.testing.assert_allclose(scores_of(channels, scores, "c"), np.abs(c).sum(0), rtol=1e-6)
    after = prune_channels(model, keep=0.5, importance="magnitude")
    np.testing.assert_array_equal(left(model, after, "b"), np.sort(np.argsort(-l1)[:3]))


def test_batchnorm_sums_the_scales() -> None:
    model = branches()
    inputs = model.inputs
    short = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(model.layers[-5].output)))
    channels = tracing.trace(short)
    gamma = sum(np.abs(np.asarray(short.get_layer(f"norm_{k}").gamma, "float64")) for k in "ab")
    scores = importance.batch_norm(channels)
    np.testing.assert_allclose(scores_of(channels, scores, "a"), gamma, rtol=1e-6)
    after = prune_channels(short, keep=0.5, importance="batchnorm")
    np.testing.assert_array_equal(left(short, after, "a"), np.sort(np.argsort(-gamma)[:3]))


def test_batchnorm_refuses_a_group_without_one() -> None:
    with pytest.raises(ValueError, match=r"'c' has no BatchNormalization.*\n.*\n.*\n.*taylor"):
        prune_channels(branches(), keep=0.5, importance="batchnorm")


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gates_by_hand(model: keras.Model, x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """∂E/∂z of the gates of both layers of `mlp`, E the mean cross-entropy: backpropagation."""
    weights = [np.asarray(w, "float64") for w in model.get_weights()]
    w1, b1, w2, b2, w3, b3 = weights
    h1 = np.maximum(x @ w1 + b1, 0)
    h2 = np.maximum(h1 @ w2 + b2, 0)
    error = (softmax(h2 @ w3 + b3) - np.eye(3)[y]) / len(x)
    to_h2 = error @ w3.T
    to_h1 = (to_h2 * (h2 > 0)) @ w2.T
    return [(to_h1 * h1).sum(0), (to_h2 * h2).sum(0)]


@pytest.mark.parametrize("batch_size", [20, 8])
def test_taylor_is_the_mean_of_the_squared_gates(batch_size) -> None:
    model = mlp()
    x, y = data(model)
    channels = tracing.trace(model)
    scores = importance.taylor(model, channels, (x, y), LOGITS, batch_size, 100)
    cuts = range(0, len(x), batch_size)
    gates = [gates_by_hand(model, x[k : k + batch_size], y[k : k + batch_size]) for k in cuts]
    for index, name in enumerate(("one", "two")):
        wanted = np.mean([gate[index] ** 2 for gate in gates], axis=0)
        found = scores_of(channels, scores, name)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-9 * wanted.max())


def test_taylor_of_a_group_is_the_slope_of_the_loss_in_a_common_gate() -> None:
    """Residual branches, Flatten and two readers: against (E(1 + h) - E(1 - h)) / 2h in float64."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        inputs = keras.Input((4, 2), dtype="float64", name="x")
        gate = keras.Input((1, 5), dtype="float64", name="gate")
        a = layers.Conv1D(5, 3, padding="same", name="a")(inputs)
        b = layers.Conv1D(5, 1, activation="tanh", name="b")(inputs)
        added = layers.Add()([a, layers.BatchNormalization(name="norm")(b)])

        def rest(x):
            one = layers.Dense(4, activation="tanh", name="one")(layers.Flatten()(x))
            two = layers.GlobalAveragePooling1D()(layers.Conv1D(4, 2, name="two")(x))
            return layers.Dense(3, name="head")(layers.Add()([one, two]))

        model = randomise(keras.Model(inputs, rest(added)))
        gated = keras.Model([inputs, gate], rest(layers.Multiply()([added, gate])))
        gated.set_weights(model.get_weights())
        x, y = data(model)
        x = x.astype("float64")

        def loss(gates: np.ndarray) -> float:
            z = np.asarray(gated([x, np.tile(gates, (len(x), 1, 1))]))
            return float(-np.log(softmax(z)[np.arange(len(y)), y]).mean())

        h, slopes = 1e-4, []
        for unit in range(5):
            up, down = np.ones((1, 5)), np.ones((1, 5))
            up[0, unit] += h
            down[0, unit] -= h
            slopes.append((loss(up) - loss(down)) / (2 * h))
        channels = tracing.trace(model)
        scores = importance.taylor(model, channels, (x, y), LOGITS, len(x), 100)
    finally:
        keras.config.set_dtype_policy(before)
    np.testing.assert_allclose(scores_of(channels, scores, "a"), np.square(slopes), rtol=1e-4)


def test_taylor_leaves_out_dropout_and_regularisers() -> None:
    model = mlp()
    x, y = data(model)
    heavy = keras.Sequential([keras.Input((5,))])
    for layer in model.layers[1:]:
        config = layer.get_config() | {"kernel_regularizer": "l2"}
        heavy.add(layers.Dense.from_config(config))
        heavy.add(layers.Dropout(0.5)) if layer.name != "head" else None
    heavy.set_weights(model.get_weights())
    scores = [
        importance.taylor(m, tracing.trace(m), (x, y), LOGITS, 20, 20) for m in (model, heavy)
    ]
    np.testing.assert_allclose(*scores, rtol=1e-4)


def test_taylor_looks_at_so_many_examples() -> None:
    model = mlp()
    x, y = data(model)
    found = [
        importance.taylor(model, tracing.trace(model), part, LOGITS, 4, 8)
        for part in ((x, y), (x[:8], y[:8]))
    ]
    np.testing.assert_array_equal(*found)


def test_sample_weights_count() -> None:
    model = mlp()
    x, y = data(model)
    weight = (np.arange(20) < 10).astype("float32")
    channels = tracing.trace(model)
    found = importance.taylor(model, channels, (x, y, weight), LOGITS, 20, 20)
    half = gates_by_hand(model, x[:10], y[:10])[1] / 2  # the mean is over 20
    np.testing.assert_allclose(scores_of(channels, found, "two"), half**2, rtol=1e-4)


LABELS = {
    "class numbers": (None, lambda y: y, "SparseCategoricalCrossentropy", True),
    "one-hot": (None, lambda y: np.eye(3)[y], "CategoricalCrossentropy", True),
    "softmax": ("softmax", lambda y: y, "SparseCategoricalCrossentropy", False),
    "binary": ("sigmoid", lambda y: 1 - np.eye(3)[y], "BinaryCrossentropy", False),
    "numbers": (None, lambda y: np.eye(3)[y] * 1.5, "MeanSquaredError", None),
}


@pytest.mark.parametrize("name", LABELS)
def test_the_loss_that_labels_call_for(name) -> None:
    activation, made, kind, from_logits = LABELS[name]
    inputs = keras.Input((5,))
    model = keras.Model(inputs, layers.Dense(3, activation=activation)(inputs))
    x, y = data(model)
    loss = labelled.loss_for(model, x, made(y), None)
    assert type(loss).__name__ == kind
    assert loss.get_config().get("from_logits") == from_logits


def test_the_loss_of_several_outputs_and_of_a_compiled_model() -> None:
    inputs = keras.Input((5,), name="x")
    x = layers.Dense(6, activation="relu", name="hidden")(inputs)
    heads = {"class": layers.Dense(3, name="a")(x), "size": layers.Dense(1, name="b")(x)}
    model = randomise(keras.Model(inputs, heads))
    values, y = data(model)
    labels = {"class": y, "size": values[:, :1] * 3}
    losses = labelled.loss_for(model, values, labels, None)
    kinds = {key: type(loss).__name__ for key, loss in losses.items()}
    assert kinds == {"class": "SparseCategoricalCrossentropy", "size": "MeanSquaredError"}
    found = prune_channels(model, keep=0.5, data=(values, labels))
    model.compile(loss={"class": LOGITS, "size": "mse"})
    again = prune_channels(model, keep=0.5, data=(values, labels))
    np.testing.assert_array_equal(found.get_layer("a").kernel, again.get_layer("a").kernel)


REFUSED = {
    "data": (None, 'importance="taylor" needs data'),
    "labels": ((np.zeros((4, 5)),), "Labels are needed"),
    "batches": (keras.utils.PyDataset, "There is no data"),
    "finite": ((np.ones((4, 5)), np.zeros(4), np.full(4, np.nan)), "are not finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_taylor_refuses(name) -> None:
    given, words = REFUSED[name]
    if name == "batches":
        import tensorflow as tf

        given = tf.data.Dataset.from_tensors((np.zeros((2, 5)), np.zeros(2))).take(0)
    with pytest.raises(ValueError, match=words):
        prune_channels(mlp(), keep=0.5, data=given, loss=LOGITS)


def test_a_dataset_of_python_and_soft_batches() -> None:
    import keras_kd as kd

    class Batches(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index):
            part = slice(10 * index, 10 * index + 10)
            return kd.SoftBatch(x[part], {"outputs": None}), y[part]

    model = mlp()
    x, y = data(model)
    found = importance.taylor(model, tracing.trace(model), Batches(), LOGITS, 1, 20)
    wanted = importance.taylor(model, tracing.trace(model), (x, y), LOGITS, 10, 20)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
