"""MultiLevelLogits: oracle, laws, gradient and words."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf
from keras.optimizers.schedules import PiecewiseConstantDecay

from keras_kd.losses import LogitsDistillation
from keras_kd.losses.multi_level import MultiLevelLogits, batch_level, class_level
from tests import references

CLASSES = 5
LEVELS = (batch_level, class_level)
TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)


def levels(t, s, temperature):
    """The three levels of Jin et al. 2023 as the authors' code divides them, one row an example."""
    p, q = (references.softmax(references.float64(z) / temperature) for z in (t, s))
    batch = np.sum((p @ p.T - q @ q.T) ** 2) / len(p)
    classes = np.sum((p.T @ p - q.T @ q) ** 2) / p.shape[-1]
    return references.kl_divergence(t, s, temperature).mean(), batch, classes


def oracle(
    t, s, temperatures=TEMPERATURES, instance_weight=1.0, batch_weight=1.0, class_weight=1.0
):
    """The sum of the levels over the temperatures."""
    t, s = (z.reshape(-1, z.shape[-1]) for z in (t, s))
    weights = (instance_weight, batch_weight, class_weight)
    return sum(np.dot(weights, levels(t, s, temperature)) for temperature in temperatures)


@pytest.fixture
def logits(rng):
    """A teacher's and a student's logits, (8, 5) float32."""
    return [rng.normal(scale=4.0, size=(8, CLASSES)).astype("float32") for _ in range(2)]


@pytest.fixture
def tokens(rng):
    """Logits of sequences, (2, 3, 5) float32."""
    return [rng.normal(scale=4.0, size=(2, 3, CLASSES)).astype("float32") for _ in range(2)]


def test_the_defaults_are_the_authors():
    loss = MultiLevelLogits()
    assert loss.temperatures == [2.0, 3.0, 4.0, 5.0, 6.0]
    assert (loss.instance_weight, loss.batch_weight, loss.class_weight) == (1.0, 1.0, 1.0)
    assert (loss.name, loss.space, loss.activation) == ("multi_level_logits", "logits", "softmax")
    assert loss.needs_labels is False


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperatures": (1.0,)},
        {"temperatures": [1, 8.0]},
        {"instance_weight": 0.0, "batch_weight": 2.0, "class_weight": 0.0},
        {"instance_weight": 0.0, "batch_weight": 0.0, "class_weight": 3.0},
        {"instance_weight": 0.5, "batch_weight": 0.0, "class_weight": 0.0},
    ],
    ids=str,
)
def test_it_is_the_papers_value(logits, options):
    value = MultiLevelLogits(**options).compute_loss(*logits)
    assert float(value) == pytest.approx(oracle(*logits, **options), rel=1e-5)


def test_the_positions_of_a_sequence_are_examples(tokens):
    value = MultiLevelLogits().compute_loss(*tokens)
    assert float(value) == pytest.approx(oracle(*tokens), rel=1e-5)


def test_padding_is_in_no_batch(tokens):
    t, s = tokens
    mask = np.array([[True, True, False], [True, True, False]])
    padded = tf.convert_to_tensor(s)
    padded._keras_mask = tf.convert_to_tensor(mask)
    value = MultiLevelLogits().compute_loss(t, padded)
    assert float(value) == pytest.approx(oracle(t[mask], s[mask]), rel=1e-5)


def test_examples_of_weight_zero_are_in_no_batch(logits):
    t, s = logits
    weight = np.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    value = MultiLevelLogits().compute_loss(t, s, sample_weight=weight)
    expected = oracle(t[weight > 0], s[weight > 0]) * 6 / 8
    assert float(value) == pytest.approx(expected, rel=1e-5)
    rows = MultiLevelLogits().per_example(tf.constant(t), tf.constant(s), tf.constant(weight > 0))
    np.testing.assert_array_equal(np.asarray(rows)[weight == 0], 0.0)
    assert float(MultiLevelLogits().compute_loss(t, s, sample_weight=np.zeros(8))) == 0.0


def test_its_first_level_is_the_classic_loss(logits):
    loss = MultiLevelLogits(temperatures=[3.0, 4.0], batch_weight=0.0, class_weight=0.0)
    classic = sum(float(LogitsDistillation(T).compute_loss(*logits)) for T in (3.0, 4.0))
    assert float(loss.compute_loss(*logits)) == pytest.approx(classic, rel=1e-6)


def test_a_row_of_the_batch_level_is_one_examples_resemblances(logits):
    p, q = (references.softmax(z) for z in logits)
    expected = np.sum((p @ p.T - q @ q.T) ** 2, axis=-1)
    rows = batch_level(p.astype("float32"), q.astype("float32"))
    np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-7)


def test_the_levels_take_several_batches_at_once(rng):
    p, q = (references.softmax(rng.normal(scale=4.0, size=(3, 8, CLASSES))) for _ in range(2))
    rows, classes = (level(p.astype("float32"), q.astype("float32")) for level in LEVELS)
    for number, (one, other) in enumerate(zip(p, q, strict=True)):
        batch = np.sum((one @ one.T - other @ other.T) ** 2, axis=-1)
        np.testing.assert_allclose(rows[number], batch, rtol=1e-5, atol=1e-7)
        expected = np.sum((one.T @ one - other.T @ other) ** 2) / CLASSES
        assert float(classes[number]) == pytest.approx(expected, rel=1e-5)


def test_the_batch_level_keeps_its_digits_near_the_teacher(logits):
    p = references.softmax(logits[0]).astype("float32")
    q = p * np.float32(1.0) + np.float32(2.0**-14) * np.sign(logits[1])
    exact_p, exact_q = (z.astype("float64") for z in (p, q))
    expected = np.sum((exact_p @ exact_p.T - exact_q @ exact_q.T) ** 2, axis=-1)
    np.testing.assert_allclose(batch_level(p, q), expected, rtol=1e-4)
    expected = np.sum((exact_p.T @ exact_p - exact_q.T @ exact_q) ** 2) / CLASSES
    assert float(class_level(p, q)) == pytest.approx(expected, rel=1e-4)


def test_the_levels_see_what_they_are_named_after():
    p, q = np.eye(3, dtype="float32"), np.eye(3, dtype="float32")[[1, 2, 0]]
    # examples of three classes resemble nobody, whichever classes they are
    np.testing.assert_allclose(batch_level(p, q), np.zeros(3), atol=1e-6)
    assert float(class_level(p, q)) == pytest.approx(0.0, abs=1e-6)
    one = np.eye(3, dtype="float32")[[0, 0, 0]]
    # all alike: six of nine resemblances are new; class sizes 3, 0, 0 in the place of 1, 1, 1
    np.testing.assert_allclose(batch_level(p, one), [2.0, 2.0, 2.0], rtol=1e-6)
    assert float(class_level(p, one)) == pytest.approx((4 + 1 + 1) / 3, rel=1e-6)


@pytest.mark.parametrize("weight", [None, np.linspace(0.1, 2.0, 8)], ids=["plain", "weighted"])
def test_it_is_zero_and_flat_at_teacher_equals_student(logits, weight):
    t, s = logits
    variable = tf.Variable(t)
    with tf.GradientTape() as tape:
        value = MultiLevelLogits().compute_loss(t, variable, sample_weight=weight)
    assert float(value) == 0.0
    np.testing.assert_allclose(tape.gradient(value, variable), np.zeros((8, 5)), atol=1e-6)
    near = MultiLevelLogits().compute_loss(t, t + 0.01 * s, sample_weight=weight)
    assert float(near) > 0.0


def test_the_order_of_classes_and_of_examples_does_not_matter(rng, logits):
    examples, classes = rng.permutation(8), rng.permutation(CLASSES)
    mixed = [z[examples][:, classes] for z in logits]
    value = MultiLevelLogits().compute_loss(*mixed)
    assert float(value) == pytest.approx(oracle(*logits), rel=1e-5)


@pytest.mark.parametrize("level", ["instance_weight", "batch_weight", "class_weight"])
def test_its_gradient_is_that_of_the_papers_value(logits, level):
    t, s = logits
    none = dict.fromkeys(["instance_weight", "batch_weight", "class_weight"], 0.0)
    options = {**none, level: 1.0}
    variable = tf.Variable(s)
    with tf.GradientTape() as tape:
        value = MultiLevelLogits(**options).compute_loss(t, variable)
    expected = references.gradient(lambda z: oracle(t, z, **options), s)
    np.testing.assert_allclose(tape.gradient(value, variable), expected, rtol=1e-4, atol=1e-5)


def test_logits_of_ten_thousand_stay_finite():
    t, s = 1e4 * np.eye(3, dtype="float32"), tf.Variable(1e4 * np.eye(3, dtype="float32")[::-1])
    loss = MultiLevelLogits(temperatures=[1.0])
    with tf.GradientTape() as tape:
        value = loss.compute_loss(t, s)
    assert float(value) == pytest.approx(2e4 / 3, rel=1e-6)  # the middle example agrees
    assert np.isfinite(tape.gradient(value, s)).all()


def test_weights_may_be_schedules(logits):
    falling = PiecewiseConstantDecay([10], [6.0, 2.0])
    for name in ("instance_weight", "batch_weight", "class_weight"):
        loss = MultiLevelLogits(**{name: falling})
        for step, number in ((0, 6.0), (11, 2.0)):
            value = loss.compute_loss(*logits, step=step)
            assert float(value) == pytest.approx(oracle(*logits, **{name: number}), rel=1e-5)


def test_each_temperature_may_be_a_schedule(logits):
    falling = PiecewiseConstantDecay([10], [6.0, 2.0])
    loss = MultiLevelLogits(temperatures=[3.0, falling])
    assert loss.schedules() == {"temperatures_1": falling}
    again = MultiLevelLogits.from_config(json.loads(json.dumps(loss.get_config())))
    for step, number in ((0, 6.0), (11, 2.0)):
        expected = oracle(*logits, temperatures=[3.0, number])
        compiled = tf.function(lambda at: again.compute_loss(*logits, step=at), autograph=False)
        for value in (loss.compute_loss(*logits, step=step), compiled(tf.constant(step))):
            assert float(value) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("given", [4.0, [], None, "4"], ids=str)
def test_temperatures_that_are_no_list_of_numbers_are_refused(given):
    with pytest.raises(TypeError, match=r"`temperatures` must be numbers, at least one[\s\S]*fix"):
        MultiLevelLogits(temperatures=given)


def test_what_it_cannot_compare_is_refused(logits):
    t, s = logits
    with pytest.raises(ValueError, match="the shapes of teacher and student differ"):
        MultiLevelLogits().compute_loss(t, s[:, :4])
    with pytest.raises(ValueError, match="A softmax over one class is constant"):
        MultiLevelLogits().compute_loss(t[:, :1], s[:, :1])
    with pytest.raises(ValueError, match="`temperatures` must be positive"):
        MultiLevelLogits(temperatures=[2.0, 0.0])
    for name in ("instance_weight", "batch_weight", "class_weight"):
        with pytest.raises(TypeError, match=f"`{name}` must be a number"):
            MultiLevelLogits(**{name: "1"})
