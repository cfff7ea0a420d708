"""The top k logits with one rest class: oracle, laws, gradients, extremes and words."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd import losses, top_k
from keras_kd.attached import Answer
from keras_kd.connections import Connections
from keras_kd.losses import LogitsDistillation
from keras_kd.top_k import TopKLogits, coarsen, keep
from tests import references
from tests.losses import cases

TEMPERATURES = (1.0, 2.5, 10.0)
DIRECTIONS = [
    pytest.param({"direction": "forward"}, id="forward"),
    pytest.param({"direction": "reverse"}, id="reverse"),
    pytest.param({"direction": "jensen_shannon", "beta": 0.3}, id="jensen_shannon"),
]
SHAPES = [(6, 12), (3, 4, 12)]


@pytest.fixture(autouse=True, params=[1, 1000], ids=["one pass", "one by one"])
def many(request, monkeypatch):
    """Every test holds for few classes and for many, which XLA compiles to one pass."""
    monkeypatch.setattr(top_k, "MANY", request.param)


# --- the oracle: float64, in log space ------------------------------------------------------------


def merged(logits, classes, temperature) -> np.ndarray:
    """Log-probabilities of the kept classes and, last, of all the others together."""
    log_p = references.log_softmax(references.float64(logits) / temperature)
    kept = np.take_along_axis(log_p, classes, -1)
    others = log_p.copy()
    np.put_along_axis(others, classes, -np.inf, -1)
    return np.concatenate([kept, np.logaddexp.reduce(others, -1, keepdims=True)], -1)


def relative_entropy(log_p, log_q) -> np.ndarray:
    """Σ p·(log p − log q), where 0·log 0 = 0."""
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        return np.where(p > 0.0, p * (log_p - log_q), 0.0).sum(-1)


def oracle(teacher, student, classes, temperature, direction="forward", beta=0.5) -> np.ndarray:
    """T² times the divergence of the two merged distributions, of each example."""
    t, s = (merged(z, classes, temperature) for z in (teacher, student))
    if direction == "forward":
        value = relative_entropy(t, s)
    elif direction == "reverse":
        value = relative_entropy(s, t)
    else:
        m = np.logaddexp(t + np.log(beta), s + np.log(1.0 - beta))
        value = beta * relative_entropy(t, m) + (1.0 - beta) * relative_entropy(s, m)
    return temperature**2 * value


def best(logits, k) -> np.ndarray:
    """The classes of the k largest logits; of equal ones the lower class first."""
    return np.argsort(-references.float64(logits), axis=-1, kind="stable")[..., :k]


def rounded(logits, k, dtype) -> np.ndarray:
    """Logits of which the k largest are rounded, as they are stored."""
    result = np.array(logits, "float64")
    classes = best(logits, k)
    np.put_along_axis(
        result, classes, np.take_along_axis(logits, classes, -1).astype(dtype).astype("float64"), -1
    )
    return result


def kept(logits, k, temperatures=TEMPERATURES, dtype="float32") -> TopKLogits:
    parts = keep(logits, k, temperatures, dtype)
    return TopKLogits(*parts, temperatures=temperatures, count=logits.shape[-1])


def pair(rng, shape=(6, 12), scale=2.0) -> list[np.ndarray]:
    return [rng.normal(scale=scale, size=shape).astype("float32") for _ in range(2)]


def value_and_gradient(loss, teacher, student, **kwargs):
    variable = tf.Variable(student)
    with tf.GradientTape() as tape:
        value = loss.compute_loss(teacher, variable * 1.0, **kwargs)
    return float(value), tf.convert_to_tensor(tape.gradient(value, variable)).numpy()


# --- keep -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("k", [1, 4, 12])
def test_what_is_kept_is_the_largest_logits_and_the_sum_of_all(rng, shape, k, dtype):
    logits, _ = pair(rng, shape, scale=5.0)
    values, classes, sums = keep(logits, k, TEMPERATURES, dtype)
    np.testing.assert_array_equal(classes, best(logits, k))
    np.testing.assert_array_equal(
        values, np.take_along_axis(logits, best(logits, k), -1).astype(dtype)
    )
    stored = rounded(logits, k, dtype)
    expected = [np.logaddexp.reduce(stored / t, -1) for t in TEMPERATURES]
    np.testing.assert_allclose(sums, np.stack(expected, -1), rtol=2.0**-24)
    assert (values.dtype, classes.dtype, sums.dtype) == (dtype, "int32", "float32")
    assert np.all(np.diff(tf.cast(values, "float32")) <= 0.0)


def test_of_equal_logits_the_lower_class_is_kept_first():
    _, classes, _ = keep([[1.0, 3.0, 3.0, 1.0, 1.0]], 4)
    np.testing.assert_array_equal(classes, [[1, 2, 0, 3]])


def test_keep_is_the_same_in_a_graph_of_unknown_batch_size(rng):
    logits, _ = pair(rng)
    graph = tf.function(
        lambda z: keep(z, 4, TEMPERATURES, "float16"),
        input_signature=[tf.TensorSpec((None, 12))],
        autograph=False,
    )
    assert graph.get_concrete_function().output_shapes == tuple(
        tf.TensorShape((None, n)) for n in (4, 4, len(TEMPERATURES))
    )
    for ours, expected in zip(graph(logits), keep(logits, 4, TEMPERATURES, "float16"), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("scale", [0.01, 3.0, 300.0])
def test_the_rest_of_what_is_kept_is_never_negative(rng, scale, dtype):
    logits, student = pair(rng, (64, 20), scale)
    for k in (1, 3, 19):
        teacher = kept(logits, k, dtype=dtype)
        for temperature in TEMPERATURES:
            t, _ = coarsen(teacher, student, temperature)
            ours = references.log_softmax(references.float64(t) / temperature)
            stored = np.array(logits, "float64")
            np.put_along_axis(stored, teacher.classes.numpy(), teacher.logits.numpy(), -1)
            exact = merged(stored, teacher.classes.numpy(), temperature)
            lost = 2.0**-22 * (1.0 + np.abs(references.float64(t)).max() / temperature)
            np.testing.assert_allclose(np.exp(ours), np.exp(exact), rtol=0.0, atol=lost)
            assert np.isfinite(t).all()


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", DIRECTIONS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [1, 5, 11])
def test_the_loss_is_the_divergence_over_the_kept_classes_and_one_for_the_rest(
    rng, k, temperature, options
):
    for shape in SHAPES:
        teacher, student = pair(rng, shape)
        loss = LogitsDistillation(temperature, **options)
        for dtype in ("float32", "float16"):
            stored = rounded(teacher, k, dtype)
            expected = oracle(stored, student, best(teacher, k), temperature, **options)
            value = loss.compute_loss(kept(teacher, k, dtype=dtype), student)
            assert float(value) == pytest.approx(expected.mean(), rel=2e-5)


def test_a_small_case_by_hand():
    """Teacher (1/2, 1/4, 1/8, 1/8), student (1/4, …), top 1: KL of (1/2, 1/2) and (1/4, 3/4)."""
    teacher = kept(np.log([[0.5, 0.25, 0.125, 0.125]]).astype("float32"), 1)
    value = LogitsDistillation(1.0).compute_loss(teacher, np.zeros((1, 4), "float32"))
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert float(value) == pytest.approx(expected, rel=1e-6)


def test_coarsened_logits_are_the_kept_ones_and_the_rests_log_sum(rng):
    teacher, student = pair(rng)
    classes = best(teacher, 3)
    for temperature in TEMPERATURES:
        for ours, z in zip(
            coarsen(kept(teacher, 3), student, temperature), (teacher, student), strict=True
        ):
            expected = merged(z, classes, temperature)
            total = np.logaddexp.reduce(references.float64(z) / temperature, -1, keepdims=True)
            np.testing.assert_allclose(ours, temperature * (expected + total), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", DIRECTIONS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_with_all_classes_kept_it_is_the_whole_divergence_and_gradient(rng, temperature, options):
    teacher, student = pair(rng, (4, 6))
    loss = LogitsDistillation(temperature, **options)
    value, gradient = value_and_gradient(loss, kept(teacher, 6), student)
    whole, slope = value_and_gradient(loss, teacher, student)
    assert value == pytest.approx(whole, rel=1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("options", DIRECTIONS)
def test_it_grows_with_k_to_the_whole_divergence(rng, options):
    for scale in (0.5, 2.0, 8.0):
        teacher, student = pair(rng, (1, 12), scale)
        loss = LogitsDistillation(2.5, **options)
        values = [float(loss.compute_loss(kept(teacher, k), student)) for k in range(1, 13)]
        whole = float(loss.compute_loss(teacher, student))
        assert np.all(np.diff(values) >= -1e-5 * whole)
        assert values[-1] == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("options", DIRECTIONS)
def test_it_is_zero_at_teacher_equals_student(rng, options):
    for scale in (0.1, 3.0, 30.0):
        same, _ = pair(rng, (8, 12), scale)
        for k in (1, 4, 11, 12):
            for temperature in TEMPERATURES:
                loss = LogitsDistillation(temperature, **options)
                value, gradient = value_and_gradient(loss, kept(same, k), same)
                assert abs(value) < 1e-5 * temperature**2
                assert np.abs(gradient).max() < 1e-5 * temperature


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", DIRECTIONS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_gradient_is_that_of_the_oracle(rng, temperature, options):
    for shape in ((2, 6), (2, 2, 6)):
        teacher, student = pair(rng, shape)
        for k in (1, 3, 5):
            classes = best(teacher, k)
            expected = references.gradient(
                lambda at, t=teacher, c=classes: oracle(t, at, c, temperature, **options).mean(),
                student,
            )
            loss = LogitsDistillation(temperature, **options)
            _, gradient = value_and_gradient(loss, kept(teacher, k), student)
            np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_the_students_side_is_differentiated_as_if_written_out(rng, temperature):
    """Any weighting of the k + 1 logits: against a log-sum-exp over an explicit choice."""
    teacher, student = pair(rng)
    weights = rng.normal(size=(6, 4)).astype("float32")
    variable, classes = tf.Variable(student), best(teacher, 3)
    others = np.ones((6, 12), "bool")
    np.put_along_axis(others, classes, False, -1)
    with tf.GradientTape(persistent=True) as tape:
        _, ours = coarsen(kept(teacher, 3), variable, temperature)
        ours = tf.reduce_sum(weights * ours)
        rest = tf.reshape(tf.boolean_mask(variable, others), (6, 9)) / temperature
        rest = temperature * tf.reduce_logsumexp(rest, -1, keepdims=True)
        plain = tf.concat([tf.gather(variable, classes, batch_dims=1), rest], -1)
        plain = tf.reduce_sum(weights * plain)
    assert float(ours) == pytest.approx(float(plain), rel=1e-5)
    slopes = [tf.convert_to_tensor(tape.gradient(side, variable)) for side in (ours, plain)]
    np.testing.assert_allclose(*slopes, rtol=1e-5, atol=1e-6)


def test_no_gradient_reaches_the_teacher(rng):
    logits, student = pair(rng)
    source = tf.Variable(logits)
    with tf.GradientTape() as tape:
        parts = keep(source, 3, TEMPERATURES)
        value = LogitsDistillation(1.0).compute_loss(TopKLogits(*parts, TEMPERATURES, 12), student)
    slope = tape.gradient(value, source, unconnected_gradients="zero")
    assert not np.any(tf.convert_to_tensor(slope))


# --- extremes -------------------------------------------------------------------------------------


def one_above(low, high, hot, count=8) -> np.ndarray:
    logits = np.full((2, count), low, "float32")
    logits[:, hot] = high
    return logits


EXTREMES = {
    "far_above": one_above(-1e4, 1e4, 0),
    "far_above_elsewhere": one_above(-1e4, 1e4, 5),
    "far_below": one_above(1e4, -1e4, 0),
    "rest_of_1e-30": one_above(-70.0, 0.0, 0),
    "rest_underflows": one_above(-200.0, 0.0, 0),
    "flat": np.zeros((2, 8), "float32"),
    "flat_and_large": np.full((2, 8), 1e4, "float32"),
    "log_probabilities": references.log_softmax(one_above(-9.0, 3.0, 2)).astype("float32"),
}


@pytest.mark.parametrize("options", DIRECTIONS)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("k", [1, 3, 8])
def test_extreme_logits_give_a_finite_value_and_gradient(k, temperature, options):
    pairs = list(itertools.product(EXTREMES, repeat=2))
    teacher, student = (np.concatenate([EXTREMES[pair[side]] for pair in pairs]) for side in (0, 1))
    loss = LogitsDistillation(temperature, **options)
    value, gradient = value_and_gradient(loss, kept(teacher, k), student)
    finite = np.isfinite(gradient).reshape(len(pairs), -1).all(-1)
    assert [pair for pair, fine in zip(pairs, finite, strict=True) if not fine] == []
    assert np.isfinite(value)


@pytest.mark.parametrize("student", ["far_above", "far_above_elsewhere", "rest_underflows", "flat"])
def test_the_value_is_exact_where_the_teachers_rest_is_next_to_nothing(student):
    teacher = EXTREMES["rest_of_1e-30"]
    expected = oracle(teacher, EXTREMES[student], best(teacher, 1), 1.0).mean()
    value = LogitsDistillation(1.0).compute_loss(kept(teacher, 1), EXTREMES[student])
    assert float(value) == pytest.approx(expected, rel=1e-5, abs=1e-3)


@pytest.mark.parametrize("options", DIRECTIONS)
def test_the_value_and_gradient_are_exact_where_the_students_rest_underflows(rng, options):
    """e⁻²⁰⁰ is 0 in float32, and its logarithm is what counts."""
    teacher, _ = pair(rng, (2, 8))
    teacher[:, 0] = 4.0
    student = EXTREMES["rest_underflows"]
    classes = best(teacher, 1)
    loss = LogitsDistillation(1.0, **options)
    value, gradient = value_and_gradient(loss, kept(teacher, 1), student)
    expected = oracle(teacher, student, classes, 1.0, **options).mean()
    slope = references.gradient(
        lambda at: oracle(teacher, at, classes, 1.0, **options).mean(), student
    )
    assert value == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)


def test_a_rest_that_rounding_hides_counts_as_at_most_2_to_the_minus_24():
    for name in ("far_above", "rest_of_1e-30", "rest_underflows"):
        logits = EXTREMES[name]
        t, _ = coarsen(kept(logits, 1), logits, 1.0)
        rest = np.exp(references.log_softmax(t))[:, 1]
        assert np.all(rest > 0.0)
        assert np.all(rest <= 2.0**-24 * (1.0 + 1e-5))


def test_a_small_rest_is_seen_where_the_log_sum_exp_is_near_0_and_hardly_rounds():
    logits = np.log([[1.0, 0.9e-8, 0.1e-8]]).astype("float32")
    t, _ = coarsen(kept(logits, 1), logits, 1.0)
    assert np.exp(references.log_softmax(t))[0, 1] == pytest.approx(1e-8, rel=1e-4)


# --- how it is computed ---------------------------------------------------------------------------


@pytest.mark.parametrize("options", DIRECTIONS)
@pytest.mark.parametrize("shape", [(None, 12), (None, 4, 12), (None, None, 12)], ids=str)
def test_eager_graph_and_xla_agree_at_an_unknown_batch_size(rng, shape, options):
    teacher, student = pair(rng, (3, 12) if len(shape) == 2 else (3, 4, 12))
    loss = LogitsDistillation(2.5, **options)

    def step(logits, classes, sums, outputs):
        target = TopKLogits(logits, classes, sums, TEMPERATURES, 12)
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            value = loss.compute_loss(target, outputs)
        return value, tape.gradient(value, outputs)

    parts = (*keep(teacher, 3, TEMPERATURES), tf.constant(student))
    expected = step(*parts)
    lead = shape[:-1]
    specs = [
        tf.TensorSpec((*lead, 3)),
        tf.TensorSpec((*lead, 3), tf.int32),
        tf.TensorSpec((*lead, len(TEMPERATURES))),
        tf.TensorSpec(shape),
    ]
    for jit_compile in (False, True):
        graph = tf.function(step, input_signature=specs, jit_compile=jit_compile, autograph=False)
        value, gradient = graph(*parts)
        assert float(value) == pytest.approx(float(expected[0]), rel=1e-5)
        np.testing.assert_allclose(gradient, expected[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_a_student_of_another_float_type_is_compared_in_float32(rng, dtype):
    teacher, student = pair(rng)
    half = tf.cast(student, dtype)
    loss = LogitsDistillation(2.5)
    value, gradient = value_and_gradient(loss, kept(teacher, 4, dtype="float16"), half)
    stored = rounded(teacher, 4, "float16")
    expected = oracle(stored, tf.cast(half, "float64").numpy(), best(teacher, 4), 2.5).mean()
    assert value == pytest.approx(expected, rel=1e-5)
    assert gradient.dtype == tf.as_dtype(dtype) and np.any(gradient != 0)


def test_sample_weights_count_as_for_all_logits(rng):
    teacher, student = pair(rng)
    weight = np.array([0.0, 1.0, 2.0, 0.5, 0.0, 3.0])
    expected = (weight * oracle(teacher, student, best(teacher, 4), 2.5)).sum() / 6.0
    loss = LogitsDistillation(2.5)
    value, gradient = value_and_gradient(loss, kept(teacher, 4), student, sample_weight=weight)
    assert value == pytest.approx(expected, rel=1e-5)
    assert np.all(gradient[weight == 0.0] == 0.0)


@pytest.mark.parametrize("jit_compile", [None, False, True])
def test_masked_positions_count_for_nothing_nan_or_not(rng, jit_compile):
    teacher, student = pair(rng, (3, 4, 12))
    real = np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], "bool")
    expected = oracle(teacher, student, best(teacher, 4), 2.5)[real].mean()
    student[~real] = np.nan

    def step(outputs):
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            masked = outputs * 1.0
            masked._keras_mask = tf.constant(real)
            value = LogitsDistillation(2.5).compute_loss(kept(teacher, 4), masked)
        return value, tape.gradient(value, outputs)

    run = step if jit_compile is None else tf.function(step, jit_compile=jit_compile)
    value, gradient = run(tf.constant(student))
    assert float(value) == pytest.approx(expected, rel=1e-5)
    assert np.all(gradient.numpy()[~real] == 0.0)
    assert np.all(np.isfinite(gradient))


def test_kept_and_whole_outputs_stand_beside_each_other(rng):
    teacher, student = pair(rng)
    classes = best(teacher, 4)
    expected = oracle(teacher, student, classes, 2.5).mean()
    whole = np.mean((teacher - student) ** 2) / 2.5**2
    teachers = {"a": kept(teacher, 4), "b": teacher, "c": kept(teacher, 4)}
    students = dict.fromkeys("abc", student)
    loss = LogitsDistillation(2.5, loss={"a": "kl_divergence", "b": "mse", "c": None})
    loss.check(teachers, students)
    value = loss.compute_loss(teachers, students)
    assert float(value) == pytest.approx(expected + whole, rel=1e-5)
    one = LogitsDistillation(2.5).on("c")
    assert float(one.compute_loss(teachers, students)) == pytest.approx(expected, rel=1e-5)


# --- words ----------------------------------------------------------------------------------------


NEEDS_ALL = (
    r"needs all classes, and the teacher's soft targets hold the top 3 of 5\."
    r"[\s\S]*fix: +use kd\.LogitsDistillation with temperature=1\.0 or temperature=2\.5 or "
    r"temperature=10\.0, or build the soft targets with top_k=None"
)
SERVED = [{}, {"direction": "reverse"}, {"direction": "jensen_shannon"}]


def serves(case) -> bool:
    """Whether a case is a softmax's KL divergence."""
    options = {**case.options}
    options.pop("temperature", None)
    options.pop("beta", None)
    return case.kind is LogitsDistillation and options in SERVED


@cases.of(lambda case: not serves(case))
def test_every_other_loss_needs_all_classes(rng, case):
    teacher, student = pair(rng, (8, 5))
    loss = case.make()
    several = [kept(teacher, 3)] * case.layers if case.layers > 1 else kept(teacher, 3)
    outputs = [student] * case.layers if case.layers > 1 else student
    with pytest.raises(ValueError, match=f"{case.kind.__name__} {NEEDS_ALL}"):
        loss.check(several, outputs)
    with pytest.raises(ValueError, match=f"{case.kind.__name__} {NEEDS_ALL}"):
        loss.compute_loss(several, outputs, y=case.labels(rng))


@cases.of(lambda case: not serves(case))
def test_a_distillers_connections_refuse_before_a_trained_part_is_made(rng, case):
    teacher, student = pair(rng, (8, 5))
    connections = Connections(case.make(), None)
    answers = case.answer(kept(teacher, 3)), case.answer(tf.constant(student))
    with pytest.raises(ValueError, match=f"{case.kind.__name__} {NEEDS_ALL}"):
        connections.join(*answers)
        connections.check(*answers)
    assert not connections.connectors


class OwnComputation(losses.DistillationLoss):
    """A user's loss that computes all by itself."""

    def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
        return keras.ops.mean(teacher_outputs - student_outputs)


@pytest.mark.parametrize(
    "loss", [keras.distillation.LogitsDistillation(), OwnComputation()], ids=["keras", "own"]
)
def test_a_loss_that_computes_by_itself_is_not_given_kept_classes(rng, loss):
    teacher, student = pair(rng, (8, 5))
    connections, case = Connections(loss, None), cases.Case(LogitsDistillation)
    answers = case.answer(kept(teacher, 3)), case.answer(tf.constant(student))
    for refused in (
        connections.join,
        connections.check,
        lambda t, s: connections.values(t, s, None, None, 0),
    ):
        with pytest.raises(ValueError, match=f"{type(loss).__name__} {NEEDS_ALL}"):
            refused(*answers)


def test_a_trained_part_for_a_whole_output_stands_beside_a_kept_one(rng):
    teacher, student = pair(rng, (8, 5))
    hint = losses.FeatureDistillation().on("b")
    connections = Connections([LogitsDistillation(1.0).on("a"), hint], None)
    sides = (
        {"a": kept(teacher, 3), "b": tf.constant(teacher)},
        {"a": tf.constant(student), "b": tf.constant(student[:, :4])},
    )
    answers = [Answer(side, side, {}, [side]) for side in sides]
    connections.join(*answers)
    connections.check(*answers)
    (first, _), (second, _) = connections.values(*answers, None, None, 0)
    expected = oracle(teacher, student, best(teacher, 3), 1.0).mean()
    assert float(first) == pytest.approx(expected, rel=1e-5)
    assert len(connections.connectors) == 1 and np.isfinite(second)


@cases.of(serves)
def test_the_kl_divergence_takes_kept_classes_in_a_distillers_connections(rng, case):
    teacher, student = pair(rng, (8, 5))
    connections = Connections(case.make(temperature=2.5), None)
    answers = case.answer(kept(teacher, 3)), case.answer(tf.constant(student))
    connections.join(*answers)
    connections.check(*answers)
    ((value, count),) = connections.values(*answers, None, None, 0)
    options = {key: value for key, value in case.options.items() if key != "temperature"}
    expected = oracle(teacher, student, best(teacher, 3), 2.5, **options).mean()
    assert float(value) == pytest.approx(expected, rel=1e-5)
    assert float(count) == 8.0


@pytest.mark.parametrize(
    "options",
    [{"activation": "sigmoid"}, {"loss": "categorical_crossentropy"}, {"loss": "mse"}],
    ids=str,
)
def test_another_form_of_logits_distillation_says_which_argument_it_is(rng, options):
    (argument, given), *_ = options.items()
    teacher, student = pair(rng, (8, 5))
    with pytest.raises(ValueError, match=rf"needs all classes[\s\S]*{argument}='{given}'"):
        LogitsDistillation(1.0, **options).compute_loss(kept(teacher, 3), student)


def test_a_standardised_loss_needs_all_classes(rng):
    teacher, student = pair(rng, (8, 5))
    loss = losses.LogitStandardization(LogitsDistillation(1.0))
    with pytest.raises(ValueError, match=f"LogitStandardization {NEEDS_ALL}"):
        loss.compute_loss(kept(teacher, 3), student)


def test_a_temperature_that_was_not_stored_is_refused_with_the_fix(rng):
    teacher, student = pair(rng, (8, 5))
    words = (
        r"The temperature 3\.0 was not stored with the top 3 of 5 classes\.[\s\S]*"
        r"expected: one of the temperatures of the soft targets: 1\.0, 2\.5, 10\.0[\s\S]*"
        r"fix: +use temperature=1\.0, or build the soft targets with "
        r"temperatures=\(1\.0, 2\.5, 10\.0, 3\.0\)"
    )
    with pytest.raises(ValueError, match=words):
        LogitsDistillation(3.0).check(kept(teacher, 3), student)
    with pytest.raises(ValueError, match=words):
        LogitsDistillation(3.0).compute_loss(kept(teacher, 3), student)


@pytest.mark.parametrize("graph", [False, True])
def test_a_schedule_of_temperatures_is_refused_with_the_fix(rng, graph):
    teacher, student = pair(rng, (8, 5))
    falling = keras.optimizers.schedules.PiecewiseConstantDecay([10], [2.5, 1.0])
    loss = LogitsDistillation(falling)
    words = (
        r"A schedule of temperatures was not stored with the top 3 of 5 classes\.[\s\S]*"
        r"fix: +use temperature=1\.0, or build the soft targets with top_k=None"
    )
    with pytest.raises(ValueError, match=words):
        loss.check(kept(teacher, 3), student)
    compute = tf.function(loss.compute_loss, autograph=False) if graph else loss.compute_loss
    with pytest.raises(ValueError, match=words):
        compute(kept(teacher, 3), student, step=tf.constant(3))


def test_beta_may_be_a_schedule_on_kept_classes(rng):
    teacher, student = pair(rng)
    falling = keras.optimizers.schedules.PiecewiseConstantDecay([10], [0.8, 0.3])
    loss = LogitsDistillation(2.5, direction="jensen_shannon", beta=falling)
    for step, beta in ((0, 0.8), (11, 0.3)):
        expected = oracle(teacher, student, best(teacher, 3), 2.5, "jensen_shannon", beta).mean()
        value = loss.compute_loss(kept(teacher, 3), student, step=step)
        assert float(value) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(8, 6), (8, 1), (1, 5), (8, 2, 5), (5,)], ids=str)
def test_a_student_of_other_classes_is_refused_by_its_shape(rng, shape):
    teacher, _ = pair(rng, (8, 5))
    words = r"the shapes of teacher and student differ[\s\S]*teacher \(8, 5\)"
    for ask in (LogitsDistillation(1.0).check, LogitsDistillation(1.0).compute_loss):
        with pytest.raises(ValueError, match=words):
            ask(kept(teacher, 3), np.ones(shape, "float32"))


def test_one_class_is_refused_as_for_all_logits():
    teacher = kept(np.ones((8, 1), "float32"), 1)
    with pytest.raises(ValueError, match="A softmax over one class is constant"):
        LogitsDistillation(1.0).compute_loss(teacher, np.ones((8, 1), "float32"))


def test_more_classes_than_there_are_cannot_be_kept():
    with pytest.raises(ValueError, match=r"`top_k` keeps more classes than there are[\s\S]*6 of 5"):
        keep(np.ones((2, 5)), 6)
    with pytest.raises(ValueError, match="`top_k` must be a whole number of 1 or more"):
        keep(np.ones((2, 5)), 0)
    with pytest.raises(ValueError, match="`temperatures` must be positive"):
        keep(np.ones((2, 5)), 2, (1.0, 0.0))


@pytest.mark.parametrize(
    ("logits", "classes", "sums", "count"),
    [
        ((2, 3), (2, 2), (2, 1), 5),
        ((2, 3), (2, 3), (2, 2), 5),
        ((2, 3), (2, 3), (3, 1), 5),
        ((2, 3), (2, 3), (2, 1), 2),
        ((3,), (3,), (1,), 5),
    ],
    ids=["classes", "temperatures", "examples", "count", "rank"],
)
def test_parts_that_do_not_fit_together_are_refused(logits, classes, sums, count):
    with pytest.raises(ValueError, match="The parts of the top k logits do not fit together"):
        TopKLogits(np.ones(logits), np.zeros(classes, "int32"), np.ones(sums), (1.0,), count)


def test_it_says_what_shape_all_logits_have_and_is_one_leaf(rng):
    teacher = kept(pair(rng, (3, 4, 12))[0], 5, dtype="float16")
    assert (teacher.shape, teacher.k, teacher.count) == ((3, 4, 12), 5, 12)
    assert teacher.temperatures == TEMPERATURES
    assert [part.dtype for part in (teacher.logits, teacher.classes, teacher.log_sum_exp)] == [
        "float32",
        "int32",
        "float32",
    ]
    assert keras.tree.flatten({"a": teacher, "b": [teacher]}) == [teacher, teacher]
