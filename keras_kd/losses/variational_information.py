"""Ahn et al., "Variational Information Distillation for Knowledge Transfer" (CVPR 2019)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_kd import checks
from keras_kd.losses import base
from keras_kd.losses.base import Tensor
from keras_kd.projectors import projector_for
from keras_kd.structures import alike

SMALLEST_VARIANCE = 1e-5


def negative_log_likelihood(teacher_features: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return ½·[(t − μ)²/σ² + log σ²], averaged over the channels, at each position.

    It is −log of the normal density without its constant, ½·log 2π.

    Args:
        teacher_features: `(batch, positions…, channels)`.
        mean: μ, the same shape.
        log_variance: log σ², the same shape.
    """
    squares = ops.square(teacher_features - mean) * ops.exp(-log_variance)
    return 0.5 * ops.mean(squares + log_variance, axis=-1)


class Prediction(keras.layers.Layer):
    """Predict a teacher's feature from a student's: a mean at each position, a variance a channel.

    Args:
        teacher: shape of the teacher's feature.
        student: shape of the student's feature.
        initial_variance: σ² before training.
    """

    def __init__(
        self, teacher: tuple, student: tuple, initial_variance: float, **kwargs: Any
    ) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        channels = teacher[-1]
        self.resizing = projector_for((*teacher[:-1], student[-1]), student)
        self.hidden = [
            keras.layers.Dense(
                channels, "relu", use_bias=False, name=f"hidden_{index}", dtype="float32"
            )
            for index in range(2)
        ]
        self.mean = keras.layers.Dense(channels, use_bias=False, name="mean", dtype="float32")
        width = student[-1]
        for layer in (*self.hidden, self.mean):
            layer.build((None, width))
            width = channels
        excess = initial_variance - SMALLEST_VARIANCE
        self.alpha = self.add_weight(
            shape=(channels,),
            initializer=keras.initializers.Constant(excess + math.log(-math.expm1(-excess))),
            name="alpha",
        )

    def call(self, student: Tensor, like: Tensor) -> Tensor:
        """Return mean and log variance side by side, `(batch, positions…, 2·channels)`."""
        features = student if self.resizing is None else self.resizing(student, like=like)
        for layer in self.hidden:
            features = layer(features)
        mean = self.mean(features)
        log_variance = ops.log(ops.softplus(self.alpha) + SMALLEST_VARIANCE)
        return ops.concatenate([mean, ops.zeros_like(mean) + log_variance], axis=-1)


class VariationalConnector(keras.layers.Layer):
    """Pass the teacher's features through and predict each from the student's."""

    def __init__(self, predictions: Sequence[Prediction], **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.predictions = list(predictions)

    def call(self, teacher: Any, student: Any) -> tuple[Any, Any]:
        """Return the teacher's feature and what is predicted of it, or lists of them."""
        if not isinstance(student, (list, tuple)):
            return teacher, self.predictions[0](student, like=teacher)
        triples = zip(self.predictions, teacher, student, strict=True)
        return list(teacher), [predict(s, like=t) for predict, t, s in triples]


@keras.saving.register_keras_serializable(package="keras_kd")
class VariationalInformation(base.FeatureLoss):
    """Keep in the student's feature what is needed to predict the teacher's (mutual information).

    Use it where teacher and student differ in kind: the teacher's feature t need not be copied, it
    must be predictable. A normal distribution q(t | s) is trained with the student: its mean μ(s)
    is a network of three 1×1 convolutions (as wide as the teacher's feature, ReLU between, no
    bias), its variance is one number for each channel, so that channels which cannot be predicted
    count less:

        mean over positions and channels of ½·[(t − μ(s))²/σ² + log σ²], averaged over the batch

    with σ² = softplus(α) + 1e-5 and α trained. This is −log q(t | s) without its constant ½·log 2π,
    so it may be negative, and is not 0 at teacher = student. The paper sums over positions and
    channels, the authors' code averages; this follows the code. Where height, width or length
    differ, the student's feature is resized bilinearly to the teacher's, where the code pools the
    larger one. Neither network nor variance is exported. Positions under a Keras mask are left out.

    Args:
        initial_variance: σ² of every channel before training, > 1e-5. Defaults to 5.0, the code's.
        teacher_layer_name: path of the teacher's layer, or a list of paths; `None` is the model's
            output. Its feature is `(batch, positions…, channels)`.
        student_layer_name: path of the student's layer, or a list of as many; pairs are added up.
        name: name in the logs. Defaults to `"variational_information"`.

    Raises:
        ValueError: "`initial_variance` must be above 1e-05", "needs its trained prediction" where
            there is no connector, "cannot tell which of the models' named outputs to predict",
            "Features of different rank cannot be matched by a projector".

    Reference:
        Ahn et al. 2019: the variational bound on the mutual information, and its normal
        distribution with a softplus for the variance.

    Example:
    ```python
    import numpy as np
    import keras_kd as kd

    loss = kd.losses.VariationalInformation()
    connect = loss.connector((None, 6), (None, 4))
    print(float(loss.compute_loss(*connect(np.zeros((2, 6)), np.zeros((2, 4))))))  # ½·log 5 = 0.80…
    ```
    """

    paper = "Ahn et al. 2019 (VID)"
    trained_parts = "a mean network of three 1x1 convolutions and a variance for each channel"

    def __init__(
        self,
        initial_variance: float = 5.0,
        teacher_layer_name: base.LayerNames = None,
        student_layer_name: base.LayerNames = None,
        name: str | None = None,
    ) -> None:
        super().__init__(teacher_layer_name, student_layer_name, name)
        self.initial_variance = checks.number("initial_variance", initial_variance)
        if self.initial_variance <= SMALLEST_VARIANCE:
            raise checks.bad_value(
                f"`initial_variance` must be above {SMALLEST_VARIANCE}, the smallest variance.",
                given=initial_variance,
                expected=f"a number > {SMALLEST_VARIANCE}",
                fix="use initial_variance=5.0.",
            )

    def connector(self, teacher_shapes: Any, student_shapes: Any) -> keras.layers.Layer:
        """Return the trained prediction of the teacher's features from the student's."""
        if isinstance(teacher_shapes, dict):
            raise checks.bad_value(
                f"{self.name} cannot tell which of the models' named outputs to predict.",
                given=f"outputs named {', '.join(map(str, teacher_shapes))}",
                expected="one layer of each model, or a list of them",
                fix="name them with teacher_layer_name= and student_layer_name=.",
            )
        several = isinstance(teacher_shapes, list)
        sides = (
            (teacher_shapes, student_shapes) if several else ([teacher_shapes], [student_shapes])
        )
        predictions = [
            Prediction(teacher, student, self.initial_variance, name=f"prediction_{index}")
            for index, (teacher, student) in enumerate(zip(*sides, strict=True))
        ]
        return VariationalConnector(predictions, name=f"{self.name}_connector")

    def per_example(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return −log q(t | s) at each position, where `student` is mean and log variance."""
        return negative_log_likelihood(teacher, *ops.split(student, 2, axis=-1))

    def check_shapes(self, teacher: tuple, student: tuple) -> None:
        """Refuse a student's side that is no prediction of the teacher's feature."""
        base.refuse_flat(self, teacher)
        if not alike((*teacher[:-1], 2 * teacher[-1]), student):
            raise checks.bad_value(
                f"{self.name} needs its trained prediction of the teacher's feature.",
                given=f"teacher {teacher}, student {student}",
                expected=f"the student's side as (…, {2 * teacher[-1]}): mean and log variance",
                fix="train with kd.Distiller, which makes and trains it.",
            )
