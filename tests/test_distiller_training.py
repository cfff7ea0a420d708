"""The Distiller keeps all that `keras.Model` gives: data, inputs, modes of running, callbacks."""

from __future__ import annotations

import inspect
import logging
import typing

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd as kd
from tests.models import LOGITS, data, mlp
from tests.test_distiller import clone, difference, make, one_step


class Batches(keras.utils.PyDataset):
    """Four batches of six."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 4

    def __getitem__(self, index):
        part = slice(6 * index, 6 * index + 6)
        return self.x[part], self.y[part]


def reference_run(teacher, student, **settings):
    x, y = data()
    distiller = make(teacher, clone(student), **settings)
    distiller.fit(x, y, batch_size=6, epochs=2, shuffle=False, verbose=0)
    return distiller


@pytest.mark.parametrize("kind", ["tf.data", "PyDataset"])
def test_every_kind_of_data_gives_the_same_student(kind):
    x, y = data()
    teacher, student = mlp(16), mlp(4)
    expected = reference_run(teacher, student)
    given = make(teacher, clone(student))
    ds = {
        "tf.data": tf.data.Dataset.from_tensor_slices((x, y)).batch(6),
        "PyDataset": Batches(x, y),
    }[kind]
    given.fit(ds, epochs=2, shuffle=False, verbose=0)
    assert difference(expected.student, given.student) < 1e-6
    report = given.evaluate(ds, verbose=0, return_dict=True)
    assert report == pytest.approx(expected.evaluate(x, y, verbose=0, return_dict=True), rel=1e-4)
    assert given.predict(ds, verbose=0).shape == (24, 3)


@pytest.mark.parametrize(
    "mode",
    [
        {"run_eagerly": True},
        {"jit_compile": True},
        {"steps_per_execution": 3},
        {"steps_per_execution": 32},
        {"steps_per_execution": 3, "run_eagerly": True},
    ],
    ids=str,
)
def test_every_mode_of_running_gives_the_same_student(mode):
    teacher, student = mlp(16), mlp(4)
    hint = kd.FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden")
    losses = [kd.LogitsDistillation(temperature=2.0), hint]
    keras.utils.set_random_seed(1)
    expected = reference_run(teacher, student, losses=losses)
    keras.utils.set_random_seed(1)
    given = reference_run(teacher, student, losses=losses, compile_with=mode)
    assert difference(expected.student, given.student) < 2e-6


def test_gradient_accumulation_equals_the_larger_batch():
    x, y = data()
    teacher, student = mlp(16), mlp(4)
    large = make(teacher, clone(student))
    large.fit(x, y, batch_size=12, shuffle=False, verbose=0)
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    small = make(teacher, clone(student), compile_with={"optimizer": optimizer})
    small.fit(x, y, batch_size=6, shuffle=False, verbose=0)
    assert difference(large.student, small.student) < 1e-6


def test_ema_weights_are_those_of_a_numpy_average():
    x, y = data()
    teacher, student = mlp(16), mlp(4)
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
    with_ema = make(teacher, clone(student), compile_with={"optimizer": optimizer})
    with_ema.fit(x, y, batch_size=12, shuffle=False, verbose=0)
    plain = make(teacher, clone(student))
    average = None
    for start in (0, 12):
        plain.train_on_batch(x[start : start + 12], y[start : start + 12])
        now = plain.student.get_weights()
        average = (
            now
            if average is None
            else [0.5 * a + 0.5 * b for a, b in zip(average, now, strict=True)]
        )
    # Keras starts the average at the weights after the first step.
    for given, expected in zip(with_ema.student.get_weights(), average, strict=True):
        np.testing.assert_allclose(given, expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_inputs_may_be_lists_and_dicts(kind):
    def model(width):
        a, b = keras.Input((6,), name="a"), keras.Input((2,), name="b")
        hidden = keras.layers.Dense(width)(keras.layers.Concatenate()([a, b]))
        inputs = [a, b] if kind == "list" else {"a": a, "b": b}
        return keras.Model(inputs, keras.layers.Dense(3)(hidden))

    x, y = data()
    second = x[:, :2].copy()
    inputs = [x, second] if kind == "list" else {"a": x, "b": second}
    distiller = make(model(16), model(4))
    distiller.fit(inputs, y, epochs=2, verbose=0)
    assert distiller.predict(inputs, verbose=0).shape == (24, 3)
    assert np.isfinite(distiller.evaluate(inputs, y, verbose=0)[0])


def test_a_student_that_takes_no_training_argument():
    class Plain(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = keras.layers.Dense(3)

        def call(self, inputs):
            return self.head(inputs)

    x, y = data()
    distiller = make(mlp(16), Plain())
    distiller.fit(x, y, verbose=0)
    assert distiller.predict(x, verbose=0).shape == (24, 3)


def test_sequences_with_masks_count_real_tokens_only():
    def model(width):
        return keras.Sequential(
            [
                keras.Input((None,), dtype="int32"),
                keras.layers.Embedding(10, width, mask_zero=True),
                keras.layers.Dense(5),
            ]
        )

    tokens = np.array([[1, 2, 3], [4, 5, 0]])
    labels = np.array([[0, 1, 2], [3, 4, 0]])
    padded = np.pad(tokens, ((0, 0), (0, 4))), np.pad(labels, ((0, 0), (0, 4)))
    teacher, student = model(8), model(3)
    for one in (teacher, student):  # far from each other, so that rounding does not show
        one.set_weights([10.0 * weights for weights in one.get_weights()])
    hint = kd.FeatureDistillation(loss="mse")
    losses = [kd.LogitsDistillation(), hint]
    short = make(teacher, clone(student), losses).train_on_batch(tokens, labels, return_dict=True)
    long = make(teacher, clone(student), losses).train_on_batch(*padded, return_dict=True)
    for name in ("loss", "student_loss", "logits_distillation", "feature_distillation"):
        assert long[name] == pytest.approx(short[name], rel=1e-5), name
    t, s = teacher(tokens).numpy(), student(tokens).numpy()
    real = tokens > 0
    expected = ((t - s) ** 2).mean(-1)[real].mean()
    assert short["feature_distillation"] == pytest.approx(expected, rel=1e-4)


def test_binary_students_learn_with_the_sigmoid_form():
    x, y = data()
    loss = kd.LogitsDistillation(activation="sigmoid", temperature=2.0)
    settings = {"loss": keras.losses.BinaryCrossentropy(from_logits=True), "metrics": None}
    distiller = make(mlp(16, 1, "sigmoid"), mlp(4, 1), loss, compile_with=settings)
    history = distiller.fit(x, (y % 2)[:, None], epochs=5, verbose=0).history
    assert history["logits_distillation"][-1] < history["logits_distillation"][0]


def test_an_ensemble_teaches_and_its_members_are_left_alone():
    x, y = data()
    members = [mlp(16), mlp(12, activation="softmax")]
    before = [member.get_weights() for member in members]
    distiller = make(members, mlp(4))
    distiller.fit(x, y, verbose=0)
    assert len(distiller.trainable_variables) == 4
    for member, weights in zip(members, before, strict=True):
        for old, new in zip(weights, member.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)


def test_preprocess_gives_the_teacher_its_own_scaling():
    x, y = data()
    teacher, student = mlp(16), mlp(4)
    plain = make(teacher, clone(student)).train_on_batch(x, y, return_dict=True)
    scaled = kd.Teacher(teacher, preprocess=lambda inputs: inputs / 255.0)
    student255 = clone(student)
    kernel, *rest = student255.get_weights()
    student255.set_weights([kernel / 255.0, *rest])
    logs = make(scaled, student255).train_on_batch(x * 255.0, y, return_dict=True)
    assert logs["logits_distillation"] == pytest.approx(plain["logits_distillation"], rel=1e-4)


def test_frozen_layers_of_the_student_stay_frozen():
    x, y = data()
    student = mlp(4)
    student.get_layer("hidden").trainable = False
    before = student.get_layer("hidden").get_weights()
    make(student=student).fit(x, y, verbose=0)
    for old, new in zip(before, student.get_layer("hidden").get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_keras_callbacks_work(tmp_path):
    x, y = data()
    callbacks = [
        keras.callbacks.BackupAndRestore(tmp_path / "backup"),
        keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", save_best_only=True),
        keras.callbacks.EarlyStopping(patience=1, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau(patience=1),
        keras.callbacks.TensorBoard(tmp_path / "logs"),
    ]
    hint = kd.FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden")
    distiller = make(losses=[kd.LogitsDistillation(), hint])
    distiller.fit(x, y, validation_data=(x, y), epochs=3, callbacks=callbacks, verbose=0)
    written = logged_tags(tmp_path / "logs" / "train")
    assert {"epoch_loss", "epoch_student_loss", "epoch_logits_distillation"} <= written
    assert "epoch_feature_distillation" in written
    assert "epoch_logits_distillation" not in logged_tags(tmp_path / "logs" / "validation")
    assert (tmp_path / "best.keras").exists()


def logged_tags(folder) -> set[str]:
    tags = set()
    for file in folder.glob("events*"):
        for record in tf.compat.v1.train.summary_iterator(str(file)):
            tags |= {value.tag for value in record.summary.value}
    return tags


def test_backup_and_restore_goes_on_to_the_same_weights(tmp_path):
    x, y = data()
    hint = kd.FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden")
    teacher, student = mlp(16), mlp(4)

    def distiller():
        keras.utils.set_random_seed(2)
        settings = {"optimizer": keras.optimizers.Adam(0.01)}
        return make(teacher, clone(student), [kd.LogitsDistillation(), hint], compile_with=settings)

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    unbroken = distiller()
    unbroken.fit(x, y, epochs=4, shuffle=False, verbose=0)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        distiller().fit(x, y, epochs=4, shuffle=False, verbose=0, callbacks=[backup, Stop()])
    resumed = distiller()
    again = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    resumed.fit(x, y, epochs=4, shuffle=False, verbose=0, callbacks=[again])
    assert difference(unbroken.student, resumed.student) == 0.0


def test_a_user_s_own_train_step_may_build_on_ours():
    class Noisy(kd.Distiller):
        def train_step(self, data):
            x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
            return super().train_step((x + 0.0, y, weight))

    x, y = data()
    distiller = Noisy(mlp(16), mlp(4), kd.LogitsDistillation())
    distiller.compile("sgd", LOGITS)
    assert np.isfinite(distiller.fit(x, y, verbose=0).history["loss"][0])


CALLS = {
    "closed over": lambda step: tf.function(lambda *batch: step(batch)),
    "itself": lambda step: lambda *batch: tf.function(step)(batch),
    "an argument": lambda step: lambda *batch: tf.function(lambda f, b: f(b))(step, batch),
}


@pytest.mark.parametrize("way", CALLS)
def test_the_steps_work_in_a_user_s_own_loop_and_autograph_has_nothing_to_say(way, caplog):
    """A custom training loop calls `train_step` in a `tf.function`, whose default is AutoGraph."""
    x, y = data()
    first = make()
    second = make(first.teacher, clone(first.student))
    train, test = (CALLS[way](step) for step in (first.train_step, first.test_step))
    logger = logging.getLogger("tensorflow")
    logger.addHandler(caplog.handler)
    try:
        mine = {name: float(value) for name, value in train(x, y).items()}
        test(x, y)
    finally:
        logger.removeHandler(caplog.handler)
    assert mine == pytest.approx(one_step(second, x, y), rel=1e-5)
    assert difference(first.student, second.student) < 1e-6
    assert not [said for said in caplog.messages if "AutoGraph" in said]
    for step in (first.train_step, first.test_step):
        assert list(inspect.signature(step).parameters) == ["data"]
        assert typing.get_type_hints(step) == {"data": typing.Any, "return": dict[str, typing.Any]}


@pytest.mark.parametrize("eagerly", [True, False])
def test_nothing_to_evaluate_is_said(eagerly):
    x, y = data()
    settings = {"loss": None, "metrics": None, "run_eagerly": eagerly}
    distiller = make(student_loss_weight=0.0, compile_with=settings)
    distiller.fit(x, verbose=0)
    with pytest.raises(ValueError, match=r"nothing to evaluate[\s\S]*give the labels"):
        distiller.evaluate(x, verbose=0)
    with pytest.raises(ValueError, match=r"nothing to evaluate[\s\S]*a loss or metrics"):
        distiller.evaluate(x, y, verbose=0)
    settings["metrics"] = ["accuracy"]
    measured = make(student_loss_weight=0.0, compile_with=settings)
    assert list(measured.evaluate(x, y, verbose=0, return_dict=True)) == ["accuracy"]
