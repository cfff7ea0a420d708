"""Zagoruyko and Komodakis, "Paying More Attention to Attention" (2017)."""

from __future__ import annotations

import keras
from keras import ops

from keras_kd import checks
from keras_kd.features import unit
from keras_kd.losses import base
from keras_kd.losses.base import Tensor
from keras_kd.projectors import resize


def attention_map(features: Tensor, p: float = 2.0) -> Tensor:
    """Return the mean of |x|ᵖ over the channels, `(batch, positions…)`."""
    powers = ops.square(features) if p == 2 else ops.power(ops.abs(features), p)
    return ops.mean(powers, axis=-1)


def attention_transfer(
    teacher_features: Tensor, student_features: Tensor, p: float = 2.0
) -> Tensor:
    """Return the squared difference of the two attention maps of length 1 at each position.

    Args:
        teacher_features: `(batch, height, width, channels)` or `(batch, length, channels)`.
        student_features: as many axes; its map is resized bilinearly to the teacher's size.
        p: power of the features' absolute values.

    Returns:
        The teacher's shape without its channels.
    """
    teacher, student = (attention_map(side, p) for side in (teacher_features, student_features))
    sizes = tuple(teacher.shape)[1:]
    if sizes != tuple(student.shape)[1:] or None in sizes:
        student = resize(ops.expand_dims(student, -1), tuple(ops.shape(teacher))[1:])[..., 0]
    axes = tuple(range(1, len(sizes) + 1))
    return ops.square(unit(teacher, axes) - unit(student, axes))


@keras.saving.register_keras_serializable(package="keras_kd")
class AttentionTransfer(base.FeatureLoss):
    """Teach the student to look where the teacher looks: match the maps of where features are big.

    Use it between blocks of convolutional networks, deep or thin: it needs no trained parts, and
    channels may differ. Several layers (a list of names on each side) are compared pair by pair and
    added up. With the attention map Q = mean over channels of |x|ᵖ, as one vector:

        mean over positions of (Qₛ/‖Qₛ‖₂ − Qₜ/‖Qₜ‖₂)², averaged over the batch

    This is what the authors' code computes. The paper has half the norm of the difference, where
    the code has the mean of its squares; it is small, so weights of 1000 and about are usual (the
    authors' β). Where height, width or length differ, the student's map is resized bilinearly to
    the teacher's. Positions under a Keras mask are left out.

    Args:
        p: power of the absolute values, ≥ 1; a higher one stresses the strongest positions.
            Defaults to 2.
        teacher_layer_name: path of the teacher's layer, or a list of paths; `None` is the model's
            output. Its feature is `(batch, height, width, channels)` or `(batch, length,
            channels)`.
        student_layer_name: path of the student's layer, or a list of as many.
        name: name in the logs. Defaults to `"attention_transfer"`.

    Raises:
        ValueError: "`p` must be at least 1", "the shapes of teacher and student differ", "a feature
            of one position".

    Reference:
        Zagoruyko and Komodakis 2017, section 3.1, equation 2; the powers are those of F_sum^p.

    Example:
    ```python
    import numpy as np
    import keras_kd as kd

    loss = kd.losses.AttentionTransfer()
    teacher = np.array([[[[1.0], [0.0]], [[0.0], [0.0]]]])  # it looks at the first of 2×2 positions
    print(float(loss.compute_loss(teacher, teacher[:, ::-1])))  # (1 + 1) / 4 = 0.5
    ```
    """

    paper = "Zagoruyko and Komodakis 2017 (AT)"

    def __init__(
        self,
        p: float = 2,
        teacher_layer_name: base.LayerNames = None,
        student_layer_name: base.LayerNames = None,
        name: str | None = None,
    ) -> None:
        super().__init__(teacher_layer_name, student_layer_name, name)
        self.p = checks.number("p", p)
        if self.p < 1.0:
            raise checks.bad_value(
                "`p` must be at least 1: below it the slope is infinite where a feature is 0.",
                given=p,
                expected="a number >= 1",
                fix="use p=2.",
            )

    def per_example(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return the squared difference of the maps at each position."""
        return attention_transfer(teacher, student, self.p)

    def check_shapes(self, teacher: tuple, student: tuple) -> None:
        """Refuse features that are no maps of the same kind; sizes and channels may differ."""
        base.refuse_unlike_maps(self, teacher, student, "says nothing about where to look")
