"""The contract of the Distiller, row by row: each test fails on what Keras 3.15.1 does."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd as kd
from tests import references
from tests.models import LOGITS, Subclassed, data, mlp


def make(teacher=None, student=None, losses=None, weights=None, *, compile_with=None, **kwargs):
    """A compiled Distiller of tiny models, trained by plain gradient descent."""
    distiller = kd.Distiller(
        teacher or mlp(16),
        student or mlp(4),
        losses or kd.LogitsDistillation(temperature=2.0),
        weights,
        **kwargs,
    )
    settings = {"optimizer": keras.optimizers.SGD(0.1), "loss": LOGITS, "metrics": ["accuracy"]}
    distiller.compile(**{**settings, **(compile_with or {})})
    return distiller


def one_step(distiller, x, y=None, sample_weight=None) -> dict:
    return distiller.train_on_batch(x, y, sample_weight=sample_weight, return_dict=True)


def difference(first, second) -> float:
    return max(
        float(np.abs(a - b).max())
        for a, b in zip(first.get_weights(), second.get_weights(), strict=True)
    )


# --- the total and its parts --------------------------------------------------------------------


def test_total_is_the_weighted_sum_of_the_paper_s_terms():
    x, y = data()
    teacher, student = mlp(16), mlp(4)
    t, s = teacher(x).numpy(), student(x).numpy()
    kl = references.kl_divergence(t, s, 2.0).mean()
    squared = (0.5 * ((s - t) ** 2).sum(-1)).mean()
    labels = -references.log_softmax(s)[np.arange(len(y)), y].mean()
    losses = [kd.LogitsDistillation(temperature=2.0), kd.losses.LogitMatching()]
    logs = one_step(make(teacher, student, losses, [1.0, 0.25], student_loss_weight=0.3), x, y)
    assert logs["logits_distillation"] == pytest.approx(kl, rel=1e-5)
    assert logs["logit_matching"] == pytest.approx(squared, rel=1e-5)
    assert logs["student_loss"] == pytest.approx(labels, rel=1e-5)
    assert logs["loss"] == pytest.approx(0.3 * labels + 0.7 * (kl + 0.25 * squared), rel=1e-5)


def test_gradient_is_that_of_the_paper():
    x, y = data()
    teacher = mlp(16)
    student = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    kernel = student.get_weights()[0]
    t, s = teacher(x).numpy(), student(x).numpy()
    # d(T²·KL)/ds = T·(softmax(s/T) − softmax(t/T)), Hinton et al. 2015, section 2.1
    by_logits = 2.0 * (references.softmax(s / 2.0) - references.softmax(t / 2.0)) / len(x)
    distiller = make(teacher, student, student_loss_weight=0.0)
    one_step(distiller, x, y)
    expected = kernel - 0.1 * x.T @ by_logits
    np.testing.assert_allclose(student.get_weights()[0], expected, atol=1e-6)


def test_seed_formula_reverse_kl_times_lambda_plus_cross_entropy():
    x, _ = data()
    teacher, student = mlp(16), mlp(4)
    t, s = teacher(x).numpy(), student(x).numpy()
    log_t, log_s = references.log_softmax(t), references.log_softmax(s)
    kl = (np.exp(log_s) * (log_s - log_t)).sum(-1).mean()
    cross_entropy = -(np.exp(log_t) * log_s).sum(-1).mean()
    losses = [
        kd.LogitsDistillation(direction="reverse", temperature=1),
        kd.losses.SoftCrossEntropy(temperature=1),
    ]
    distiller = make(
        teacher, student, losses, [0.7, 1.0], student_loss_weight=0, compile_with={"loss": None}
    )
    assert one_step(distiller, x)["loss"] == pytest.approx(0.7 * kl + cross_entropy, rel=1e-5)


def test_student_loss_weight_of_one_is_plain_training_and_skips_the_teacher():
    x, y = data()
    alone = mlp(4)
    student = keras.models.clone_model(alone)
    student.set_weights(alone.get_weights())
    teacher = Subclassed()
    teacher(x)
    calls = teacher.calls
    distiller = make(teacher, student, student_loss_weight=1.0)
    alone.compile(keras.optimizers.SGD(0.1), LOGITS, metrics=["accuracy"])
    history = distiller.fit(x, y, epochs=2, shuffle=False, verbose=0).history
    alone.fit(x, y, epochs=2, shuffle=False, verbose=0)
    assert difference(alone, student) == 0.0
    assert teacher.calls == calls
    assert sorted(history) == ["accuracy", "loss", "student_loss"]


def test_distillation_weights_of_zero_skip_the_teacher():
    x, y = data()
    teacher = Subclassed()
    teacher(x)
    calls = teacher.calls
    one_step(make(teacher, weights=[0.0]), x, y)
    assert teacher.calls == calls


# --- row: sample_weight, class_weight ------------------------------------------------------------


def all_losses():
    return [
        kd.LogitsDistillation(),
        kd.losses.SoftCrossEntropy(),
        kd.losses.HardLabelDistillation(),
        kd.losses.LogitMatching(),
        kd.FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden"),
    ]


def test_sample_weight_of_ones_is_none_for_every_term():
    x, y = data()
    teacher, student = mlp(16), mlp(4)
    keras.utils.set_random_seed(3)
    plain = one_step(make(teacher, clone(student), all_losses()), x, y)
    keras.utils.set_random_seed(3)
    ones = one_step(make(teacher, clone(student), all_losses()), x, y, np.ones(len(x)))
    assert ones == pytest.approx(plain, rel=1e-6)


def test_sample_weight_of_zeros_is_zero_for_every_term_and_moves_nothing():
    x, y = data()
    student = mlp(4)
    before = student.get_weights()
    logs = one_step(make(student=student, losses=all_losses()), x, y, np.zeros(len(x)))
    assert {key: value for key, value in logs.items() if key != "accuracy"} == {
        name: 0.0 for name in logs if name != "accuracy"
    }
    for old, new in zip(before, student.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_sample_weight_of_zero_is_as_if_the_example_were_absent_from_the_sum():
    x, y = data()
    weight = np.array([1.0] * 12 + [0.0] * 12)
    teacher, student = mlp(16), mlp(4)
    half = one_step(make(teacher, clone(student)), x[:12], y[:12])
    weighted = one_step(make(teacher, clone(student)), x, y, weight)
    assert weighted["loss"] == pytest.approx(half["loss"] / 2, rel=1e-5)


def test_class_weight_reaches_the_distillation_terms():
    x, y = data()
    teacher, student = mlp(16), mlp(4)
    kl = references.kl_divergence(teacher(x).numpy(), student(x).numpy(), 2.0)
    weights = {0: 0.0, 1: 2.0, 2: 0.5}
    distiller = make(teacher, student)
    history = distiller.fit(x, y, batch_size=24, class_weight=weights, verbose=0).history
    expected = (kl * np.vectorize(weights.get)(y)).mean()
    assert history["logits_distillation"][0] == pytest.approx(expected, rel=1e-5)


def clone(model):
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


# --- row: student.losses -------------------------------------------------------------------------


def test_regularisers_and_add_loss_of_the_student_are_kept_and_scaled_once():
    class Adding(keras.layers.Layer):
        def call(self, inputs):
            self.add_loss(0.25 + 0.0 * keras.ops.sum(inputs))
            return inputs

    student = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(3, kernel_regularizer="l2"), Adding()]
    )
    extra = 0.01 * (student.get_weights()[0] ** 2).sum() + 0.25
    x, y = data()
    logs = one_step(make(student=student, student_loss_weight=0.3), x, y)
    expected = 0.3 * logs["student_loss"] + 0.7 * logs["logits_distillation"] + extra
    assert logs["loss"] == pytest.approx(expected, rel=1e-5)
    report = make(student=student, student_loss_weight=0.0).evaluate(
        x, y, verbose=0, return_dict=True
    )
    extra = 0.01 * (student.get_weights()[0] ** 2).sum() + 0.25
    assert report["loss"] == pytest.approx(report["student_loss"] + extra, rel=1e-5)


# --- row: one pass -------------------------------------------------------------------------------


def test_a_step_calls_the_student_once_and_the_teacher_once():
    x, y = data()
    teacher, student = Subclassed(16), Subclassed(4)
    losses = [
        kd.LogitsDistillation(),
        kd.FeatureDistillation(
            teacher_layer_name="backbone/hidden", student_layer_name="backbone/hidden"
        ),
        kd.FeatureDistillation(teacher_layer_name="backbone", student_layer_name="backbone"),
    ]
    distiller = make(teacher, student, losses, compile_with={"run_eagerly": True})
    one_step(distiller, x, y)
    teacher.calls = student.calls = 0
    distiller.fit(x, y, batch_size=8, verbose=0)
    assert (teacher.calls, student.calls) == (3, 3)


@pytest.mark.parametrize(("more", "regularizer"), [(0.0, None), (2.0, None), (0.0, "l2")])
def test_the_loss_of_evaluate_is_all_that_compute_loss_gives(more, regularizer):
    """Also where a subclass adds to it, or a layer of the student does."""

    class Adding(kd.Distiller):
        def compute_loss(self, *args, **kwargs):
            return super().compute_loss(*args, **kwargs) + more

    x, y = data()
    student = mlp(4)
    if regularizer:
        student.layers[0].kernel.regularizer = keras.regularizers.get(regularizer)
    distiller = (Adding if more else kd.Distiller)(mlp(16), student, kd.LogitsDistillation())
    distiller.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    report = distiller.evaluate(x, y, batch_size=6, verbose=0, return_dict=True)
    extra = more + float(sum(student.losses))
    assert (extra > 0.0) == (more > 0.0 or regularizer is not None)
    assert report["loss"] == pytest.approx(report["student_loss"] + extra, rel=1e-5)


def test_evaluate_and_predict_never_call_the_teacher_and_move_no_variable():
    x, y = data()
    teacher = Subclassed(16)
    student = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(4, name="hidden"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(3),
        ]
    )
    hint = kd.FeatureDistillation(teacher_layer_name="backbone/hidden", student_layer_name="hidden")
    distiller = make(teacher, student, [kd.LogitsDistillation(), hint])
    one_step(distiller, x, y)
    calls, before = teacher.calls, [v.numpy() for v in distiller.variables]
    distiller.evaluate(x, y, verbose=0)
    distiller.predict(x, verbose=0)
    distiller.test_on_batch(x, y)
    assert teacher.calls == calls
    metrics = {id(v) for metric in distiller.metrics for v in metric.variables}
    for variable, old in zip(distiller.variables, before, strict=True):
        if id(variable) not in metrics:
            np.testing.assert_array_equal(variable.numpy(), old)


def test_the_first_look_moves_no_variable_and_loses_no_batch():
    x, y = data()
    seen = []

    def batches():
        for start in range(0, 24, 8):
            seen.append(start)
            yield x[start : start + 8], y[start : start + 8]

    teacher, student = mlp(16), mlp(4)
    expected = make(teacher, clone(student))
    expected.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    given = make(teacher, clone(student))
    given.fit(batches(), steps_per_epoch=3, verbose=0)
    assert seen == [0, 8, 16]
    assert difference(expected.student, given.student) < 1e-7


def test_the_first_look_leaves_the_order_of_a_shuffled_dataset_alone():
    x, y = data()

    def shuffled():
        ds = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(24, seed=5)
        return ds.batch(4)

    alone = mlp(4)
    distiller = make(student=clone(alone), student_loss_weight=1.0 - 1e-12)
    alone.compile(keras.optimizers.SGD(0.1), LOGITS)
    alone.fit(shuffled(), epochs=2, verbose=0)
    distiller.fit(shuffled(), epochs=2, verbose=0)
    assert difference(alone, distiller.student) < 1e-5


# --- row: features of different width; projectors ------------------------------------------------


def test_projector_is_built_trained_and_not_part_of_the_student():
    x, y = data()
    student = mlp(4)
    hint = kd.FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden")
    distiller = make(mlp(16), student, [hint])
    projector = [v for v in distiller.trainable_variables if v.shape == (4, 16)]
    assert len(projector) == 1 and projector[0].path.endswith("kernel")
    before = projector[0].numpy()
    one_step(distiller, x, y)
    assert not np.allclose(before, projector[0].numpy())
    assert len(student.weights) == 4


def test_one_loss_object_serves_two_distillers():
    x, y = data()
    hint = kd.FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden")
    first, second = make(mlp(16), mlp(4), [hint]), make(mlp(12), mlp(5), [hint])
    one_step(first, x, y)
    one_step(second, x, y)
    shapes = [[v.shape for v in d.connections.trainable_variables] for d in (first, second)]
    assert shapes == [[(4, 16), (16,)], [(5, 12), (12,)]]


def test_maps_of_different_size_meet():
    def cnn(filters, strides):
        return keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Conv2D(filters, 3, strides, padding="same", name="conv"),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(3),
            ]
        )

    hint = kd.FeatureDistillation(teacher_layer_name="conv", student_layer_name="conv")
    distiller = make(cnn(6, 1), cnn(2, 2), [hint])
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("float32")
    logs = [one_step(distiller, x, np.array([0, 1, 2, 0])) for _ in range(30)]
    assert logs[-1]["feature_distillation"] < logs[0]["feature_distillation"]


# --- row: taps in nested and subclassed models ---------------------------------------------------


def test_nested_and_subclassed_models_are_tapped_by_path():
    x, y = data()
    inner = mlp(16)
    inputs = keras.Input((6,))
    teacher = keras.Model(inputs, inner(inputs))
    hint = kd.FeatureDistillation(
        teacher_layer_name=f"{inner.name}/hidden", student_layer_name="backbone/hidden"
    )
    logs = one_step(make(teacher, Subclassed(4), [hint]), x, y)
    assert np.isfinite(logs["feature_distillation"])


def test_unknown_layer_is_refused_when_the_distiller_is_made():
    hint = kd.FeatureDistillation(teacher_layer_name="hiden", student_layer_name="hidden")
    with pytest.raises(ValueError, match=r"There is no layer.*\n.*\n.*\n.*did you mean 'hidden'"):
        kd.Distiller(mlp(), mlp(), [hint])


# --- row: nothing of the caller's is changed -----------------------------------------------------


def test_the_teacher_is_left_as_it_was():
    x, y = data()
    teacher = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3, name="head"),
        ]
    )
    teacher.compile("sgd", "mse")
    before, attributes = teacher.get_weights(), set(vars(teacher))
    optimizer = teacher.optimizer
    weights = [1.0]
    distiller = make(teacher, weights=weights)
    distiller.fit(x, y, verbose=0)
    assert teacher.trainable and all(layer.trainable for layer in teacher.layers)
    assert set(vars(teacher)) == attributes and teacher.optimizer is optimizer
    assert weights == [1.0]
    assert all("call" not in vars(layer) for layer in teacher.layers)
    for old, new in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_teacher_is_not_tracked_however_it_is_set():
    distiller = make(mlp(16), mlp(4))
    assert len(distiller.trainable_variables) == 4
    distiller.attach_teacher(mlp(12), allow_different=True)
    assert len(distiller.trainable_variables) == 4
    other = mlp(11)
    with pytest.raises(ValueError, match="This is not the teacher"):
        distiller.teacher = other
    same = distiller.teacher.model
    distiller.teacher = same
    assert distiller.teacher.model is same
    assert len(distiller.variables) == len(distiller.student.variables)


# --- row: multi-output compile -------------------------------------------------------------------


def two_heads(width: int, kind: str = "dict") -> keras.Model:
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(width, activation="relu")(inputs)
    digit = keras.layers.Dense(3, name="digit")(hidden)
    size = keras.layers.Dense(2, name="size")(hidden)
    return keras.Model(inputs, {"digit": digit, "size": size} if kind == "dict" else [digit, size])


@pytest.mark.parametrize("kind", ["dict", "list"])
@pytest.mark.parametrize("by_name", [True, False])
def test_compile_takes_lists_and_dicts_with_none_and_loss_weights(kind, by_name):
    x, y = data()
    labels = {"digit": y, "size": y % 2} if kind == "dict" else [y, y % 2]
    loss = {"digit": LOGITS, "size": None} if by_name else [LOGITS, None]
    if kind == "list" and by_name:
        loss = {"digit": LOGITS, "size": LOGITS}
    weights = {"digit": 2.0, "size": 1.0} if by_name else [2.0, 1.0]
    student = two_heads(4, kind)
    outputs = student(x)
    digit = outputs["digit"] if kind == "dict" else outputs[0]
    size = outputs["size"] if kind == "dict" else outputs[1]
    distiller = kd.Distiller(two_heads(9, kind), student, kd.LogitsDistillation())
    metrics = {"digit": ["accuracy"]} if by_name else [["accuracy"], []]
    distiller.compile("sgd", loss, metrics=metrics, loss_weights=weights)
    logs = distiller.fit(x, labels, batch_size=24, verbose=0).history
    expected = 2.0 * references.cross_entropy(digit.numpy(), y).mean()
    if kind == "list" and by_name:
        expected += references.cross_entropy(size.numpy(), y % 2).mean()
    assert logs["student_loss"][0] == pytest.approx(expected, rel=1e-5)
    assert "digit_accuracy" in logs


def test_a_distillation_loss_for_each_output_and_none():
    x, _y = data()
    teacher, student = two_heads(9), two_heads(4)
    t, s = teacher(x), student(x)
    loss = kd.LogitsDistillation(temperature=2.0, loss={"digit": "kl_divergence", "size": None})
    distiller = kd.Distiller(teacher, student, loss, student_loss_weight=0)
    distiller.compile("sgd")
    logs = distiller.fit(x, batch_size=24, verbose=0).history
    expected = references.kl_divergence(t["digit"].numpy(), s["digit"].numpy(), 2.0).mean()
    assert logs["logits_distillation"][0] == pytest.approx(expected, rel=1e-5)


# --- row: dtypes in any mix ----------------------------------------------------------------------


@pytest.mark.parametrize("student_policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("teacher_policy", ["float32", "mixed_float16"])
def test_policies_mix(student_policy, teacher_policy):
    def model(policy, width):
        return keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(width, "relu", dtype=policy, name="hidden"),
                keras.layers.Dense(3, dtype=policy),
            ]
        )

    x, y = data()
    teacher, student = model(teacher_policy, 16), model(student_policy, 4)
    s32 = clone_to_float32(student)
    t32 = clone_to_float32(teacher)
    kl = references.kl_divergence(t32(x).numpy(), s32(x).numpy(), 2.0).mean()
    hint = kd.FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden")
    distiller = make(teacher, student, [kd.LogitsDistillation(temperature=2.0), hint])
    history = distiller.fit(x, y, epochs=6, batch_size=24, verbose=0).history
    assert history["logits_distillation"][0] == pytest.approx(kl, rel=0.05)
    assert history["loss"][-1] < history["loss"][0]
    scaled = isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (student_policy == "mixed_float16")
    assert all(v.dtype == "float32" for v in distiller.connections.trainable_variables)


def clone_to_float32(model):
    config = [
        {**layer.get_config(), "dtype": "float32"} | {"name": layer.name} for layer in model.layers
    ]
    copy = keras.Sequential(
        [keras.Input((6,)), *[keras.layers.Dense.from_config(one) for one in config]]
    )
    copy.set_weights(model.get_weights())
    return copy


# --- row: softmax outputs ------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_softmax_outputs_are_turned_back_to_log_space(which):
    x, y = data()
    teacher, student = mlp(16), mlp(4)
    with_logits = one_step(make(clone(teacher), clone(student)), x, y)
    ends = keras.layers.Softmax()
    if which == "teacher":
        teacher = keras.Sequential([*teacher.layers, ends])
        loss = LOGITS
    else:
        student = keras.Sequential([*student.layers, ends])
        loss = "sparse_categorical_crossentropy"
    teacher.build((None, 6))
    student.build((None, 6))
    logs = one_step(make(teacher, student, compile_with={"loss": loss}), x, y)
    assert logs == pytest.approx(with_logits, rel=1e-5)


def test_softmax_inside_a_subclassed_teacher_is_seen_in_its_values():
    class Probabilities(keras.Model):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def call(self, inputs):
            return keras.ops.softmax(self.model(inputs))

    x, y = data()
    teacher, student = mlp(16), mlp(4)
    plain = one_step(make(teacher, clone(student)), x, y)
    hidden = one_step(make(Probabilities(teacher), clone(student)), x, y)
    assert hidden == pytest.approx(plain, rel=1e-5)


def test_sigmoid_teacher_under_a_softmax_loss_is_refused_with_the_fix():
    x, y = data()
    distiller = make(mlp(16, 3, "sigmoid"), mlp(4))
    with pytest.raises(
        ValueError, match=r"the teacher ends in a sigmoid[\s\S]*activation='sigmoid'"
    ):
        distiller.fit(x, y, verbose=0)


def test_student_of_logits_with_from_logits_false_gets_one_warning():
    x, y = data()
    distiller = make(compile_with={"loss": "sparse_categorical_crossentropy"})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        distiller.fit(x, y, epochs=2, verbose=0)
        distiller.fit(x, y, verbose=0)
    said = [str(w.message) for w in caught if "gives logits" in str(w.message)]
    assert len(said) == 1 and "from_logits=True" in said[0]


# --- row: logs -----------------------------------------------------------------------------------


def test_logs_are_named_and_evaluation_leaves_distillation_out():
    x, y = data()
    losses = [
        kd.LogitsDistillation(temperature=2.0),
        kd.LogitsDistillation(temperature=8.0),
        kd.losses.LogitMatching(name="match"),
    ]
    distiller = make(losses=losses)
    history = distiller.fit(x, y, validation_data=(x, y), verbose=0).history
    distillation = {"logits_distillation", "logits_distillation_1", "match"}
    own = {"loss", "student_loss", "accuracy"}
    assert set(history) == own | distillation | {f"val_{name}" for name in own}
    assert set(distiller.evaluate(x, y, verbose=0, return_dict=True)) == own
    assert set(distiller.test_on_batch(x, y, return_dict=True)) == own


def test_val_loss_is_the_students_own_at_any_weight():
    x, y = data()
    student = mlp(4)
    distiller = make(student=student, student_loss_weight=0.0)
    report = distiller.evaluate(x, y, verbose=0, return_dict=True)
    expected = references.cross_entropy(student(x).numpy(), y).mean()
    assert report["loss"] == pytest.approx(expected, rel=1e-5)


# --- labels --------------------------------------------------------------------------------------


def test_unlabelled_data_and_no_loss_at_student_loss_weight_zero():
    x, _ = data()
    distiller = make(student_loss_weight=0, compile_with={"loss": None, "metrics": None})
    history = distiller.fit(tf.data.Dataset.from_tensor_slices(x).batch(8), verbose=0).history
    assert sorted(history) == ["logits_distillation", "loss"]


def test_unlabelled_data_with_metrics_and_a_loss_at_student_loss_weight_zero():
    x, _ = data()
    distiller = make(student_loss_weight=0)
    assert "logits_distillation" in distiller.fit(x, verbose=0).history


def test_unlabelled_data_above_zero_is_refused():
    x, _ = data()
    with pytest.raises(ValueError, match=r"Labels are needed[\s\S]*student_loss_weight=0"):
        make(student_loss_weight=0.5).fit(x, verbose=0)


def test_no_loss_above_zero_is_refused():
    with pytest.raises(ValueError, match=r"A student loss is needed[\s\S]*student_loss_weight=0"):
        make(compile_with={"loss": None})


def test_a_label_without_a_class_is_refused_before_training():
    x, y = data()
    student = mlp(4)
    before = student.get_weights()
    with pytest.raises(ValueError, match=r"A label has no class[\s\S]*label 5"):
        make(student=student).fit(x, y + 3, verbose=0)
    np.testing.assert_array_equal(before[0], student.get_weights()[0])


# --- what cannot be learned from -----------------------------------------------------------------


@pytest.mark.parametrize("given", [None, "model.keras", object(), [], [3]])
def test_a_teacher_that_is_no_model_raises_value_error(given):
    with pytest.raises(ValueError, match=r"(The teacher is no model|An ensemble needs members)"):
        kd.Distiller(given, mlp(), kd.LogitsDistillation())


def test_a_student_that_is_no_model_raises_value_error():
    with pytest.raises(ValueError, match=r"The student is no model[\s\S]*load_model"):
        kd.Distiller(mlp(), "student", kd.LogitsDistillation())


def test_class_counts_that_differ_are_refused_when_the_distiller_is_made():
    with pytest.raises(ValueError, match=r"shapes of teacher and student differ[\s\S]*5[\s\S]*3"):
        kd.Distiller(mlp(classes=5), mlp(classes=3), kd.LogitsDistillation())


def test_a_teacher_of_nan_is_refused_before_training():
    x, y = data()
    teacher, student = mlp(16), mlp(4)
    teacher.set_weights([np.full_like(w, np.nan) for w in teacher.get_weights()])
    before = student.get_weights()
    with pytest.raises(ValueError, match=r"Output 0 of teacher .* is not finite"):
        make(teacher, student).fit(x, y, verbose=0)
    np.testing.assert_array_equal(before[0], student.get_weights()[0])


def test_a_teacher_with_a_nan_feature_is_refused():
    x, y = data()
    inputs = keras.Input((6,))
    spoiled = keras.layers.Lambda(lambda t: t * np.nan, name="spoiled")(inputs)
    joined = keras.layers.Lambda(
        lambda pair: pair[0] + 0.0 * keras.ops.where(keras.ops.isnan(pair[1]), 0.0, pair[1])
    )([inputs, spoiled])
    teacher = keras.Model(inputs, keras.layers.Dense(3)(joined))
    hint = kd.FeatureDistillation(teacher_layer_name="spoiled", student_layer_name="hidden")
    with pytest.raises(ValueError, match=r"Layer 'spoiled' of the teacher is not finite"):
        make(teacher, mlp(4), [hint]).fit(x, y, verbose=0)


def test_empty_data_is_refused():
    x, y = data()
    empty = tf.data.Dataset.from_tensor_slices((x, y)).take(0).batch(4)
    with pytest.raises(ValueError, match="There is no data to train on"):
        make().fit(empty, verbose=0)


@pytest.mark.parametrize("losses", [[], "kl", [kd.LogitsDistillation(), 3]])
def test_what_is_no_distillation_loss_is_refused(losses):
    with pytest.raises(ValueError, match=r"(needs a distillation loss|no distillation loss)"):
        kd.Distiller(mlp(), mlp(), losses)


@pytest.mark.parametrize("weights", [[1.0, 2.0], [], 0.5 * np.ones(3)])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(ValueError, match="weights for 1 losses do not fit"):
        kd.Distiller(mlp(), mlp(), kd.LogitsDistillation(), list(weights))


def test_a_weight_that_is_no_number_is_refused():
    with pytest.raises(TypeError, match="`distillation_loss_weights` must be a number"):
        kd.Distiller(mlp(), mlp(), [kd.LogitsDistillation()], ["a"])


@pytest.mark.parametrize("weight", [-0.1, 1.5])
def test_student_loss_weight_outside_zero_to_one_is_refused(weight):
    with pytest.raises(ValueError, match="`student_loss_weight` must be between 0 and 1"):
        kd.Distiller(mlp(), mlp(), kd.LogitsDistillation(), student_loss_weight=weight)


@pytest.mark.parametrize("name", ["loss", "student_loss"])
def test_a_loss_cannot_take_a_name_of_the_logs(name):
    with pytest.raises(ValueError, match="A distillation loss cannot be logged as"):
        kd.Distiller(mlp(), mlp(), kd.LogitsDistillation(name=name))


def test_an_ensemble_has_no_features():
    hint = kd.FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden")
    with pytest.raises(ValueError, match="An ensemble has no layer to learn features from"):
        kd.Distiller([mlp(), mlp()], mlp(), [hint])


# --- losses from elsewhere -----------------------------------------------------------------------


def test_keras_losses_are_called_with_two_arguments():
    x, y = data()
    teacher, student = mlp(16), mlp(4)
    theirs = keras.distillation.LogitsDistillation(2.0, keras.losses.KLDivergence())
    hint = keras.distillation.FeatureDistillation("mse", "hidden", "hidden")
    logs = one_step(
        make(teacher, student, [theirs, keras.distillation.FeatureDistillation()]), x, y
    )
    kl = references.kl_divergence(teacher(x).numpy(), student(x).numpy(), 2.0)
    assert logs["logits_distillation"] > 0 and np.isfinite(kl).all()
    assert np.isfinite(one_step(make(mlp(4), mlp(4), [hint]), x, y)["feature_distillation"])


def test_keras_losses_are_refused_with_a_sample_weight():
    x, y = data()
    theirs = keras.distillation.LogitsDistillation(2.0, keras.losses.KLDivergence())
    with pytest.raises(ValueError, match=r"cannot honour a sample_weight[\s\S]*kd.LogitsDistill"):
        one_step(make(losses=[theirs]), x, y, np.ones(len(x)))


def test_a_loss_of_the_users_own_may_return_an_array():
    class PerExample(kd.losses.DistillationLoss):
        def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
            return keras.ops.sum(keras.ops.abs(teacher_outputs - student_outputs), axis=-1)

    x, y = data()
    teacher, student = mlp(16), mlp(4)
    expected = np.abs(teacher(x).numpy() - student(x).numpy()).sum(-1)
    weight = np.linspace(0, 2, len(x))
    logs = one_step(make(teacher, student, PerExample()), x, y, weight)
    assert logs["per_example"] == pytest.approx((expected * weight).mean(), rel=1e-5)


def test_a_teacher_of_values_makes_the_student_one_of_values():
    class Bounded(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = keras.layers.Dense(1)

        def call(self, inputs):
            return keras.ops.clip(self.head(inputs), 0.0, 0.9) + 0.05

    x, y = data()
    teacher = kd.Teacher(mlp(16, classes=1), outputs="values")
    settings = {"loss": "mse", "metrics": None}
    distiller = make(teacher, Bounded(), kd.losses.LogitMatching(), compile_with=settings)
    assert np.isfinite(distiller.fit(x, y[:, None] / 2.0, verbose=0).history["loss"][0])


def test_a_frozen_student_is_refused():
    x, y = data()
    student = mlp(4)
    student.trainable = False
    with pytest.raises(ValueError, match=r"has nothing to train[\s\S]*trainable = True"):
        make(student=student).fit(x, y, verbose=0)


def test_a_teacher_of_another_input_shape_is_refused_with_preprocess_as_the_fix():
    teacher = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    with pytest.raises(ValueError, match=r"takes inputs of another shape[\s\S]*preprocess="):
        kd.Distiller(teacher, mlp(4), kd.LogitsDistillation())
    x, y = data()
    cut = kd.Teacher(teacher, preprocess=lambda inputs: inputs[:, :5])
    assert np.isfinite(make(cut, mlp(4)).fit(x, y, verbose=0).history["loss"][0])
