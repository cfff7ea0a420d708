"""LogitsDistillation and SoftCrossEntropy: oracles, laws, gradients and words."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd.losses import LogitsDistillation, SoftCrossEntropy
from keras_kd.losses.knowledge_distillation import kl_divergence, soft_cross_entropy
from tests import references

TEMPERATURES = [0.5, 1.0, 4.0, 20.0]
MODES = [
    pytest.param({"direction": "forward"}, references.kl_divergence, id="forward"),
    pytest.param({"direction": "reverse"}, references.reverse_kl_divergence, id="reverse"),
    *(
        pytest.param(
            {"direction": "jensen_shannon", "beta": beta},
            lambda *args, beta=beta, **kwargs: references.jensen_shannon(
                *args, beta=beta, **kwargs
            ),
            id=f"jensen_shannon_{beta}",
        )
        for beta in (0.1, 0.5, 0.8)
    ),
]


@pytest.fixture
def logits(rng):
    """A teacher's and a student's logits, (16, 10) float32."""
    return [rng.normal(scale=2.0, size=(16, 10)).astype("float32") for _ in range(2)]


def gradient_of(loss, teacher, student) -> np.ndarray:
    """The gradient with respect to the student, by the tape."""
    variable = tf.Variable(student)
    with tf.GradientTape() as tape:
        value = loss.compute_loss(tf.constant(teacher), variable)
    return tape.gradient(value, variable).numpy()


# --- oracles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("options", "reference"), MODES)
def test_logits_distillation_is_the_papers_value(
    logits, options, reference, activation, temperature
):
    loss = LogitsDistillation(temperature, activation=activation, **options)
    expected = reference(*logits, temperature, activation=activation).mean()
    assert float(loss.compute_loss(*logits)) == pytest.approx(expected, rel=1e-6)


def test_default_logits_distillation_is_softened_kl_with_t_squared_at_3(logits):
    expected = references.kl_divergence(*logits, 3.0).mean()
    assert float(LogitsDistillation().compute_loss(*logits)) == pytest.approx(expected, rel=1e-6)


def test_default_logits_distillation_is_the_papers_and_keras_disagrees(logits):
    teacher, student = logits
    expected = references.kl_divergence(*logits, 3.0).mean()
    exact = 3.0 * (references.softmax(student / 3.0) - references.softmax(teacher / 3.0)) / 16
    theirs = keras.distillation.LogitsDistillation()
    assert float(theirs.compute_loss(teacher, student)) != pytest.approx(expected, rel=0.05)
    assert _cosine(gradient_of(theirs, teacher, student), exact) < 0.5
    assert _cosine(gradient_of(LogitsDistillation(), teacher, student), exact) > 1.0 - 1e-6


def _cosine(a, b) -> float:
    return float(references.cosine(a.ravel(), b.ravel()))


def test_clipped_probabilities_have_no_gradient_and_ours_keeps_plus_minus_one():
    teacher = np.array([[60.0, 0.0]], "float32")
    student = np.array([[0.0, 60.0]], "float32")
    theirs = keras.distillation.LogitsDistillation(1.0, loss=keras.losses.KLDivergence())
    assert np.abs(gradient_of(theirs, teacher, student)).max() < 1e-6
    ours = gradient_of(LogitsDistillation(1.0), teacher, student)
    np.testing.assert_allclose(ours, [[-1.0, 1.0]], rtol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        "kl_divergence",
        "KLDivergence",
        "kld",
        keras.losses.KLDivergence(),
        keras.losses.kl_divergence,
    ],
    ids=["kl_divergence", "KLDivergence", "kld", "object", "function"],
)
def test_every_spelling_of_kl_divergence_is_the_softened_form(logits, loss):
    value = LogitsDistillation(4.0, loss=loss, direction="reverse").compute_loss(*logits)
    expected = references.reverse_kl_divergence(*logits, 4.0).mean()
    assert float(value) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(
    "loss",
    [
        "categorical_crossentropy",
        keras.losses.CategoricalCrossentropy(),
        keras.losses.CategoricalCrossentropy(from_logits=True),
    ],
    ids=["name", "object", "from_logits"],
)
def test_categorical_crossentropy_is_softened_with_t_squared(logits, loss, temperature, activation):
    value = LogitsDistillation(temperature, loss, activation=activation).compute_loss(*logits)
    expected = references.soft_cross_entropy(*logits, temperature, activation).mean()
    assert float(value) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_soft_cross_entropy_is_the_papers_value(logits, temperature, activation):
    value = SoftCrossEntropy(temperature, activation).compute_loss(*logits)
    expected = references.soft_cross_entropy(*logits, temperature, activation).mean()
    assert float(value) == pytest.approx(expected, rel=1e-6)


def test_the_functions_and_soft_cross_entropy_soften_nothing_unless_asked(logits):
    crossed = references.soft_cross_entropy(*logits)
    jensen_shannon = references.jensen_shannon(*logits, beta=0.5)
    for values, expected in (
        (kl_divergence(*logits), references.kl_divergence(*logits)),
        (kl_divergence(*logits, direction="jensen_shannon"), jensen_shannon),
        (soft_cross_entropy(*logits), crossed),
        (SoftCrossEntropy().compute_loss(*logits), crossed.mean()),
    ):
        np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_other_losses_get_logits_over_t_and_no_t_squared(logits, temperature):
    t, s = (references.float64(z) / temperature for z in logits)
    for loss, expected in (
        ("mse", np.mean((t - s) ** 2)),
        (keras.losses.MeanAbsoluteError(), np.mean(np.abs(t - s))),
        (lambda a, b: keras.ops.max(keras.ops.abs(a - b), -1), np.abs(t - s).max(-1).mean()),
    ):
        value = LogitsDistillation(temperature, loss=loss).compute_loss(*logits)
        assert float(value) == pytest.approx(expected, rel=1e-6)


def test_seed_formula_lambda_reverse_kl_plus_cross_entropy(logits):
    lam, (t, s) = 0.7, logits
    expected = lam * references.reverse_kl_divergence(t, s) + references.soft_cross_entropy(t, s)
    reverse = LogitsDistillation(temperature=1.0, direction="reverse").compute_loss(t, s)
    value = lam * reverse + SoftCrossEntropy(temperature=1.0).compute_loss(t, s)
    assert float(value) == pytest.approx(expected.mean(), rel=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 3, 4, 5)])
def test_any_number_of_axes_may_stand_before_the_classes(rng, shape):
    t, s = (rng.normal(size=shape) for _ in range(2))
    expected = references.kl_divergence(t, s, 3.0).mean()
    assert float(LogitsDistillation().compute_loss(t, s)) == pytest.approx(expected, rel=1e-6)
    expected = references.soft_cross_entropy(t, s).mean()
    assert float(SoftCrossEntropy().compute_loss(t, s)) == pytest.approx(expected, rel=1e-6)


# --- laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("options", "_"), MODES)
def test_a_divergence_is_zero_at_teacher_equals_student(logits, options, activation, _):
    loss = LogitsDistillation(20.0, activation=activation, **options)
    assert abs(float(loss.compute_loss(logits[0], logits[0]))) < 1e-6
    assert np.abs(gradient_of(loss, logits[0], logits[0])).max() < 1e-6


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("options", "_"), MODES)
def test_a_divergence_is_never_negative(rng, options, activation, _):
    loss = LogitsDistillation(2.0, activation=activation, **options)
    for scale in (1e-3, 0.1, 1.0, 10.0, 1e3):
        for _unused in range(5):
            t, s = (rng.normal(scale=scale, size=(1, 6)) for _ in range(2))
            assert float(loss.compute_loss(t, s)) >= -1e-6


def test_jensen_shannon_over_beta_tends_to_the_forward_kl_at_0_and_the_reverse_at_1(logits):
    def value(beta):
        return float(
            LogitsDistillation(2.0, direction="jensen_shannon", beta=beta).compute_loss(*logits)
        )

    forward = references.kl_divergence(*logits, 2.0).mean()
    reverse = references.reverse_kl_divergence(*logits, 2.0).mean()
    assert value(1e-4) / 1e-4 == pytest.approx(forward, rel=5e-3)
    assert value(1.0 - 1e-4) / 1e-4 == pytest.approx(reverse, rel=5e-3)


def test_jensen_shannon_is_symmetric_and_at_most_t_squared_log_2(rng):
    loss = LogitsDistillation(2.0, direction="jensen_shannon")
    t, s = (rng.normal(scale=50.0, size=(8, 4)) for _ in range(2))
    assert float(loss.compute_loss(t, s)) == pytest.approx(float(loss.compute_loss(s, t)), rel=1e-6)
    assert float(loss.compute_loss(t, s)) <= 4.0 * np.log(2.0) + 1e-6


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_high_temperature_makes_it_squared_error_on_centred_logits(logits, direction):
    loss = LogitsDistillation(1000.0, direction=direction)
    expected = references.high_temperature_limit(*logits).mean()
    assert float(loss.compute_loss(*logits)) == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_cross_entropy_minus_the_teachers_entropy_is_the_kl(logits, temperature, activation):
    crossed = SoftCrossEntropy(temperature, activation).compute_loss(*logits)
    divergence = LogitsDistillation(temperature, activation=activation).compute_loss(*logits)
    entropy = references.entropy(logits[0], temperature, activation).mean()
    assert float(crossed) - entropy == pytest.approx(float(divergence), rel=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        LogitsDistillation(4.0),
        LogitsDistillation(4.0, direction="reverse"),
        LogitsDistillation(4.0, direction="jensen_shannon"),
        SoftCrossEntropy(2.0),
    ],
    ids=["forward", "reverse", "jensen_shannon", "soft_cross_entropy"],
)
def test_softmax_losses_ignore_a_shift_of_each_examples_logits(rng, logits, loss):
    t, s = logits
    shift = rng.integers(-4, 5, size=(16, 1)).astype("float32")
    expected = float(loss.compute_loss(t, s))
    assert float(loss.compute_loss(t + shift, s - shift)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("options", "_"), MODES)
def test_the_order_of_classes_and_of_examples_does_not_matter(rng, logits, options, activation, _):
    loss = LogitsDistillation(2.0, activation=activation, **options)
    classes, examples = rng.permutation(10), rng.permutation(16)
    mixed = [z[examples][:, classes] for z in logits]
    expected = float(loss.compute_loss(*logits))
    assert float(loss.compute_loss(*mixed)) == pytest.approx(expected, rel=1e-6)


def test_a_binary_sigmoid_is_the_softmax_of_two_classes(rng):
    t, s = (rng.normal(size=(8, 1)) for _ in range(2))
    two = [np.concatenate([z, np.zeros_like(z)], -1) for z in (t, s)]
    binary = LogitsDistillation(2.0, activation="sigmoid").compute_loss(t, s)
    assert float(binary) == pytest.approx(references.kl_divergence(*two, 2.0).mean(), rel=1e-6)


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_the_gradient_of_kl_and_of_cross_entropy_is_t_times_the_difference(logits, temperature):
    t, s = logits
    difference = references.softmax(s / temperature) - references.softmax(t / temperature)
    expected = temperature * difference / len(s)
    for loss in (LogitsDistillation(temperature), SoftCrossEntropy(temperature)):
        np.testing.assert_allclose(gradient_of(loss, t, s), expected, rtol=1e-5, atol=3e-7)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_gradient_of_the_sigmoid_forms_is_t_times_the_difference(logits, temperature):
    t, s = logits
    difference = references.sigmoid(s / temperature) - references.sigmoid(t / temperature)
    expected = temperature * difference / len(s)
    for loss in (
        LogitsDistillation(temperature, activation="sigmoid"),
        SoftCrossEntropy(temperature, "sigmoid"),
    ):
        np.testing.assert_allclose(gradient_of(loss, t, s), expected, rtol=1e-5, atol=3e-7)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("options", "reference"), MODES)
def test_the_gradient_is_that_of_the_reference(rng, options, reference, activation):
    t, s = (rng.normal(scale=2.0, size=(2, 4)).astype("float32") for _ in range(2))
    expected = references.gradient(
        lambda at: reference(t, at, 2.0, activation=activation).mean(), s
    )
    loss = LogitsDistillation(2.0, activation=activation, **options)
    np.testing.assert_allclose(gradient_of(loss, t, s), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("options", "reference"), MODES)
def test_the_gradient_is_exact_where_one_class_has_the_same_probability(options, reference):
    t, s = np.array([[0.0, 1.0, 2.0]], "float32"), np.array([[0.0, 2.0, 1.0]], "float32")
    expected = references.gradient(lambda at: reference(t, at, 1.0).mean(), s)
    ours = gradient_of(LogitsDistillation(1.0, **options), t, s)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [LogitsDistillation, SoftCrossEntropy])
@pytest.mark.parametrize(
    ("temperature", "error", "words"),
    [
        (0, ValueError, "`temperature` must be positive"),
        (-1.0, ValueError, "`temperature` must be positive"),
        (float("nan"), ValueError, "`temperature` must be finite"),
        (float("inf"), ValueError, "`temperature` must be finite"),
        ("4", TypeError, "`temperature` must be a number"),
        (True, TypeError, "`temperature` must be a number"),
        (None, TypeError, "`temperature` must be a number"),
    ],
)
def test_an_impossible_temperature_is_refused(kind, temperature, error, words):
    with pytest.raises(error, match=words):
        kind(temperature=temperature)


@pytest.mark.parametrize("beta", [0, 1, -0.1, 1.5])
def test_an_impossible_beta_is_refused(beta):
    with pytest.raises(ValueError, match=r"`beta` must be between 0 and 1[\s\S]*0 < value < 1"):
        LogitsDistillation(direction="jensen_shannon", beta=beta)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_beta_without_jensen_shannon_is_refused(direction):
    with pytest.raises(ValueError, match=r"`beta` belongs to the Jensen-Shannon divergence"):
        LogitsDistillation(direction=direction, beta=0.3)


def test_a_beta_that_is_no_number_is_refused():
    with pytest.raises(TypeError, match="`beta` must be a number"):
        LogitsDistillation(direction="jensen_shannon", beta="half")


def test_an_unknown_direction_is_answered_with_the_closest():
    with pytest.raises(ValueError, match=r"no direction 'revers'[\s\S]*did you mean 'reverse'"):
        LogitsDistillation(direction="revers")


@pytest.mark.parametrize("kind", [LogitsDistillation, SoftCrossEntropy])
def test_an_unknown_activation_is_answered_with_the_closest(kind):
    with pytest.raises(ValueError, match=r"no activation 'sigmod'[\s\S]*did you mean 'sigmoid'"):
        kind(activation="sigmod")


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("mse", {"direction": "reverse"}),
        ("mse", {"direction": "jensen_shannon", "beta": 0.2}),
        ("mse", {"beta": 0.2}),
        ("mse", {"activation": "sigmoid"}),
        (["kl_divergence", "mae"], {"direction": "reverse"}),
        ("categorical_crossentropy", {"direction": "reverse"}),
        (keras.losses.CategoricalCrossentropy(), {"beta": 0.2}),
    ],
)
def test_what_means_nothing_with_another_loss_is_refused(loss, options):
    with pytest.raises(ValueError, match="`direction`, `beta` and `activation` belong to the KL"):
        LogitsDistillation(loss=loss, **options)


@pytest.mark.parametrize("loss", [None, [None, None], {"a": None}])
def test_no_loss_at_all_is_refused(loss):
    with pytest.raises(ValueError, match="LogitsDistillation has no loss left to compute"):
        LogitsDistillation(loss=loss)


@pytest.mark.parametrize(
    "loss",
    [
        LogitsDistillation(),
        LogitsDistillation(loss="categorical_crossentropy"),
        SoftCrossEntropy(),
    ],
    ids=["kl", "crossentropy", "soft_cross_entropy"],
)
def test_a_softmax_over_one_class_is_refused_with_the_fix(loss):
    words = r"A softmax over one class is constant[\s\S]*\(activation=\"sigmoid\"\)"
    with pytest.raises(ValueError, match=words):
        loss.compute_loss(np.ones((4, 1)), np.ones((4, 1)))


def test_one_output_of_a_loss_without_softmax_is_allowed():
    loss = LogitsDistillation(2.0, loss="mse")
    assert loss.activation is None
    assert float(loss.compute_loss([[2.0], [0.0]], [[0.0], [0.0]])) == pytest.approx(0.5)


def test_beta_may_be_a_schedule(logits):
    falling = keras.optimizers.schedules.PiecewiseConstantDecay([10], [0.8, 0.3])
    loss = LogitsDistillation(2.0, direction="jensen_shannon", beta=falling)
    assert loss.schedules() == {"beta": falling}
    compiled = tf.function(lambda at: loss.compute_loss(*logits, step=at), autograph=False)
    for step, beta in ((0, 0.8), (11, 0.3)):
        expected = references.jensen_shannon(*logits, 2.0, beta=beta).mean()
        for value in (loss.compute_loss(*logits, step=step), compiled(tf.constant(step))):
            assert float(value) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="`beta` belongs to the Jensen-Shannon divergence"):
        LogitsDistillation(beta=falling)
