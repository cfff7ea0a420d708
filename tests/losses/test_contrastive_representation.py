"""ContrastiveRepresentation: oracle, laws, gradient, heads, queues and words."""

from __future__ import annotations

import inspect
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd as kd
from keras_kd.attached import Answer
from keras_kd.connections import Connections
from keras_kd.losses.contrastive_representation import (
    ContrastiveRepresentation,
    contrast,
    log_chance,
)
from tests import references
from tests.models import LOGITS, data, mlp


def mean_score(size, temperature):
    """The mean of exp(u·v/τ) over all u of length 1, by its integral over the cosine."""
    cosine = np.linspace(-1.0, 1.0, 200_001)
    density = np.maximum(1.0 - cosine**2, 0.0) ** ((size - 3) / 2)
    return (np.exp(cosine / temperature) * density).sum() / density.sum()


def crd(t, s, t_negatives, s_negatives, temperature, examples=50_000):
    """Tian et al. 2020: h = P / (P + N/M), and −log h − Σ log(1 − h⁻) of both directions.

    P is e^(…) over Z = M·z̄, as the authors' code normalises it; M is the number of examples.
    """
    t, s, t_negatives, s_negatives = map(references.float64, (t, s, t_negatives, s_negatives))
    z = examples * mean_score(t.shape[1], temperature)
    noise = len(t_negatives) / examples
    total = 0.0
    for anchor, positive, negatives in ((s, t, t_negatives), (t, s, s_negatives)):
        same = np.exp((anchor * positive).sum(-1) / temperature) / z
        others = np.exp(anchor @ negatives.T / temperature) / z
        total = total - np.log(same / (same + noise)) - np.log(noise / (others + noise)).sum(-1)
    return total


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def embedded(rng):
    """Embeddings of 4 examples on either side, and queues of 7; length 6."""
    return [unit(rng.normal(size=(n, 6))).astype("float32") for n in (4, 4, 7, 7)]


@pytest.fixture
def loss():
    return ContrastiveRepresentation(embedding_size=4, queue_size=5)


def heads_of(loss, teacher, student):
    """The connector, built as a Distiller does: once, on shapes."""
    shapes = [(None, *x.shape[1:]) for x in (teacher, student)]
    connector = loss.connector(*shapes)
    connector(*(keras.KerasTensor(shape, "float32") for shape in shapes))
    return connector


def queues_of(connector):
    """The teacher's and the student's queue."""
    heads = connector.teacher_heads[0], connector.student_heads[0]
    return [keras.ops.convert_to_numpy(head.queue) for head in heads]


def features(rng, batch=3):
    return [rng.normal(size=(batch, width)).astype("float32") for width in (6, 3)]


def test_the_defaults_are_the_papers_and_its_codes():
    defaults = inspect.signature(ContrastiveRepresentation).parameters
    assert defaults["embedding_size"].default == 128
    assert defaults["temperature"].default == 0.07
    assert defaults["queue_size"].default == 16384
    assert ContrastiveRepresentation().name == "contrastive_representation"
    assert ContrastiveRepresentation.paper == "Tian et al. 2020 (CRD)"


# --- the objective --------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.07, 0.1, 0.5, 2.0])
def test_it_is_the_papers_value(embedded, temperature):
    t, s, t_queue, s_queue = embedded
    expected = crd(*embedded, temperature)
    rows = contrast(*embedded, temperature)
    np.testing.assert_allclose(rows, expected, rtol=1e-5)
    loss = ContrastiveRepresentation(temperature=temperature)
    value = loss.compute_loss([[t, t_queue]], [[s, s_queue]])
    assert float(value) == pytest.approx(expected.mean(), rel=1e-5)


def test_the_number_of_examples_cancels(embedded):
    few, many = (crd(*embedded, 0.07, examples) for examples in (10, 10**6))
    np.testing.assert_allclose(few, many, rtol=1e-12)


def test_its_gradient_is_the_slope_of_the_papers_value(embedded):
    t, s, t_queue, s_queue = embedded
    sides = tf.Variable(t), tf.Variable(s)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(contrast(*sides, t_queue, s_queue, 0.5))
    slopes = tape.gradient(value, sides)
    by_teacher = references.gradient(lambda x: crd(x, s, t_queue, s_queue, 0.5).sum(), t)
    by_student = references.gradient(lambda x: crd(t, x, t_queue, s_queue, 0.5).sum(), s)
    np.testing.assert_allclose(slopes[0], by_teacher, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(slopes[1], by_student, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.02, 0.07, 0.5, 2.0])
def test_chance_in_one_and_three_dimensions_has_a_closed_form(temperature):
    k = 1.0 / temperature
    assert float(log_chance(1, temperature)) == pytest.approx(np.log(np.cosh(k)), rel=1e-5)
    assert float(log_chance(3, temperature)) == pytest.approx(np.log(np.sinh(k) / k), rel=1e-5)


def test_chance_is_what_the_authors_code_finds_in_its_first_batch(rng):
    bank = unit(rng.normal(size=(100_000, 128)))  # random, as the bank is at the start
    found = np.exp(bank @ unit(rng.normal(size=128)) / 0.07).mean()
    assert float(log_chance(128, 0.07)) == pytest.approx(np.log(found), rel=0.02)
    assert float(log_chance(128, 0.07)) == pytest.approx(np.log(mean_score(128, 0.07)), rel=1e-5)


def test_a_pair_that_agrees_costs_less(embedded):
    t, _, t_queue, s_queue = embedded
    apart, together = (contrast(t, x, t_queue, s_queue, 0.07) for x in (-t, t))
    assert np.all(together < apart)


def test_an_example_that_is_its_own_negative_costs_more(embedded):
    t, s, t_queue, s_queue = embedded
    with_itself = np.concatenate([t_queue[1:], s[:1]])
    rows, more = (contrast(t, s, queue, s_queue, 0.07) for queue in (t_queue, with_itself))
    assert more[0] > rows[0] + 1.0


def test_each_example_has_its_row(embedded):
    t, s, t_queue, s_queue = embedded
    weight = np.array([1.0, 0.0, 2.0, 0.5], "float32")
    expected = (weight * crd(*embedded, 0.07)).sum() / 4
    value = ContrastiveRepresentation().compute_loss(
        [[t, t_queue]], [[s, s_queue]], sample_weight=weight
    )
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_the_temperature_may_be_a_schedule(embedded):
    t, s, t_queue, s_queue = embedded
    schedule = keras.optimizers.schedules.PolynomialDecay(0.5, 2, 0.1)  # 0.3 at step 1
    value = ContrastiveRepresentation(temperature=schedule).compute_loss(
        [[t, t_queue]], [[s, s_queue]], step=1
    )
    assert float(value) == pytest.approx(crd(*embedded, 0.3).mean(), rel=1e-5)


# --- heads ----------------------------------------------------------------------------------------


def test_a_head_is_a_linear_map_of_the_flat_feature_onto_the_sphere(rng, loss):
    t, s = rng.normal(size=(3, 2, 2, 5)), rng.normal(size=(3, 7, 2))
    connector = heads_of(loss, t, s)
    kernels = [(4, 20), (4, 14)]
    for head, (outputs, inputs) in zip(
        (connector.teacher_heads[0], connector.student_heads[0]), kernels, strict=True
    ):
        assert head.linear.kernel.shape == (inputs, outputs)
        head.linear.bias.assign(rng.normal(size=outputs))
    for side, (given, head, (embeddings, _)) in enumerate(
        zip(
            (t, s),
            (connector.teacher_heads[0], connector.student_heads[0]),
            (part[0] for part in connector(t, s)),
            strict=True,
        )
    ):
        kernel, bias = (references.float64(w) for w in (head.linear.kernel, head.linear.bias))
        expected = unit(given.reshape(3, -1) @ kernel + bias)
        np.testing.assert_allclose(embeddings, expected, rtol=1e-4, atol=1e-6, err_msg=str(side))


def test_both_heads_are_trained_and_no_queue_is(rng, loss):
    t, s = features(rng)
    connector = heads_of(loss, t, s)
    assert len(connector.trainable_weights) == 4
    assert [w.name for w in connector.non_trainable_weights] == ["queue", "queue"]
    with tf.GradientTape() as tape:
        value = loss.compute_loss(*connector(t, s, training=True))
    slopes = tape.gradient(value, connector.trainable_weights)
    assert all(np.abs(slope).max() > 0.0 for slope in slopes)


def test_several_layers_have_a_head_each_and_are_added(rng, loss):
    t, s = features(rng)
    connector = loss.connector([(None, 6), (None, 3)], [(None, 3), (None, 6)])
    both = connector([t, s], [s, t])
    parts = [loss.compute_loss([both[0][i]], [both[1][i]]) for i in range(2)]
    assert float(loss.compute_loss(*both)) == pytest.approx(float(sum(parts)), rel=1e-6)
    assert len(connector.trainable_weights) == 8


def test_a_mask_passes_the_heads_quietly_and_is_refused(rng):
    sequences = [rng.normal(size=(3, 4, width)).astype("float32") for width in (6, 3)]
    loss = ContrastiveRepresentation(
        4, queue_size=5, teacher_layer_name="a", student_layer_name="b"
    )
    connections = Connections(loss, None)
    student = tf.constant(sequences[1])
    student._keras_mask = tf.ones((3, 4), bool)
    answers = [Answer(x, x, {name: x}, [x]) for name, x in (("a", sequences[0]), ("b", student))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        connections.join(*answers)
        with pytest.raises(
            ValueError, match="the padding of these sequences would change the loss"
        ):
            connections.values(*answers, None, None, 0)


def test_one_loss_serves_two_distillers(rng, loss):
    t, s = features(rng)
    first, second = heads_of(loss, t, s), heads_of(loss, t, s)
    before = queues_of(second)
    first(t, s, training=True)
    np.testing.assert_array_equal(queues_of(second), before)


# --- queues ---------------------------------------------------------------------------------------


def test_queues_start_with_random_vectors_of_length_one(rng, loss):
    teacher, student = queues_of(heads_of(loss, *features(rng)))
    assert teacher.shape == student.shape == (5, 4)
    np.testing.assert_allclose(np.linalg.norm([teacher, student], axis=-1), 1.0, rtol=1e-6)
    assert np.abs(teacher - student).max() > 0.1
    wide = queues_of(heads_of(ContrastiveRepresentation(16, queue_size=999), *features(rng)))[0]
    assert np.abs(wide.mean(axis=0)).max() < 0.04  # in no direction: 5 deviations of 1/√(16·999)


def test_a_training_step_puts_the_embeddings_in_and_the_oldest_out(rng, loss):
    t, s = features(rng, batch=2)
    connector = heads_of(loss, t, s)
    before = queues_of(connector)
    sides = connector(t, s, training=True)
    for side, old, new in zip(sides, before, queues_of(connector), strict=True):
        embeddings, seen = side[0]
        np.testing.assert_array_equal(seen, old)  # an example is no negative of its own step
        np.testing.assert_array_equal(new, np.concatenate([embeddings, old[:3]]))


def test_without_training_nothing_enters(rng, loss):
    t, s = features(rng)
    connector = heads_of(loss, t, s)
    before = queues_of(connector)
    connector(t, s)
    connector(t, s, training=False)
    np.testing.assert_array_equal(queues_of(connector), before)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_in_a_graph_batches_of_any_size_pass_through(rng, loss, jit_compile):
    connector = heads_of(loss, *features(rng))
    specs = [tf.TensorSpec((None, width)) for width in (6, 3)]

    @tf.function(input_signature=specs, jit_compile=jit_compile, autograph=False)
    def step(t, s):
        return connector(t, s, training=True)

    for batch in (2, 1, 7):  # a last, smaller batch; one larger than the queue
        before = queues_of(connector)
        sides = step(*features(rng, batch))
        for side, old, new in zip(sides, before, queues_of(connector), strict=True):
            embeddings, seen = side[0]
            np.testing.assert_array_equal(seen, old)
            np.testing.assert_array_equal(new, np.concatenate([embeddings, old])[:5])


def make(teacher, student):
    contrastive = ContrastiveRepresentation(
        embedding_size=4, queue_size=5, teacher_layer_name="hidden", student_layer_name="hidden"
    )
    distiller = kd.Distiller(teacher, student, [contrastive, kd.LogitsDistillation()])
    distiller.compile(keras.optimizers.Adam(0.01), LOGITS)
    return distiller


def test_queues_are_saved_filled_by_fit_alone_and_never_exported(tmp_path):
    x, y = data()
    teacher, student = mlp(16), mlp(4)
    distiller = make(teacher, student)
    distiller.fit(x, y, batch_size=7, shuffle=False, verbose=0)  # 7, 7, 7 and 3 examples
    queues = [w for w in distiller.non_trainable_weights if w.name == "queue"]
    kept = [w.numpy() for w in queues]
    distiller.evaluate(x, y, verbose=0)
    distiller.predict(x, verbose=0)
    np.testing.assert_array_equal([w.numpy() for w in queues], kept)
    distiller.save(tmp_path / "d.keras")
    loaded = kd.load_distiller(tmp_path / "d.keras", teacher=teacher)
    again = [w.numpy() for w in loaded.non_trainable_weights if w.name == "queue"]
    assert len(again) == 2
    np.testing.assert_array_equal(again, kept)
    for one in (distiller, loaded):
        one.fit(x, y, epochs=2, shuffle=False, verbose=0)
    for one, other in zip(distiller.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    distiller.export(tmp_path / "exported", verbose=False)
    variables = tf.saved_model.load(str(tmp_path / "exported")).variables
    assert sum(int(tf.size(v)) for v in variables) == student.count_params()


def test_under_replicas_the_first_ones_examples_fill_the_queues(rng):
    together = tf.distribute.ReductionToOneDevice()
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=together)
    t, s = features(rng, batch=8)
    loss = ContrastiveRepresentation(embedding_size=4, queue_size=6)
    with strategy.scope():
        connector = heads_of(loss, t, s)
    before = queues_of(connector)
    dataset = tf.data.Dataset.from_tensor_slices((t, s)).batch(8)

    @tf.function(autograph=False)
    def step(batch):
        return strategy.run(lambda pair: connector(*pair, training=True), args=(batch,))

    step(next(iter(strategy.experimental_distribute_dataset(dataset))))
    expected = connector(t[:4], s[:4])
    for side, old, new in zip(expected, before, queues_of(connector), strict=True):
        np.testing.assert_allclose(new, np.concatenate([side[0][0], old[:2]]), rtol=1e-5, atol=1e-6)


# --- words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["embedding_size", "queue_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, 8.0, True, "8"], ids=repr)
def test_a_size_that_is_no_whole_number_is_refused(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}` must be a whole number of 1 or more"):
        ContrastiveRepresentation(**{argument: value})


def test_sizes_of_one_are_allowed(rng):
    loss = ContrastiveRepresentation(embedding_size=1, queue_size=1)
    t, s = features(rng)
    assert np.isfinite(float(loss.compute_loss(*heads_of(loss, t, s)(t, s))))


def test_a_temperature_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="`temperature` must be positive"):
        ContrastiveRepresentation(temperature=0.0)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [((None, None, 4), (None, 3)), ((None, 3), (None, 3, None))],
    ids=["teacher", "student"],
)
def test_features_of_unknown_size_are_refused(loss, teacher, student):
    with pytest.raises(ValueError, match="A contrastive head needs features of a known size"):
        loss.connector(teacher, student)


@pytest.mark.parametrize("shapes", [((None,), (None, 3)), ((None, 3), (None,))], ids=str)
def test_features_of_one_axis_are_refused(loss, shapes):
    with pytest.raises(ValueError, match="The outputs have no axis but the batch's"):
        loss.connector(*shapes)


@pytest.mark.parametrize("bare", [0, 1], ids=["teacher", "student"])
def test_features_that_no_head_has_embedded_are_refused(rng, loss, bare):
    sides = list(heads_of(loss, *features(rng))(*features(rng)))
    for plain in (features(rng)[bare], [features(rng)[bare]]):
        given = [plain if side == bare else sides[side] for side in range(2)]
        with pytest.raises(ValueError, match="ContrastiveRepresentation compares embeddings"):
            loss.compute_loss(*given)


def test_batches_of_different_size_are_refused(rng, loss):
    t, s = features(rng)
    connector = heads_of(loss, t, s)
    words = r"shapes of teacher and student differ[\s\S]*features of the same examples"
    with pytest.raises(ValueError, match=words):
        loss.compute_loss(*connector(t, s[:1]))


def test_keras_own_distiller_is_told_why_not(rng):
    with pytest.raises(ValueError, match="has trained parts"):
        ContrastiveRepresentation().validate_outputs(*features(rng))
