"""What is looked at once before training: labels, statements, shapes, weights; with its words."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd as kd
from keras_kd import first_look, student_losses
from tests.models import LOGITS, data, mlp
from tests.test_distiller import make, one_step, two_heads


def test_a_loss_that_uses_labels_gets_them():
    class Labelled(kd.losses.DistillationLoss):
        def per_example(self, teacher, student, y=None):
            chosen = keras.ops.one_hot(keras.ops.cast(y, "int32"), 3)
            return keras.ops.sum(chosen * keras.ops.square(teacher - student), axis=-1)

    x, y = data()
    teacher, student = mlp(16), mlp(4)
    gap = (teacher(x).numpy() - student(x).numpy()) ** 2
    logs = one_step(make(teacher, student, Labelled()), x, y)
    assert logs["labelled"] == pytest.approx(gap[np.arange(len(y)), y].mean(), rel=1e-5)


def test_a_loss_of_the_users_own_needs_no_y_and_may_return_a_scalar():
    class Plain(kd.losses.DistillationLoss):
        def per_example(self, teacher, student):
            return keras.ops.mean(keras.ops.abs(teacher - student), axis=-1)

    class Scalar(kd.losses.DistillationLoss):
        def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
            return keras.ops.mean(keras.ops.abs(teacher_outputs - student_outputs))

    x, y = data()
    logs = one_step(make(losses=[Plain(), Scalar()]), x, y)
    assert logs["plain"] == pytest.approx(logs["scalar"], rel=1e-6)


@pytest.mark.parametrize("label", [-1, 3])
@pytest.mark.parametrize(
    "loss",
    [LOGITS, keras.losses.sparse_categorical_crossentropy, "sparse_categorical_crossentropy"],
)
def test_labels_outside_the_classes_are_refused(label, loss):
    x, y = data()
    y[5] = label
    distiller = make(compile_with={"loss": loss})
    with pytest.raises(ValueError, match=rf"A label has no class[\s\S]*label {label}"):
        distiller.fit(x, y, batch_size=24, verbose=0)


def test_a_label_that_weighs_nothing_or_is_left_out_may_be_any():
    x, y = data()
    y[5] = -1
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    make(compile_with={"loss": loss}).fit(x, y, verbose=0)


@pytest.mark.parametrize("kind", ["class numbers", "four classes"])
def test_labels_that_are_no_one_hot_rows_are_refused(kind):
    x, y = data()
    labels = y if kind == "class numbers" else np.eye(4)[y]
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    distiller = make(compile_with={"loss": loss, "metrics": None})
    with pytest.raises(ValueError, match=r"no one-hot rows[\s\S]*SparseCategoricalCrossentropy"):
        distiller.fit(x, labels, verbose=0)


def test_float_labels_that_are_not_finite_are_refused():
    x, y = data()
    targets = y[:, None].astype("float32")
    targets[3] = np.nan
    teacher = kd.Teacher(mlp(16, classes=1), outputs="values")
    settings = {"loss": "mse", "metrics": None}
    distiller = make(teacher, mlp(4, 1), kd.losses.LogitMatching(), compile_with=settings)
    with pytest.raises(ValueError, match=r"labels hold numbers that are not finite[\s\S]*1 of 24"):
        distiller.fit(x, targets, batch_size=24, verbose=0)


def test_data_of_another_width_than_the_student_takes_is_refused():
    x, y = data()
    with pytest.raises(ValueError, match=r"takes inputs of another shape[\s\S]*\(24, 5\)"):
        make().fit(x[:, :5], y, batch_size=24, verbose=0)


@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        keras.losses.sparse_categorical_crossentropy,
        keras.losses.SparseCategoricalCrossentropy(),
    ],
)
def test_every_form_of_a_loss_that_mistakes_logits_is_warned_of(loss):
    x, y = data()
    with pytest.warns(UserWarning, match="gives logits"):
        make(compile_with={"loss": loss}).fit(x, y, verbose=0)


def test_what_a_compiled_loss_says():
    losses = keras.losses
    assert student_losses.said(None) is None
    assert student_losses.said("mse") == "logits"
    assert student_losses.said(losses.BinaryCrossentropy()) == "sigmoid"
    assert student_losses.said(losses.CategoricalFocalCrossentropy()) == "softmax"
    assert student_losses.said(losses.SparseCategoricalCrossentropy(from_logits=True)) == "logits"


def test_the_compiled_loss_says_what_a_subclassed_student_gives():
    class Bounded(keras.Model):
        def __init__(self, activation):
            super().__init__()
            self.head, self.activation = keras.layers.Dense(1), activation

        def call(self, inputs):
            return self.activation(0.01 * self.head(inputs) + 0.5)

    x, y = data()
    loss = kd.LogitsDistillation(activation="sigmoid")
    labels = (y % 2)[:, None]
    read = {}
    for from_logits in (True, False):
        crossentropy = keras.losses.BinaryCrossentropy(from_logits=from_logits)
        student = Bounded(keras.activations.linear if from_logits else tf.math.sigmoid)
        settings = {"loss": crossentropy, "metrics": None}
        distiller = make(mlp(16, 1), student, loss, compile_with=settings)
        distiller.fit(x, labels, verbose=0)
        read[from_logits] = distiller._reader.kinds
    assert read == {True: ["logits"], False: ["sigmoid"]}


def test_values_of_one_output_or_of_an_ensemble_reach_the_students_reader():
    one = make(
        kd.EnsembleTeacher([kd.Teacher(mlp(5, 1), outputs="values")]),
        mlp(4, 1, "sigmoid"),
        kd.losses.LogitMatching(),
        compile_with={"loss": "mse", "metrics": None},
    )
    x, y = data()
    one.fit(x, y[:, None] / 2.0, verbose=0)
    assert one._reader.kinds == ["values"]

    def heads(width, last):
        inputs = keras.Input((6,))
        hidden = keras.layers.Dense(width)(inputs)
        return keras.Model(
            inputs, [keras.layers.Dense(3)(hidden), keras.layers.Dense(1, activation=last)(hidden)]
        )

    teacher = kd.Teacher(heads(8, None), outputs=["logits", "values"])
    two = make(
        teacher,
        heads(4, "sigmoid"),
        kd.losses.LogitMatching(),
        compile_with={"loss": [LOGITS, "mse"], "metrics": None},
    )
    two.fit(x, [y, y[:, None] / 2.0], verbose=0)
    assert two._reader.kinds == ["logits", "values"]


def test_a_loss_by_output_names_works_for_models_that_give_lists():
    x, y = data()
    loss = kd.LogitsDistillation(loss={"digit": "kl_divergence", "size": None})
    distiller = kd.Distiller(two_heads(9, "list"), two_heads(4, "list"), loss)
    distiller.compile("sgd", {"digit": LOGITS, "size": LOGITS})
    history = distiller.fit(x, {"digit": y, "size": y % 2}, verbose=0).history
    assert history["logits_distillation"][0] > 0


def test_a_softmax_loss_on_the_sigmoid_of_several_outputs_is_refused():
    def heads(width):
        inputs = keras.Input((6,))
        hidden = keras.layers.Dense(width)(inputs)
        return keras.Model(
            inputs,
            [
                keras.layers.Dense(3, activation="softmax")(hidden),
                keras.layers.Dense(4, activation="sigmoid")(hidden),
            ],
        )

    x, _ = data()
    loss = kd.LogitsDistillation(loss=[None, "kl_divergence"])
    distiller = kd.Distiller(heads(9), heads(4), loss, student_loss_weight=0)
    distiller.compile("sgd")
    with pytest.raises(ValueError, match=r"is a softmax loss, and the teacher ends in a sigmoid"):
        distiller.fit(x, verbose=0)
    allowed = kd.LogitsDistillation(loss=["kl_divergence", None])
    distiller = kd.Distiller(heads(9), heads(4), allowed, student_loss_weight=0)
    distiller.compile("sgd")
    distiller.fit(x, verbose=0)


@pytest.mark.parametrize("name", ["student", "student_loss_weight"])
def test_what_a_step_is_made_of_cannot_be_assigned(name):
    with pytest.raises(ValueError, match=rf"A Distiller keeps the {name}[\s\S]*new Distiller"):
        setattr(make(), name, mlp(5) if name == "student" else 0.2)


def test_a_teacher_that_shares_trained_weights_is_refused():
    student = mlp(4)
    with pytest.raises(ValueError, match=r"shares weights with the student[\s\S]*clone_model"):
        make(student, student)
    shared = keras.layers.Dense(4)
    models = [
        keras.Sequential([keras.Input((6,)), shared, keras.layers.Dense(3)]) for _ in range(2)
    ]
    with pytest.raises(ValueError, match="shares weights with the student"):
        make(*models)
    shared.trainable = False
    make(*models)


@pytest.mark.parametrize("metric", ["logits_distillation", "student_loss", "loss"])
def test_a_metric_cannot_take_the_name_of_a_loss(metric):
    with pytest.raises(ValueError, match=r"A metric cannot be logged as .*\n.*\n.*\n.*name="):
        make(compile_with={"metrics": [keras.metrics.MeanSquaredError(name=metric)]})


def test_names_of_losses_are_counted_up_until_they_are_free():
    losses = [kd.losses.LogitMatching(name=name) for name in ("a_1", "a", "a", "a_1")]
    assert make(losses=losses).connections.names == ["a_1", "a", "a_2", "a_1_1"]


def test_without_a_loss_or_labels_there_is_no_loss_of_the_student_in_the_logs():
    x, y = data()
    unlabelled = make(student_loss_weight=0)
    assert sorted(unlabelled.fit(x, verbose=0).history) == ["logits_distillation", "loss"]
    no_loss = make(student_loss_weight=0, compile_with={"loss": None})
    history = no_loss.fit(x, y, validation_data=(x, y), verbose=0).history
    assert "val_loss" not in history and "val_accuracy" in history


def test_ragged_and_sparse_inputs_train_as_in_keras():
    x, y = data()
    ragged = tf.RaggedTensor.from_row_lengths(np.arange(48) % 9 + 1, [1, 3] * 12)

    class Mean(keras.Model):
        def __init__(self, width):
            super().__init__()
            self.embedding, self.head = keras.layers.Embedding(10, width), keras.layers.Dense(3)

        def call(self, tokens):
            return self.head(keras.ops.mean(self.embedding(tokens.to_tensor()), axis=1))

    ds = tf.data.Dataset.from_tensor_slices((ragged, y)).batch(8)
    assert np.isfinite(make(Mean(9), Mean(4)).fit(ds, verbose=0).history["loss"][0])

    def sparse(width):
        inputs = keras.Input((6,), sparse=True)
        return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Dense(width)(inputs)))

    rows = tf.data.Dataset.from_tensor_slices((tf.sparse.from_dense(x), y)).batch(8)
    assert np.isfinite(make(sparse(9), sparse(4)).fit(rows, verbose=0).history["loss"][0])


def test_a_look_at_an_iterator_loses_nothing():
    first, again = first_look.peek(iter([1, 2, 3]), 2)
    assert (first, list(again()), list(again())) == (1, [1, 2], [1, 2])
    ds = tf.data.Dataset.range(5)
    iterator = iter(ds)
    first, make = first_look.peek(iterator, 2)
    again = make()
    assert isinstance(again, tf.data.Iterator) and again.element_spec == iterator.element_spec
    assert [int(v) for v in [*again, *iterator]] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="There is no data to train on"):
        first_look.peek(iter([]), 2)


def test_masked_features_of_any_rank_are_masked_without_a_warning():
    def model(width):
        return keras.Sequential(
            [
                keras.Input((4, 5)),
                keras.layers.Masking(name="masking"),
                keras.layers.Dense(width, name="hidden"),
                keras.layers.GlobalAveragePooling1D(),
                keras.layers.Dense(3),
            ]
        )

    x = np.random.default_rng(0).normal(size=(6, 4, 5)).astype("float32")
    x[:, 2:] = 0.0
    hint = kd.FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logs = one_step(make(model(7), model(3), [hint]), x, np.arange(6) % 3)
    assert logs["feature_distillation"] > 0
    maps, mask = np.ones((2, 4, 3, 3, 2), "float32"), np.array([[1, 1, 0, 0], [1, 0, 0, 0]], bool)
    student = keras.ops.convert_to_tensor(np.zeros_like(maps))
    student._keras_mask = keras.ops.convert_to_tensor(mask)
    assert float(kd.FeatureDistillation().compute_loss(maps, student)) == pytest.approx(1.0)


@pytest.mark.parametrize("subclassed", [False, True])
def test_maps_of_open_size_meet_at_every_size(subclassed):
    def functional(filters, strides):
        return keras.Sequential(
            [
                keras.Input((None, None, 1)),
                keras.layers.Conv2D(filters, 3, strides, padding="same", name="conv"),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(3),
            ]
        )

    class Wrapped(keras.Model):
        def __init__(self, model):
            super().__init__()
            self.conv, self.rest = model.layers[0], model.layers[1:]

        def call(self, inputs):
            outputs = self.conv(inputs)
            for layer in self.rest:
                outputs = layer(outputs)
            return outputs

    teacher, student = functional(6, 1), functional(2, 2)
    if subclassed:
        teacher, student = Wrapped(teacher), Wrapped(student)
    hint = kd.FeatureDistillation(teacher_layer_name="conv", student_layer_name="conv")
    distiller = make(teacher, student, [hint])
    for size in (8, 12):
        x = np.random.default_rng(size).normal(size=(4, size, size, 1)).astype("float32")
        logs = one_step(distiller, x, np.array([0, 1, 2, 0]))
        assert np.isfinite(logs["feature_distillation"])
