"""A teacher's pass that XLA compiles gives the same, and is left out where it would not pay."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import keras_kd as kd
from keras_kd import compiled_pass

WIDE = 256  # a square of weights that is large enough


def large(*after, shape=(8,), **kwargs) -> keras.Model:
    """Make a teacher of more than 65,536 weights, of three classes."""
    wide = [layers.Dense(WIDE, activation="relu"), layers.Dense(WIDE, activation="relu")]
    return keras.Sequential([keras.Input(shape), *wide, *after, layers.Dense(3, **kwargs)])


def small() -> keras.Model:
    return keras.Sequential([keras.Input((8,)), layers.Dense(3)])


def distilled(teacher, student=None, x=None, **kwargs):
    """Train two epochs of two batches and a shorter one; return the Distiller and its losses."""
    keras.utils.set_random_seed(3)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(10, 8)).astype("float32") if x is None else x
    student = student or small()
    loss = kwargs.pop("loss", None) or kd.LogitsDistillation(temperature=2.0)
    distiller = kd.Distiller(teacher, student, loss, student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(0.1), **kwargs)
    data = x if isinstance(x, tf.data.Dataset) else tf.data.Dataset.from_tensor_slices(x).batch(4)
    return distiller, distiller.fit(data, epochs=2, verbose=0).history["loss"]


def compiled(distiller) -> bool:
    """Say whether a Distiller let XLA compile its teacher's pass."""
    return distiller._teaching._compiled is not None


def has_compiled_parts(distiller, shape=(8,)) -> bool:
    """Say whether asking the teacher in a graph has a function in it that XLA compiles."""
    x = tf.TensorSpec((None, *shape), tf.float32)
    ask = tf.function(lambda x: distiller._teaching(x).own, autograph=False)
    library = ask.get_concrete_function(x).graph.as_graph_def().library
    return any(function.attr["_XlaMustCompile"].b for function in library.function)


@pytest.mark.parametrize("kwargs", [{}, {"steps_per_execution": 2}, {"jit_compile": True}])
def test_a_large_teacher_is_compiled_and_teaches_the_same(kwargs) -> None:
    model = large()
    ours, losses = distilled(model, **kwargs)
    plain, expected = distilled(kd.Teacher(model, jit_compile=False), **kwargs)
    assert compiled(ours) and has_compiled_parts(ours)
    assert not compiled(plain) and not has_compiled_parts(plain)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_softmax_outputs_and_taps_go_through() -> None:
    teacher = large(layers.Dense(6, name="hint"), activation="softmax")
    student = keras.Sequential([keras.Input((8,)), layers.Dense(4, name="own"), layers.Dense(3)])
    terms = [
        kd.LogitsDistillation(),
        kd.FeatureDistillation(teacher_layer_name="hint", student_layer_name="own"),
    ]
    again = keras.models.clone_model(student)
    again.set_weights(student.get_weights())
    ours, losses = distilled(teacher, student, loss=terms)
    _, expected = distilled(kd.Teacher(teacher, jit_compile=False), again, loss=terms)
    assert compiled(ours)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_what_goes_in_and_out_is_what_the_plain_pass_has(rng) -> None:
    class Marking(layers.Layer):
        """Mask the first place, as an embedding does."""

        supports_masking = True

        def compute_mask(self, inputs, previous_mask=None):
            return ops.not_equal(ops.cumsum(ops.ones_like(inputs[..., 0]), axis=1), 1.0)

        def call(self, inputs):
            return inputs * 1.0

    model = large(Marking(), shape=(5, 8), activation="softmax")
    teaching = kd.Teacher(model).attached()
    spec = tf.TensorSpec((None, 5, 8), tf.float32)
    x = tf.constant(rng.normal(size=(2, 5, 8)), "float32")
    teaching.learn(teaching(x).raw)

    def masked(x):
        answer = teaching(x)
        return answer.outputs, answer.own, answer.outputs._keras_mask

    plain = tf.function(masked, autograph=False)(x)
    teaching.compile(x, spec)
    assert teaching._compiled is not None
    for ours, theirs in zip(tf.function(masked, autograph=False)(x), plain, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


class Outside(layers.Layer):
    """A layer that calls Python, which XLA cannot."""

    def call(self, inputs):
        """Double what comes."""
        doubled = tf.numpy_function(lambda x: 2 * x, [inputs], tf.float32)
        return tf.ensure_shape(doubled, inputs.shape)


def test_a_teacher_that_xla_cannot_compile_teaches_as_it_is() -> None:
    distiller, losses = distilled(large(Outside()))
    assert not compiled(distiller)
    assert losses[1] < losses[0]


def test_a_person_who_asks_for_it_is_told() -> None:
    with pytest.raises(ValueError, match=r"XLA cannot compile teacher .*\n?.*jit_compile=True"):
        distilled(kd.Teacher(large(Outside()), jit_compile=True))


def test_a_person_may_ask_for_it_where_it_does_not_pay() -> None:
    distiller, _ = distilled(kd.Teacher(small(), jit_compile=True))
    assert compiled(distiller) and has_compiled_parts(distiller)


@pytest.mark.parametrize("given", ["yes", None, 1])
def test_another_word_is_refused(given) -> None:
    with pytest.raises(ValueError, match="`jit_compile` must be True, False or"):
        kd.Teacher(small(), jit_compile=given)


def with_convolutions():
    wide = [layers.Reshape((8, 1)), layers.Conv1D(16, 3), layers.Flatten(), layers.Dense(800)]
    return keras.Sequential([keras.Input((8,)), *wide, layers.Dense(3)])


def with_a_loop():
    inside = [layers.Reshape((8, 1)), layers.LSTM(4), layers.Dense(WIDE), layers.Dense(WIDE)]
    return keras.Sequential([keras.Input((8,)), *inside, layers.Dense(3)])


@pytest.mark.parametrize("make", [small, with_convolutions, with_a_loop])
def test_what_xla_does_not_make_faster_is_left_alone(make) -> None:
    assert compiled_pass.pays(large())
    assert not compiled_pass.pays(make())


def test_layers_that_say_no_and_models_without_weights_yet_are_left_alone() -> None:
    model = large()
    model.layers[0].supports_jit = False
    assert not compiled_pass.pays(model)
    assert not compiled_pass.pays(keras.Sequential([layers.Dense(WIDE), layers.Dense(WIDE)]))


def test_on_an_accelerator_the_whole_step_is_keras_s(monkeypatch) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    assert not compiled_pass.pays(large())


def test_without_xla_nothing_is_compiled(monkeypatch) -> None:
    monkeypatch.setattr(compiled_pass, "XLA", None)
    assert not compiled_pass.pays(large())


def test_sequences_of_changing_lengths_are_not_compiled_each(rng) -> None:
    teacher = large(layers.GlobalAveragePooling1D(), shape=(None, 8))
    student = keras.Sequential(
        [keras.Input((None, 8)), layers.GlobalAveragePooling1D(), layers.Dense(3)]
    )
    made = [rng.normal(size=(2, length, 8)).astype("float32") for length in (3, 5, 4)]
    data = tf.data.Dataset.from_generator(
        lambda: iter(made), output_signature=tf.TensorSpec((None, None, 8), tf.float32)
    ).apply(tf.data.experimental.assert_cardinality(len(made)))
    distiller, losses = distilled(teacher, student, data)
    assert not has_compiled_parts(distiller, (None, 8)) and has_compiled_parts(distiller, (6, 8))
    assert np.isfinite(losses).all()


def test_an_ensemble_s_members_are_compiled_each() -> None:
    distiller, losses = distilled([large(), small()])
    first, second = distiller._teaching.members
    assert first._compiled is not None and second._compiled is None
    assert losses[1] < losses[0]


def test_eager_training_and_replicas_run_the_model_as_it_is() -> None:
    eager, losses = distilled(large(), run_eagerly=True)
    assert not compiled(eager)
    assert losses[1] < losses[0]
    with tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    ).scope():
        replicated, losses = distilled(large())
    assert not compiled(replicated)
    assert losses[1] < losses[0]


def test_soft_targets_are_what_the_plain_pass_gives(tmp_path, rng, monkeypatch) -> None:
    x = rng.normal(size=(10, 8)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, np.zeros(10, "int32"))).batch(4)
    model, made = large(), []
    monkeypatch.setattr(
        "keras_kd.attached.CompiledPass",
        lambda function: made.append(compiled_pass.CompiledPass(function)) or made[-1],
    )
    stored = {}
    for jit in ("auto", False):
        teacher = kd.Teacher(model, jit_compile=jit)
        soft = kd.SoftTargets.build(teacher, data, tmp_path / str(jit), dtype="float32", verbose=0)
        answers = [batch.teacher["outputs"] for batch, _ in soft.attach(data)]
        stored[jit] = np.concatenate(answers)
        assert len(made) == 1  # by the first build
    np.testing.assert_allclose(stored["auto"], stored[False], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stored[False], model(x), rtol=1e-5, atol=1e-6)
