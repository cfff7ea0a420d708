"""Metrics against NumPy transcriptions of the papers."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd as kd
from keras_kd.metrics import Agreement, ExpectedCalibrationError, TeacherDivergence


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-z))


def divergence(t: np.ndarray, s: np.ndarray, activation: str) -> np.ndarray:
    """Stanton et al. 2021, equation 4; Bernoulli for each label where it is a sigmoid."""
    t, s = t.astype("float64"), s.astype("float64")
    if activation == "softmax":
        p, q = softmax(t), softmax(s)
        return (p * np.log(p / q)).sum(-1)
    p, q = sigmoid(t), sigmoid(s)
    return (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(-1)


def agreement(t: np.ndarray, s: np.ndarray, activation: str) -> np.ndarray:
    """Stanton et al. 2021, equation 3."""
    if activation == "softmax":
        return (t.argmax(-1) == s.argmax(-1)).astype("float64")
    return ((t > 0) == (s > 0)).mean(-1)


def rows_of_confidence(confidences: list[float]) -> np.ndarray:
    """Two-class logits whose larger probability is as given, for class 0."""
    p = np.array(confidences)
    return np.stack([np.log(p), np.log(1 - p)], -1).astype("float32")


PAIRS = [(Agreement, agreement), (TeacherDivergence, divergence)]


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("shape", [(20, 3), (5, 4, 3)])
@pytest.mark.parametrize(("kind", "oracle"), PAIRS)
def test_against_the_paper(kind, oracle, shape, activation, rng) -> None:
    t, s = (rng.normal(size=shape).astype("float32") for _ in range(2))
    metric = kind(activation)
    metric.update_state(t[:2], s[:2])
    metric.update_state(t[2:], s[2:])
    assert float(metric.result()) == pytest.approx(oracle(t, s, activation).mean(), rel=1e-5)
    metric.reset_state()
    assert float(metric(t[:1], s[:1])) == pytest.approx(
        oracle(t[:1], s[:1], activation).mean(), rel=1e-4, abs=1e-6
    )


@pytest.mark.parametrize(("kind", "oracle"), PAIRS)
@pytest.mark.parametrize("shape", [(20, 3), (5, 4, 3)])
def test_sample_weights(kind, oracle, shape, rng) -> None:
    t, s = (rng.normal(size=shape).astype("float32") for _ in range(2))
    weight = rng.integers(0, 3, shape[:-1]).astype("float32")
    expected = np.average(oracle(t, s, "softmax"), weights=weight)
    assert float(kind()(t, s, sample_weight=weight)) == pytest.approx(expected, rel=1e-5)


def test_a_mask_hides_tokens_from_every_metric(rng) -> None:
    t, s = (rng.normal(size=(2, 3, 4)).astype("float32") for _ in range(2))
    mask = np.array([[True, True, False], [True, False, False]])
    for kind, oracle in PAIRS:
        student = tf.constant(s)
        student._keras_mask = tf.constant(mask)
        expected = oracle(t, s, "softmax")[mask].mean()
        assert float(kind()(t, student)) == pytest.approx(expected, rel=1e-5)
    student = tf.constant(s)
    student._keras_mask = tf.constant(mask)
    labels = rng.integers(0, 4, (2, 3))
    masked = float(ExpectedCalibrationError()(labels, student))
    assert masked == pytest.approx(float(ExpectedCalibrationError()(labels[mask], s[mask])))


def test_lists_and_half_precision_are_taken() -> None:
    t, s = [[2.0, -1.0], [0.5, 1.0]], [[1.0, -3.0], [2.0, 1.0]]
    for kind, oracle in PAIRS:
        for activation in ("softmax", "sigmoid"):
            expected = oracle(np.array(t), np.array(s), activation).mean()
            assert float(kind(activation)(t, s)) == pytest.approx(expected, rel=1e-5)
            half = [tf.constant(z, "float16") for z in (t, s)]
            assert float(kind(activation)(*half)) == pytest.approx(expected, rel=1e-5)


def test_divergence_far_from_zero_is_finite_and_exact() -> None:
    t, s = [[200.0, -200.0]], [[-200.0, 200.0]]
    assert float(TeacherDivergence()(t, s)) == pytest.approx(400.0)
    assert float(TeacherDivergence("sigmoid")(t, s)) == pytest.approx(400.0)
    assert float(TeacherDivergence()(t, t)) == 0.0


def test_calibration_on_an_example_by_hand() -> None:
    """Guo et al. 2017, equation 3, with M = 5.

    Confidences .55 (right) and .58 (wrong) lie in (.4, .6]; .7 (right) in (.6, .8]; .9 (right),
    .95 (wrong) in (.8, 1]:
    2/5·|.5 − .565| + 1/5·|1 − .7| + 2/5·|.5 − .925| = .026 + .06 + .17 = .256
    """
    logits = rows_of_confidence([0.55, 0.58, 0.7, 0.9, 0.95])
    labels = np.array([0, 1, 0, 0, 1])
    metric = ExpectedCalibrationError(bins=5)
    assert float(metric(labels, logits)) == pytest.approx(0.256, abs=1e-6)
    metric.reset_state()
    for row in range(5):
        metric.update_state(labels[row : row + 1], logits[row : row + 1])
    assert float(metric.result()) == pytest.approx(0.256, abs=1e-6)


def test_calibration_weighs_and_takes_sequences_and_columns() -> None:
    logits = rows_of_confidence([0.55, 0.58, 0.7, 0.9, 0.95, 0.6])
    labels = np.array([0, 1, 0, 0, 1, 1])
    ones = [1, 1, 1, 1, 1, 0]
    assert float(ExpectedCalibrationError(5)(labels, logits, ones)) == pytest.approx(
        0.256, abs=1e-6
    )
    assert float(ExpectedCalibrationError(5)(labels[:5, None], logits[:5])) == pytest.approx(
        0.256, abs=1e-6
    )
    sequence = ExpectedCalibrationError(5)
    result = sequence(labels.reshape(2, 3), logits.reshape(2, 3, 2), np.reshape(ones, (2, 3)))
    assert float(result) == pytest.approx(0.256, abs=1e-6)
    whole = ExpectedCalibrationError(5)
    result = whole(labels.reshape(2, 3), logits.reshape(2, 3, 2), [1.0, 0.0])
    first = float(ExpectedCalibrationError(5)(labels[:3], logits[:3]))
    assert float(result) == pytest.approx(first, abs=1e-6)


def test_calibration_of_nothing_is_zero() -> None:
    assert float(ExpectedCalibrationError().result()) == 0.0


@pytest.mark.parametrize(
    "metric",
    [
        Agreement("sigmoid", name="a"),
        TeacherDivergence("sigmoid", name="d"),
        ExpectedCalibrationError(bins=7, name="c"),
    ],
)
def test_metrics_are_serialised(metric) -> None:
    config = keras.saving.serialize_keras_object(metric)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(metric)
    assert again.get_config() == metric.get_config()


def test_metrics_in_compile_and_a_checkpoint_knows_which_way_is_better(rng) -> None:
    student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    student.compile(loss=loss, metrics=[kd.metrics.ExpectedCalibrationError(bins=5)])
    x, y = rng.normal(size=(20, 4)).astype("float32"), rng.integers(0, 3, 20)
    got = student.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
    expected = float(ExpectedCalibrationError(bins=5)(y, student(x)))
    assert got["calibration_error"] == pytest.approx(expected, abs=1e-6)
    student.compile(loss="mse", metrics=[Agreement(), TeacherDivergence()])
    targets = rng.normal(size=(20, 3)).astype("float32")
    got = student.evaluate(x, targets, batch_size=8, verbose=0, return_dict=True)
    expected = agreement(targets, student(x).numpy(), "softmax").mean()
    assert got["agreement"] == pytest.approx(expected, abs=1e-6)
    expected = divergence(targets, student(x).numpy(), "softmax").mean()
    assert got["teacher_kl"] == pytest.approx(expected, rel=1e-4)
    for name, mode in (("agreement", np.greater), ("teacher_kl", np.less)):
        stopping = keras.callbacks.EarlyStopping(monitor=name)
        stopping.set_model(student)
        stopping._set_monitor_op()
        assert stopping.monitor_op(2.0, 1.0) == mode(2.0, 1.0)


def test_what_makes_no_metric_is_refused() -> None:
    for kind in (Agreement, TeacherDivergence):
        with pytest.raises(ValueError, match=r"no activation 'softmx'[\s\S]*mean 'softmax'"):
            kind("softmx")
    with pytest.raises(ValueError, match="`bins` must be positive"):
        ExpectedCalibrationError(bins=0)
    with pytest.raises(ValueError, match="`bins` must be a whole number"):
        ExpectedCalibrationError(bins=2.5)
    with pytest.raises(TypeError, match="`bins` must be a number"):
        ExpectedCalibrationError(bins="15")


def test_the_calibration_error_of_probabilities_is_that_of_their_logits(rng) -> None:
    logits, labels = rng.normal(size=(40, 4)), rng.integers(0, 4, 40)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    by_logits = ExpectedCalibrationError()(labels, logits)
    by_probabilities = ExpectedCalibrationError(from_logits=False)(labels, p)
    np.testing.assert_allclose(by_probabilities, by_logits, atol=1e-6)
