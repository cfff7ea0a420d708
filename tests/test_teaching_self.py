"""Self-distillation: the average follows the NumPy recursion, and teaches as the paper says."""

from __future__ import annotations

import inspect
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd as kd
from keras_kd.teaching import SelfDistiller
from tests import references
from tests.models import LOGITS, Subclassed, data, mlp
from tests.test_distiller import clone, difference
from tests.test_distiller_saving import environment


def linear() -> keras.Model:
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])


def normalised() -> keras.Model:
    layers = [keras.layers.Dense(4, name="hidden"), keras.layers.BatchNormalization(momentum=0.5)]
    return keras.Sequential([keras.Input((6,)), *layers, keras.layers.Dense(3)])


def compiled(student, losses=None, *, compile_with=None, **kwargs) -> SelfDistiller:
    """A compiled SelfDistiller, trained by plain gradient descent."""
    losses = losses or kd.LogitsDistillation(temperature=2.0)
    distiller = SelfDistiller(student, losses, **{"decay": 0.7, **kwargs})
    settings = {"optimizer": keras.optimizers.SGD(0.1), "loss": LOGITS}
    distiller.compile(**{**settings, **(compile_with or {})})
    return distiller


class Recorder(keras.callbacks.Callback):
    """Keep the student's weights after each batch."""

    def __init__(self, student) -> None:
        super().__init__()
        self.of_student, self.seen = student, [student.get_weights()]

    def on_train_batch_end(self, batch, logs=None) -> None:
        """Keep them."""
        self.seen.append(self.of_student.get_weights())


def recursion(seen: list, decays) -> list:
    """θ′ₜ = α·θ′ₜ₋₁ + (1 − α)·θₜ, from θ′₀ = θ₀: Tarvainen and Valpola 2017, section 2."""
    average = [weight.astype("float64") for weight in seen[0]]
    for weights, decay in zip(seen[1:], decays, strict=True):
        average = [decay * a + (1 - decay) * w for a, w in zip(average, weights, strict=True)]
    return average


def close(model, expected, atol=1e-6) -> None:
    for given, wanted in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(given, wanted, atol=atol)


# --- the average ----------------------------------------------------------------------------------


def test_the_average_follows_the_recursion_batch_norm_included():
    x, y = data()
    student = normalised()
    distiller = compiled(student)
    recorder = Recorder(student)
    distiller.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[recorder])
    assert len(recorder.seen) == 7
    assert len(recorder.seen[0]) == 8  # two of them are moving statistics
    close(distiller.average, recursion(recorder.seen, [0.7] * 6))
    assert difference(distiller.average, student) > 1e-3


def test_two_steps_of_a_linear_student_are_the_papers():
    """Cross-entropy and T²·KL(average‖student) by hand, the average moving after each step."""
    x, y = data()
    student = linear()
    kernel = student.get_weights()[0].astype("float64")
    bias, average = np.zeros(3), [kernel, np.zeros(3)]
    distiller = compiled(student, student_loss_weight=0.4)
    for _ in range(3):
        z, t = x @ kernel + bias, x @ average[0] + average[1]
        slope = 0.4 * (references.softmax(z) - np.eye(3)[y])
        slope += 0.6 * 2.0 * (references.softmax(z / 2.0) - references.softmax(t / 2.0))
        expected = references.kl_divergence(t, z, 2.0).mean()
        logs = distiller.train_on_batch(x, y, return_dict=True)
        assert logs["logits_distillation"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
        kernel, bias = kernel - 0.1 * x.T @ slope / len(x), bias - 0.1 * slope.mean(0)
        average = [0.7 * average[0] + 0.3 * kernel, 0.7 * average[1] + 0.3 * bias]
    close(student, [kernel, bias])
    close(distiller.average, average)


@pytest.mark.parametrize(
    "settings", [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 3}], ids=str
)
def test_eager_xla_and_several_steps_at_once_agree(settings):
    x, y = data()
    student = normalised()
    one, other = compiled(student), compiled(clone(student), compile_with=settings)
    for distiller in (one, other):
        distiller.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    assert difference(one, other) < 1e-6
    assert difference(one.average, other.average) < 1e-6


def test_a_scheduled_decay_is_asked_at_the_steps_taken_and_logged():
    x, y = data()
    decay = keras.optimizers.schedules.PiecewiseConstantDecay([1, 3], [0.0, 0.5, 0.9])
    student = linear()
    distiller = compiled(student, decay=decay)
    recorder = Recorder(student)
    history = distiller.fit(x, y, batch_size=4, verbose=0, callbacks=[recorder]).history
    close(distiller.average, recursion(recorder.seen, [0.0, 0.0, 0.5, 0.5, 0.9, 0.9]))
    assert history["decay"] == [pytest.approx(0.9)]
    assert "decay" not in distiller.evaluate(x, y, verbose=0, return_dict=True)


def test_the_average_moves_when_the_student_does_under_gradient_accumulation():
    x, y = data()
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=3)
    student = linear()
    distiller = compiled(student, compile_with={"optimizer": optimizer})
    recorder = Recorder(student)
    distiller.fit(x, y, batch_size=4, verbose=0, callbacks=[recorder])
    assert len(recorder.seen) == 7
    close(distiller.average, recursion(recorder.seen[::3], [0.7] * 2))


def test_the_average_stays_where_a_float16_step_is_skipped():
    x, y = data()
    student = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, dtype="mixed_float16")])
    distiller = compiled(student)
    assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    distiller.train_on_batch(x, y)
    distiller.average.set_weights([weight + 1.0 for weight in student.get_weights()])
    before = student.get_weights()
    distiller.train_on_batch(x * 1e5, y)  # overflows
    close(student, before, atol=0)
    close(distiller.average, [weight + 1.0 for weight in before], atol=0)
    distiller.train_on_batch(x, y)
    assert np.abs(distiller.average.get_weights()[1] - before[1] - 1.0).max() > 0.1


@keras.saving.register_keras_serializable(package="tests")
class Counted(keras.layers.Layer):
    """A layer that counts its training passes in an integer."""

    def build(self, shape) -> None:
        """Make the counter."""
        self.count = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)

    def call(self, inputs, training=False):
        """Count, and pass on."""
        if training:
            self.count.assign(self.count + 1)
        return inputs


def test_integers_are_copied():
    x, y = data()
    student = keras.Sequential([keras.Input((6,)), Counted(), keras.layers.Dense(3)])
    distiller = compiled(student)
    for _ in range(3):
        distiller.train_on_batch(x, y)
    assert int(distiller.average.layers[0].count.numpy()) == 3


def test_what_is_not_trained_does_not_drift():
    x, y = data()
    student = mlp(4)
    student.get_layer("hidden").trainable = False
    distiller = compiled(student)
    distiller.fit(x, y, batch_size=2, epochs=3, verbose=0)
    hidden = student.get_layer("hidden").get_weights()
    np.testing.assert_array_equal(distiller.average.get_layer("hidden").get_weights()[0], hidden[0])


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_it_averages_at_both_ends_of_the_student_loss_weight(weight):
    x, y = data()
    student, loss = linear(), None if weight == 0.0 else LOGITS
    distiller = compiled(student, student_loss_weight=weight, compile_with={"loss": loss})
    distiller.average.set_weights([w + 1.0 for w in student.get_weights()])
    start = distiller.average.get_weights()
    distiller.train_on_batch(x, y if weight else None)
    expected = [0.7 * a + 0.3 * w for a, w in zip(start, student.get_weights(), strict=True)]
    close(distiller.average, expected)


def test_the_average_is_never_trained():
    x, y = data()
    student = mlp(4)
    distiller = compiled(
        student, decay=1.0, compile_with={"optimizer": keras.optimizers.AdamW(0.1)}
    )
    assert distiller.trainable_weights == student.trainable_weights
    distiller.trainable = False
    assert (distiller.trainable, student.trainable, distiller.trainable_weights) == (
        False,
        False,
        [],
    )
    distiller.trainable = True
    assert distiller.trainable and student.trainable
    assert distiller.trainable_weights == student.trainable_weights
    before = distiller.average.get_weights()
    distiller.fit(x, y, verbose=0)
    close(distiller.average, before, atol=0)


def test_the_average_starts_as_a_copy_and_evaluate_moves_nothing():
    x, y = data()
    student = normalised()
    before = clone(student)
    distiller = compiled(student)
    assert difference(distiller.average, student) == 0.0
    assert distiller.average is not student
    assert distiller.average is distiller.teacher.model
    distiller.evaluate(x, y, verbose=0)
    assert difference(student, before) == difference(distiller.average, before) == 0.0


def test_features_of_the_average_teach():
    x, y = data()
    hint = kd.FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden")
    distiller = compiled(mlp(4), hint)
    distiller.average.set_weights([w + 0.1 for w in distiller.average.get_weights()])
    t, s = [m.get_layer("hidden")(x).numpy() for m in (distiller.average, distiller.student)]
    logs = distiller.train_on_batch(x, y, return_dict=True)
    assert logs["feature_distillation"] == pytest.approx(np.mean((t - s) ** 2), rel=1e-4)


# --- students of all kinds ------------------------------------------------------------------------


def called(model: keras.Model) -> keras.Model:
    model(data()[0])
    return model


@pytest.mark.parametrize(
    "student",
    [
        lambda: called(Subclassed(4)),
        lambda: called(keras.Sequential([keras.layers.Dense(3)])),
        lambda: keras.Sequential([keras.Input((6,)), mlp(4), keras.layers.Dense(3)]),
    ],
    ids=["subclassed", "sequential without an input", "nested"],
)
def test_it_averages_any_built_model(student):
    x, y = data()
    student = student()
    distiller = compiled(student)
    recorder = Recorder(student)
    distiller.fit(x, y, batch_size=8, verbose=0, callbacks=[recorder])
    close(distiller.average, recursion(recorder.seen, [0.7] * 3))


def test_outputs_are_what_they_are_said_to_be():
    student = mlp(4, activation="sigmoid")
    stated = SelfDistiller(
        student, kd.losses.LogitMatching(), outputs="probabilities", activation="sigmoid"
    )
    assert (stated.teacher.outputs, stated.teacher.activation) == ("probabilities", "sigmoid")


def test_the_defaults():
    parameters = inspect.signature(SelfDistiller).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert (defaults["decay"], defaults["student_loss_weight"]) == (0.999, 0.5)
    assert (defaults["outputs"], defaults["activation"]) == ("auto", "softmax")
    assert defaults["name"] == "self_distiller"


# --- saving ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["normalised", "subclassed"])
def test_save_load_fit_goes_on_to_the_same_weights(tmp_path, kind):
    x, y = data()
    student, path = normalised(), "hidden"
    if kind == "subclassed":
        student, path = called(Subclassed(4)), "backbone/hidden"
    hint = kd.FeatureDistillation(
        teacher_layer_name=path, student_layer_name=path, projector=keras.layers.Dense(4)
    )
    decay = keras.optimizers.schedules.PolynomialDecay(0.5, 8, 0.9)
    losses, settings = [kd.LogitsDistillation(), hint], {"optimizer": keras.optimizers.Adam(0.01)}
    distiller = compiled(student, losses, decay=decay, compile_with=settings)
    distiller.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    distiller.save(tmp_path / "d.keras")
    loaded = kd.load_distiller(tmp_path / "d.keras")
    assert type(loaded) is SelfDistiller
    assert difference(distiller.average, loaded.average) == 0.0
    assert difference(loaded.average, loaded.student) > 0.0
    for one in (distiller, loaded):
        one.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    assert difference(distiller, loaded) == 0.0
    assert difference(distiller.average, loaded.average) == 0.0


def test_what_was_said_survives_loading(tmp_path):
    weights = keras.optimizers.schedules.PolynomialDecay(0.1, 10, 0.9)
    distiller = SelfDistiller(
        mlp(4),
        kd.LogitsDistillation(),
        [weights],
        0.25,
        0.5,
        outputs="values",
        activation="sigmoid",
    )
    distiller.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    assert loaded.distillation_loss_weights[0].get_config() == weights.get_config()
    assert (loaded.student_loss_weight, loaded.decay) == (0.25, 0.5)
    assert (loaded.teacher.outputs, loaded.teacher.activation) == ("values", "sigmoid")


def test_save_load_fit_in_a_fresh_process_gives_the_same_weights(tmp_path):
    x, y = data()
    distiller = compiled(normalised())
    distiller.fit(x, y, epochs=2, shuffle=False, verbose=0)
    distiller.save(tmp_path / "d.keras")
    np.savez(tmp_path / "data.npz", x=x, y=y)
    script = """
import keras, numpy as np
import keras_kd.teaching
d, data = keras.models.load_model("d.keras"), np.load("data.npz")
d.fit(data["x"], data["y"], epochs=2, shuffle=False, verbose=0)
np.savez("out.npz", *d.get_weights())
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, env=environment())
    distiller.fit(x, y, epochs=2, shuffle=False, verbose=0)
    saved = np.load(tmp_path / "out.npz").values()
    for ours, theirs in zip(distiller.get_weights(), saved, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_the_student_is_exported_alone(tmp_path):
    x, y = data()
    student = mlp(4)
    distiller = compiled(student)
    distiller.fit(x, y, verbose=0)
    distiller.export(tmp_path / "exported", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    assert sum(int(tf.size(v)) for v in loaded.variables) == student.count_params()
    np.testing.assert_allclose(loaded.serve(x), student(x), atol=1e-6)
    assert type(student) is keras.Sequential
    np.testing.assert_allclose(distiller.predict(x, verbose=0), student(x), atol=1e-6)


# --- replicas -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mirrored() -> tf.distribute.MirroredStrategy:
    """Two replicas that meet without collective keys, which all strategies of a process share."""
    together = tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=together)


def test_two_replicas_equal_one_device(mirrored):
    x, y = data(21)
    layers = (keras.layers.Dense, keras.layers.BatchNormalization)
    start = None
    results = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            dense, normalise = layers
            hidden = [dense(4), normalise(synchronized=True), Counted(), dense(3)]
            student = keras.Sequential([keras.Input((6,)), *hidden])
            if start is not None:
                student.set_weights(start)
            start = student.get_weights()
            distiller = compiled(student)
        ds = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        distiller.fit(ds.with_options(options), epochs=2, verbose=0)
        results.append((distiller.average.get_weights(), distiller.get_weights()))
    for one, two in zip(results[0], results[1], strict=True):
        for a, b in zip(one, two, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


# --- what is refused ------------------------------------------------------------------------------


def test_another_teacher_is_refused(tmp_path):
    distiller = compiled(mlp(4))
    with pytest.raises(ValueError, match=r"is its own teacher[\s\S]*kd\.Distiller"):
        distiller.attach_teacher(mlp(4))
    with pytest.raises(ValueError, match="is its own teacher"):
        distiller.teacher = mlp(4)
    distiller.save(tmp_path / "d.keras")
    with pytest.raises(ValueError, match="is its own teacher"):
        kd.load_distiller(tmp_path / "d.keras", teacher=mlp(4))


def test_what_is_no_model_or_not_built_is_refused():
    with pytest.raises(ValueError, match="The student is no model"):
        compiled("student")
    with pytest.raises(ValueError, match=r"no weights yet[\s\S]*student\(x\[:1\]\)"):
        compiled(Subclassed())


@keras.saving.register_keras_serializable(package="tests")
class Forgetful(Subclassed):
    """A model whose config does not say how wide it is."""

    def get_config(self) -> dict:
        """Return too little."""
        return {"name": self.name}


def test_a_model_that_its_config_does_not_make_again_is_refused():
    with pytest.raises(ValueError, match=r"copy of .* has other weights[\s\S]*get_config"):
        compiled(called(Forgetful(width=5)))


@pytest.mark.parametrize("decay", [-0.1, 1.5])
def test_a_decay_outside_of_0_to_1_is_refused(decay):
    with pytest.raises(ValueError, match="`decay` must be between 0 and 1"):
        compiled(mlp(4), decay=decay)
