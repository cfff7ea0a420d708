"""Decoupled distillation (DKD): Zhao et al., "Decoupled Knowledge Distillation" (CVPR 2022)."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_kd import checks, distributions, schedules
from keras_kd.losses import base
from keras_kd.losses.base import Tensor

NEVER = -1e30  # guard: as good as minus infinity, whose difference to itself is no number


def decoupled(
    teacher_logits: Tensor, student_logits: Tensor, labels: Tensor, temperature: Any = 1.0
) -> tuple[Tensor, Tensor]:
    """Return TCKD and NCKD, each of shape `logits.shape[:-1]`, without the T².

    TCKD is the divergence of (p_y, 1 − p_y), NCKD that of the distributions over the classes that
    are not y; `labels` are one-hot rows. With p_y the teacher's, KL = TCKD + (1 − p_y)·NCKD.
    """
    (margin_t, others_t), (margin_s, others_s) = (
        _target_and_others(logits / temperature, ops.cast(labels, "bool"))
        for logits in (teacher_logits, student_logits)
    )
    target_t, target_s = (
        ops.stack(distributions.log_probabilities(margin, "sigmoid"), axis=-1)
        for margin in (margin_t, margin_s)
    )
    return (
        distributions.relative_entropy(target_t, target_s),
        distributions.relative_entropy(others_t, others_s),
    )


def _target_and_others(logits: Tensor, is_target: Tensor) -> tuple[Tensor, Tensor]:
    """Return log(p_y / (1 − p_y)), and the log-probabilities among the classes that are not y."""
    others = ops.where(is_target, NEVER, logits)
    target = ops.sum(ops.where(is_target, logits, 0.0), axis=-1)
    return target - ops.logsumexp(others, axis=-1), ops.log_softmax(others, axis=-1)


@keras.saving.register_keras_serializable(package="keras_kd")
class DecoupledDistillation(base.DistillationLoss):
    """Weigh what the teacher says of the label and what it says of the other classes on their own.

    The classic divergence multiplies the second part by 1 − p_y, so a confident teacher hardly
    teaches how the other classes compare. Here that part has a weight of its own. Use it with a
    strong teacher and many classes; it needs labels:

        T² · (α·TCKD + β·NCKD), averaged over the batch

        TCKD = KL((p_y, 1 − p_y) ‖ (q_y, 1 − q_y)),   NCKD = KL(p̂ ‖ q̂)

    with p and q the softmax of t/T and s/T, and p̂ and q̂ their shares among the classes that are
    not y. α = 1 and β = 1 − p_y would be the classic divergence. The sum over the classes and the
    T² on both parts are the authors' code's; its growing weight of the first 20 epochs is a
    schedule in `distillation_loss_weights`. A label that is no class (the -1 or 255 of void pixels,
    `ignore_class` of Keras's losses) teaches nothing: its value is 0.

    Args:
        alpha: weight of TCKD, or a `LearningRateSchedule` of it. Defaults to 1.0.
        beta: weight of NCKD, or a `LearningRateSchedule` of it. Defaults to 8.0, which the authors
            use on CIFAR-100; they lower it for a teacher that is less confident.
        temperature: T > 0, or a `LearningRateSchedule` of it. Defaults to 4.0.
        name: name in the logs. Defaults to `"decoupled_distillation"`.

    Raises:
        ValueError: "`temperature` must be positive", "needs labels", "Two classes leave one class
            besides the label's" with β ≠ 0, "A softmax over one class is constant".

    Reference:
        Zhao et al. 2022, equations 5 to 7.

    Example:
    ```python
    import keras_kd as kd

    loss = kd.losses.DecoupledDistillation()
    print(float(loss.compute_loss([[3.0, 1.0, 0.0]], [[3.0, 1.0, 0.0]], y=[0])))  # 0.0
    ```
    """

    paper = "Zhao et al. 2022 (DKD)"
    needs_labels = True
    activation = "softmax"

    def __init__(
        self,
        alpha: Any = 1.0,
        beta: Any = 8.0,
        temperature: Any = 4.0,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.alpha = schedules.number("alpha", alpha)
        self.beta = schedules.number("beta", beta)
        self.temperature = schedules.positive("temperature", temperature)

    def per_example(self, teacher: Tensor, student: Tensor, y: Tensor = None) -> Tensor:
        """Return the two weighted divergences of each example or position."""
        labels = distributions.one_hot_labels(y, student)
        target, others = decoupled(teacher, student, labels, self.temperature)
        values = self.temperature**2 * (self.alpha * target + self.beta * others)
        return ops.where(ops.any(ops.cast(labels, "bool"), axis=-1), values, 0.0)

    def check_shapes(self, teacher: tuple, student: tuple) -> None:
        """Refuse different class counts, one class, and two unless β is 0."""
        super().check_shapes(teacher, student)
        base.refuse_single_class(self, student)
        if student[-1] == 2 and self.beta != 0:
            raise checks.bad_value(
                f"{self.name}: Two classes leave one class besides the label's, so NCKD is 0 and "
                "beta does nothing.",
                given=f"outputs of shape {student}, beta={self.beta}",
                expected="three or more classes, or beta=0",
                fix="use kd.LogitsDistillation, which for two classes is the same with alpha=1.",
            )
