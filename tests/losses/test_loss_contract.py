"""What every loss of keras_kd.losses keeps: found there by name, so that a new one is in."""

from __future__ import annotations

import inspect
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd as kd
from keras_kd import losses
from tests.losses.cases import BATCH, CASES, CLASSES, FOUND, KINDS, of, value, value_and_gradient

every_loss = of()
on_outputs = of(lambda case: case.space != "features")
on_features = of(lambda case: case.space == "features")

NOT_ZERO = {  # at teacher = student these are an entropy, a likelihood or a choice among others
    "ContrastiveRepresentation",
    "HardLabelDistillation",
    "NormalizedDistillation",
    "SoftCrossEntropy",
}


@pytest.fixture
def ready(rng, case):
    """A loss joined to a teacher's and a student's side, with labels where it needs them."""
    pair = case.pair(rng)
    return case.join(*pair), pair, case.labels(rng)


def test_every_exported_loss_is_a_distillation_loss_of_ours_and_of_keras():
    assert all(issubclass(kind, losses.DistillationLoss) for kind in FOUND)
    assert issubclass(losses.DistillationLoss, keras.distillation.DistillationLoss)
    assert {"LogitsDistillation", "FeatureDistillation"} <= {kind.__name__ for kind in KINDS}


@every_loss
def test_the_result_is_a_float32_scalar(case, ready):
    connections, pair, y = ready
    result = value(case, connections, *pair, y)
    assert (result.shape, result.dtype) == ((), tf.float32)


@every_loss
def test_the_name_is_snake_case_unless_it_is_given(case):
    assert case.make().name.replace("_", "") == case.kind.__name__.lower()
    assert case.make(name="mine").name == "mine"


@every_loss
def test_it_names_its_paper_and_what_it_needs(case):
    assert case.kind.paper, "set paper = 'Who 20xx' for `keras-kd list losses`"
    assert case.kind.space in ("logits", "values", "features")
    assert isinstance(case.kind.trained_parts, str)


@every_loss
def test_a_config_through_json_makes_the_same_loss(rng, case, ready):
    _, pair, y = ready
    loss = case.make(name="mine")
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is case.kind
    assert again.get_config() == loss.get_config()
    values = []
    for one in (loss, again):
        connections = case.join(*pair)
        connections.terms = (one,)
        values.append(float(value(case, connections, *pair, y)))
    assert values[0] == values[1]


@every_loss
def test_its_config_holds_every_argument(case):
    assert set(case.make().get_config()) == set(inspect.signature(case.kind).parameters)


@every_loss
def test_arrays_of_any_float_type_give_the_same(case, ready):
    connections, pair, y = ready
    expected = float(value(case, connections, *map(tf.constant, pair), y))
    for given in (pair, [values.astype("float64") for values in pair]):
        assert float(value(case, connections, *given, y)) == pytest.approx(expected, rel=1e-5)


@every_loss
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32_in_any_mix(case, ready, dtype):
    connections, pair, y = ready
    halves = [tf.cast(values, dtype) for values in pair]
    back = [tf.cast(values, "float32") for values in halves]
    for mixed, exact in (
        (halves, back),
        ((pair[0], halves[1]), (pair[0], back[1])),
        ((halves[0], pair[1]), (back[0], pair[1])),
    ):
        result = value(case, connections, *mixed, y)
        assert result.dtype == tf.float32
        assert float(result) == pytest.approx(float(value(case, connections, *exact, y)), rel=1e-5)


@every_loss
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_graph_and_xla_give_what_eager_gives(case, ready, jit_compile):
    connections, pair, y = ready
    weight = np.linspace(0.0, 2.0, BATCH).astype("float32")

    @tf.function(jit_compile=jit_compile)
    def compiled(teacher, student):
        with tf.GradientTape() as tape:
            tape.watch(student)
            result = value(case, connections, teacher, student, y, weight)
        sources = [student, *connections.trainable_weights]
        return result, tape.gradient(result, sources, unconnected_gradients="zero")

    result, slopes = compiled(*map(tf.constant, pair))
    expected, exact = compiled.python_function(*map(tf.constant, pair))
    assert float(result) == pytest.approx(float(expected), rel=1e-5, abs=1e-6)
    for slope, other in zip(slopes, exact, strict=True):
        scale = max(1.0, float(np.abs(other).max()))
        np.testing.assert_allclose(slope, other, rtol=1e-4, atol=1e-5 * scale)


@every_loss
def test_an_unknown_batch_size_is_fine(case, ready):
    connections, pair, y = ready
    specs = [tf.TensorSpec((None, *values.shape[1:])) for values in pair]
    labels = () if y is None else (tf.convert_to_tensor(y),)

    @tf.function(input_signature=[*specs, tf.TensorSpec((None,)), *map(_open_batch, labels)])
    def compiled(teacher, student, weight, *y):
        return value(case, connections, teacher, student, *(y or (None,)), weight)

    expected = float(value(case, connections, *pair, y))
    result = compiled(*pair, np.ones(BATCH, "float32"), *labels)
    assert float(result) == pytest.approx(expected, rel=1e-5)


def _open_batch(tensor):
    return tf.TensorSpec((None, *tensor.shape[1:]), tensor.dtype)


def _one_hot_logits(row, eps):
    return np.log(np.eye(CLASSES, dtype="float32")[row] + np.float32(eps))


EXTREMES = {
    "confidently_wrong": (1e4 * np.eye(CLASSES)[:2], 1e4 * np.eye(CLASSES)[3:5]),
    "opposite_signs": (np.full((2, CLASSES), 1e4), np.full((2, CLASSES), -1e4)),
    "alternating": (1e4 * (-1.0) ** (np.arange(10) % CLASSES), np.zeros(10)),
    "one_hot_teacher": (_one_hot_logits([0, 1], 1e-38), _one_hot_logits([2, 1], 1e-7)),
    "constant": (np.ones((2, CLASSES)), np.ones((2, CLASSES))),
    "constant_student": (np.eye(CLASSES)[:2], np.ones((2, CLASSES))),
    "zeros": (np.zeros((2, CLASSES)), np.zeros((2, CLASSES))),
    "zero_teacher": (np.zeros((2, CLASSES)), np.eye(CLASSES)[:2]),
}


@on_outputs
@pytest.mark.parametrize("extreme", EXTREMES)
def test_extreme_outputs_give_a_finite_value_and_gradient(case, extreme):
    pair = [side.reshape(2, CLASSES).astype("float32") for side in EXTREMES[extreme]]
    y = None
    if case.needs_labels:
        y = np.zeros((2, CLASSES), "float32") if case.space == "values" else np.array([0, 4])
    result, gradient = value_and_gradient(case, case.join(*pair), *pair, y)
    assert np.isfinite(result)
    assert np.isfinite(gradient).all()


FEATURES = {
    "large": lambda shape: np.linspace(-1e4, 1e4, int(np.prod(shape))).reshape(shape),
    "constant": np.ones,
    "zeros": np.zeros,
    "equal_examples": lambda shape: np.tile(np.linspace(0, 1, shape[-1]), (*shape[:-1], 1)),
    "one_alive": lambda shape: np.eye(1, int(np.prod(shape))).reshape(shape),
}


@on_features
@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        *((kind, kind) for kind in FEATURES),
        ("large", "zeros"),
        ("zeros", "large"),
        ("one_alive", "constant"),
        ("constant", "one_alive"),
        ("equal_examples", "large"),
    ],
)
def test_extreme_features_give_a_finite_value_and_gradient(case, teacher, student):
    pair = [
        FEATURES[kind]((4, 4, 4, width)).astype("float32")
        for kind, width in ((teacher, 6), (student, 5))
    ]
    result, gradient = value_and_gradient(case, case.join(*pair), *pair)
    assert np.isfinite(result)
    assert np.isfinite(gradient).all()


@every_loss
def test_the_order_of_examples_does_not_matter(rng, case, ready):
    connections, pair, y = ready
    order = rng.permutation(BATCH)
    mixed, labels = [values[order] for values in pair], None if y is None else y[order]
    result, gradient = value_and_gradient(case, connections, *pair, y)
    again, mixed_gradient = value_and_gradient(case, connections, *mixed, labels)
    assert again == pytest.approx(result, rel=1e-5)
    scale = max(1.0, float(np.abs(gradient).max()))
    np.testing.assert_allclose(mixed_gradient, gradient[order], rtol=1e-4, atol=1e-5 * scale)


@of(lambda case: not case.relates)
def test_a_batch_is_the_mean_of_its_halves(case, ready):
    connections, pair, y = ready
    halves = [
        float(value(case, connections, *(v[part] for v in pair), None if y is None else y[part]))
        for part in (slice(None, 4), slice(4, None))
    ]
    whole = float(value(case, connections, *pair, y))
    assert whole == pytest.approx(np.mean(halves), rel=1e-5)


@every_loss
def test_examples_of_weight_zero_are_as_if_they_were_not_there(case, ready):
    connections, pair, y = ready
    weight = np.array([1, 1, 0, 1, 0, 1, 1, 0], "float32")
    here = weight > 0
    part = value(case, connections, *(v[here] for v in pair), None if y is None else y[here])
    weighted, gradient = value_and_gradient(case, connections, *pair, y, weight)
    assert weighted == pytest.approx(float(part) * here.mean(), rel=1e-5)
    assert np.all(gradient[~here] == 0.0)


@every_loss
def test_weights_of_one_are_none_and_weights_of_zero_are_zero(case, ready):
    connections, pair, y = ready
    plain = float(value(case, connections, *pair, y))
    ones = value(case, connections, *pair, y, np.ones(BATCH, "float32"))
    assert float(ones) == pytest.approx(plain, rel=1e-6)
    result, gradient = value_and_gradient(case, connections, *pair, y, np.zeros(BATCH, "float32"))
    assert result == 0.0
    assert np.all(gradient == 0.0)


@every_loss
def test_weights_of_two_double_it(case, ready):
    connections, pair, y = ready
    doubled = value(case, connections, *pair, y, np.full(BATCH, 2.0, "float32"))
    assert float(doubled) == pytest.approx(
        2.0 * float(value(case, connections, *pair, y)), rel=1e-5
    )


@every_loss
def test_no_gradient_reaches_the_teacher_and_one_reaches_the_student(case, ready):
    connections, pair, y = ready
    teacher, student = map(tf.Variable, pair)
    with tf.GradientTape() as tape:
        result = value(case, connections, teacher * 1.0, student * 1.0, y)
    slopes = tape.gradient(result, [teacher, student], unconnected_gradients="zero")
    assert np.all(slopes[0].numpy() == 0.0)
    assert np.any(slopes[1].numpy() != 0.0)


def _must_be_zero(case) -> bool:
    inside = case.options.get("loss")
    other = isinstance(inside, str) and inside != "mse"  # an entropy, or a similarity of -1
    same = (None, 4, 4, 5) if case.space == "features" else (None, CLASSES)
    side = [same] * case.layers if case.layers > 1 else same
    trained = case.make().connector(side, side) is not None
    return not (trained or other or case.kind.__name__ in NOT_ZERO)


@of(_must_be_zero)
def test_it_is_zero_at_teacher_equals_student_where_it_must_be(rng, case):
    same = case.pair(rng, widths=(5, 5))[0]
    connections = case.join(same, same)
    result, gradient = value_and_gradient(case, connections, same, same, case.labels(rng))
    assert abs(result) < 1e-5
    assert np.abs(gradient).max() < 1e-4


@on_outputs
@pytest.mark.parametrize(
    ("teacher", "student"),
    [((8, 5), (8, 4)), ((8, 5), (8, 1)), ((8, 5), (1, 5)), ((8, 5), (5,)), ((8, 2, 5), (8, 5))],
    ids=str,
)
def test_outputs_that_differ_are_refused_and_never_broadcast(case, teacher, student):
    with pytest.raises(ValueError, match=r"the shapes of teacher and student differ[\s\S]*fix: "):
        case.make().compute_loss(np.ones(teacher), np.ones(student), y=np.zeros(8))


@on_outputs
def test_outputs_without_an_axis_of_classes_are_refused(case):
    with pytest.raises(ValueError, match="The outputs have no axis but the batch's"):
        case.make().compute_loss(np.ones(8), np.ones(8), y=np.zeros(8))


@on_features
def test_features_of_another_batch_size_are_refused_and_never_broadcast(case):
    teacher, student = np.ones((8, 4, 4, 6), "float32"), np.ones((1, 4, 4, 6), "float32")
    with pytest.raises(ValueError, match=r"given: [\s\S]*fix: "):
        value(case, case.join(teacher, student), teacher, student)


@on_features
@pytest.mark.parametrize("size", [(2, 2), (8, 8), (4, 2)], ids=str)
def test_features_of_another_size_work_or_are_refused_with_the_fix(rng, case, size):
    teacher, student = case.pair(rng)[0], case.pair(rng, size=size)[1]
    try:
        result, gradient = value_and_gradient(case, case.join(teacher, student), teacher, student)
    except ValueError as refusal:
        assert "given:" in str(refusal) and "fix:" in str(refusal)
        return
    assert np.isfinite(result) and np.any(gradient != 0.0)


@on_features
@pytest.mark.parametrize("shape", [(8, 6), (8, 7, 6)], ids=["vectors", "sequences"])
def test_vectors_and_sequences_work_or_are_refused_with_the_fix(rng, case, shape):
    pair = [rng.normal(size=(*shape[:-1], width)).astype("float32") for width in (6, 5)]
    try:
        result, gradient = value_and_gradient(case, case.join(*pair), *pair)
    except ValueError as refusal:
        assert "given:" in str(refusal) and "fix:" in str(refusal)
        return
    assert np.isfinite(result) and np.any(gradient != 0.0)


@of(lambda case: not case.kind.takes_all and case.space != "features")
@pytest.mark.parametrize("structure", [list, tuple, dict])
def test_the_losses_of_nested_outputs_are_added(rng, case, structure):
    pair, y = case.pair(rng), case.labels(rng)
    loss = case.make()
    expected = 2.0 * float(loss.compute_loss(*pair, y=y))

    def nest(values):
        return {"a": values, "b": values} if structure is dict else structure([values, values])

    labels = y if y is None else nest(y)
    assert float(loss.compute_loss(*map(nest, pair), y=labels)) == pytest.approx(expected, rel=1e-6)


@on_outputs
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_the_amount_of_padding_changes_nothing(rng, case, padding):
    tokens = [rng.normal(size=(4, 3, CLASSES)).astype("float32") for _ in range(2)]
    lengths = np.array([3, 1, 2, 3])
    y = None
    if case.needs_labels:
        y = tokens[0] + 1.0 if case.space == "values" else rng.integers(0, CLASSES, (4, 3))
    real = np.arange(3) < lengths[:, None]
    flat = [v[real] for v in tokens]
    expected = float(case.make().compute_loss(*flat, y=None if y is None else y[real]))

    def padded(values, fill):
        wide = np.full((4, 3 + padding, *values.shape[2:]), fill, values.dtype)
        wide[:, :3] = values
        wide[~np.pad(real, [(0, 0), (0, padding)])] = fill
        return wide

    student = tf.constant(padded(tokens[1], np.nan))
    student._keras_mask = tf.constant(np.pad(real, [(0, 0), (0, padding)]))
    fill = np.nan if case.space == "values" else -1
    labels = y if y is None else padded(y, fill)
    result = case.make().compute_loss(padded(tokens[0], np.nan), student, y=labels)
    assert float(result) == pytest.approx(expected, rel=1e-5)


@of(lambda case: case.needs_labels)
def test_without_labels_it_says_that_it_needs_them(rng, case):
    with pytest.raises(ValueError, match=r"needs labels[\s\S]*fix: "):
        case.make().compute_loss(*case.pair(rng))


@of(lambda case: case.layers > 1)
def test_a_single_layer_is_refused_where_it_compares_several(rng, case):
    with pytest.raises(ValueError, match=r"compares \d layers or more[\s\S]*fix: "):
        case.join(*case.pair(rng), teacher_layer_name="layer0", student_layer_name="layer0")


@of(lambda case: "temperature" in inspect.signature(case.kind).parameters)
def test_a_temperature_may_be_a_schedule(case, ready):
    _, pair, y = ready
    schedule = keras.optimizers.schedules.PolynomialDecay(2.0, 10, 1.0)  # 1.5 at step 5
    annealed = case.join(*pair, temperature=schedule)
    constant = case.join(*pair, temperature=1.5)
    expected = float(value(case, constant, *pair, y))
    assert float(value(case, annealed, *pair, y, step=5)) == pytest.approx(expected, rel=1e-6)
    assert float(value(case, annealed, *pair, y, step=0)) != pytest.approx(expected, rel=1e-5)
    name = annealed.names[0]
    assert annealed.schedules() == {f"{name}_temperature": schedule}
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(annealed.terms[0])))
    again = keras.saving.deserialize_keras_object(config)
    assert again.temperature.get_config() == schedule.get_config()
    with pytest.raises(ValueError, match="A schedule needs the step"):
        value(case, annealed, *pair, y, step=None)


def _network(width: int) -> keras.Model:
    """Two convolutions with names, and a head."""
    layers = keras.layers
    names = iter(["layer0", "layer1"])
    return keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            *(
                layers.Conv2D(width, 3, padding="same", activation="relu", name=name)
                for name in names
            ),
            layers.GlobalAveragePooling2D(),
            layers.Dense(CLASSES, name="head"),
        ]
    )


def _training(rng, case, **options):
    x = rng.normal(size=(BATCH, 4, 4, 1)).astype("float32")
    y = rng.integers(0, CLASSES, BATCH)
    if case.space == "values":
        y = keras.ops.convert_to_numpy(keras.ops.one_hot(y, CLASSES))
    loss = "mse"
    if case.space != "values":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return x, y, loss


@every_loss
def test_a_distiller_trains_it_and_goes_on_after_saving(rng, case, tmp_path):
    keras.utils.set_random_seed(5)
    x, y, loss = _training(rng, case)
    distiller = kd.Distiller(_network(6), _network(5), case.make(), student_loss_weight=0.1)
    distiller.compile(keras.optimizers.SGD(1e-3), loss)
    history = distiller.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0).history
    assert all(np.isfinite(numbers).all() for numbers in history.values())
    distiller.save(tmp_path / "distiller.keras")
    loaded = kd.load_distiller(tmp_path / "distiller.keras", teacher=distiller.teacher)
    before, after = (d.connections.get_weights() for d in (distiller, loaded))
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    trained = {id(weight) for weight in distiller.student.weights}
    assert not trained & {id(weight) for weight in distiller.connections.weights}


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_all_losses_at_once_train_a_student_of_half_precision(rng, policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        teacher, student = _network(6), _network(5)
    finally:
        keras.config.set_dtype_policy(before)
    every = [case.make() for case in CASES]
    distiller = kd.Distiller(teacher, student, every, [1e-3] * len(every))
    distiller.compile(keras.optimizers.SGD(1e-4), keras.losses.CategoricalCrossentropy(True))
    x = rng.normal(size=(BATCH, 4, 4, 1)).astype("float32")
    y = keras.ops.convert_to_numpy(keras.ops.one_hot(np.arange(BATCH) % CLASSES, CLASSES))
    weights = student.get_weights()  # the first steps may be skipped, until the scale fits
    history = distiller.fit(x, y, epochs=16, verbose=0).history
    assert all(np.isfinite(values).all() for values in history.values())
    assert any(np.any(a != b) for a, b in zip(weights, student.get_weights(), strict=True))
    assert all(weight.dtype == "float32" for weight in distiller.connections.trainable_weights)


@every_loss
def test_keras_distiller_takes_it_and_logs_what_ours_logs_or_is_told_why_not(rng, case):
    x, y, loss = _training(rng, case)
    teacher, student = _network(6), _network(5)
    weights, logs = student.get_weights(), []
    own = case.make()
    outputs = {"teacher_layer_name": None, "student_layer_name": None}
    for module in (keras.distillation, kd):
        student.set_weights(weights)
        chosen = case.make(**(outputs if case.layers > 1 else {}))  # Keras finds no list of layers
        distiller = module.Distiller(teacher=teacher, student=student, distillation_losses=[chosen])
        distiller.compile(keras.optimizers.SGD(1e-4), loss, run_eagerly=True)
        arguments = {"batch_size": BATCH, "epochs": 1, "shuffle": False, "verbose": 0}
        if module is keras.distillation and _only_ours(case):
            words = "needs labels|has trained parts|compares . layers"
            with pytest.raises(ValueError, match=rf"({words})[\s\S]*use kd\.Distiller|name them"):
                distiller.fit(x, y, **arguments)
            return
        history = distiller.fit(x, y, **arguments).history
        name = own.name if module is kd else "distillation_loss"
        logs.append((history["student_loss"][0], history[name][0]))
    theirs, ours = logs
    assert ours == pytest.approx(theirs, rel=1e-4)


def _only_ours(case) -> bool:
    shapes = (None, 4, 4, 6), (None, 4, 4, 5)
    if case.space != "features":
        shapes = (None, CLASSES), (None, CLASSES)
    sides = [[side] * case.layers if case.layers > 1 else side for side in shapes]
    return case.needs_labels or case.layers > 1 or case.make().connector(*sides) is not None


# --- the base -------------------------------------------------------------------------------------


def test_a_loss_without_arithmetic_says_so():
    class Empty(losses.DistillationLoss):
        pass

    words = r"Empty does not say what an example's loss is[\s\S]*def per_example"
    with pytest.raises(TypeError, match=words):
        Empty().compute_loss(np.ones((2, 3)), np.ones((2, 3)))


def test_a_subclass_needs_only_the_loss_of_an_example(rng):
    class Largest(losses.DistillationLoss):
        def per_example(self, teacher, student):
            return keras.ops.max(keras.ops.abs(teacher - student), axis=-1)

    outputs = rng.normal(size=(2, 8, 5))
    expected = np.abs(outputs[0] - outputs[1]).max(-1)
    loss = Largest()
    assert loss.name == "largest"
    assert loss.connector((None, 5), (None, 5)) is None
    assert float(loss.compute_loss(*outputs)) == pytest.approx(expected.mean(), rel=1e-6)
    weighted = loss.compute_loss(*outputs, sample_weight=np.arange(8))
    assert float(weighted) == pytest.approx((np.arange(8) * expected).mean(), rel=1e-6)


def test_a_subclass_may_take_labels_and_what_is_present(rng):
    class Spread(losses.DistillationLoss):
        def per_example(self, teacher, student, y, present):
            here = keras.ops.cast(present, "float32")
            mean = keras.ops.sum(student[:, 0] * here) / keras.ops.sum(here)
            return keras.ops.where(present, keras.ops.cast(y, "float32") + mean, 0.0)

    student = rng.normal(size=(4, 3))
    weight = np.array([1.0, 0.0, 2.0, 0.0])
    value = Spread().compute_loss(student, student, y=np.arange(4), sample_weight=weight)
    mean = student[[0, 2], 0].mean()
    assert float(value) == pytest.approx((1.0 * mean + 2.0 * (2.0 + mean)) / 4.0, rel=1e-6)


def test_a_config_is_read_from_the_arguments_of_a_subclass_and_of_the_base():
    class Margin(losses.DistillationLoss):
        def __init__(self, margin=1.0, **kwargs):
            super().__init__(**kwargs)
            self.margin = margin

    loss = Margin(2.0, teacher_layer_name=("a", "b"), student_layer_name=["c", "d"], name="m")
    assert loss.get_config() == {
        "margin": 2.0,
        "teacher_layer_name": ["a", "b"],
        "student_layer_name": ["c", "d"],
        "name": "m",
    }
    assert Margin.from_config(loss.get_config()).get_config() == loss.get_config()


def test_an_argument_that_is_not_kept_is_named():
    class Forgetful(losses.DistillationLoss):
        def __init__(self, margin=1.0):
            super().__init__()

    with pytest.raises(TypeError, match=r"Forgetful does not keep its argument `margin`"):
        Forgetful().get_config()


@pytest.mark.parametrize("argument", ["teacher_layer_name", "student_layer_name"])
@pytest.mark.parametrize("name", [7, [], ["a", 7]], ids=str)
def test_a_layer_name_of_another_type_is_refused_by_the_base(argument, name):
    with pytest.raises(TypeError, match=f"`{argument}` must be a layer's name or path"):
        losses.DistillationLoss(**{argument: name})


@pytest.mark.parametrize("student", [None, "c", ["c"], ["c", "d", "e"]], ids=str)
def test_layers_that_do_not_pair_up_are_refused(student):
    with pytest.raises(ValueError, match="The layers of teacher and student do not pair up"):
        losses.DistillationLoss(teacher_layer_name=["a", "b"], student_layer_name=student)


def test_padding_that_would_change_a_value_for_a_whole_example_is_refused():
    class Mean(losses.DistillationLoss):
        space = "features"

        def per_example(self, teacher, student):
            return keras.ops.mean(teacher - student, axis=(1, 2))

    class Total(Mean):
        ignores_padding = True

        def per_example(self, teacher, student):
            return keras.ops.sum(student, axis=(1, 2))

    student = tf.ones((3, 4, 2))
    student._keras_mask = tf.constant([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]) > 0
    with pytest.raises(ValueError, match="the padding of these sequences would change the loss"):
        Mean().compute_loss(student, student)
    assert float(Total().compute_loss(student, student)) == pytest.approx((4.0 + 8.0) / 2.0)


def test_trained_parts_are_refused_outside_a_distiller_of_ours_with_both_shapes():
    teacher, student = np.ones((2, 6)), np.ones((2, 4))
    words = r"has trained parts[\s\S]*teacher \(2, 6\), student \(2, 4\)[\s\S]*a mean network"
    with pytest.raises(ValueError, match=words):
        losses.VariationalInformation().validate_outputs(teacher, student)


def test_the_config_of_the_base_makes_the_same_loss():
    loss = losses.DistillationLoss(teacher_layer_name="a/b", student_layer_name="c", name="x")
    assert type(loss).from_config(loss.get_config()).get_config() == loss.get_config()
