"""How much is left: shares, budgets, steps; costs counted by hand; the report; what is refused."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_kd as kd
from keras_kd.compress.pruning import choosing, costs, planning, tracing
from keras_kd.compress.pruning.pruning import prune_channels, prune_iteratively
from keras_kd.compress.pruning.report import pruning_report
from tests.compress.masking import randomise
from tests.models import LOGITS, Subclassed


def network() -> keras.Model:
    """Three groups of 16, 24 and 10 channels."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name="one")(inputs)
    x = layers.SeparableConv2D(24, 3, strides=2, padding="same", activation="relu", name="two")(x)
    x = layers.Dense(10, activation="relu", name="three")(layers.GlobalAveragePooling2D()(x))
    return randomise(keras.Model(inputs, layers.Dense(4, name="head")(x), name="net"))


def by_hand(one: int, two: int, three: int) -> tuple[int, int]:
    """The MACs and parameters of `network` with so many channels."""
    macs = 64 * 9 * 3 * one + 16 * (9 * one + one * two) + two * three + three * 4
    weights = 27 * one + one + 9 * one + one * two + two + two * three + three + three * 4 + 4
    return macs, weights


def widths(model: keras.Model) -> tuple[int, int, int]:
    one, two, three = (model.get_layer(name) for name in ("one", "two", "three"))
    return one.filters, two.filters, three.units


def every_kind() -> keras.Model:
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2DTranspose(4, 2, strides=2, name="transposed")(inputs)  # 12 x 12
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)  # 10 x 10 x 8
    x = layers.Conv2D(8, 3, groups=2, strides=2, name="grouped")(x)  # 4 x 4
    x = layers.Reshape((16, 8))(x)
    x = layers.MultiHeadAttention(2, 3, value_dim=5, name="attention")(x, x)
    x = layers.Bidirectional(layers.LSTM(4, return_sequences=True), name="both")(x)
    x = layers.SimpleRNN(3, return_sequences=True, name="simple")(x)
    x = layers.Dense(7, name="dense")(x)
    x = layers.GRU(5, name="gru")(x)
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


def test_macs_are_those_counted_by_hand() -> None:
    model = every_kind()
    wanted = {
        "transposed": 36 * 4 * 2 * 4,
        "depthwise": 100 * 9 * 8,
        "grouped": 16 * 9 * 4 * 8,
        "attention": 16 * 8 * 2 * (3 + 3 + 5) + 16 * 16 * 2 * (3 + 5) + 16 * 2 * 5 * 8,
        "both": 2 * 16 * 16 * (8 + 4),  # 4 gates of 4 units
        "simple": 16 * 3 * (8 + 3),
        "dense": 16 * 3 * 7,
        "gru": 16 * 15 * (7 + 5),
        "head": 5 * 2,
    }
    report = pruning_report(model, model)
    assert {path: row["macs"][0] for path, row in report.layers.items()} == wanted
    assert report.macs == (sum(wanted.values()),) * 2
    assert report.parameters == (model.count_params(),) * 2


def test_a_layer_called_twice_costs_twice_and_weighs_once() -> None:
    inputs = keras.Input((6,))
    hidden = layers.Dense(6, name="hidden")
    model = keras.Model(inputs, layers.Dense(2, name="head")(hidden(hidden(inputs))))
    report = pruning_report(model, model)
    assert report.layers["hidden"]["macs"][0] == 2 * 36
    assert report.parameters[0] == 42 + 14
    with pytest.raises(ValueError, match="No channel of"):
        prune_channels(model, keep=0.5, importance="magnitude")  # its output is its input's place


@pytest.mark.parametrize(
    "count, keep, multiple_of, wanted",
    [
        *((10, 0.5, 1, 5), (5, 0.5, 1, 3), (7, 0.5, 1, 4), (9, 0.1, 1, 1), (4, 0.01, 1, 1)),
        *((10, 1.0, 1, 10), (24, 0.5, 8, 16), (20, 0.3, 8, 8), (30, 0.95, 8, 30), (6, 0.5, 8, 6)),
    ],
)
def test_a_share_is_the_nearest_whole_number(count, keep, multiple_of, wanted) -> None:
    assert choosing.width(count, keep, multiple_of) == wanted


def test_keep_is_of_each_group() -> None:
    model = network()
    for keep, wanted in ((0.5, (8, 12, 5)), (0.25, (4, 6, 3)), (0.01, (1, 1, 1))):
        after = prune_channels(model, keep=keep, importance="magnitude")
        assert widths(after) == wanted
        macs, weights = by_hand(*wanted)
        report = pruning_report(model, after)
        assert report.macs == (by_hand(16, 24, 10)[0], macs)
        assert after.count_params() == weights == report.parameters[1]
    after = prune_channels(model, keep=0.5, importance="magnitude", multiple_of=8)
    assert widths(after) == (8, 16, 8)


def test_keeping_all_is_a_copy() -> None:
    model = network()
    after = prune_channels(model, keep=1.0, importance="magnitude")
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(after(x), model(x), rtol=1e-6)
    assert not set(map(id, after.weights)) & set(map(id, model.weights))


@pytest.mark.parametrize("multiple_of", [1, 2])
@pytest.mark.parametrize("share", [0.7, 0.3, 0.15])
@pytest.mark.parametrize("kind", ["macs", "bytes"])
def test_a_budget_is_met_within_one_step(kind, share, multiple_of) -> None:
    model = network()
    macs, weights = by_hand(16, 24, 10)
    limit = share * macs if kind == "macs" else int(share * weights * 4)
    asked = {"macs": share} if kind == "macs" else {"bytes": limit}
    after = prune_channels(model, importance="magnitude", multiple_of=multiple_of, **asked)
    found = widths(after)

    def cost(channels) -> float:
        macs, weights = by_hand(*channels)
        return macs if kind == "macs" else 4 * weights

    assert cost(found) <= limit
    more = [
        cost(
            tuple(
                width + (multiple_of if place == group else 0) for place, width in enumerate(found)
            )
        )
        for group in range(3)
    ]
    assert max(more) > limit
    assert all(width % multiple_of == 0 for width in found)
    report = pruning_report(model, after)
    assert (report.macs[1] if kind == "macs" else report.bytes[1]) == cost(found)


def test_a_budget_takes_the_channels_of_the_smallest_shares() -> None:
    model = network()
    channels = tracing.trace(model)
    rng = np.random.default_rng(4)
    scores = rng.uniform(0.1, 1.0, channels.units)
    shares = np.concatenate(  # Molchanov et al. 2017, equation 10
        [
            scores[group.units] / np.sqrt((scores[group.units] ** 2).sum())
            for group in channels.groups
        ]
    )
    units = np.concatenate([group.units for group in channels.groups])
    for count in (1, 5, 20):
        kept = choosing.by_budget(channels, scores, lambda k, n=count: (~k).sum() >= n)
        assert set(np.flatnonzero(~kept)) == set(units[np.argsort(shares)[:count]])


def test_a_tenth_of_each_group_stays() -> None:
    channels = tracing.trace(network())
    scores = np.ones(channels.units)
    one, two, three = channels.groups
    scores[two.units] = 0.0
    kept = choosing.by_budget(channels, scores, lambda k: False)
    assert [int(kept[g.units].sum()) for g in (one, two, three)] == [2, 3, 1]
    assert kept[two.units[:3]].all()  # of equals, the first stay


def distil(smaller: keras.Model) -> keras.Model:
    return smaller


@pytest.mark.parametrize("asked", [{"keep": 0.3}, {"macs": 0.2}, {"bytes": 2000}])
def test_several_steps_end_where_one_does(asked) -> None:
    model, seen = network(), []

    def distil(smaller: keras.Model) -> keras.Model:
        seen.append(smaller)
        return smaller

    after = prune_iteratively(model, distil=distil, steps=3, importance="magnitude", **asked)
    assert after is seen[-1] and len(seen) == 3
    whole = by_hand(16, 24, 10)
    for step, smaller in enumerate(seen, start=1):
        if "keep" in asked:
            keep = 0.3 ** (step / 3)
            assert widths(smaller) == tuple(math.floor(keep * n + 0.5) for n in (16, 24, 10))
        elif "macs" in asked:
            share = by_hand(*widths(smaller))[0] / whole[0]
            assert 0.6 * 0.2 ** (step / 3) < share <= 0.2 ** (step / 3)
        else:
            limit = whole[1] * 4 * (2000 / (whole[1] * 4)) ** (step / 3)
            assert 0.6 * limit < 4 * smaller.count_params() <= math.ceil(limit)


def test_what_distil_returns_is_pruned_further() -> None:
    model = network()

    def other(smaller: keras.Model) -> keras.Model:
        return randomise(keras.models.clone_model(smaller), seed=9)

    after = prune_iteratively(model, distil=other, steps=2, keep=0.25, importance="magnitude")
    assert widths(after) == (4, 6, 3)


def test_the_report_prints() -> None:
    model = network()
    after = prune_channels(model, keep=0.5, importance="magnitude")
    report = pruning_report(model, after)
    lines = str(report).splitlines()
    assert lines[0].split() == ["layer", "channels", "parameters", "MACs"]
    assert report.layers["one"] == {
        "channels": (16, 8),
        "parameters": (448, 224),
        "macs": (27648, 13824),
    }
    assert "448 → 224" in lines[1] and "27,648 → 13,824" in lines[1]
    assert lines[-1] == "whole: head, for it makes an output of the model"
    assert report.to_dict()["bytes"] == (4 * report.parameters[0], 4 * report.parameters[1])
    assert report.bytes == (4 * model.count_params(), 4 * after.count_params())


def test_the_report_says_what_is_kept_and_why() -> None:
    inputs = keras.Input((6, 4))
    x = layers.Dense(4, name="added")(inputs)
    x = layers.Dense(8, name="looked_at")(layers.Add(name="sum")([x, inputs]))
    x = layers.GRU(5, name="gru")(layers.Lambda(lambda z: z, name="own")(x))
    x = layers.Dense(6, activation="softmax", name="mixing")(x)
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.Dense(6, name="free")(x)))
    report = pruning_report(model, model)
    assert report.whole == {
        "added": "it is tied to channels that are kept",
        "looked_at": "'own' (Lambda) is not followed: there is no rule for this layer",
        "gru": "'gru' is a recurrent layer, whose own units are kept",
        "mixing": "'mixing' ends in the activation softmax, which may mix them",
        "head": "it makes an output of the model",
    }


def test_open_axes_have_no_macs() -> None:
    inputs = keras.Input((None, None, 2))
    x = layers.Conv2D(6, 3, name="conv")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    after = prune_channels(model, keep=0.5, importance="magnitude")
    report = pruning_report(model, after)
    assert report.macs == (None, None) and report.layers["conv"]["macs"] == (None, None)
    assert "–" in str(report)
    with pytest.raises(ValueError, match="The MACs of 'conv' are not known"):
        prune_channels(model, macs=0.5, importance="magnitude")
    assert prune_channels(model, bytes=300, importance="magnitude").count_params() <= 75


REFUSED = {
    "none": ({}, "Say in one way how much is to be left"),
    "two": ({"keep": 0.5, "macs": 0.5}, "Say in one way how much is to be left"),
    "keep": ({"keep": 1.5}, "`keep` must be between 0 and 1"),
    "zero": ({"macs": 0}, "`macs` must be positive"),
    "bytes": ({"bytes": 0.5}, "`bytes` must be a whole number"),
    "kind": ({"keep": 0.5, "importance": "taylr"}, "There is no importance 'taylr'"),
    "multiple": ({"keep": 0.5, "multiple_of": 0}, "`multiple_of` must be a whole number"),
    "examples": ({"keep": 0.5, "examples": 0}, "`examples` must be a whole number"),
    "batch": ({"keep": 0.5, "batch_size": 0}, "`batch_size` must be a whole number"),
    "small": ({"bytes": 40}, "The budget cannot be reached by removing channels"),
    "few": ({"macs": 0.001}, "The budget cannot be reached by removing channels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name) -> None:
    given, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        prune_channels(network(), **{"importance": "magnitude", **given})


@keras.saving.register_keras_serializable(package="tests")
class NoConfig(layers.Layer):
    def __init__(self, width) -> None:
        super().__init__()
        self.width = width

    def call(self, x):
        return x


def only_outputs() -> keras.Model:
    return keras.Sequential([keras.Input((4,)), layers.Flatten(), layers.Dense(3, name="last")])


def without_config() -> keras.Model:
    inputs = keras.Input((4,))
    return keras.Model(inputs, layers.Dense(2)(NoConfig(4)(layers.Dense(4)(inputs))))


MODELS = {
    "no model": (lambda: "model", "The student is no model"),
    "unbuilt": (lambda: keras.Sequential([layers.Dense(2)]), "is not built"),
    "subclassed": (Subclassed, "is a subclassed model"),
    "outputs": (only_outputs, "No channel of .* can be removed(.|\n)*last: it makes an output"),
    "config": (without_config, "The layer .* cannot be copied"),
}


@pytest.mark.parametrize("name", MODELS)
def test_which_models_are_refused(name) -> None:
    build, words = MODELS[name]
    with pytest.raises(ValueError, match=words):
        prune_channels(build(), keep=0.5, importance="magnitude")


def test_what_iterations_and_reports_refuse() -> None:
    model = network()
    with pytest.raises(TypeError, match="`distil` must be a function"):
        prune_iteratively(model, distil=None, keep=0.5, importance="magnitude")
    with pytest.raises(TypeError, match="`distil` must return the trained model"):
        prune_iteratively(model, distil=lambda m: None, keep=0.5, importance="magnitude")
    with pytest.raises(ValueError, match="`steps` must be a whole number"):
        prune_iteratively(model, distil=distil, steps=0, keep=0.5, importance="magnitude")
    with pytest.raises(ValueError, match="is not what pruning left of 'net'"):
        pruning_report(model, only_outputs())


def state(model: keras.Model) -> dict:
    optimizer = model.optimizer.variables if model.compiled else []
    return {
        "weights": [np.asarray(weight) for weight in (*model.variables, *optimizer)],
        "trainable": [layer.trainable for layer in (model, *model.layers)],
        "nodes": [len(layer._inbound_nodes) for layer in model.layers],
        "loss": (model.compiled, model.loss, model.optimizer),
    }


def test_the_given_model_is_not_changed_and_the_other_is_its_own() -> None:
    model = network()
    model.get_layer("two").trainable = False
    model.compile("adam", loss=LOGITS, metrics=["accuracy"])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 8, 8, 3)).astype("float32"), rng.integers(0, 4, 16)
    model.fit(x, y, verbose=0)
    before = state(model)
    twice = [prune_channels(model, keep=0.5, data=(x, y)) for _ in range(2)]
    after = state(model)
    for old, new in zip(before.pop("weights"), after.pop("weights"), strict=True):
        np.testing.assert_array_equal(old, new)
    assert before == after
    for one, other in zip(*(m.get_weights() for m in twice), strict=True):
        np.testing.assert_array_equal(one, other)
    smaller = twice[0]
    assert not smaller.compiled and smaller.name == "net" and smaller.inputs[0].name == "image"
    assert [layer.trainable for layer in smaller.layers] == before["trainable"][1:]
    assert not set(map(id, smaller.variables)) & set(map(id, model.variables))
    model.trainable = False
    frozen = prune_channels(model, keep=0.5, importance="magnitude")
    assert not frozen.trainable and not frozen.trainable_weights


def test_it_is_saved_and_distilled(tmp_path) -> None:
    teacher = network()
    smaller = prune_channels(teacher, keep=0.5, importance="magnitude")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 8, 8, 3)).astype("float32"), rng.integers(0, 4, 8)
    smaller.save(tmp_path / "smaller.keras")
    loaded = keras.models.load_model(tmp_path / "smaller.keras")
    np.testing.assert_allclose(loaded(x), smaller(x), rtol=1e-6)
    before = smaller.get_weights()
    distiller = kd.Distiller(teacher, smaller, kd.LogitsDistillation(), student_loss_weight=0.5)
    distiller.compile("adam", loss=LOGITS)
    distiller.fit(tf.data.Dataset.from_tensor_slices((x, y)).batch(8), verbose=0)
    assert all(np.any(old != new) for old, new in zip(before, smaller.get_weights(), strict=True))


def test_half_precision_and_seeds() -> None:
    inputs = keras.Input((6,))
    x = layers.Dense(8, dtype="mixed_float16", name="half")(inputs)
    x = layers.Dropout(0.5, name="drop")(x)
    model = randomise(keras.Model(inputs, layers.Dense(2, name="head")(x)))
    rng = np.random.default_rng(0)
    data = rng.normal(size=(16, 6)).astype("float32"), rng.integers(0, 2, 16)
    after = prune_channels(model, keep=0.5, data=data)
    assert after.get_layer("half").compute_dtype == "float16"
    seeds = [m.get_layer("drop").variables[0].numpy().tolist() for m in (model, after)]
    assert seeds[0] == seeds[1]


def test_costs_of_a_part_are_those_of_the_smaller_model() -> None:
    model = network()
    channels = tracing.trace(model)
    kept = np.random.default_rng(1).random(channels.units) < 0.6
    left = [int(kept[group.units].sum()) for group in channels.groups]
    macs, weights = by_hand(*left)
    assert costs.total(channels, costs.macs_of(channels), kept) == macs
    assert costs.total(channels, costs.parameters_of(channels), kept) == weights


def test_scores_that_say_nothing_between_groups_take_the_same_share_of_each() -> None:
    model = network()
    channels = tracing.trace(model)
    scores = np.random.default_rng(4).uniform(0.1, 1.0, channels.units)
    for keep in (0.75, 0.5, 0.25):
        removed = round((1 - keep) * channels.units)
        kept = choosing.by_budget(
            channels, scores, lambda k, n=removed: (~k).sum() >= n, between=False
        )
        for group in channels.groups:
            count = int(kept[group.units].sum())
            assert abs(count - keep * len(group.units)) <= 1
            best = np.argsort(-scores[group.units])[:count]
            assert kept[group.units[best]].all()


@pytest.mark.parametrize("kind", ["magnitude", "batchnorm"])
def test_filters_and_scales_are_not_compared_between_groups(kind) -> None:
    """A group whose filters and scales are a hundred times as large loses the same share."""
    inputs = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="norm1")(layers.Conv2D(20, 3, name="one")(inputs))
    x = layers.BatchNormalization(name="norm2")(layers.Conv2D(30, 3, name="two")(x))
    x = layers.Conv2D(2, 1, name="head")(x)
    model = randomise(keras.Model(inputs, x))
    for name in ("one", "norm1"):
        layer = model.get_layer(name)
        layer.set_weights([100 * weight for weight in layer.get_weights()])
    after = prune_channels(model, macs=0.25, importance=kind)
    shares = after.get_layer("one").filters / 20, after.get_layer("two").filters / 30
    assert abs(shares[0] - shares[1]) <= 1 / 20 + 1 / 30


def test_a_compiled_loss_is_the_default() -> None:
    model = network()
    worth = planning.Worth("taylor", (np.zeros((2, 8, 8, 3)), np.zeros(2)), None, 2, 2)
    assert planning.Plan(model, worth, 1).loss is None
    model.compile(loss="mse")
    assert planning.Plan(model, worth, 1).loss == "mse"
    given = planning.Worth("taylor", worth.data, LOGITS, 2, 2)
    assert planning.Plan(model, given, 1).loss is LOGITS
