"""Under tf.distribute the Distiller equals one device: uneven and empty last shares included."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd as kd
from keras_kd import replicas
from tests.losses.cases import CASES, CLASSES
from tests.models import LOGITS, data

GLOBAL_BATCH = 8


@pytest.fixture(scope="module")
def mirrored() -> tf.distribute.MirroredStrategy:
    """Two replicas. One strategy for all tests: several in a process share collective keys."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def model(width: int) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(width, name="hidden", kernel_regularizer="l2"),
            keras.layers.BatchNormalization(synchronized=True),
            keras.layers.ReLU(),
            keras.layers.Dense(3),
        ]
    )


def train(strategy, teacher_weights, student_weights, count: int) -> tuple[list, dict]:
    x, y = data(count)
    weight = np.linspace(0.1, 2.0, count).astype("float32")
    with strategy.scope():
        teacher, student = model(9), model(4)
        teacher.set_weights(teacher_weights)
        student.set_weights(student_weights)
        hint = kd.FeatureDistillation(
            teacher_layer_name="hidden",
            student_layer_name="hidden",
            projector=keras.layers.Dense(9, kernel_initializer="ones"),
        )
        decay = keras.optimizers.schedules.PolynomialDecay
        softened = kd.LogitsDistillation(decay(4.0, 8, 2.0))
        weights = [decay(1.0, 8, 0.5), 0.5]
        distiller = kd.Distiller(teacher, student, [softened, hint], weights)
        distiller.compile(keras.optimizers.SGD(0.1), LOGITS, metrics=["accuracy"])
    ds = tf.data.Dataset.from_tensor_slices((x, y, weight)).batch(GLOBAL_BATCH)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    history = distiller.fit(ds.with_options(options), epochs=2, verbose=0).history
    return distiller.get_weights(), history


@pytest.mark.parametrize("count", [16, 21, 17], ids=["even", "uneven", "empty last share"])
def test_two_replicas_equal_one_device(count, mirrored):
    teacher, student = model(9).get_weights(), model(4).get_weights()
    one, log_one = train(tf.distribute.get_strategy(), teacher, student, count)
    two, log_two = train(mirrored, teacher, student, count)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    for name in log_one:
        np.testing.assert_allclose(log_one[name], log_two[name], rtol=1e-5, err_msg=name)


def test_evaluation_over_two_replicas_equals_one_device(mirrored):
    x, y = data(21)
    teacher, student = model(9).get_weights(), model(4).get_weights()
    reports = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            t, s = model(9), model(4)
            t.set_weights(teacher)
            s.set_weights(student)
            distiller = kd.Distiller(t, s, kd.LogitsDistillation())
            distiller.compile("sgd", LOGITS, metrics=["accuracy"])
        ds = tf.data.Dataset.from_tensor_slices((x, y)).batch(GLOBAL_BATCH)
        reports.append(distiller.evaluate(ds, verbose=0, return_dict=True))
    assert reports[1] == pytest.approx(reports[0], rel=1e-5)
    assert sorted(reports[1]) == ["accuracy", "loss", "student_loss"]


def test_single_batches_over_two_replicas(mirrored):
    """Replicas take turns inside a step, and each keeps to the pass that it is in."""
    x, y = data(8)
    with mirrored.scope():
        distiller = kd.Distiller(model(9), model(4), kd.LogitsDistillation())
        distiller.compile("sgd", LOGITS)
    expected = LOGITS(y, distiller.student(x)).numpy() + sum(distiller.student.losses).numpy()
    report = distiller.test_on_batch(x, y, return_dict=True)
    assert report["loss"] == pytest.approx(expected, rel=1e-5)
    assert sorted(report) == ["loss", "student_loss"]
    learned = distiller.train_on_batch(x, y, return_dict=True)
    assert sorted(learned) == ["logits_distillation", "loss", "student_loss"]


def test_masked_sequences_over_two_replicas_equal_one_device(mirrored):
    def sequence(width):
        return keras.Sequential(
            [
                keras.Input((4,), dtype="int32"),
                keras.layers.Embedding(10, width, mask_zero=True),
                keras.layers.Dense(5),
            ]
        )

    tokens = np.array([[1, 2, 3, 4], [4, 5, 0, 0], [6, 0, 0, 0], [7, 8, 9, 0], [1, 0, 0, 0]])
    labels = tokens % 5
    starts = sequence(8).get_weights(), sequence(3).get_weights()
    results = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            teacher, student = sequence(8), sequence(3)
            teacher.set_weights(starts[0])
            student.set_weights(starts[1])
            distiller = kd.Distiller(teacher, student, kd.LogitsDistillation())
            distiller.compile(keras.optimizers.SGD(0.5), LOGITS)
        ds = tf.data.Dataset.from_tensor_slices((tokens, labels)).batch(4)
        history = distiller.fit(ds, epochs=2, verbose=0).history
        results.append((student.get_weights(), history))
    for a, b in zip(*[result[0] for result in results], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    for name, values in results[0][1].items():
        np.testing.assert_allclose(values, results[1][1][name], rtol=1e-5, err_msg=name)


def test_every_loss_trains_over_two_replicas(rng, mirrored):
    def network(width):
        layers = [
            keras.layers.Conv2D(width, 3, padding="same", name=name)
            for name in ("layer0", "layer1")
        ]
        head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(CLASSES)]
        return keras.Sequential([keras.Input((4, 4, 1)), *layers, *head])

    x = rng.normal(size=(7, 4, 4, 1)).astype("float32")
    y = keras.ops.convert_to_numpy(keras.ops.one_hot(np.arange(7) % CLASSES, CLASSES))
    with mirrored.scope():
        every = [case.make() for case in CASES]
        distiller = kd.Distiller(network(6), network(5), every, [1e-6] * len(every))
        distiller.compile(keras.optimizers.SGD(1e-6), keras.losses.CategoricalCrossentropy(True))
    ds = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    history = distiller.fit(ds, epochs=1, verbose=0).history
    assert set(distiller.connections.names) <= set(history)
    assert all(np.isfinite(values[0]) for values in history.values())


def test_several_masked_outputs_over_replicas_are_refused(monkeypatch):
    first, second = keras.ops.ones((2, 3)), keras.ops.ones((2, 3))
    first._keras_mask = second._keras_mask = keras.ops.ones((2, 3), dtype="bool")
    monkeypatch.setattr(replicas, "count", lambda: 2)
    with pytest.raises(ValueError, match=r"Several outputs with masks cannot be averaged exactly"):
        replicas.examples([first, second])
