"""Normalised distillation (NKD): Yang et al. (ICCV 2023).

"From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss
and Customized Soft Labels".
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_kd import checks, distributions, schedules
from keras_kd.losses import base
from keras_kd.losses.base import Tensor

NEVER = -1e30  # guard: as good as minus infinity, whose difference to itself is no number


def target_cross_entropy(teacher_logits: Tensor, student_logits: Tensor, labels: Tensor) -> Tensor:
    """Return −p_y·log q_y at temperature 1, of shape `logits.shape[:-1]`; labels are one-hot."""
    weight = ops.sum(labels * ops.softmax(teacher_logits, axis=-1), axis=-1)
    return -weight * ops.sum(labels * ops.log_softmax(student_logits, axis=-1), axis=-1)


def others_cross_entropy(
    teacher_logits: Tensor, student_logits: Tensor, labels: Tensor, temperature: Any = 1.0
) -> Tensor:
    """Return −Σ p̂·log q̂ over the classes that are not y, of shape `logits.shape[:-1]`.

    p̂ and q̂ are softmax(logits/T) without the label's class, which `labels` mark in one-hot rows.
    """
    log_p, log_q = (
        ops.log_softmax(ops.where(ops.cast(labels, "bool"), NEVER, logits / temperature), axis=-1)
        for logits in (teacher_logits, student_logits)
    )
    return -ops.sum(ops.exp(log_p) * log_q, axis=-1)


@keras.saving.register_keras_serializable(package="keras_kd")
class NormalizedDistillation(base.DistillationLoss):
    """Teach the label as far as the teacher believes in it, and how the other classes compare.

    Student and teacher leave different sums to the classes that are not y, so that matching them
    cannot succeed; each side's are normalised to 1 first. It needs labels:

        −p_y·log q_y − γ·T²·Σ_{i≠y} p̂ᵢ·log q̂ᵢ, averaged over the batch

    with p and q the softmax of the logits at temperature 1, and p̂ and q̂ those of logits/T over the
    classes that are not y. Both parts are cross-entropies: the value does not reach 0. The target's
    part has no temperature and the T² is on the other one, as in the authors' code. (A revision of
    that code leaves the label's class among the others; the paper's equation does not.) A label
    that is no class (the -1 or 255 of void pixels, `ignore_class` of Keras's losses) teaches
    nothing: its value is 0.

    Args:
        gamma: γ, weight of the classes that are not y, or a `LearningRateSchedule` of it. Defaults
            to 1.5.
        temperature: T > 0, or a `LearningRateSchedule` of it. Defaults to 1.0.
        name: name in the logs. Defaults to `"normalized_distillation"`.

    Raises:
        ValueError: "`temperature` must be positive", "needs labels", "Two classes leave one class
            besides the label's" with γ ≠ 0, "A softmax over one class is constant".

    Reference:
        Yang et al. 2023, the loss L_NKD.

    Example:
    ```python
    import keras_kd as kd

    loss = kd.losses.NormalizedDistillation(gamma=1.0)
    print(float(loss.compute_loss([[40.0, 0.0, 0.0]], [[40.0, 0.0, 0.0]], y=[0])))  # log 2 = 0.693…
    ```
    """

    paper = "Yang et al. 2023 (NKD)"
    needs_labels = True
    activation = "softmax"

    def __init__(self, gamma: Any = 1.5, temperature: Any = 1.0, name: str | None = None) -> None:
        super().__init__(name=name)
        self.gamma = schedules.number("gamma", gamma)
        self.temperature = schedules.positive("temperature", temperature)

    def per_example(self, teacher: Tensor, student: Tensor, y: Tensor = None) -> Tensor:
        """Return the two cross-entropies of each example or position."""
        labels = distributions.one_hot_labels(y, student)
        others = others_cross_entropy(teacher, student, labels, self.temperature)
        target = target_cross_entropy(teacher, student, labels)
        values = target + self.gamma * self.temperature**2 * others
        return values * ops.sum(labels, axis=-1)  # the row of a label that is no class is 0

    def check_shapes(self, teacher: tuple, student: tuple) -> None:
        """Refuse different class counts, one class, and two unless γ is 0."""
        super().check_shapes(teacher, student)
        base.refuse_single_class(self, student)
        if student[-1] == 2 and self.gamma != 0:
            raise checks.bad_value(
                f"{self.name}: Two classes leave one class besides the label's, which has nothing "
                "to teach, so gamma does nothing.",
                given=f"outputs of shape {student}, gamma={self.gamma}",
                expected="three or more classes, or gamma=0",
                fix="use kd.LogitsDistillation, or gamma=0.",
            )
