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

CLASSES = 5
NEEDED = inspect.Parameter.empty


def _stands_alone(kind: type) -> bool:
    """Whether a loss can be made without arguments, and compares two outputs."""
    parameters = inspect.signature(kind).parameters.values()
    needs = [p for p in parameters if p.default is NEEDED and p.kind is not p.VAR_KEYWORD]
    return kind is not losses.DistillationLoss and not needs


FOUND = [getattr(losses, name) for name in losses.__all__]
KINDS = [kind for kind in FOUND if inspect.isclass(kind) and _stands_alone(kind)]
MODES = [
    (losses.LogitsDistillation, {"direction": "reverse", "temperature": 4.0}),
    (losses.LogitsDistillation, {"direction": "jensen_shannon", "beta": 0.2}),
    (losses.LogitsDistillation, {"activation": "sigmoid"}),
    (losses.LogitsDistillation, {"loss": "categorical_crossentropy"}),
    (losses.LogitsDistillation, {"loss": "mse"}),
    (losses.FeatureDistillation, {"loss": "cosine_similarity"}),
]
CASES = [pytest.param(kind, {}, id=kind.__name__) for kind in KINDS] + [
    pytest.param(kind, options, id="_".join(map(str, options.values()))) for kind, options in MODES
]
every_loss = pytest.mark.parametrize(("kind", "options"), CASES)


@pytest.fixture
def outputs(rng):
    """A teacher's and a student's outputs, (8, 5) float32."""
    return [rng.normal(scale=2.0, size=(8, CLASSES)).astype("float32") for _ in range(2)]


def value_and_gradient(loss, teacher, student):
    variable = tf.Variable(tf.cast(student, "float32"))
    with tf.GradientTape() as tape:
        value = loss.compute_loss(tf.convert_to_tensor(teacher), variable)
    return float(value), tape.gradient(value, variable).numpy()


def test_every_exported_loss_is_a_distillation_loss_of_ours_and_of_keras():
    assert all(issubclass(kind, losses.DistillationLoss) for kind in FOUND)
    assert issubclass(losses.DistillationLoss, keras.distillation.DistillationLoss)
    assert {"LogitsDistillation", "FeatureDistillation"} <= {kind.__name__ for kind in KINDS}


@every_loss
def test_the_result_is_a_float32_scalar(outputs, kind, options):
    value = kind(**options).compute_loss(*outputs)
    assert (value.shape, value.dtype) == ((), tf.float32)


@every_loss
def test_the_name_is_snake_case_unless_it_is_given(kind, options):
    words = "".join(f"_{c.lower()}" if c.isupper() else c for c in kind.__name__).lstrip("_")
    assert kind(**options).name == words
    assert kind(**options, name="mine").name == "mine"


@every_loss
def test_a_config_through_json_makes_the_same_loss(outputs, kind, options):
    loss = kind(**options, name="mine")
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is kind
    assert again.get_config() == loss.get_config()
    assert float(again.compute_loss(*outputs)) == float(loss.compute_loss(*outputs))


@every_loss
def test_its_config_holds_every_argument(kind, options):
    assert set(kind(**options).get_config()) == set(inspect.signature(kind).parameters)


@every_loss
def test_arrays_lists_and_tensors_give_the_same(outputs, kind, options):
    loss = kind(**options)
    expected = float(loss.compute_loss(*map(tf.constant, outputs)))
    double = [values.astype("float64") for values in outputs]
    for given in (outputs, double, [values.tolist() for values in outputs]):
        assert float(loss.compute_loss(*given)) == pytest.approx(expected, rel=1e-6)


@every_loss
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32_in_any_mix(outputs, kind, options, dtype):
    loss = kind(**options)
    halves = [tf.cast(values, dtype) for values in outputs]
    back = [tf.cast(values, "float32") for values in halves]
    for pair, exact in (
        (halves, back),
        ((outputs[0], halves[1]), (outputs[0], back[1])),
        ((halves[0], outputs[1]), (back[0], outputs[1])),
    ):
        value = loss.compute_loss(*pair)
        assert value.dtype == tf.float32
        assert float(value) == pytest.approx(float(loss.compute_loss(*exact)), rel=1e-6)


@every_loss
@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_graph_and_xla_give_what_eager_gives(outputs, kind, options, jit_compile):
    loss = kind(**options)
    weight = np.linspace(0.0, 2.0, 8).astype("float32")

    @tf.function(jit_compile=jit_compile)
    def compiled(teacher, student):
        with tf.GradientTape() as tape:
            tape.watch(student)
            value = loss.compute_loss(teacher, student, sample_weight=weight)
        return value, tape.gradient(value, student)

    value, gradient = compiled(*map(tf.constant, outputs))
    expected, slope = compiled.python_function(*map(tf.constant, outputs))
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-6)


@every_loss
def test_an_unknown_batch_size_is_fine(outputs, kind, options):
    loss = kind(**options)
    spec = tf.TensorSpec((None, CLASSES))

    @tf.function(input_signature=[spec, spec, tf.TensorSpec((None,))])
    def compiled(teacher, student, weight):
        return loss.compute_loss(teacher, student, sample_weight=weight)

    expected = float(loss.compute_loss(*outputs))
    assert float(compiled(*outputs, np.ones(8, "float32"))) == pytest.approx(expected, rel=1e-6)


def _one_hot_logits(row, eps):
    return np.log(np.eye(CLASSES, dtype="float32")[row] + np.float32(eps))


EXTREMES = {
    "confidently_wrong": (1e4 * np.eye(CLASSES)[:2], 1e4 * np.eye(CLASSES)[3:5]),
    "opposite_signs": (np.full((2, CLASSES), 1e4), np.full((2, CLASSES), -1e4)),
    "alternating": (1e4 * (-1.0) ** (np.arange(10) % CLASSES), np.zeros(10)),
    "one_hot_teacher": (_one_hot_logits([0, 1], 1e-38), _one_hot_logits([2, 1], 1e-7)),
    "constant": (np.ones((2, CLASSES)), np.ones((2, CLASSES))),
    "zeros": (np.zeros((2, CLASSES)), np.zeros((2, CLASSES))),
}


@every_loss
@pytest.mark.parametrize("extreme", EXTREMES)
def test_extremes_give_a_finite_value_and_gradient(kind, options, extreme):
    teacher, student = (values.reshape(2, -1).astype("float32") for values in EXTREMES[extreme])
    value, gradient = value_and_gradient(kind(**options), teacher, student)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@every_loss
def test_the_order_of_examples_does_not_matter(rng, outputs, kind, options):
    order = rng.permutation(8)
    mixed = [values[order] for values in outputs]
    value, gradient = value_and_gradient(kind(**options), *outputs)
    again, mixed_gradient = value_and_gradient(kind(**options), *mixed)
    assert again == pytest.approx(value, rel=1e-6)
    np.testing.assert_allclose(mixed_gradient, gradient[order], rtol=1e-5, atol=1e-6)


@every_loss
def test_a_batch_is_the_mean_of_its_halves(outputs, kind, options):
    loss = kind(**options)
    halves = [loss.compute_loss(*(values[part] for values in outputs)) for part in _parts()]
    assert float(loss.compute_loss(*outputs)) == pytest.approx(np.mean(halves), rel=1e-6)


def _parts():
    return slice(None, 4), slice(4, None)


@every_loss
def test_weights_of_one_are_none_and_weights_of_zero_are_zero(outputs, kind, options):
    loss = kind(**options)
    plain = float(loss.compute_loss(*outputs))
    ones = loss.compute_loss(*outputs, sample_weight=np.ones(8))
    assert float(ones) == pytest.approx(plain, rel=1e-6)
    assert float(loss.compute_loss(*outputs, sample_weight=np.zeros(8))) == 0.0


@every_loss
@pytest.mark.parametrize(
    ("teacher", "student"),
    [((8, 5), (8, 4)), ((8, 5), (8, 1)), ((8, 5), (1, 5)), ((8, 5), (5,)), ((8, 2, 5), (8, 5))],
    ids=str,
)
def test_shapes_that_differ_are_refused_and_never_broadcast(kind, options, teacher, student):
    with pytest.raises(ValueError, match=r"the shapes of teacher and student differ[\s\S]*fix: "):
        kind(**options).compute_loss(np.ones(teacher), np.ones(student))


@every_loss
def test_outputs_without_an_axis_of_classes_are_refused(kind, options):
    with pytest.raises(ValueError, match="The outputs have no axis but the batch's"):
        kind(**options).compute_loss(np.ones(8), np.ones(8))


@every_loss
@pytest.mark.parametrize("structure", [list, tuple, dict])
def test_the_losses_of_nested_outputs_are_added(outputs, kind, options, structure):
    loss = kind(**options)
    expected = 2.0 * float(loss.compute_loss(*outputs))

    def nest(values):
        return {"a": values, "b": values} if structure is dict else structure([values, values])

    assert float(loss.compute_loss(*map(nest, outputs))) == pytest.approx(expected, rel=1e-6)


def _linear(width: int) -> keras.Model:
    return keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(width), keras.layers.Dense(CLASSES)]
    )


@every_loss
def test_keras_distiller_takes_it_and_logs_what_ours_logs(rng, kind, options):
    x, y = rng.normal(size=(8, 6)).astype("float32"), np.arange(8) % CLASSES
    teacher, student = _linear(7), _linear(3)
    weights, logs = student.get_weights(), []
    for module in (keras.distillation, kd):
        student.set_weights(weights)
        distiller = module.Distiller(
            teacher=teacher, student=student, distillation_losses=[kind(**options)]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        distiller.compile(keras.optimizers.SGD(0.01), loss, run_eagerly=True)
        history = distiller.fit(x, y, batch_size=4, epochs=1, shuffle=False, verbose=0).history
        own = kind(**options).name if module is kd else "distillation_loss"
        logs.append((history["student_loss"][0], history[own][0]))
    theirs, ours = logs
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_loss_without_arithmetic_says_so():
    class Empty(losses.DistillationLoss):
        pass

    words = r"Empty does not say what an example's loss is[\s\S]*def per_example"
    with pytest.raises(TypeError, match=words):
        Empty().compute_loss(np.ones((2, 3)), np.ones((2, 3)))


def test_a_subclass_needs_only_the_loss_of_an_example(outputs):
    class Largest(losses.DistillationLoss):
        def per_example(self, teacher, student, y=None):
            return keras.ops.max(keras.ops.abs(teacher - student), axis=-1)

    expected = np.abs(outputs[0] - outputs[1]).max(-1)
    loss = Largest()
    assert loss.name == "largest"
    assert loss.connector((None, 5), (None, 5)) is None
    assert float(loss.compute_loss(*outputs)) == pytest.approx(expected.mean(), rel=1e-6)
    weighted = loss.compute_loss(*outputs, sample_weight=np.arange(8))
    assert float(weighted) == pytest.approx((np.arange(8) * expected).mean(), rel=1e-6)


@pytest.mark.parametrize("argument", ["teacher_layer_name", "student_layer_name"])
def test_a_layer_name_of_another_type_is_refused_by_the_base(argument):
    with pytest.raises(TypeError, match=f"`{argument}` must be a layer's name or path"):
        losses.DistillationLoss(**{argument: 7})


def test_the_config_of_the_base_makes_the_same_loss():
    loss = losses.DistillationLoss(teacher_layer_name="a/b", student_layer_name="c", name="x")
    assert type(loss).from_config(loss.get_config()).get_config() == loss.get_config()
