"""Multi-level logit distillation (MLLD): Jin et al., "Multi-Level Logit Distillation" (2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_kd import checks, distributions, schedules
from keras_kd.fusing import MATRIX, VECTOR, fused
from keras_kd.losses import base
from keras_kd.losses.base import Tensor


def batch_level(p: Tensor, q: Tensor) -> Tensor:
    """Return Σⱼ (P·Pᵀ − Q·Qᵀ)ᵢⱼ² for each row i; its mean is ‖P·Pᵀ − Q·Qᵀ‖² / rows.

    With D = Q − P and S = Q + P, row i of the difference is −½·(S·dᵢ + D·sᵢ). Its square needs no
    matrix of rows by rows, and does not cancel where P and Q nearly agree.

    Args:
        p: `(…, rows, classes)` probabilities.
        q: the same shape.
    """
    return _batch_level(p, q, _products(p, q))


def class_level(p: Tensor, q: Tensor) -> Tensor:
    """Return ‖Pᵀ·P − Qᵀ·Q‖² / classes of `(…, rows, classes)` probabilities, of shape `(…)`.

    The difference is −½·(SᵀD + DᵀS) with D and S as above.
    """
    return _class_level(_products(p, q), q)


def _products(p: Tensor, q: Tensor) -> Tensor:
    """Return (S D)ᵀ·(S D), `(…, 2·classes, 2·classes)`: all the products in one."""
    both = ops.concatenate([q + p, q - p], axis=-1)
    return ops.matmul(ops.swapaxes(both, -1, -2), both)


def _batch_level(p: Tensor, q: Tensor, products: Tensor) -> Tensor:
    both = ops.concatenate([q - p, q + p], axis=-1)
    return 0.25 * ops.sum(ops.matmul(both, products) * both, axis=-1)


def _class_level(products: Tensor, probabilities: Tensor) -> Tensor:
    squares = ops.square(_symmetric(products))
    return ops.sum(squares, axis=(-1, -2)) / _classes(probabilities)


def _classes(probabilities: Tensor) -> Tensor:
    return ops.cast(ops.shape(probabilities)[-1], "float32")


def _symmetric(products: Tensor) -> Tensor:
    """Return h + hᵀ of h = ½·SᵀD, the upper right quarter."""
    half = 0.5 * ops.split(ops.split(products, 2, axis=-2)[0], 2, axis=-1)[1]
    return half + ops.swapaxes(half, -1, -2)


def _halves(values: Tensor) -> Tensor:
    """Add the two halves of the last axis."""
    first, second = ops.split(values, 2, axis=-1)
    return first + second


def _swapped(values: Tensor) -> Tensor:
    """Put the second half of the rows before the first."""
    return ops.concatenate(ops.split(values, 2, axis=-2)[::-1], axis=-2)


@fused(MATRIX, MATRIX, VECTOR, VECTOR, VECTOR)
def _forward(
    teacher_logits: Tensor,
    student_logits: Tensor,
    present: Tensor,
    temperatures: Tensor,
    weights: Tensor,
) -> Tensor:
    """Return the rows of `levels`."""
    temperatures = temperatures[:, None, None]
    log_p, log_q = (
        ops.log_softmax(logits / temperatures, axis=-1)
        for logits in (teacher_logits, student_logits)
    )  # of shape (temperatures, rows, classes)
    real = present[:, None]
    p, q = ops.exp(log_p), ops.exp(log_q)
    divergence = ops.sum(distributions.surprise(p, q, log_q - log_p), axis=-1)
    p, q = p * real, q * real
    products = _products(p, q)
    rows = (
        weights[0] * ops.square(temperatures[..., 0]) * divergence
        + weights[1] * _batch_level(p, q, products)
        + weights[2] * _class_level(products, q)[:, None]
    )
    return ops.sum(rows, axis=0)


@fused(MATRIX, MATRIX, VECTOR, VECTOR, VECTOR, VECTOR)
def _backward(
    teacher_logits: Tensor,
    student_logits: Tensor,
    present: Tensor,
    temperatures: Tensor,
    weights: Tensor,
    upstream: Tensor,
) -> Tensor:
    """Return the derivative of Σ uᵢ·rowᵢ by the student's logits.

    With V = (D S), W = (S D), G = WᵀW and h = ½·SᵀD, all of which depend on Q alone (dD = dS = dQ):
    the batch level's ¼·Σ uᵢ·vᵢᵀ·G·vᵢ gives ½·u·V·G + 2·W·(¼·Vᵀ·diag(u)·V), whose halves are added;
    the class level's ‖h + hᵀ‖²/C gives 4·Q·(h + hᵀ)/C, where Q is half the sum of W's halves. V is
    W with its halves swapped, so two products, Wᵀ·(W, u·W) and W·(…), are all there is.
    """
    temperatures, u = temperatures[:, None, None], upstream[:, None]
    p, q = (
        ops.softmax(logits / temperatures, axis=-1) * present[:, None]
        for logits in (teacher_logits, student_logits)
    )
    w = ops.concatenate([q + p, q - p], axis=-1)
    products, weighted = ops.split(
        ops.matmul(ops.swapaxes(w, -1, -2), ops.concatenate([w, u * w], axis=-1)), 2, axis=-1
    )
    by_class = _symmetric(products) * (2.0 * weights[2] * ops.sum(upstream) / _classes(q))
    by_products = 0.5 * weights[1] * _swapped(_halves(weighted))
    by_products += ops.concatenate([by_class, by_class], axis=-2)
    resemblance = 0.5 * weights[1] * _swapped(_halves(products))
    by_v, by_w = ops.split(
        ops.matmul(w, ops.concatenate([resemblance, by_products], axis=-1)), 2, axis=-1
    )
    by_q = u * by_v + by_w
    through = q * (by_q - ops.sum(q * by_q, axis=-1, keepdims=True)) / temperatures
    return ops.sum(weights[0] * temperatures * u * (q - p) + through, axis=0)


@tf.custom_gradient
def levels(
    teacher_logits: Tensor,
    student_logits: Tensor,
    present: Tensor,
    temperatures: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Any]:
    """Return the sum of the three weighted levels over the temperatures, for each row.

    Its slope by the student's logits is written out and computes again what it needs: keeping the
    matrices of all temperatures would cost more than both passes.

    Args:
        teacher_logits: `(rows, classes)`; without a gradient, as the rest but the student's.
        student_logits: the same shape.
        present: `(rows,)`, 1.0 or 0.0; what an absent row gives is not to be used.
        temperatures: `(temperatures,)`.
        weights: w₁, w₂, w₃.
    """
    inputs = (teacher_logits, student_logits, present, temperatures, weights)

    def gradient(upstream: Tensor) -> list:
        return [None, _backward(*inputs, upstream * present), None, None, None]

    return _forward(*inputs), gradient


@keras.saving.register_keras_serializable(package="keras_kd")
class MultiLevelLogits(base.DistillationLoss):
    """Match predictions, how examples resemble each other and how classes do, at several T.

    It adds to the classic divergence what a whole batch shows: which examples the teacher confuses
    (batch level), and which classes (class level). With P and Q the softmax of t/T and s/T, one row
    for each of b examples with C classes, it is the sum over the temperatures of

        w₁·T²·KL(pᵢ ‖ qᵢ) averaged over the batch + w₂·‖P·Pᵀ − Q·Qᵀ‖² / b + w₃·‖Pᵀ·P − Qᵀ·Q‖² / C

    The sums of squares, the divisors b and C, and the T² on the first level only are those of the
    authors' code. Padded positions and examples of weight 0 are not in the batch; the positions of
    a sequence or a map count as examples.

    Left out is what needs two augmented views of each input: the authors compute the levels on a
    weakly and a strongly augmented view, and scale them by the share of examples (and classes) in
    which the teacher is less certain than in the median.

    Args:
        temperatures: each T > 0 (or a `LearningRateSchedule` of it), at least one. Defaults to (2,
            3, 4, 5, 6).
        instance_weight: w₁, or a `LearningRateSchedule` of it. Defaults to 1.0.
        batch_weight: w₂, or a `LearningRateSchedule` of it. Defaults to 1.0.
        class_weight: w₃, or a `LearningRateSchedule` of it. Defaults to 1.0.
        name: name in the logs. Defaults to `"multi_level_logits"`.

    Raises:
        TypeError: "`temperatures` must be numbers".
        ValueError: "`temperatures` must be positive", "A softmax over one class is constant".

    Reference:
        Jin et al. 2023, the losses L_ins, L_batch and L_class.

    Example:
    ```python
    import keras_kd as kd

    loss = kd.losses.MultiLevelLogits()
    print(float(loss.compute_loss([[3.0, 1.0], [0.0, 2.0]], [[3.0, 1.0], [0.0, 2.0]])))  # 0.0
    ```
    """

    paper = "Jin et al. 2023 (MLLD)"
    activation = "softmax"

    def __init__(
        self,
        temperatures: Sequence[Any] = (2.0, 3.0, 4.0, 5.0, 6.0),
        instance_weight: Any = 1.0,
        batch_weight: Any = 1.0,
        class_weight: Any = 1.0,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.temperatures = _several("temperatures", temperatures)
        self.instance_weight = schedules.number("instance_weight", instance_weight)
        self.batch_weight = schedules.number("batch_weight", batch_weight)
        self.class_weight = schedules.number("class_weight", class_weight)

    def per_example(self, teacher: Tensor, student: Tensor, present: Tensor = None) -> Tensor:
        """Return each example's first two levels and, the same for all, the class level.

        Were the latter taken apart, unequal weights would move its minimum off the teacher.
        """
        rows = levels(
            *(ops.reshape(logits, (-1, logits.shape[-1])) for logits in (teacher, student)),
            ops.reshape(ops.cast(present, "float32"), (-1,)),
            _vector(self.temperatures),
            _vector((self.instance_weight, self.batch_weight, self.class_weight)),
        )
        return ops.where(present, ops.reshape(rows, ops.shape(present)), 0.0)

    def check_shapes(self, teacher: tuple, student: tuple) -> None:
        """Refuse different class counts, and a single class."""
        super().check_shapes(teacher, student)
        base.refuse_single_class(self, student)


def _vector(numbers: Sequence[Any]) -> Tensor:
    """Put numbers and scalar tensors into one float32 vector."""
    return ops.stack([ops.convert_to_tensor(number, "float32") for number in numbers])


def _several(argument: str, values: Any) -> list[Any]:
    """Return a list of numbers above zero or schedules, or refuse what is none."""
    if not isinstance(values, (list, tuple)) or not values:
        raise checks.bad_type(
            f"`{argument}` must be numbers, at least one.",
            given=repr(values),
            expected="a list of numbers > 0",
            fix=f"pass a list, for example {argument}=[2.0, 4.0].",
        )
    return [schedules.positive(argument, value) for value in values]
