"""DIST: Huang et al., "Knowledge Distillation from A Stronger Teacher" (NeurIPS 2022)."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_kd import schedules
from keras_kd.losses import base
from keras_kd.losses.base import Tensor


def pearson(a: Tensor, b: Tensor, present: Tensor | None = None, axis: int = -1) -> Tensor:
    """Return Pearson's correlation of `a` and `b` along an axis, over what is present there.

    1e-8 is added to the product of the norms, as in the authors' code. A vector that does not vary
    (to float32) correlates with nothing: 0, without a gradient.

    Args:
        a: `(rows, columns)`.
        b: the same shape.
        present: float32 of 0 and 1 that broadcasts to the shape of `a`, or None: all are.
        axis: along which the vectors run.
    """
    (a, norm_a), (b, norm_b) = (_centred(values, present, axis) for values in (a, b))
    return ops.sum(a * b, axis=axis) / (norm_a * norm_b + 1e-8)


def _centred(values: Tensor, present: Tensor | None, axis: int) -> tuple[Tensor, Tensor]:
    """Return vectors without their mean, and their norms (1 for a vector that does not vary)."""
    if present is None:
        centred = values - ops.mean(values, axis=axis, keepdims=True)
    else:
        values = values * present
        count = ops.sum(ops.broadcast_to(present, ops.shape(values)), axis=axis, keepdims=True)
        mean = ops.divide_no_nan(ops.sum(values, axis=axis, keepdims=True), count)
        centred = (values - mean) * present
    spread = ops.sum(ops.square(centred), axis=axis, keepdims=True)
    size = ops.sum(ops.square(values), axis=axis, keepdims=True)
    varies = spread > 1e-12 * size
    squared = ops.where(varies, spread, 1.0)  # guard: the norm of zeros divides only zeros
    return ops.where(varies, centred, 0.0), ops.squeeze(ops.sqrt(squared), axis)


@keras.saving.register_keras_serializable(package="keras_kd")
class DIST(base.DistillationLoss):
    """Teach how classes and examples compare, not the probabilities themselves.

    A much stronger teacher is also much more certain, and a student that copies its probabilities
    is disturbed by that. A correlation is the same whatever the scale and the offset:

        T² · (β·[1 − ρ(pᵢ, qᵢ)] averaged over the examples + γ·[1 − ρ(p·ⱼ, q·ⱼ)] over the classes)

    with p and q the softmax of t/T and s/T, and ρ Pearson's correlation: over the classes of each
    example (inter-class), and over the batch for each class (intra-class). Each batch needs some
    examples, and padded positions and examples of weight 0 are not among them; the positions of a
    sequence or a map count as examples. As in the authors' code, T² is on both parts, and 1e-8 in
    the denominator, so that a class which nobody predicts counts as uncorrelated: 1.

    Args:
        beta: β, weight of the relation between classes, or a `LearningRateSchedule` of it.
            Defaults to 1.0.
        gamma: γ, weight of the relation between examples, or a `LearningRateSchedule` of it.
            Defaults to 1.0.
        temperature: T > 0, or a `LearningRateSchedule` of it. Defaults to 1.0.
        name: name in the logs. Defaults to `"dist"`.

    Raises:
        ValueError: "`temperature` must be positive", "A softmax over one class is constant".

    Reference:
        Huang et al. 2022, the losses L_inter and L_intra.

    Example:
    ```python
    import keras_kd as kd

    loss = kd.losses.DIST(gamma=0.0)
    print(float(loss.compute_loss([[2.0, 0.0, 0.0]], [[9.0, 0.0, 0.0]])))  # 0.0, or within 1e-6
    ```
    """

    paper = "Huang et al. 2022 (DIST)"
    activation = "softmax"

    def __init__(
        self,
        beta: Any = 1.0,
        gamma: Any = 1.0,
        temperature: Any = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.beta = schedules.number("beta", beta)
        self.gamma = schedules.number("gamma", gamma)
        self.temperature = schedules.positive("temperature", temperature)

    def per_example(self, teacher: Tensor, student: Tensor, present: Tensor = None) -> Tensor:
        """Return each example's inter-class part and, the same for all, the intra-class part.

        Were the latter taken apart, unequal weights would move its minimum off the teacher.
        """
        p, q = (
            ops.reshape(ops.softmax(logits / self.temperature, axis=-1), (-1, logits.shape[-1]))
            for logits in (teacher, student)
        )
        rows = ops.reshape(ops.cast(present, "float32"), (-1, 1))
        inter = 1.0 - pearson(p, q)
        intra = 1.0 - ops.mean(pearson(p, q, rows, axis=0))
        values = self.temperature**2 * (self.beta * inter + self.gamma * intra)
        return ops.where(present, ops.reshape(values, ops.shape(present)), 0.0)

    def check_shapes(self, teacher: tuple, student: tuple) -> None:
        """Refuse different class counts, and a single class."""
        super().check_shapes(teacher, student)
        base.refuse_single_class(self, student)
