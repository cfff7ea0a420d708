"""From one epoch to the next: who lets go of the past epoch's iterator, and when.

Whether letting go takes long is up to TensorFlow; `scripts/bench/soft_targets` times whole epochs.
"""

from __future__ import annotations

import inspect
import threading
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd as kd
from keras_kd.epochs import PastIterators

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Batches:
    """Notes the thread that lets go of it."""

    def __init__(self, gone: list[str]) -> None:
        self.gone = gone

    def __del__(self) -> None:
        self.gone.append(threading.current_thread().name)


def ended() -> None:
    """Wait for the threads that let go of something."""
    for thread in threading.enumerate():
        if thread.name == "keras_kd past epoch":
            thread.join()


def mlp(width: int, seed: int = 3) -> keras.Model:
    keras.utils.set_random_seed(seed)
    hidden = keras.layers.Dense(width, activation="relu")
    return keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(3)])


def single(steps: int = 1, **kwargs) -> kd.Distiller:
    made = kd.Distiller(mlp(8), mlp(3), kd.LogitsDistillation())
    made.compile("sgd", CROSS_ENTROPY, steps_per_execution=steps, **kwargs)
    return made


def mutual() -> kd.MutualDistiller:
    made = kd.MutualDistiller([mlp(3, seed=1), mlp(4, seed=2)])
    made.compile("sgd", CROSS_ENTROPY)
    return made


@pytest.fixture
def data() -> tf.data.Dataset:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 4)).astype("float32"), rng.integers(0, 3, 12)
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(3)


@pytest.fixture
def dropped(monkeypatch) -> dict:
    """The iterators that TensorFlow made and that something read: the threads that let go."""
    kind, seen = type(iter(tf.data.Dataset.range(1))), {}
    read = kind.__init__

    def noted(self, *args, **kwargs):
        read(self, *args, **kwargs)
        number = len(seen)
        seen[number] = None
        weakref.finalize(
            self, lambda: seen.__setitem__(number, threading.current_thread().name)
        ).atexit = False

    monkeypatch.setattr(kind, "__init__", noted)
    return seen


def test_the_next_epoch_lets_go_of_the_past_ones_batches_in_another_thread():
    past, gone, order = PastIterators(), [], []
    execute = past.before(lambda batches: order.append(len(batches.gone)) or "logs", "training")
    with past.kept():
        batches = Batches(gone)
        assert [execute(batches), execute(batches)] == ["logs", "logs"]
        batches = Batches(gone)
        assert gone == [], "kept until the next epoch's first execution"
        execute(batches)
        ended()
        assert gone == ["keras_kd past epoch"]
        del batches
        assert len(gone) == 1
    assert gone == ["keras_kd past epoch", threading.current_thread().name], "the last one at once"


def test_validation_does_not_follow_training():
    past, gone = PastIterators(), []
    train, validate = past.before(len, "training"), past.before(len, "validation")
    with past.kept():
        one, other = [1], [1, 2]
        assert (train(one), validate(other), train(one), validate(other)) == (1, 2, 1, 2)
        weak = Batches(gone)
        past.before(lambda batches: None, "validation")(weak)
        del weak
        train([0])
        ended()
        assert gone == []


def test_outside_fit_nothing_is_kept():
    past, gone = PastIterators(), []
    past.before(lambda batches: None, "training")(Batches(gone))
    assert gone == [threading.current_thread().name]


def test_what_fails_keeps_nothing():
    past, gone = PastIterators(), []

    def broken(batches):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), past.kept():
        past.before(broken, "training")(Batches(gone))
    assert len(gone) == 1


@pytest.mark.parametrize(
    "make", (single, lambda: single(2), lambda: single(run_eagerly=True), mutual)
)
def test_fit_lets_go_of_each_epoch_and_ends_with_nothing_kept(make, data, dropped):
    distiller = make()
    distiller.fit(data, validation_data=data, epochs=4, verbose=0)
    ended()
    threads = list(dropped.values())
    assert None not in threads, "an iterator outlives fit"
    assert threads.count("keras_kd past epoch") >= 6, "3 epochs of training, 3 of validation"
    assert threading.current_thread().name in threads, "the last epoch's is let go of in fit"
    assert distiller._past._kept is None


def test_evaluate_alone_lets_go_before_it_returns(data, dropped):
    distiller = single()
    distiller.evaluate(data, verbose=0)
    assert set(dropped.values()) == {threading.current_thread().name}


def test_a_fit_inside_a_fit_ends_with_what_the_outer_one_keeps(data, dropped):
    distiller, inner = single(), single()

    def nested(epoch, logs):
        inner.fit(data, epochs=2, verbose=0)
        distiller.evaluate(data, verbose=0)

    callback = keras.callbacks.LambdaCallback(on_epoch_end=nested)
    distiller.fit(data, epochs=3, callbacks=[callback], verbose=0)
    ended()
    assert None not in dropped.values()


def test_the_signature_and_the_words_are_keras_own():
    for kind in (kd.Distiller, kd.MutualDistiller):
        assert inspect.signature(kind.fit) == inspect.signature(keras.Model.fit)
        assert kind.fit.__doc__ == keras.Model.fit.__doc__


def test_the_step_is_made_once_and_anew_after_compile(data):
    distiller = single()
    distiller.fit(data, validation_data=data, verbose=0)
    train, test = distiller.train_function, distiller.test_function
    distiller.fit(data, validation_data=data, verbose=0)
    assert (distiller.train_function, distiller.test_function) == (train, test)
    distiller.compile("sgd", CROSS_ENTROPY)
    distiller.fit(data, validation_data=data, verbose=0)
    assert distiller.train_function is not train
    assert distiller.test_function is not test
