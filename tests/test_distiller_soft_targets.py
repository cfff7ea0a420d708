"""A Distiller that learns from stored answers learns what it would from the teacher itself."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd as kd
from tests import references
from tests.models import LOGITS, data, mlp
from tests.test_distiller import clone, difference, make

LOSSES = {
    "logits": lambda: kd.LogitsDistillation(temperature=4.0),
    "a layer": lambda: [
        kd.LogitsDistillation(temperature=2.0),
        kd.FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden"),
    ],
    "labels too": lambda: kd.losses.DecoupledDistillation(),
    "relations": lambda: kd.losses.RelationalDistillation(),
}


@pytest.fixture(scope="module")
def models():
    keras.utils.set_random_seed(3)
    return mlp(16), mlp(4)


@pytest.fixture(scope="module")
def batches():
    return tf.data.Dataset.from_tensor_slices(data()).batch(6)


@pytest.fixture(scope="module")
def soft(models, batches, tmp_path_factory):
    folder = tmp_path_factory.mktemp("soft") / "exact"
    return kd.SoftTargets.build(
        models[0], batches, folder, layers=["hidden"], dtype="float32", batch_size=6, verbose=0
    )


@pytest.fixture(scope="module")
def kept(models, batches, tmp_path_factory):
    folder = tmp_path_factory.mktemp("soft") / "kept"
    return kd.SoftTargets.build(
        models[0], batches, folder, top_k=2, temperatures=(1.0, 4.0), verbose=0
    )


def trained(teacher, student, given, losses="logits", epochs=3, **settings):
    keras.utils.set_random_seed(5)
    distiller = make(teacher, clone(student), LOSSES[losses](), **settings)
    history = distiller.fit(given, epochs=epochs, shuffle=False, verbose=0)
    return distiller, history.history


@pytest.mark.parametrize("losses", LOSSES)
def test_the_curve_is_that_of_the_live_teacher(models, batches, soft, losses):
    teacher, student = models
    live, expected = trained(teacher, student, batches, losses)
    stored, curve = trained(soft, student, soft.attach(batches), losses)
    assert set(curve) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(curve[name], values, rtol=1e-5, atol=1e-6, err_msg=name)
    assert difference(live.student, stored.student) < 1e-5


@pytest.mark.parametrize(
    "settings", [{"jit_compile": True}, {"run_eagerly": True}, {"steps_per_execution": 3}]
)
def test_the_ways_of_running_agree(models, batches, soft, settings):
    teacher, student = models
    live, _ = trained(teacher, student, batches)
    stored, _ = trained(soft, student, soft.attach(batches), compile_with=settings)
    assert difference(live.student, stored.student) < 1e-5


def test_half_precision_ends_where_the_live_teacher_ends(models, batches, tmp_path):
    teacher, student = models
    half = kd.SoftTargets.build(teacher, batches, tmp_path / "half", verbose=0)
    live, expected = trained(teacher, student, batches)
    stored, curve = trained(half, student, half.attach(batches))
    assert curve["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    assert difference(live.student, stored.student) < 1e-3


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_probabilities_are_stored_in_log_space_and_features_as_they_were(
    batches, tmp_path, activation
):
    keras.utils.set_random_seed(2)
    teacher, student = mlp(16, activation=activation), mlp(4)
    loss = [
        kd.LogitsDistillation(temperature=2.0, activation=activation),
        kd.FeatureDistillation(),
    ]
    compiled = {"loss": keras.losses.MeanSquaredError(), "metrics": None}
    x, y = data()
    one_hot = tf.data.Dataset.from_tensor_slices((x, np.eye(3, dtype="float32")[y])).batch(6)
    store = kd.SoftTargets.build(
        teacher, one_hot, tmp_path / "s", dtype="float32", batch_size=6, verbose=0
    )
    student_of = mlp(4, activation=activation)
    student_of.set_weights(student.get_weights())
    runs = []
    for one, given in ((teacher, one_hot), (store, store.attach(one_hot))):
        distiller = make(one, clone(student_of), loss, compile_with=compiled)
        runs.append(distiller.fit(given, epochs=2, shuffle=False, verbose=0).history)
    for name, values in runs[0].items():
        np.testing.assert_allclose(runs[1][name], values, rtol=1e-5, atol=1e-6, err_msg=name)


def test_several_outputs_and_their_names(tmp_path):
    x = np.random.default_rng(0).normal(size=(12, 6)).astype("float32")
    y = {"kind": np.arange(12) % 3, "size": x[:, :1]}

    def two(width):
        inputs = keras.Input((6,))
        h = keras.layers.Dense(width, activation="relu")(inputs)
        kind, size = keras.layers.Dense(3, name="k")(h), keras.layers.Dense(1, name="s")(h)
        return keras.Model(inputs, {"kind": kind, "size": size})

    teacher, student = two(16), two(4)
    given = tf.data.Dataset.from_tensor_slices((x, y)).batch(6)
    store = kd.SoftTargets.build(
        kd.Teacher(teacher, outputs={"kind": "logits", "size": "values"}),
        given,
        tmp_path / "two",
        dtype="float32",
        batch_size=6,
        verbose=0,
    )
    losses = [
        kd.LogitsDistillation(temperature=2.0).on("kind"),
        kd.losses.BoundedRegression().on("size"),
    ]
    compiled = {"loss": {"kind": LOGITS, "size": "mse"}, "metrics": None}
    runs = []
    live = kd.Teacher(teacher, outputs={"kind": "logits", "size": "values"})
    for one, batches in ((live, given), (store, store.attach(given))):
        distiller = make(one, clone(student), losses, compile_with=compiled)
        runs.append(distiller.fit(batches, epochs=2, shuffle=False, verbose=0).history)
    for name, values in runs[0].items():
        np.testing.assert_allclose(runs[1][name], values, rtol=1e-5, atol=1e-6, err_msg=name)


# --- kept classes -------------------------------------------------------------------------------


def test_kept_classes_teach_the_divergence_over_them_and_the_rest(models, batches, kept):
    teacher, student = models
    x, y = data()
    distiller = make(kept, clone(student), kd.LogitsDistillation(temperature=4.0))
    logs = distiller.train_on_batch(*next(iter(kept.attach((x, y)).batch(24))), return_dict=True)
    t, s = (
        np.asarray(model.predict(x, verbose=0), "float64") / 4.0 for model in (teacher, student)
    )
    p, q = references.softmax(t), references.softmax(s)
    order = np.argsort(-t, axis=-1)[:, :2]
    coarse = []
    for side in (p, q):
        top = np.take_along_axis(side, order, -1)
        coarse.append(np.concatenate([top, 1.0 - top.sum(-1, keepdims=True)], -1))
    expected = 16.0 * np.mean(np.sum(coarse[0] * np.log(coarse[0] / coarse[1]), -1))
    assert logs["logits_distillation"] == pytest.approx(expected, rel=2e-3)  # half precision


def test_what_kept_classes_cannot_teach_is_refused_before_training(models, kept):
    student = models[1]
    with pytest.raises(ValueError, match=r"The temperature 3.0 was not stored[\s\S]*1.0, 4.0"):
        make(kept, clone(student), kd.LogitsDistillation(temperature=3.0))
    decay = keras.optimizers.schedules.CosineDecay(4.0, 10, alpha=0.1)
    with pytest.raises(ValueError, match="A schedule of temperatures was not stored"):
        make(kept, clone(student), kd.LogitsDistillation(temperature=decay))
    for loss in (
        kd.losses.DIST(),
        kd.losses.DecoupledDistillation(),
        kd.losses.LogitMatching(),
        kd.losses.LogitStandardization(kd.LogitsDistillation()),
        kd.losses.RelationalDistillation(),
        keras.distillation.LogitsDistillation(),
    ):
        with pytest.raises(ValueError, match=r"needs all classes[\s\S]*top_k=None"):
            make(kept, clone(student), loss)


# --- Keras's interface --------------------------------------------------------------------------


def test_evaluate_and_predict_take_attached_and_plain_data(models, batches, soft):
    distiller, _ = trained(soft, models[1], soft.attach(batches), epochs=1)
    plain = distiller.evaluate(batches, verbose=0, return_dict=True)
    attached = distiller.evaluate(soft.attach(batches), verbose=0, return_dict=True)
    assert plain == pytest.approx(attached)
    assert plain["loss"] == pytest.approx(
        float(LOGITS(data()[1], distiller.student(data()[0]))), rel=1e-5
    )
    expected = distiller.student.predict(batches, verbose=0)
    for given in (batches, soft.attach(batches)):
        np.testing.assert_allclose(distiller.predict(given, verbose=0), expected, atol=1e-6)


def test_validation_data_may_be_plain_or_attached(models, batches, soft):
    history = []
    for validation in (batches, soft.attach(batches)):
        keras.utils.set_random_seed(5)
        distiller = make(soft, clone(models[1]))
        fitted = distiller.fit(
            soft.attach(batches), validation_data=validation, epochs=2, verbose=0
        )
        history.append(fitted.history)
    assert "val_loss" in history[0]
    for name, values in history[0].items():
        assert history[1][name] == pytest.approx(values)


def test_class_and_sample_weights_count(models, batches, soft):
    teacher, student = models
    weights = {0: 1.0, 1: 0.0, 2: 3.0}
    x, y = data()
    own = np.array([weights[label] for label in y], "float32")
    weighted = tf.data.Dataset.from_tensor_slices((x, y, own)).batch(6)
    expected, _ = trained(teacher, student, weighted)
    by_sample, _ = trained(soft, student, soft.attach(weighted))
    by_class = make(soft, clone(student), LOSSES["logits"]())
    by_class.fit(soft.attach(batches), epochs=3, class_weight=weights, shuffle=False, verbose=0)
    assert difference(expected.student, by_sample.student) < 1e-5
    assert difference(expected.student, by_class.student) < 1e-5


def test_unlabelled_data_is_a_transfer_set(models, soft):
    x, _ = data()
    distiller = make(
        soft,
        clone(models[1]),
        student_loss_weight=0,
        compile_with={"loss": None, "metrics": None},
    )
    history = distiller.fit(soft.attach(x).batch(6), epochs=1, verbose=0).history
    assert set(history) == {"loss", "logits_distillation"}


def test_two_replicas_learn_what_one_does(models, batches, soft):
    together = tf.distribute.ReductionToOneDevice()  # collectives are one to a process, and shared
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=together)
    one, _ = trained(soft, models[1], soft.attach(batches))
    with strategy.scope():
        student = clone(models[1])
        two = make(soft, student, LOSSES["logits"]())
    two.fit(soft.attach(batches), epochs=3, shuffle=False, verbose=0)
    assert difference(one.student, two.student) < 1e-5


def test_a_saved_distiller_takes_the_store_or_the_teacher_again(models, batches, soft, tmp_path):
    distiller, _ = trained(soft, models[1], soft.attach(batches), "a layer", epochs=2)
    distiller.save(tmp_path / "d.keras")
    ends = []
    for teacher, given in ((soft, soft.attach(batches)), (models[0], batches)):
        loaded = kd.load_distiller(tmp_path / "d.keras", teacher=teacher)
        loaded.fit(given, epochs=1, shuffle=False, verbose=0)
        ends.append(loaded.student)
    distiller.fit(soft.attach(batches), epochs=1, shuffle=False, verbose=0)
    assert difference(distiller.student, ends[0]) < 1e-6
    assert difference(ends[0], ends[1]) < 1e-5
    with pytest.raises(ValueError, match="not the teacher that the student learned from"):
        kd.load_distiller(tmp_path / "d.keras", teacher=mlp(16))


# --- words --------------------------------------------------------------------------------------


def test_batches_without_soft_targets_are_refused(models, batches, soft):
    distiller = make(soft, clone(models[1]))
    with pytest.raises(ValueError, match=r"carry no soft targets[\s\S]*soft_targets\.attach"):
        distiller.fit(batches, epochs=1, verbose=0)


def test_foreign_data_is_refused_in_plain_words_before_a_step(models, soft):
    x, y = data()
    foreign = tf.data.Dataset.from_tensor_slices((x * 2.0, y)).shuffle(24, seed=1).batch(6)
    distiller = make(soft, clone(models[1]))
    with pytest.raises(ValueError, match=r"^There are no soft targets for example 0[^{]*$"):
        distiller.fit(soft.attach(foreign), epochs=1, verbose=0)
    assert difference(distiller.student, models[1]) == 0.0


@pytest.mark.parametrize("teacher", ["model", "ensemble", "peers"])
def test_soft_targets_beside_another_teacher_are_refused(models, batches, soft, teacher):
    given = soft.attach(batches)
    if teacher == "peers":
        learner = kd.MutualDistiller([clone(models[1]), mlp(4)])
        learner.compile("sgd", LOGITS)
    else:
        live = models[0] if teacher == "model" else [models[0], mlp(16)]
        learner = make(live, clone(models[1]))
    with pytest.raises(ValueError, match="carry soft targets, and the teacher is a model"):
        learner.fit(given, epochs=1, verbose=0)


def test_the_soft_targets_of_another_store_are_refused(models, batches, soft, kept, tmp_path):
    keras.utils.set_random_seed(4)
    other = kd.SoftTargets.build(
        mlp(16), batches, tmp_path / "other", layers=["hidden"], dtype="float32", verbose=0
    )
    for given in (other, kept):
        distiller = make(soft, clone(models[1]))
        with pytest.raises(ValueError, match="carry the soft targets of another store"):
            distiller.fit(given.attach(batches), epochs=1, verbose=0)
    again = kd.SoftTargets(soft.directory)
    trained(soft, models[1], again.attach(batches), epochs=1)


def test_a_layer_that_was_not_stored_is_refused(models, soft):
    losses = kd.FeatureDistillation(teacher_layer_name="hiden", student_layer_name="hidden")
    with pytest.raises(ValueError, match=r"no stored layer 'hiden'[\s\S]*hidden"):
        make(soft, clone(models[1]), losses)


def test_a_store_without_layers_says_how_to_store_one(models, batches, tmp_path):
    plain = kd.SoftTargets.build(models[0], batches, tmp_path / "plain", verbose=0)
    losses = kd.FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden")
    with pytest.raises(ValueError, match=r"none were stored\n  fix: .*layers=\['hidden'\]"):
        make(plain, clone(models[1]), losses)


def test_a_student_of_other_classes_is_refused_before_training(soft):
    with pytest.raises(ValueError, match="shapes of teacher and student differ"):
        make(soft, mlp(4, classes=5))


def test_a_store_cannot_be_compared_with(models, batches, soft):
    with pytest.raises(ValueError, match="carry no soft targets"):
        kd.compare(teacher=soft, students={"s": models[1]}, data=batches)
