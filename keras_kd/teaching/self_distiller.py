"""Self-distillation: the teacher is the average of what the student has been."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_kd import checks, replicas, schedules
from keras_kd.compiled_step import without_autograph
from keras_kd.configs import restored
from keras_kd.distiller import Distiller
from keras_kd.teachers import Teacher, no_model


@keras.saving.register_keras_serializable(package="keras_kd")
class SelfDistiller(Distiller):
    """Train a model on the labels and on the moving average of its own earlier weights.

    Use it where there is no teacher: in the paper, the average of the weights is the better model
    for most of the training, and its answers are targets to learn from, also without labels
    (`student_loss_weight=0`). It starts as a copy of the student, and after each step of the
    optimizer

        averageₜ = decay · averageₜ₋₁ + (1 − decay) · studentₜ

    for every weight, the moving statistics of BatchNorm included: the teacher is asked as in
    inference (no dropout), so it needs statistics that belong to its weights. (In the paper the
    teacher answers with noise of its own.) Integer weights are copied.

    The average moves when the student does: with `gradient_accumulation_steps=n` once in n batches,
    and not where a float16 step is skipped for an overflow. It is `distiller.average`, a plain
    model to evaluate, save or export where it is the better of the two; it is saved with the
    Distiller, never trained, and no part of the exported student. Early on the average is near the
    student's first weights: let `decay` or the weight of the loss begin small, with a schedule.

    Args:
        student: a built `keras.Model`. It is trained in place; a copy of it becomes the average.
        distillation_losses: as in `kd.Distiller`; layers named by `teacher_layer_name` are the
            average's.
        distillation_loss_weights: one number or schedule for each loss. Defaults to 1.0 each.
        student_loss_weight: share of the labels' loss, from 0 to 1, or a schedule. Defaults to 0.5.
        decay: what the average keeps of itself in a step, from 0 to 1, or a schedule of it (asked
            at the number of steps taken before). Defaults to 0.999.
        outputs: what the student gives, as in `kd.Teacher`. Defaults to `"auto"`.
        activation: `"softmax"` or `"sigmoid"`, as in `kd.Teacher`. Defaults to `"softmax"`.
        name: name of the model. Defaults to `"self_distiller"`.
        **kwargs: passed on to `keras.Model`.

    Raises:
        ValueError: "The student has no weights yet", "The copy of … has other weights", "A
            SelfDistiller is its own teacher" for `attach_teacher`, and what `kd.Distiller` refuses.

    Reference:
        Tarvainen, Valpola 2017, "Mean teachers are better role models", section 2 (the average; the
        paper's decay is 0.99 early in training and 0.999 later, which as a schedule is
        `PiecewiseConstantDecay([steps], [0.99, 0.999])`).

    Example:
    ```python
    import keras, numpy as np
    import keras_kd as kd
    from keras_kd.teaching import SelfDistiller

    layers = [keras.Input((8,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)]
    x, y = np.random.rand(64, 8), np.random.randint(0, 3, 64)
    distiller = SelfDistiller(keras.Sequential(layers), kd.LogitsDistillation(), decay=0.9)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile("adam", loss, metrics=["accuracy"])
    distiller.fit(x, y, epochs=2, verbose=0)
    print(distiller.average(x).shape)  # (64, 3)
    ```
    """

    def __init__(
        self,
        student: keras.Model,
        distillation_losses: Any,
        distillation_loss_weights: Any = None,
        student_loss_weight: Any = 0.5,
        decay: Any = 0.999,
        *,
        outputs: Any = "auto",
        activation: str = "softmax",
        name: str = "self_distiller",
        **kwargs: Any,
    ) -> None:
        average = _copy(student)
        super().__init__(
            Teacher(average, outputs=outputs, activation=activation),
            student,
            distillation_losses,
            distillation_loss_weights,
            student_loss_weight,
            name=name,
            **kwargs,
        )
        self.average = average
        self.decay = schedules.fraction("decay", decay)
        self._schedule_trackers += schedules.trackers({"decay": self.decay})

    def attach_teacher(self, teacher: Any, allow_different: bool = False) -> None:
        """Refuse another teacher.

        Raises:
            ValueError: "A SelfDistiller is its own teacher".
        """
        raise checks.bad_value(
            "A SelfDistiller is its own teacher.",
            given=f"attach_teacher({teacher!r:.60})",
            expected="no teacher: it was saved with the average of its weights",
            fix="leave it out, or use kd.Distiller to learn from another model.",
        )

    @property
    def trainable(self) -> bool:
        """Whether the student is trained; the average never is."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.Model.trainable.fset(self, value)
        self.average.trainable = False

    @without_autograph
    def train_step(self, data: Any) -> dict[str, Any]:
        """Learn from one batch; then let the average follow the student."""
        before = tf.identity(self.optimizer.iterations)
        logs = super().train_step(data)
        moved = tf.cast(self.optimizer.iterations > before, "float32")
        kept = tf.cast(schedules.at(self.decay, before), "float32")
        _follow(self.average.weights, self.student.weights, (1.0 - kept) * moved)
        return logs

    def get_config(self) -> dict[str, Any]:
        """Return what a saved SelfDistiller is made of."""
        config = super().get_config()
        del config["teacher"]
        teacher: Any = self.teacher
        return {
            **config,
            "decay": schedules.serialize(self.decay),
            "outputs": teacher.outputs,
            "activation": teacher.activation,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> SelfDistiller:
        """Make the student and its average again."""
        config = restored(config)
        shapes = config.pop("shapes")
        distiller = cls(**config)
        if shapes is not None and distiller.connections.shapes is None:
            distiller.connections.join_shapes(shapes)
        return distiller


def _copy(student: Any) -> keras.Model:
    """Return a frozen model like the student, with the same weights of its own."""
    if not isinstance(student, keras.Model):
        raise no_model("student", student)
    if not student.built:
        raise checks.bad_value(
            "The student has no weights yet, so there is nothing to average.",
            given=f"{student.name!r}, not built",
            expected="a model that has been built",
            fix="call it on a batch first: student(x[:1]).",
        )
    average = keras.models.clone_model(student)
    if not average.built:
        average.build_from_config(student.get_build_config())
    shapes = [[tuple(w.shape) for w in model.weights] for model in (student, average)]
    if shapes[0] != shapes[1]:
        raise checks.bad_value(
            f"The copy of {student.name!r} has other weights than itself.",
            given=f"{len(shapes[0])} weights, and {len(shapes[1])} of the copy",
            expected="a model that its config makes again",
            fix="define get_config() with all of the constructor's arguments, and make the layers "
            "there or in build(input_shape).",
        )
    average.set_weights(student.get_weights())
    average.trainable = False
    return average


def _follow(averages: Sequence[Any], weights: Sequence[Any], rate: Any) -> None:
    """Move each average by `rate` towards its weight: where both are equal, nothing moves."""

    def move(average: Any, weight: Any, rate: Any) -> None:
        if average.dtype.is_floating:
            a, w = tf.cast(average, "float32"), tf.cast(weight, "float32")
            average.assign(tf.cast(a + rate * (w - a), average.dtype))
        else:
            average.assign(weight)

    def move_all(strategy: Any, averages: list, weights: list, rate: Any) -> None:
        for average, weight in zip(averages, weights, strict=True):
            strategy.extended.update(average, move, args=(weight, rate), group=False)

    pairs = [variable.value for variable in averages], [variable.value for variable in weights]
    if replicas.count() == 1:
        for average, weight in zip(*pairs, strict=True):
            move(average, weight, rate)
    else:  # the replicas meet, as they do in the optimizer
        tf.distribute.get_replica_context().merge_call(move_all, args=(*pairs, rate))
