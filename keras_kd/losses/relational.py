"""Park et al., "Relational Knowledge Distillation" (CVPR 2019)."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_kd import checks, schedules
from keras_kd.features import flat, safe_sqrt, squared_distances
from keras_kd.fusing import MATRIX, VECTOR, fused
from keras_kd.losses import base
from keras_kd.losses.base import Tensor


def squared_distances_between(features: Tensor, present: Tensor) -> Tensor:
    """Return ‖xᵢ − xⱼ‖² of the examples that are present, `(batch, batch)`; 0 with the others.

    An absent example stands at the others' centre meanwhile, where it changes no rounding.
    """
    here, keep = ops.expand_dims(present, 1), ops.cast(present, "float32")
    vectors = ops.where(here, flat(features), 0.0)
    centre = ops.divide_no_nan(ops.sum(vectors, axis=0), ops.sum(keep))
    pairs = ops.expand_dims(keep, 1) * ops.expand_dims(keep, 0)
    return squared_distances(ops.where(here, vectors, centre)) * pairs


def relative_distances(squares: Tensor, count: Tensor) -> Tensor:
    """Return the distances over their mean, from squared distances between `count` examples."""
    distances = safe_sqrt(squares)
    mean = ops.divide_no_nan(ops.sum(distances), count * (count - 1.0))
    return ops.divide_no_nan(distances, mean)


def cosines(squares: Tensor) -> Tensor:
    """Return the cosine of the angle at j between i and k, as `[j, i, k]`; 0 beside no distance.

    The law of cosines takes it from the squared distances, so the features' width costs nothing.
    """
    inverse = _inverse(squares)
    return _sides(squares) * (0.5 * ops.expand_dims(inverse, 2) * ops.expand_dims(inverse, 1))


def huber(difference: Tensor) -> Tensor:
    """Return u²/2 where |u| ≤ 1, and |u| − 1/2 beyond; the slope is u cut off at ±1."""
    slope = ops.stop_gradient(ops.clip(difference, -1.0, 1.0))
    return slope * (difference - 0.5 * slope)


@ops.custom_gradient
def turns(teacher: Tensor, student: Tensor) -> tuple[Tensor, Any]:
    """Return Σᵢₖ H(cos(sᵢ, sⱼ, sₖ) − cos(tᵢ, tⱼ, tₖ)) of each j, from squared distances.

    Forward and backward are a pass each that XLA fuses, several times faster than one operation
    after the other: backward computes again what it needs. The teacher's side has no gradient.
    """

    def slopes(*upstream: Tensor) -> tuple[None, Tensor]:
        return None, _slopes(teacher, student, upstream[0])

    return _turns(teacher, student), slopes


@fused(MATRIX, MATRIX)
def _turns(teacher: Tensor, student: Tensor) -> Tensor:
    return ops.sum(huber(cosines(student) - cosines(teacher)), (1, 2))


@fused(MATRIX, MATRIX, VECTOR)
def _slopes(teacher: Tensor, student: Tensor, weights: Tensor) -> Tensor:
    """Return the derivative of Σⱼ wⱼ·turnsⱼ by the student's squared distances Dⱼᵢ.

    cos = N / (2·√Dⱼᵢ·√Dⱼₖ) with N = Dⱼᵢ + Dⱼₖ − Dᵢₖ, so its derivative by Dⱼᵢ is (1 − N / 2Dⱼᵢ) and
    by Dᵢₖ −1, over 2·√Dⱼᵢ·√Dⱼₖ. i and k change places freely, so Dⱼₖ adds what Dⱼᵢ does.
    """
    inverse = _inverse(student)
    first, second = ops.expand_dims(inverse, 2), ops.expand_dims(inverse, 1)
    gaps = ops.clip(cosines(student) - cosines(teacher), -1.0, 1.0)
    gaps *= ops.reshape(weights, (-1, 1, 1)) * first * second
    adjacent = ops.sum(gaps * (1.0 - 0.5 * _sides(student) * ops.square(first)), 2)
    return adjacent - 0.5 * ops.sum(gaps, 0)


def _sides(squares: Tensor) -> Tensor:
    """Return Dⱼᵢ + Dⱼₖ − Dᵢₖ as `[j, i, k]`."""
    return ops.expand_dims(squares, 2) + ops.expand_dims(squares, 1) - ops.expand_dims(squares, 0)


def _inverse(squares: Tensor) -> Tensor:
    """Return 1/√x, and 0 of 0."""
    return ops.divide_no_nan(1.0, safe_sqrt(squares))


@keras.saving.register_keras_serializable(package="keras_kd")
class RelationalDistillation(base.RelationLoss):
    """Teach the distances between examples, and the angles that they form, of a feature.

    Use it where the geometry of an embedding matters (retrieval, metric learning), or beside a loss
    on the logits. Nothing but relations is compared, so the features may differ in width and no
    projector is needed. For n examples, and Huber's function H with δ = 1:

        w_D · Σᵢⱼ H(d(sᵢ, sⱼ) − d(tᵢ, tⱼ)) / n²
        + w_A · Σᵢⱼₖ H(cos(sᵢ, sⱼ, sₖ) − cos(tᵢ, tⱼ, tₖ)) / n³

    d is the distance over the mean distance of the batch's pairs (i ≠ j), cos(xᵢ, xⱼ, xₖ) the
    cosine of the angle at xⱼ. Both sums are divided by all n² pairs and n³ triples, those of an
    example with itself included, as the authors' code does. Pairs closer than 0.001 of their
    distance from the batch's centre count as one point: distance 0, cosine 0, no gradient. Examples
    of weight 0 leave the pairs. Time and memory of the angles grow with n³ (and do not with the
    width): at a batch of 256 they cost far more than a small student, so use `angle_weight=0`.

    Args:
        distance_weight: w_D ≥ 0, a number or a schedule; 0 skips the distances. Defaults to 25.0.
        angle_weight: w_A ≥ 0, a number or a schedule; 0 skips the angles and their cost. Defaults
            to 50.0.
        teacher_layer_name: path of the teacher's layer (or a list of paths); `None` is its output.
        student_layer_name: path of the student's layer (or as many); `None` is its output.
        name: name in the logs. Defaults to `"relational_distillation"`.

    Raises:
        ValueError: "`distance_weight` must not be negative", "RelationalDistillation has no part
            left", "The shapes of teacher and student differ" for batches of different size, "The
            outputs have no axis but the batch's".

    Reference:
        Park et al. 2019, section 3.2: distance-wise and angle-wise losses. The weights are the
        25 and 50 of the authors' classification experiments.

    Example:
    ```python
    import keras_kd as kd

    loss = kd.losses.RelationalDistillation()
    shrunk = loss.compute_loss([[0.0, 0.0], [3.0, 4.0]], [[0.0], [1.0]])
    print(round(float(shrunk), 6))  # 0.0: of two points there is one distance, and it is the mean
    ```
    """

    paper = "Park et al. 2019 (RKD)"

    def __init__(
        self,
        distance_weight: Any = 25.0,
        angle_weight: Any = 50.0,
        teacher_layer_name: base.LayerNames = None,
        student_layer_name: base.LayerNames = None,
        name: str | None = None,
    ) -> None:
        super().__init__(teacher_layer_name, student_layer_name, name)
        self.distance_weight = _weight("distance_weight", distance_weight)
        self.angle_weight = _weight("angle_weight", angle_weight)
        if _is_zero(self.distance_weight) and _is_zero(self.angle_weight):
            raise checks.bad_value(
                "RelationalDistillation has no part left to compute.",
                given="distance_weight=0, angle_weight=0",
                expected="at least one weight above 0",
                fix="leave them out for the paper's 25 and 50.",
            )

    def per_example(self, teacher: Tensor, student: Tensor, present: Tensor) -> Tensor:
        """Return each example's share: its pairs, and the angles at it; 0 for absent ones."""
        count = ops.sum(ops.cast(present, "float32"))
        t, s = (squared_distances_between(side, present) for side in (teacher, student))
        parts = []
        if not _is_zero(self.distance_weight):
            gaps = huber(relative_distances(s, count) - relative_distances(t, count))
            parts.append(self.distance_weight * ops.divide_no_nan(ops.sum(gaps, 1), count))
        if not _is_zero(self.angle_weight):
            mean = ops.divide_no_nan(turns(t, s), count * count)
            parts.append(self.angle_weight * mean)
        return sum(parts)


def _weight(name: str, value: Any) -> Any:
    given = schedules.number(name, value)
    if not schedules.is_schedule(given) and given < 0.0:
        raise checks.bad_value(
            f"`{name}` must not be negative.",
            given=value,
            expected="a number >= 0, or a schedule",
            fix=f"pass {name}=0 to leave that part out.",
        )
    return given


def _is_zero(weight: Any) -> bool:
    """Say whether a weight is 0 at every step."""
    return isinstance(weight, float) and weight == 0.0
