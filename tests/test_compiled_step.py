"""A step that XLA compiles as a whole teaches the same, and is left out where it would not pay."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import keras_kd as kd

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
WIDE = 192  # a square of weights that is large enough


def network(*more, width=WIDE, shape=(8,), seed=0) -> keras.Model:
    keras.utils.set_random_seed(seed)
    wide = [layers.Dense(width, activation="relu"), layers.Dense(width, activation="relu")]
    return keras.Sequential([keras.Input(shape), *wide, *more, layers.Dense(3)])


def data(shape=(8,), batch=4) -> tf.data.Dataset:
    """Ten examples: two batches of four and a shorter one."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(10, *shape)).astype("float32"), rng.integers(0, 3, 10)
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch)


def distiller(student=None, teacher=None, losses=None, **kwargs) -> kd.Distiller:
    made = kd.Distiller(
        teacher or network(width=4, seed=1),
        student or network(),
        losses or kd.LogitsDistillation(temperature=2.0),
    )
    kwargs = {"metrics": ["accuracy"], "loss": CROSS_ENTROPY} | kwargs
    made.compile(keras.optimizers.Adam(0.01), **kwargs)
    return made


@pytest.fixture
def compiled(monkeypatch) -> list[bool]:
    """What `jit_compile` was each time that Keras made a train step; the last one is used."""
    asked: list[bool] = []
    make = keras.Model.make_train_function

    def noted(self, force=False):
        if force or self.train_function is None:
            asked.append(self.jit_compile)
        return make(self, force=force)

    monkeypatch.setattr(keras.Model, "make_train_function", noted)
    return asked


@pytest.mark.parametrize("steps", [1, 2])
def test_a_student_of_large_dense_layers_learns_the_same(compiled, steps):
    ours = distiller(steps_per_execution=steps)
    history = ours.fit(data(), epochs=3, verbose=0).history
    assert compiled[-1] is True and ours.jit_compile is False
    plain = distiller(steps_per_execution=steps, jit_compile=False)
    expected = plain.fit(data(), epochs=3, verbose=0).history
    assert compiled[-1] is False
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-4, err_msg=name)
    for own, other in zip(ours.student.get_weights(), plain.student.get_weights(), strict=True):
        np.testing.assert_allclose(own, other, atol=1e-4)
    assert ours.evaluate(data(), verbose=0) == pytest.approx(plain.evaluate(data(), verbose=0))


def test_soft_targets_and_a_projector_go_through(compiled, tmp_path):
    hint = layers.Dense(5, name="hint")
    teacher = network(hint, width=4, seed=1)
    losses = [
        kd.LogitsDistillation(temperature=2.0),
        kd.FeatureDistillation(teacher_layer_name="hint", student_layer_name="own"),
    ]
    soft = kd.SoftTargets.build(teacher, data(), tmp_path / "soft", layers=["hint"], verbose=0)
    curves = []
    for jit in ("auto", False):
        keras.utils.set_random_seed(3)
        own = distiller(network(layers.Dense(6, name="own")), soft, losses, jit_compile=jit)
        curves.append(own.fit(soft.attach(data()), epochs=3, verbose=0).history["loss"])
        assert compiled[-1] is (jit == "auto")
    np.testing.assert_allclose(*curves, rtol=1e-4)


def test_each_compile_decides_anew(compiled):
    ours = distiller()
    ours.fit(data(), verbose=0)
    ours.compile("sgd", CROSS_ENTROPY)
    ours.fit(data(), verbose=0)
    assert compiled[-1] is True
    ours.compile("sgd", CROSS_ENTROPY, jit_compile=False)
    ours.fit(data(), verbose=0)
    assert compiled[-1] is False


def test_what_xla_lacks_runs_as_before_and_no_batch_is_lost(compiled):
    seen = []

    @keras.saving.register_keras_serializable()
    class Peeking(keras.losses.Loss):
        def call(self, y_true, y_pred):
            def note(y):
                seen.append(len(y))
                return y

            y = tf.ensure_shape(tf.numpy_function(note, [y_true], y_true.dtype), y_true.shape)
            return ops.sparse_categorical_crossentropy(y, y_pred, from_logits=True)

    ours = distiller(loss=Peeking())
    ours.fit(data(), epochs=2, verbose=0)
    assert compiled == [False, True]  # and then the first one was taken
    assert seen == [4, 4, 2] * 2 and int(ours.optimizer.iterations) == 6


def test_an_error_in_the_data_is_not_taken_for_one_of_xla():
    def broken(x, y):
        return tf.debugging.check_numerics(x / tf.cast(y - y, tf.float32)[0], "broken"), y

    ours = distiller()
    first = data().take(1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="broken"):
        ours.fit(first.concatenate(data().map(broken)), verbose=0)


def small():
    return network(width=8)


def convolutional():
    more = [layers.Reshape((WIDE, 1)), layers.Conv1D(2, 3), layers.Flatten()]
    return network(*more)


def in_bfloat16():
    return network(layers.Dense(8, dtype="bfloat16"))


@pytest.mark.parametrize("student", [small, convolutional, in_bfloat16])
def test_other_students_are_left_to_tensorflow(compiled, student):
    distiller(student()).fit(data(), verbose=0)
    assert not any(compiled)


def test_a_convolutional_teacher_leaves_it_to_tensorflow(compiled):
    distiller(teacher=convolutional()).fit(data(), verbose=0)
    assert not any(compiled)


def test_batches_of_unknown_length_are_left_to_tensorflow(compiled):
    def model():
        inputs = keras.Input((None, 8))
        hidden = layers.Dense(WIDE, activation="relu")(layers.Dense(WIDE)(inputs))
        return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(hidden)))

    def batches():
        for length in (3, 5):
            yield np.ones((4, length, 8), "float32"), np.zeros(4, "int64")

    spec = (tf.TensorSpec((4, None, 8)), tf.TensorSpec((4,), tf.int64))
    rows = tf.data.Dataset.from_generator(batches, output_signature=spec)
    rows = rows.apply(tf.data.experimental.assert_cardinality(2))
    distiller(model(), model()).fit(rows, verbose=0)
    assert not any(compiled)


def test_train_on_batch_and_eager_steps_are_left_as_they_are(compiled):
    x, y = next(iter(data()))
    distiller().train_on_batch(x, y)
    distiller(run_eagerly=True).fit(data(), verbose=0)
    assert not any(compiled)


KEEP = "from keras_kd import freed_memory; print(freed_memory.keep())"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps memory")
@pytest.mark.parametrize(("name", "kept"), [(None, "True"), ("MALLOC_TOP_PAD_", "False")])
def test_freed_memory_is_kept_unless_the_environment_says_otherwise(name, kept):
    chosen = {**os.environ, **({name: "1000"} if name else {})}
    run = [sys.executable, "-c", KEEP]
    given = subprocess.run(run, env=chosen, capture_output=True, text=True, check=True)
    assert given.stdout.split()[-1] == kept
