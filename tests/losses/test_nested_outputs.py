"""Models with several outputs: lists, dicts, a loss or None for each, and words."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd import losses
from keras_kd.losses import (
    DistillationLoss,
    FeatureDistillation,
    HardLabelDistillation,
    LogitMatching,
    LogitsDistillation,
)
from tests import references


@pytest.fixture
def pairs(rng):
    """Three outputs of other widths: [(teacher, student), …]."""
    return [tuple(rng.normal(size=(4, width)) for _ in range(2)) for width in (3, 5, 2)]


def teacher_of(pairs):
    return [teacher for teacher, _ in pairs]


def student_of(pairs):
    return [student for _, student in pairs]


def kl(pair, temperature=3.0):
    return references.kl_divergence(*pair, temperature).mean()


def mse(pair):
    return np.mean(((pair[0] - pair[1]) / 3.0) ** 2)


def test_the_losses_of_all_outputs_are_added(pairs):
    value = LogitsDistillation().compute_loss(teacher_of(pairs), student_of(pairs))
    assert float(value) == pytest.approx(sum(kl(pair) for pair in pairs), rel=1e-6)
    value = LogitMatching().compute_loss(tuple(teacher_of(pairs)), student_of(pairs))
    expected = sum(references.logit_matching(*pair).mean() for pair in pairs)
    assert float(value) == pytest.approx(expected, rel=1e-6)


def test_a_list_names_a_loss_for_each_output_and_none_leaves_one_out(pairs):
    loss = LogitsDistillation(loss=["mse", None, "kl_divergence"])
    value = loss.compute_loss(teacher_of(pairs), student_of(pairs))
    assert float(value) == pytest.approx(mse(pairs[0]) + kl(pairs[2]), rel=1e-6)


def test_an_output_that_is_left_out_may_have_any_shape(pairs, rng):
    other = rng.normal(size=(4, 7))
    loss = LogitsDistillation(loss=["kl_divergence", None])
    value = loss.compute_loss([pairs[0][0], other], [pairs[0][1], other[:, :2]])
    assert float(value) == pytest.approx(kl(pairs[0]), rel=1e-6)


def test_a_dict_names_a_loss_for_each_output_in_any_order(pairs):
    names = ["z", "a", "m"]
    teacher = dict(zip(names, teacher_of(pairs), strict=True))
    student = dict(reversed(list(zip(names, student_of(pairs), strict=True))))
    expected = kl(pairs[0]) + mse(pairs[1])
    for loss in ({"z": "kl_divergence", "a": "mse", "m": None}, {"a": "mse", "z": "kld"}):
        value = LogitsDistillation(loss=loss).compute_loss(teacher, student)
        assert float(value) == pytest.approx(expected, rel=1e-6)


def test_structures_may_be_nested_in_each_other(pairs):
    def nest(values):
        return {"b": values[0], "a": [values[1], values[2]]}

    teacher, student = nest(teacher_of(pairs)), nest(student_of(pairs))
    loss = LogitsDistillation(loss={"a": ["mse", None], "b": "kl_divergence"})
    expected = kl(pairs[0]) + mse(pairs[1])
    assert float(loss.compute_loss(teacher, student)) == pytest.approx(expected, rel=1e-6)


def test_a_feature_of_several_tensors_takes_a_loss_for_each(pairs):
    loss = FeatureDistillation(loss=["mse", None, "cosine_similarity"])
    value = loss.compute_loss(teacher_of(pairs), student_of(pairs))
    expected = np.mean((pairs[0][0] - pairs[0][1]) ** 2) - references.cosine(*pairs[2]).mean()
    assert float(value) == pytest.approx(expected, rel=1e-6)


def test_sample_weights_are_for_all_outputs_or_for_each(pairs, rng):
    weights = [rng.uniform(size=4) for _ in pairs]
    each = [references.kl_divergence(*pair, 3.0) for pair in pairs]
    outputs = teacher_of(pairs), student_of(pairs)
    loss = LogitsDistillation()
    shared = sum((weights[0] * values).mean() for values in each)
    assert float(loss.compute_loss(*outputs, sample_weight=weights[0])) == pytest.approx(shared)
    shared_list = float(loss.compute_loss(*outputs, sample_weight=list(map(float, weights[0]))))
    assert shared_list == pytest.approx(shared)
    own = sum((weight * values).mean() for weight, values in zip(weights, each, strict=True))
    assert float(loss.compute_loss(*outputs, sample_weight=weights)) == pytest.approx(own)
    partly = (weights[0] * each[0]).mean() + each[1].mean() + each[2].mean()
    given = [weights[0], None, None]
    assert float(loss.compute_loss(*outputs, sample_weight=given)) == pytest.approx(partly)


def test_each_output_has_its_own_mask(rng):
    shapes = (2, 3, 4), (2, 3, 5)
    pairs = [tuple(rng.normal(size=shape) for _ in range(2)) for shape in shapes]
    mask = np.array([[True, False, False], [True, True, False]])
    masked = tf.constant(pairs[0][1])
    masked._keras_mask = tf.constant(mask)
    value = LogitsDistillation().compute_loss(teacher_of(pairs), [masked, pairs[1][1]])
    first = (references.kl_divergence(*pairs[0], 3.0) * mask).sum() / 3
    assert float(value) == pytest.approx(first + kl(pairs[1]), rel=1e-6)


class LabelsSeen(DistillationLoss):
    """Notes which labels came with which output."""

    def per_example(self, teacher, student, y=None):
        self.seen = [*getattr(self, "seen", []), y]
        return keras.ops.sum(student, axis=-1)


def test_labels_go_with_their_outputs_and_whole_where_they_are_of_another_structure(pairs):
    outputs = teacher_of(pairs), student_of(pairs)
    for y, expected in (
        (None, [None] * 3),
        ("abc", ["abc"] * 3),
        (["a", "b", "c"], ["a", "b", "c"]),
        ({"x": "a", "z": "b"}, [{"x": "a", "z": "b"}] * 3),
    ):
        loss = LabelsSeen()
        loss.compute_loss(*outputs, y=y)
        assert loss.seen == expected


# --- words ----------------------------------------------------------------------------------------


def test_another_number_of_outputs_is_refused(pairs):
    words = r"got different outputs from the two models[\s\S]*teacher list \(0, 1\), student one"
    with pytest.raises(ValueError, match=words):
        HardLabelDistillation().compute_loss(teacher_of(pairs)[:2], pairs[0][1])


def test_outputs_of_other_names_are_refused(pairs):
    words = (
        r"got different outputs from the two models[\s\S]*teacher dict \(a\), student dict \(b\)"
    )
    with pytest.raises(ValueError, match=words):
        LogitsDistillation().compute_loss({"a": pairs[0][0]}, {"b": pairs[0][1]})


@pytest.mark.parametrize("kind", [LogitsDistillation, FeatureDistillation])
def test_losses_of_another_structure_are_refused(pairs, kind):
    words = "`loss` does not have the structure of the outputs"
    outputs = teacher_of(pairs), student_of(pairs)
    with pytest.raises(ValueError, match=words):
        kind(loss=["mse", "mse"]).compute_loss(*outputs)
    with pytest.raises(ValueError, match=words):
        kind(loss={"a": "mse"}).compute_loss(*outputs)
    with pytest.raises(ValueError, match=words):
        kind(loss=["mse", "mse"]).compute_loss(*pairs[0])
    named = [dict(zip("abc", side, strict=True)) for side in outputs]
    with pytest.raises(ValueError, match=rf"{words}[\s\S]*dict \(a, typo\)"):
        kind(loss={"a": "mse", "typo": "mse"}).compute_loss(*named)


def test_weights_of_another_structure_are_refused(pairs):
    words = "`sample_weight` does not have the structure of the outputs"
    weights = [np.ones(4)] * 2
    with pytest.raises(ValueError, match=words):
        LogitsDistillation().compute_loss(*pairs[0], sample_weight=weights)
    with pytest.raises(ValueError, match=words):
        LogitsDistillation().compute_loss(
            teacher_of(pairs), student_of(pairs), sample_weight=weights
        )


# --- a loss for one output ------------------------------------------------------------------------

OUTPUTS = {"digit": np.array([[2.0, 0.0, 1.0]]), "box": np.array([[0.5, 0.1]])}
OTHERS = {"digit": np.array([[0.0, 0.0, 1.0]]), "box": np.array([[0.0, 7.0]])}


@pytest.mark.parametrize("output", ["digit", "box"])
def test_a_loss_on_one_output_by_name_is_the_loss_of_that_output(output):
    loss = losses.LogitsDistillation(2.0)
    expected = references.kl_divergence(OUTPUTS[output], OTHERS[output], 2.0).mean()
    value = loss.on(output).compute_loss(OUTPUTS, OTHERS)
    assert float(value) == pytest.approx(expected, rel=1e-6)
    assert loss.output is None


@pytest.mark.parametrize("place", [0, 1])
def test_a_loss_on_one_output_by_place_is_the_loss_of_that_output(place):
    sides = [list(outputs.values()) for outputs in (OUTPUTS, OTHERS)]
    expected = references.kl_divergence(*(side[place] for side in sides), 2.0).mean()
    loss = losses.LogitsDistillation(2.0).on(place)
    assert float(loss.compute_loss(*sides)) == pytest.approx(expected, rel=1e-6)
    again = losses.LogitsDistillation.from_config(loss.get_config())
    assert (again.output, again.temperature) == (place, 2.0)


def test_a_loss_on_one_output_gets_the_labels_and_weights_of_that_output():
    class Labelled(losses.DistillationLoss):
        needs_labels = True

        def per_example(self, teacher, student, y):
            return keras.ops.sum(keras.ops.abs(student - y), axis=-1)

    labels = {"digit": np.array([1]), "box": np.array([[1.0, 1.0]])}
    weights = {"digit": np.array([5.0]), "box": np.array([3.0])}
    loss = Labelled().on("box")
    value = loss.compute_loss(OUTPUTS, OTHERS, y=labels, sample_weight=weights)
    assert float(value) == pytest.approx(3.0 * (1.0 + 6.0))


def test_a_loss_that_names_layers_takes_no_output_besides():
    loss = losses.FeatureDistillation(teacher_layer_name="a", student_layer_name="b")
    with pytest.raises(ValueError, match=r"FeatureDistillation takes layers, and not an output"):
        loss.on("digit")


def test_an_output_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="`loss` does not have the structure of the outputs"):
        losses.LogitsDistillation().on("digits").compute_loss(OUTPUTS, OTHERS)


def test_a_distiller_gives_each_output_its_own_loss_and_checks_its_kind(rng):
    import keras_kd as kd

    def network(width):
        inputs = keras.Input((6,))
        x = keras.layers.Dense(width, activation="relu")(inputs)
        digit = keras.layers.Dense(3, activation="softmax", name="digit")(x)
        tags = keras.layers.Dense(2, activation="sigmoid", name="tags")(x)
        return keras.Model(inputs, [digit, tags])

    x, digits = rng.normal(size=(8, 6)).astype("float32"), rng.integers(0, 3, 8)
    tags = rng.integers(0, 2, (8, 2)).astype("float32")
    chosen = [
        kd.LogitsDistillation(2.0, name="digits").on("digit"),
        kd.LogitsDistillation(2.0, activation="sigmoid", name="tagged").on("tags"),
    ]
    distiller = kd.Distiller(network(8), network(4), chosen, student_loss_weight=0.5)
    compiled = {"digit": "sparse_categorical_crossentropy", "tags": "binary_crossentropy"}
    distiller.compile("sgd", compiled)
    history = distiller.fit(x, {"digit": digits, "tags": tags}, verbose=0).history
    assert {"digits", "tagged"} <= set(history)
    wrong = kd.Distiller(network(8), network(4), kd.LogitsDistillation().on("tags"))
    wrong.compile("sgd", compiled)
    with pytest.raises(ValueError, match="is a softmax loss, and the teacher ends in a sigmoid"):
        wrong.fit(x, {"digit": digits, "tags": tags}, verbose=0)


def two_heads(width: int, boxes: str | None = None) -> keras.Model:
    """Return a model of a list of outputs, whose order is not that of the alphabet."""
    inputs = keras.Input((6,))
    x = keras.layers.Dense(width, activation="relu")(inputs)
    digit = keras.layers.Dense(3, name="digit")(x)
    return keras.Model(inputs, [digit, keras.layers.Dense(4, activation=boxes, name="box")(x)])


def trained(loss, y, sample_weight=None, boxes=None):
    """Return what a Distiller logs of a loss in one step without a change, and both models."""
    import keras_kd as kd

    x = np.linspace(-1.0, 1.0, 48).reshape(8, 6).astype("float32")
    models = two_heads(8, boxes), two_heads(4, boxes)
    distiller = kd.Distiller(*models, loss)
    on_digits = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled = {"digit": on_digits, "box": "mse"} if isinstance(y, dict) else [on_digits, "mse"]
    distiller.compile(keras.optimizers.SGD(0.0), compiled)
    history = distiller.fit(x, y, batch_size=8, sample_weight=sample_weight, verbose=0).history
    return history[loss.name][0], *(model.predict(x, verbose=0) for model in models)


DIGITS, BOXES = np.arange(8) % 3, np.linspace(0.0, 1.0, 32).reshape(8, 4).astype("float32")


@pytest.mark.parametrize("y", [[DIGITS, BOXES], {"digit": DIGITS, "box": BOXES}], ids=type)
@pytest.mark.parametrize("output", ["box", 1])
def test_labels_by_place_or_by_name_reach_the_output_that_is_named(y, output):
    loss = losses.BoundedRegression(margin=1e6).on(output)
    value, _, (_, boxes) = trained(loss, y)
    assert value == pytest.approx(np.sum((boxes - BOXES) ** 2, -1).mean(), rel=1e-5)


@pytest.mark.parametrize("output", ["digit", "box"])
def test_weights_by_place_reach_the_output_that_is_named(output):
    weights = [np.arange(8, dtype="float32"), np.zeros(8, "float32")]
    loss = losses.LogitsDistillation(2.0).on(output)
    value, (teacher, _), (student, _) = trained(loss, [DIGITS, BOXES], weights)
    each = weights[0] * references.kl_divergence(teacher, student, 2.0)
    assert value == pytest.approx(each.mean() if output == "digit" else 0.0, rel=1e-4)


def test_labels_by_name_reach_each_of_a_list_of_outputs():
    loss = losses.DecoupledDistillation().on(0)
    by_name = trained(loss, {"digit": DIGITS, "box": BOXES})
    value, (teacher, _), (student, _) = by_name
    expected = losses.DecoupledDistillation().compute_loss(teacher, student, y=DIGITS)
    assert value == pytest.approx(float(expected), rel=1e-4)


def test_boxes_from_a_sigmoid_are_values_and_no_logits():
    loss = losses.BoundedRegression(margin=1e6).on("box")
    value, _, (_, boxes) = trained(loss, {"digit": DIGITS, "box": BOXES}, boxes="sigmoid")
    assert value == pytest.approx(np.sum((boxes - BOXES) ** 2, -1).mean(), rel=1e-5)


@pytest.mark.parametrize("place", [-1, 2])
def test_a_place_where_no_output_is_is_refused(place):
    sides = [list(outputs.values()) for outputs in (OUTPUTS, OTHERS)]
    words = rf"There is no output {place}\.[\s\S]*list \(0, 1\)[\s\S]*fix: "
    with pytest.raises(ValueError, match=words):
        losses.LogitsDistillation().on(place).compute_loss(*sides)
    with pytest.raises(ValueError, match=r"There is no output 0\.[\s\S]*one tensor"):
        losses.LogitsDistillation().on(0).compute_loss(sides[0][0], sides[1][0])


def test_a_weight_for_each_output_is_refused_where_layers_are_taken_together(rng):
    loss, maps = losses.FlowOfSolution(["a", "b"], ["a", "b"]), [rng.normal(size=(4, 3, 3, 2))] * 2
    with pytest.raises(ValueError, match="`sample_weight` does not have the structure"):
        loss.compute_loss(maps, maps, sample_weight={"a": np.ones(4), "b": np.ones(4)})
    with pytest.raises(ValueError, match="`sample_weight` does not have the structure"):
        loss.compute_loss(maps, maps, sample_weight=[np.ones(4), np.ones(4)])
    weights = [1.0, 0.0, 1.0, 0.0]
    assert float(loss.compute_loss(maps, [maps[0], -maps[1]], sample_weight=weights)) > 0.0


@pytest.mark.parametrize("named", [False, True], ids=["list", "dict"])
@pytest.mark.parametrize(
    "kind",
    [
        losses.ChannelWiseDistillation,
        losses.FeatureDistillation,
        losses.MaskedGenerative,
        losses.VariationalInformation,
    ],
)
def test_what_a_loss_trains_is_made_for_its_output_alone(rng, kind, named, tmp_path):
    import keras_kd as kd

    def network(width):
        inputs = keras.Input((4, 4, 1))
        maps = keras.layers.Conv2D(width, 3, padding="same", name="map")(inputs)
        vector = keras.layers.GlobalAveragePooling2D(name="cls")(maps)
        outputs = {"map": maps, "cls": vector} if named else [maps, vector]
        return keras.Model(inputs, outputs)

    x = rng.normal(size=(4, 4, 4, 1)).astype("float32")
    shapes = []
    for place in ["map"] if named else ["map", 0]:
        distiller = kd.Distiller(network(6), network(5), kind().on(place), student_loss_weight=0.0)
        distiller.compile(keras.optimizers.SGD(1e-3))
        distiller.fit(x, verbose=0)
        shapes.append([tuple(weight.shape) for weight in distiller.connections.weights])
        distiller.save(tmp_path / "distiller.keras")
        loaded = kd.load_distiller(tmp_path / "distiller.keras", teacher=distiller.teacher)
        pairs = zip(distiller.connections.weights, loaded.connections.weights, strict=True)
        assert all(np.array_equal(one, other) for one, other in pairs)
    alone = kind().connector((None, 4, 4, 6), (None, 4, 4, 5))
    alone(*(keras.KerasTensor((None, 4, 4, width)) for width in (6, 5)))
    assert all(found == [tuple(weight.shape) for weight in alone.weights] for found in shapes)


@pytest.mark.parametrize("place", ["maps", 2])
def test_an_output_that_is_not_there_is_refused_by_a_distiller(place):
    import keras_kd as kd

    words = "There is no output 2|does not have the structure of the outputs"
    with pytest.raises(ValueError, match=words):
        kd.Distiller(two_heads(8), two_heads(4), losses.FeatureDistillation().on(place))


@keras.saving.register_keras_serializable(package="tests")
class Pair(keras.Model):
    """A subclassed model that returns a tuple."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = keras.layers.Dense(width), keras.layers.Dense(2)

    def call(self, inputs):
        return self.first(inputs), self.second(inputs)


def test_what_a_loss_trains_is_made_for_one_of_a_tuple_of_outputs(rng):
    import keras_kd as kd

    x = rng.normal(size=(8, 6)).astype("float32")
    loss = losses.FeatureDistillation().on(0)
    distiller = kd.Distiller(Pair(6), Pair(4), loss, student_loss_weight=0.0)
    distiller.compile("sgd")
    history = distiller.fit(x, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert [tuple(w.shape) for w in distiller.connections.weights] == [(4, 6), (6,)]
