"""Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction" (ICCV 2021)."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_kd import checks, schedules
from keras_kd.distributions import softened_divergence
from keras_kd.features import positions
from keras_kd.losses import base
from keras_kd.losses.base import Tensor
from keras_kd.projectors import ProjectingConnectors, projector_for


def channel_wise(
    teacher_features: Tensor, student_features: Tensor, temperature: Any = 4.0
) -> Tensor:
    """Return T²/C · Σ KL of the softmax over the positions of each channel, of `(batch,)`.

    Args:
        teacher_features: `(batch, positions…, channels)`.
        student_features: the same shape.
        temperature: T, which divides the features.
    """
    teacher, student = (
        ops.transpose(positions(side), (0, 2, 1)) for side in (teacher_features, student_features)
    )
    return ops.mean(softened_divergence(teacher, student, temperature), axis=1)


@keras.saving.register_keras_serializable(package="keras_kd")
class ChannelWiseDistillation(base.FeatureLoss):
    """Match where each channel is active: its softened distribution over the positions.

    Made for dense prediction: use it on the map of logits of a segmentation network (no layer
    names: the models' outputs, as they are, so logits and not probabilities), or on features. With
    φ the softmax over the positions of one channel of features/T and C channels:

        T²/C · Σ over channels of KL(φ(t) ‖ φ(s)), averaged over the batch

    Where channels differ, a 1×1 convolution of the student's feature is trained with it (and not
    exported); where height, width or length differ, it is resized bilinearly to the teacher's size.

    Args:
        temperature: T > 0, a number or a Keras `LearningRateSchedule`; higher is wider in space.
            Defaults to 4.0.
        teacher_layer_name: path of the teacher's layer, or a list of paths; `None` is the model's
            output. Its feature is `(batch, height, width, channels)` or `(batch, length,
            channels)`.
        student_layer_name: path of the student's layer, or a list of as many; pairs are added up.
        name: name in the logs. Defaults to `"channel_wise_distillation"`.

    Raises:
        ValueError: "`temperature` must be positive", "the shapes of teacher and student differ",
            "one position", "Features of different rank cannot be matched by a projector".

    Reference:
        Shu et al. 2021, the channel-wise loss: the softmax over the positions, T² and the mean over
        the channels.

    Example:
    ```python
    import numpy as np
    import keras_kd as kd

    loss = kd.losses.ChannelWiseDistillation()
    teacher = np.array([[[4.0], [0.0]]])  # one channel, two positions: softmax(1, 0)
    print(float(loss.compute_loss(teacher, np.zeros((1, 2, 1)))))  # 16·(log 2 - 0.582…) = 1.775…
    ```
    """

    paper = "Shu et al. 2021 (CWD)"
    trained_parts = "a 1x1 convolution where channels differ"

    def __init__(
        self,
        temperature: Any = 4.0,
        teacher_layer_name: base.LayerNames = None,
        student_layer_name: base.LayerNames = None,
        name: str | None = None,
    ) -> None:
        super().__init__(teacher_layer_name, student_layer_name, name)
        self.temperature = schedules.positive("temperature", temperature)

    def connector(self, teacher_shapes: Any, student_shapes: Any) -> keras.layers.Layer | None:
        """Return what projects the student's features; `None` where all shapes agree."""
        if isinstance(teacher_shapes, dict):
            return None
        several = isinstance(teacher_shapes, list)
        sides = (
            (teacher_shapes, student_shapes) if several else ([teacher_shapes], [student_shapes])
        )
        projectors = [projector_for(*pair) for pair in zip(*sides, strict=True)]
        if all(projector is None for projector in projectors):
            return None
        return ProjectingConnectors(projectors, sides[1], name=f"{self.name}_connector")

    def per_example(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return each example's divergence, averaged over its channels."""
        return channel_wise(teacher, student, self.temperature)

    def check_shapes(self, teacher: tuple, student: tuple) -> None:
        """Refuse features of different shapes, and of one position."""
        super().check_shapes(teacher, student)
        base.refuse_flat(self, student)
        sizes = student[1:-1]
        if None not in sizes and math.prod(sizes) == 1:
            raise checks.bad_value(
                f"{self.name}: a softmax over one position is constant and teaches nothing.",
                given=f"features of shape {student}",
                expected="(batch, height, width, channels) or (batch, length, channels)",
                fix="name layers before the pooling and the dense layers, or use "
                "kd.FeatureDistillation.",
            )

    def _fix_for_shapes(self) -> str:
        return "train with kd.Distiller, which projects the student's feature onto the teacher's."
