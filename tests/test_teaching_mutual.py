"""Deep mutual learning against the paper's equations, and what a MutualDistiller promises."""

from __future__ import annotations

import inspect
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd as kd
from keras_kd.teaching import MutualDistiller
from tests import references
from tests.models import LOGITS, Subclassed, data, mlp
from tests.test_distiller import clone, difference, make
from tests.test_distiller_saving import environment


def linear() -> keras.Model:
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])


def named(width: int, name: str) -> keras.Model:
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(width, activation="relu", name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(hidden), name=name)


def mutual(students, losses=None, weights=None, *, compile_with=None, **kwargs) -> MutualDistiller:
    """A compiled MutualDistiller, trained by plain gradient descent."""
    distiller = MutualDistiller(students, losses, weights, **kwargs)
    settings = {"optimizer": keras.optimizers.SGD(0.1), "loss": LOGITS}
    distiller.compile(**{**settings, **(compile_with or {})})
    return distiller


def one_step(distiller, x, y=None, sample_weight=None) -> dict:
    return distiller.train_on_batch(x, y, sample_weight=sample_weight, return_dict=True)


def one_hot(y: np.ndarray) -> np.ndarray:
    return np.eye(3)[y]


# --- the paper's equations ------------------------------------------------------------------------


def test_one_step_of_two_linear_students_is_the_paper_s():
    """∂L_C/∂s₁ = p₁ − y (equation 2), ∂KL(p₂‖p₁)/∂s₁ = p₁ − p₂ (equation 4), p₂ a constant."""
    x, y = data()
    students = [linear(), linear()]
    kernels = [student.get_weights()[0].astype("float64") for student in students]
    p = [references.softmax(x @ kernel) for kernel in kernels]
    one_step(mutual(students), x, y)
    for own, peer in ((0, 1), (1, 0)):
        slope = (p[own] - one_hot(y)) + (p[own] - p[peer])  # equation 5
        expected = kernels[own] - 0.1 * 0.5 * x.T @ slope / len(x)
        np.testing.assert_allclose(students[own].get_weights()[0], expected, atol=1e-6)


def test_the_logs_are_the_paper_s_terms_of_three_students():
    """L_Θk = L_Ck + 1/(K−1)·Σ_{l≠k} KL(pₗ‖pₖ): equation 7, and one more loss, weighted."""
    x, y = data()
    students = [named(4, "a"), named(5, "b"), named(6, "c")]
    s = [student(x).numpy() for student in students]
    losses = [kd.LogitsDistillation(temperature=2.0), kd.losses.LogitMatching()]
    logs = one_step(mutual(students, losses, [1.0, 0.25], student_loss_weight=0.3), x, y)
    totals = []
    for k, name in enumerate("abc"):
        peers = [s[other] for other in range(3) if other != k]
        labels = references.cross_entropy(s[k], y).mean()
        kl = np.mean([references.kl_divergence(peer, s[k], 2.0).mean() for peer in peers])
        squares = np.mean([references.logit_matching(peer, s[k]).mean() for peer in peers])
        totals.append(0.3 * labels + 0.7 * (kl + 0.25 * squares))
        assert logs[f"{name}_student_loss"] == pytest.approx(labels, rel=1e-5)
        assert logs[f"{name}_logits_distillation"] == pytest.approx(kl, rel=1e-5)
        assert logs[f"{name}_logit_matching"] == pytest.approx(squares, rel=1e-5)
        assert logs[f"{name}_loss"] == pytest.approx(totals[-1], rel=1e-5)
    assert logs["loss"] == pytest.approx(sum(totals), rel=1e-5)
    assert len(logs) == 13


def test_the_defaults_are_the_paper_s():
    parameters = inspect.signature(MutualDistiller).parameters
    assert parameters["student_loss_weight"].default == 0.5
    assert parameters["name"].default == "mutual_distiller"
    distiller = MutualDistiller([linear(), linear()])
    (loss,) = distiller.distillation_losses
    assert type(loss) is kd.LogitsDistillation
    assert loss.temperature == 1.0
    assert loss.direction == "forward"
    assert distiller.distillation_loss_weights == [1.0]
    assert distiller.student_loss_weight == 0.5


def test_a_step_is_that_of_two_distillers_with_frozen_peers():
    """No gradient reaches a peer, and one optimizer is as good as one for each student."""
    x, y = data()
    losses = [kd.LogitsDistillation(), keras.distillation.LogitsDistillation(temperature=2.0)]
    students = [mlp(4), mlp(7)]
    copies, alone = ([clone(student) for student in students] for _ in range(2))
    for own, peer in ((0, 1), (1, 0)):
        settings = {"optimizer": keras.optimizers.AdamW(0.01, weight_decay=0.1, clipnorm=0.05)}
        one_step(make(copies[peer], alone[own], losses, compile_with=settings), x, y)
    settings = {"optimizer": keras.optimizers.AdamW(0.01, weight_decay=0.1, clipnorm=0.05)}
    one_step(mutual(students, losses, compile_with=settings), x, y)
    for student, expected, before in zip(students, alone, copies, strict=True):
        assert difference(student, expected) < 1e-6
        assert difference(student, before) > 1e-3


def hint() -> kd.FeatureDistillation:
    return kd.FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden")


def test_features_meet_by_a_projector_for_each_peer():
    x, y = data()
    students = [mlp(4), mlp(5), mlp(6)]
    distiller = mutual(students, [kd.LogitsDistillation(), hint()])
    own = sum(len(student.trainable_weights) for student in students)
    assert len(distiller.trainable_weights) > own
    before = [weight.numpy() for weight in distiller.trainable_weights]
    one_step(distiller, x, y)
    after = [weight.numpy() for weight in distiller.trainable_weights]
    assert all(np.abs(a - b).max() > 0 for a, b in zip(before, after, strict=True))
    assert [len(student.weights) for student in students] == [4, 4, 4]


def test_a_layer_learns_from_another_layer_of_the_peer():
    x, y = data()
    students = [named(4, "a"), named(5, "b")]
    ones = keras.layers.Dense(3, kernel_initializer="ones")
    loss = kd.FeatureDistillation(
        teacher_layer_name="head", student_layer_name="hidden", projector=ones
    )
    hidden = [student.get_layer("hidden")(x).numpy().sum(-1, keepdims=True) for student in students]
    heads = [student(x).numpy() for student in students]
    logs = one_step(mutual(students, loss), x, y)
    for own, peer, name in ((0, 1, "a"), (1, 0, "b")):
        expected = np.mean((hidden[own] - heads[peer]) ** 2)
        assert logs[f"{name}_feature_distillation"] == pytest.approx(expected, rel=1e-4)


def test_peers_that_differ_in_their_outputs_are_refused_at_once():
    with pytest.raises(ValueError, match="shapes of teacher and student differ"):
        MutualDistiller([mlp(4, classes=3), mlp(4, classes=4)])


# --- one look each --------------------------------------------------------------------------------


def test_a_step_runs_each_student_once():
    x, y = data()
    students = [Subclassed(4), Subclassed(5), Subclassed(6)]
    distiller = mutual(students, compile_with={"run_eagerly": True})
    one_step(distiller, x, y)
    before = [student.calls for student in students]
    one_step(distiller, x, y)
    one_step(distiller, x, y)
    assert [student.calls - count for student, count in zip(students, before, strict=True)] == [
        2
    ] * 3


def test_unbuilt_students_are_built_by_the_first_batch():
    x, y = data()
    students = [Subclassed(4), keras.Sequential([keras.layers.Dense(3)])]
    history = mutual(students).fit(x, y, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert all(student.built for student in students)


def test_build_builds_the_students():
    students = [keras.Sequential([keras.layers.Dense(3)]) for _ in range(2)]
    distiller = MutualDistiller(students)
    assert not distiller.built
    distiller.build((None, 6))
    assert all(student.built for student in students)


def test_students_train_in_training_mode_and_are_evaluated_in_inference():
    x, y = data()
    layers = [keras.layers.Dense(4), keras.layers.BatchNormalization(momentum=0.5)]
    normalised = keras.Sequential([keras.Input((6,)), *layers, keras.layers.Dense(3)])
    distiller = mutual([mlp(4), normalised])
    mean = layers[1].moving_mean.numpy()
    distiller.evaluate(x, y, verbose=0)
    np.testing.assert_array_equal(layers[1].moving_mean, mean)
    expected = 0.5 * layers[0](x).numpy().mean(0)
    one_step(distiller, x, y)
    np.testing.assert_allclose(layers[1].moving_mean, expected, atol=1e-6)


def test_the_optimizer_is_built_before_a_callback_restores_it():
    distiller = mutual([mlp(4), mlp(5)], hint())
    distiller.make_train_function()
    assert distiller.optimizer.built


@pytest.mark.parametrize(
    "settings", [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 3}], ids=str
)
def test_eager_xla_and_several_steps_at_once_agree(settings):
    x, y = data()
    first = [mlp(4), mlp(5)]
    second = [clone(student) for student in first]
    one, other = mutual(first), mutual(second, compile_with=settings)
    for distiller in (one, other):
        distiller.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    assert difference(one, other) < 1e-6


# --- weights, labels, regularisers ----------------------------------------------------------------


def test_sample_weights_are_honoured():
    x, y = data()
    first = [mlp(4), mlp(5)]
    plain, ones, zeros = mutual(first), *[mutual([clone(s) for s in first]) for _ in range(2)]
    assert one_step(ones, x, y, np.ones(24)) == pytest.approx(one_step(plain, x, y), rel=1e-6)
    assert difference(plain, ones) < 1e-7
    before = zeros.get_weights()
    assert one_step(zeros, x, y, np.zeros(24))["loss"] == 0.0
    for old, new in zip(before, zeros.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_class_weights_are_sample_weights():
    x, y = data()
    first = [mlp(4), mlp(5)]
    by_class, by_sample = mutual(first), mutual([clone(s) for s in first])
    factors = {0: 0.5, 1: 2.0, 2: 0.0}
    by_class.fit(x, y, batch_size=24, class_weight=factors, verbose=0)
    weight = np.array([factors[label] for label in y])
    by_sample.fit(x, y, batch_size=24, sample_weight=weight, verbose=0)
    assert difference(by_class, by_sample) < 1e-7


def test_without_labels_they_learn_from_each_other_alone():
    x, _ = data()
    distiller = mutual([mlp(4), mlp(5)], student_loss_weight=0.0, compile_with={"loss": None})
    logs = distiller.fit(x, epochs=3, verbose=0).history
    assert logs["loss"][-1] < logs["loss"][0]
    assert not any("student_loss" in name for name in logs)


def test_a_student_loss_weight_of_one_is_training_apart():
    x, y = data()
    students = [mlp(4), mlp(5)]
    apart = [clone(student) for student in students]
    history = mutual(students, student_loss_weight=1.0).fit(x, y, shuffle=False, verbose=0).history
    assert not any("distillation" in name for name in history)
    for student, alone in zip(students, apart, strict=True):
        alone.compile(keras.optimizers.SGD(0.1), LOGITS)
        alone.fit(x, y, shuffle=False, verbose=0)
        assert difference(student, alone) < 1e-7


def test_a_regulariser_counts_once():
    x, y = data()
    layers = [keras.Input((6,)), keras.layers.Dense(3, kernel_regularizer="l2")]
    students = [keras.Sequential(layers, name="a"), named(4, "b")]
    penalty = float(students[0].losses[0])
    logs = one_step(mutual(students, student_loss_weight=1.0), x, y)
    assert logs["a_loss"] == pytest.approx(logs["a_student_loss"] + penalty, rel=1e-5)
    assert logs["b_loss"] == pytest.approx(logs["b_student_loss"], rel=1e-6)


# --- logs and Keras's interface -------------------------------------------------------------------


def test_every_student_has_metrics_of_its_own():
    x, y = data()
    students = [named(4, "a"), named(5, "b")]
    given = keras.metrics.SparseTopKCategoricalAccuracy(k=2, name="top2")
    nll = keras.metrics.SparseCategoricalCrossentropy(name="nll", from_logits=True)
    settings = {"metrics": ["accuracy", given], "weighted_metrics": [nll]}
    distiller = mutual(students, compile_with=settings)
    logs = distiller.evaluate(x, y, verbose=0, return_dict=True)
    for student in students:
        z, name = student(x).numpy(), student.name
        better = (z > z[np.arange(len(y)), y][:, None]).sum(-1)
        assert logs[f"{name}_accuracy"] == pytest.approx(np.mean(z.argmax(-1) == y))
        assert logs[f"{name}_top2"] == pytest.approx(np.mean(better < 2))
    assert float(given.result()) == 0.0  # what the caller hands in is not changed
    history = distiller.fit(x, y, validation_data=(x, y), verbose=0).history
    assert {"a_nll", "b_nll", "val_a_top2", "val_b_loss", "val_loss"} <= set(history)
    assert not any("val" in name and "distillation" in name for name in history)


def test_evaluate_gives_the_labels_losses_and_moves_nothing():
    x, y = data()
    students = [named(4, "a"), named(5, "b")]
    distiller = mutual(students)
    before = distiller.get_weights()
    logs = distiller.evaluate(x, y, verbose=0, return_dict=True)
    expected = {s.name: references.cross_entropy(s(x).numpy(), y).mean() for s in students}
    assert sorted(logs) == ["a_loss", "a_student_loss", "b_loss", "b_student_loss", "loss"]
    assert logs["a_loss"] == pytest.approx(expected["a"], rel=1e-5)
    assert logs["loss"] == pytest.approx(sum(expected.values()), rel=1e-5)
    for old, new in zip(before, distiller.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_predict_gives_every_student_s_outputs_by_name():
    x, _ = data()
    students = [named(4, "twin"), named(5, "twin")]
    given = mutual([*students, clone(students[0])]).predict(x, verbose=0)
    assert list(given) == ["twin", "twin_1", "twin_2"]  # a name that comes again is numbered
    np.testing.assert_allclose(given["twin_1"], students[1](x), atol=1e-6)


def test_losses_by_output_name_serve_every_student():
    x, y = data()

    def two_heads():
        inputs = keras.Input((6,))
        heads = [
            keras.layers.Dense(3, name="one")(inputs),
            keras.layers.Dense(3, name="two")(inputs),
        ]
        return keras.Model(inputs, dict(zip(("one", "two"), heads, strict=True)))

    settings = {"loss": {"one": LOGITS, "two": LOGITS}, "loss_weights": {"one": 1.0, "two": 0.0}}
    students = [two_heads(), two_heads()]
    before = [student.get_layer("two").get_weights()[0] for student in students]
    distiller = mutual(students, student_loss_weight=1.0, compile_with=settings)
    one_step(distiller, x, {"one": y, "two": y})
    for student, kernel in zip(students, before, strict=True):
        np.testing.assert_array_equal(student.get_layer("two").get_weights()[0], kernel)


def half(width: int) -> keras.Model:
    layers = [keras.layers.Dense(width, dtype="mixed_float16"), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((6,)), *layers])


def test_mixed_precision_gets_loss_scaling_and_learns():
    x, y = data()
    students = [mlp(4), half(5)]
    distiller = mutual(students, compile_with={"optimizer": keras.optimizers.Adam(0.05)})
    assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    history = distiller.fit(x, y, epochs=12, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    unscaled = mutual([mlp(4), half(5)], compile_with={"auto_scale_loss": False})
    assert isinstance(unscaled.optimizer, keras.optimizers.SGD)


# --- saving ---------------------------------------------------------------------------------------


def compiled_to_resume(students) -> MutualDistiller:
    settings = {"optimizer": keras.optimizers.Adam(0.01), "metrics": ["accuracy"]}
    return mutual(students, [kd.LogitsDistillation(), hint()], [1.0, 0.3], compile_with=settings)


@pytest.mark.parametrize("kind", ["sequential", "subclassed"])
def test_save_load_fit_goes_on_to_the_same_weights(tmp_path, kind):
    x, y = data()
    students = [mlp(4), mlp(5)]
    if kind == "subclassed":
        students = [Subclassed(4, name="a"), Subclassed(5, name="b")]
        inside = "backbone/hidden"
        loss = kd.FeatureDistillation(teacher_layer_name=inside, student_layer_name=inside)
        distiller = mutual(students, loss, compile_with={"optimizer": keras.optimizers.Adam(0.01)})
    else:
        distiller = compiled_to_resume(students)
    distiller.fit(x, y, epochs=2, shuffle=False, verbose=0)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    assert difference(distiller, loaded) == 0.0
    before = loaded.evaluate(x, y, verbose=0, return_dict=True)
    assert before == pytest.approx(distiller.evaluate(x, y, verbose=0, return_dict=True))
    for one in (distiller, loaded):
        one.fit(x, y, epochs=2, shuffle=False, verbose=0)
    assert difference(distiller, loaded) == 0.0
    assert [s.name for s in loaded.students] == [s.name for s in students]


def test_save_load_fit_in_a_fresh_process_gives_the_same_weights(tmp_path):
    x, y = data()
    distiller = compiled_to_resume([mlp(4), mlp(5)])
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


def test_schedules_and_auto_scale_loss_survive_loading(tmp_path):
    falling = keras.optimizers.schedules.PolynomialDecay(0.9, 10, 0.1)
    distiller = MutualDistiller([mlp(4), half(5)], None, [falling], falling)
    distiller.compile("sgd", LOGITS, auto_scale_loss=False)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.models.load_model(tmp_path / "d.keras")
    for schedule in (loaded.student_loss_weight, loaded.distillation_loss_weights[0]):
        assert schedule.get_config() == falling.get_config()
    assert isinstance(loaded.optimizer, keras.optimizers.SGD)


def test_each_student_is_a_plain_model_exported_alone(tmp_path):
    x, y = data()
    students = [mlp(4), mlp(5)]
    distiller = compiled_to_resume(students)
    distiller.fit(x, y, verbose=0)
    assert distiller.students == students
    assert [type(student) for student in students] == [keras.Sequential] * 2
    distiller.students[1].export(tmp_path / "exported", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    assert sum(int(tf.size(v)) for v in loaded.variables) == students[1].count_params()
    with pytest.raises(ValueError, match=r"exported one by one[\s\S]*students\[0\]\.export"):
        distiller.export(tmp_path / "all")


# --- replicas -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mirrored() -> tf.distribute.MirroredStrategy:
    """Two replicas that meet without collective keys, which all strategies of a process share."""
    together = tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=together)


def test_two_replicas_equal_one_device(mirrored):
    x, y = data(21)
    start = [mlp(4).get_weights(), mlp(5).get_weights()]
    results = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            students = [mlp(4), mlp(5)]
            distiller = mutual(students)
        for student, weights in zip(students, start, strict=True):
            student.set_weights(weights)
        ds = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        history = distiller.fit(ds.with_options(options), epochs=2, verbose=0).history
        results.append((distiller.get_weights(), history["loss"]))
    for one, two in zip(results[0][0], results[1][0], strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("students", [[mlp()], mlp(), []], ids=["one", "a model", "none"])
def test_fewer_than_two_students_are_refused(students):
    with pytest.raises(ValueError, match=r"needs two students or more[\s\S]*kd\.Distiller"):
        MutualDistiller(students)


def test_what_is_no_model_is_refused():
    with pytest.raises(ValueError, match="The student is no model"):
        MutualDistiller([mlp(), "mlp"])


def test_students_that_share_weights_are_refused():
    shared = keras.layers.Dense(3, name="shared")
    students = [keras.Sequential([keras.Input((6,)), shared]) for _ in range(2)]
    with pytest.raises(ValueError, match=r"share weights[\s\S]*shared/kernel[\s\S]*clone_model"):
        MutualDistiller(students)
    unbuilt = Subclassed()
    with pytest.raises(ValueError, match="share weights"):
        MutualDistiller([unbuilt, unbuilt])
    shared.trainable = False
    MutualDistiller(students, student_loss_weight=1.0)  # what is frozen may be shared


def test_unbuilt_students_that_share_a_layer_are_refused_on_the_first_batch():
    x, y = data()
    shared = keras.layers.Dense(3)
    distiller = mutual([keras.Sequential([shared]), keras.Sequential([shared])])
    with pytest.raises(ValueError, match="Two students share weights"):
        distiller.fit(x, y, verbose=0)


@pytest.mark.parametrize("wrap", [lambda o: o, keras.optimizers.LossScaleOptimizer])
def test_global_clipnorm_is_refused(wrap):
    optimizer = wrap(keras.optimizers.SGD(0.1, global_clipnorm=1.0))
    with pytest.raises(ValueError, match=r"`global_clipnorm` would let one[\s\S]*use clipnorm="):
        mutual([mlp(), mlp()], compile_with={"optimizer": optimizer})


def test_a_missing_student_loss_and_a_metric_of_a_loss_s_name_are_refused():
    with pytest.raises(ValueError, match="A student loss is needed"):
        mutual([mlp(), mlp()], compile_with={"loss": None})
    taken = keras.metrics.MeanSquaredError(name="logits_distillation")
    with pytest.raises(ValueError, match="A metric cannot be logged as 'logits_distillation'"):
        mutual([mlp(), mlp()], compile_with={"metrics": [taken]})


def test_a_student_with_nothing_to_train_is_refused():
    x, y = data()
    still = mlp()
    still.trainable = False
    with pytest.raises(ValueError, match="has nothing to train"):
        mutual([mlp(), still]).fit(x, y, verbose=0)
