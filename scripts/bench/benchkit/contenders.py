"""Everything that trains the same student on the same teacher with `fit`.

The total is the same everywhere: 0.1 · cross-entropy on the labels + 0.9 · the distillation loss.
The optimizer is Adam, the metric is accuracy.
"""

from __future__ import annotations

import keras
import tensorflow as tf
from keras import ops

import keras_kd as kd
from benchkit import keras_networks
from benchkit.networks import Pair

SHARE = 0.1
TEMPERATURE = 4.0
RATE = 1e-4


def teacher_of(pair: Pair) -> keras.Model:
    """Build the pair's teacher, the same each time."""
    keras.utils.set_random_seed(1)
    return keras_networks.build(pair.kind, pair.teacher, "teacher")


def student_of(pair: Pair, wide: bool = False) -> keras.Model:
    """Build the pair's student, the same each time."""
    keras.utils.set_random_seed(2)
    return keras_networks.build(pair.kind, pair.wide() if wide else pair.student, "student")


def cross_entropy() -> keras.losses.Loss:
    """Return the loss on the labels."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def compiled(model: keras.Model, steps_per_execution: int) -> keras.Model:
    """Compile as every contender is compiled."""
    model.compile(
        keras.optimizers.Adam(RATE),
        loss=cross_entropy(),
        metrics=["accuracy"],
        steps_per_execution=steps_per_execution,
    )
    return model


def make(name: str, pair: Pair, loss: str, teacher: object = None, wide: bool = False):
    """Make a contender that is not compiled yet.

    Args:
        name: "student" (alone), "keras_kd", "keras" (its own Distiller) or "hand-written".
        pair: the networks.
        loss: "logits", "feature" (a projector between layers of different width) or "equal" (a
            feature loss between layers of equal shape, since Keras's has no projector).
        teacher: another teacher than the pair's own, as soft targets are.
        wide: take the student of more than 1 MB.
    """
    student = student_of(pair, wide)
    if name == "student":
        return student
    teacher = teacher_of(pair) if teacher is None else teacher
    if name == "hand-written":
        return HandWritten(teacher, student, pair.hint if loss == "feature" else None)
    if name == "keras":
        terms = _kerass(pair, loss)
        return keras.distillation.Distiller(teacher, student, terms, student_loss_weight=SHARE)
    return kd.Distiller(teacher, student, _ours(pair, loss), student_loss_weight=SHARE)


def _ours(pair: Pair, loss: str) -> kd.losses.DistillationLoss:
    if loss == "logits":
        return kd.LogitsDistillation(temperature=TEMPERATURE)
    ours, students = pair.hint if loss == "feature" else pair.equal
    return kd.FeatureDistillation(teacher_layer_name=ours, student_layer_name=students)


def _kerass(pair: Pair, loss: str) -> keras.distillation.DistillationLoss:
    """Return Keras's loss; the object KLDivergence() gives softmax and T², its name does not."""
    if loss == "logits":
        return keras.distillation.LogitsDistillation(
            temperature=TEMPERATURE, loss=keras.losses.KLDivergence()
        )
    teachers, students = pair.equal
    return keras.distillation.FeatureDistillation(
        teacher_layer_name=teachers, student_layer_name=students
    )


class HandWritten(keras.Model):
    """What a person writes who needs it once: a train step with the two losses in it.

    Logits: T² · KL(softmax(t/T) ‖ softmax(s/T)). A feature: the mean square of its difference to
    the student's, after a dense layer of the teacher's width (on maps a 1×1 convolution).
    """

    def __init__(self, teacher: keras.Model, student: keras.Model, hint: tuple | None) -> None:
        super().__init__()
        self.teacher, self.student, self.projector = teacher, student, None
        self.teacher.trainable = False
        if hint is not None:
            outputs = [
                [model.get_layer(name).output, model.output]
                for model, name in zip((teacher, student), hint, strict=True)
            ]
            self.teacher, self.student = (
                keras.Model(model.input, both)
                for model, both in zip((teacher, student), outputs, strict=True)
            )
            self.projector = keras.layers.Dense(outputs[0][0].shape[-1])
            self.projector.build(outputs[1][0].shape)
        self.divergence = keras.losses.KLDivergence()
        self.mean_square = keras.losses.MeanSquaredError()
        self.total_tracker = keras.metrics.Mean(name="loss")

    def call(self, inputs, training=None):
        """Return the student's outputs."""
        return self.student(inputs, training=training)

    def train_step(self, data):
        """Learn from one batch."""
        x, y = data
        taught = self.teacher(x, training=False)
        with tf.GradientTape() as tape:
            own = self.student(x, training=True)
            if self.projector is None:
                logits = own
                soft = self.divergence(
                    ops.softmax(taught / TEMPERATURE), ops.softmax(own / TEMPERATURE)
                )
                distillation = TEMPERATURE**2 * soft
            else:
                feature, logits = own
                distillation = self.mean_square(taught[0], self.projector(feature))
            total = SHARE * self.loss(y, logits) + (1.0 - SHARE) * distillation
        weights = self.student.trainable_variables
        weights = weights + (self.projector.trainable_variables if self.projector else [])
        self.optimizer.apply_gradients(zip(tape.gradient(total, weights), weights, strict=True))
        self.total_tracker.update_state(total)
        results = self.compute_metrics(x, y, logits)
        return {**results, "loss": self.total_tracker.result()}
