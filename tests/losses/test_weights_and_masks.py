"""Sample weights and Keras masks: Σ w·m·ℓ / Σ m, for every loss."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd import losses
from tests import references

BATCH, TIME, CLASSES = 4, 5, 3
PER_EXAMPLE = [
    pytest.param(
        losses.LogitsDistillation(2.0),
        lambda t, s: references.kl_divergence(t, s, 2.0),
        id="forward",
    ),
    pytest.param(
        losses.LogitsDistillation(2.0, direction="reverse"),
        lambda t, s: references.reverse_kl_divergence(t, s, 2.0),
        id="reverse",
    ),
    pytest.param(
        losses.LogitsDistillation(2.0, direction="jensen_shannon", beta=0.3),
        lambda t, s: references.jensen_shannon(t, s, 2.0, 0.3),
        id="jensen_shannon",
    ),
    pytest.param(
        losses.LogitsDistillation(2.0, activation="sigmoid"),
        lambda t, s: references.kl_divergence(t, s, 2.0, "sigmoid"),
        id="sigmoid",
    ),
    pytest.param(
        losses.LogitsDistillation(2.0, loss="mse"),
        lambda t, s: np.mean((t - s) ** 2, -1) / 4.0,
        id="mse",
    ),
    pytest.param(losses.SoftCrossEntropy(), references.soft_cross_entropy, id="cross_entropy"),
    pytest.param(losses.HardLabelDistillation(), references.hard_label, id="hard_label"),
    pytest.param(losses.LogitMatching(), references.logit_matching, id="logit_matching"),
    pytest.param(
        losses.FeatureDistillation(), lambda t, s: np.mean((t - s) ** 2, -1), id="feature"
    ),
]


@pytest.fixture
def examples(rng):
    """Outputs of shape (batch, classes)."""
    return [rng.normal(size=(BATCH, CLASSES)) for _ in range(2)]


@pytest.fixture
def tokens(rng):
    """Outputs of shape (batch, time, classes)."""
    return [rng.normal(size=(BATCH, TIME, CLASSES)) for _ in range(2)]


def value_of(loss, pair, **kwargs) -> float:
    return float(loss.compute_loss(*pair, **kwargs))


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "_"), PER_EXAMPLE)
def test_weights_of_one_are_no_weights_and_weights_of_zero_are_zero(examples, loss, _):
    plain = value_of(loss, examples)
    assert value_of(loss, examples, sample_weight=np.ones(BATCH)) == pytest.approx(plain, rel=1e-6)
    assert value_of(loss, examples, sample_weight=np.zeros(BATCH)) == 0.0


@pytest.mark.parametrize(("loss", "reference"), PER_EXAMPLE)
@pytest.mark.parametrize("shape", [(BATCH,), (BATCH, 1)])
def test_a_weighted_loss_is_divided_by_the_number_of_examples(
    rng, examples, loss, reference, shape
):
    weight = rng.uniform(0.0, 3.0, size=BATCH)
    expected = (weight * reference(*examples)).sum() / BATCH
    value = value_of(loss, examples, sample_weight=weight.reshape(shape))
    assert value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("loss", "reference"), PER_EXAMPLE)
@pytest.mark.parametrize("shape", [(BATCH,), (BATCH, 1), (BATCH, TIME), (BATCH, TIME, 1)])
def test_weights_of_sequences_are_for_examples_or_positions(rng, tokens, loss, reference, shape):
    weight = rng.uniform(0.0, 3.0, size=shape)
    each = weight.reshape(BATCH, -1) * np.ones((BATCH, TIME))
    expected = (each * reference(*tokens)).sum() / (BATCH * TIME)
    assert value_of(loss, tokens, sample_weight=weight) == pytest.approx(expected, rel=1e-6)


def test_a_weighted_loss_is_what_keras_makes_of_the_same_weights(rng, examples):
    weight = rng.uniform(0.0, 3.0, size=BATCH)
    theirs = keras.losses.MeanSquaredError()(*examples, sample_weight=weight)
    ours = value_of(losses.FeatureDistillation(), examples, sample_weight=weight)
    assert ours == pytest.approx(float(theirs), rel=1e-6)


def test_weights_may_be_lists_integers_or_half_precision(examples):
    loss, weight = losses.LogitsDistillation(), [0, 1, 2, 1]
    expected = (weight * references.kl_divergence(*examples, 3.0)).sum() / BATCH
    for given in (weight, np.array(weight), tf.constant(weight, "float16")):
        assert value_of(loss, examples, sample_weight=given) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", [(3,), (BATCH, 2), (BATCH, CLASSES), (BATCH, 1, 1)])
def test_a_weight_of_another_shape_is_refused(examples, shape):
    words = r"A sample_weight of shape .* does not fit losses of shape \(4,\)[\s\S]*for each"
    with pytest.raises(ValueError, match=words):
        losses.LogitsDistillation().compute_loss(*examples, sample_weight=np.ones(shape))


def test_class_weight_in_fit_is_the_weighted_value(rng):
    import keras_kd as kd

    def linear():
        return keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])

    x, y = rng.normal(size=(8, 6)).astype("float32"), np.arange(8) % 3
    teacher, student = linear(), linear()
    logits = [np.asarray(model(x)) for model in (teacher, student)]
    factors = {0: 0.5, 1: 2.0, 2: 0.0}
    each = np.array([factors[label] for label in y])
    expected = (each * references.kl_divergence(*logits, 3.0)).sum() / 8
    distiller = kd.Distiller(teacher, student, kd.LogitsDistillation())
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    logs = distiller.fit(x, y, batch_size=8, class_weight=factors, verbose=0).history
    assert logs["logits_distillation"][0] == pytest.approx(expected, rel=1e-5)


# --- masks ----------------------------------------------------------------------------------------


def masked(values, lengths):
    """Values as a Keras layer with a mask hands them on: real up to each length."""
    steps = np.arange(values.shape[1])
    real = steps < np.asarray(lengths)[:, None]
    signal = np.where(real[..., None], 1.0, 0.0).astype("float32")
    tensor = tf.convert_to_tensor(values, "float32")
    tensor._keras_mask = keras.layers.Masking()(signal)._keras_mask
    return tensor, real


@pytest.mark.parametrize(("loss", "reference"), PER_EXAMPLE)
def test_a_masked_loss_is_divided_by_the_number_of_real_tokens(tokens, loss, reference):
    teacher, student = tokens
    output, real = masked(student, [1, 5, 3, 2])
    expected = (real * reference(teacher, student)).sum() / real.sum()
    assert value_of(loss, (teacher, output)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("loss", "reference"), PER_EXAMPLE)
@pytest.mark.parametrize("shape", [(BATCH,), (BATCH, TIME)])
def test_weights_and_masks_together_are_divided_by_the_real_tokens(
    rng, tokens, loss, reference, shape
):
    teacher, student = tokens
    output, real = masked(student, [1, 5, 3, 2])
    weight = rng.uniform(0.0, 2.0, size=shape)
    each = real * weight.reshape(BATCH, -1)
    expected = (each * reference(teacher, student)).sum() / real.sum()
    value = value_of(loss, (teacher, output), sample_weight=weight)
    assert value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("loss", "_"), PER_EXAMPLE)
def test_the_amount_of_padding_changes_nothing(rng, tokens, loss, _):
    lengths = [1, 5, 3, 2]
    teacher, student = tokens
    padding = rng.normal(size=(BATCH, 4, CLASSES))
    longer = [np.concatenate([values, padding], axis=1) for values in tokens]
    short = value_of(loss, (teacher, masked(student, lengths)[0]))
    long = value_of(loss, (longer[0], masked(longer[1], lengths)[0]))
    assert long == pytest.approx(short, rel=1e-6)


@pytest.mark.parametrize(("loss", "_"), PER_EXAMPLE)
def test_nan_at_padded_positions_reaches_neither_value_nor_gradient(tokens, loss, _):
    lengths = [1, 5, 3, 2]
    expected = value_of(loss, (tokens[0], masked(tokens[1], lengths)[0]))
    real = masked(tokens[1], lengths)[1]
    teacher, student = (np.where(real[..., None], values, np.nan) for values in tokens)
    variable = tf.Variable(student, dtype="float32")
    with tf.GradientTape() as tape:
        output = tf.identity(variable)
        output._keras_mask = tf.constant(real)
        value = loss.compute_loss(teacher, output)
    gradient = tape.gradient(value, variable).numpy()
    assert float(value) == pytest.approx(expected, rel=1e-6)
    assert np.isfinite(gradient).all()
    assert (gradient[~real] == 0.0).all()


@pytest.mark.parametrize(("loss", "_"), PER_EXAMPLE)
def test_a_batch_of_padding_alone_is_zero(tokens, loss, _):
    assert value_of(loss, (tokens[0], masked(tokens[1], [0] * BATCH)[0])) == 0.0


def test_the_mask_of_an_embedding_is_honoured(rng):
    ids = np.array([[3, 1, 0, 0], [2, 2, 5, 1]])
    embedding = keras.layers.Embedding(6, CLASSES, mask_zero=True)
    output = keras.layers.Dense(CLASSES)(embedding(ids))
    teacher = rng.normal(size=(2, 4, CLASSES))
    each = references.kl_divergence(teacher, np.asarray(output), 3.0)
    expected = (each * (ids > 0)).sum() / 6
    value = value_of(losses.LogitsDistillation(), (teacher, output))
    assert value == pytest.approx(expected, rel=1e-6)


def test_a_mask_of_another_shape_is_refused(rng):
    output = tf.constant(rng.normal(size=(2, 4, CLASSES)))
    output._keras_mask = tf.constant(np.ones((2, 3), bool))
    with pytest.raises(ValueError, match=r"A mask of shape \(2, 3\) does not fit"):
        losses.LogitsDistillation().compute_loss(rng.normal(size=(2, 4, CLASSES)), output)
