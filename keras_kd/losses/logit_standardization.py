"""Logit standardisation: Sun et al., "Logit Standardization in Knowledge Distillation" (2024)."""

from __future__ import annotations

import inspect
from typing import Any

import keras
from keras import ops

from keras_kd import checks
from keras_kd.losses import base
from keras_kd.losses.base import Tensor


def standardize(logits: Tensor) -> Tensor:
    """Return (z − mean) / (1e-7 + standard deviation) over the last axis.

    The deviation is the sample's (n − 1). Logits that do not vary (to float32) give 0, without a
    gradient.
    """
    centred = logits - ops.mean(logits, axis=-1, keepdims=True)
    variance = ops.sum(ops.square(centred), axis=-1, keepdims=True) / (logits.shape[-1] - 1)
    largest = ops.max(ops.abs(logits), axis=-1, keepdims=True)
    varies = variance > 1e-12 * ops.square(largest)
    squared = ops.where(varies, variance, 1.0)  # guard: the deviation of zeros divides only zeros
    return ops.where(varies, centred, 0.0) / (1e-7 + ops.sqrt(squared))


@keras.saving.register_keras_serializable(package="keras_kd")
class LogitStandardization(base.DistillationLoss):
    """Give both models' logits mean 0 and deviation 1, then compare them by another loss.

    A small student need not produce logits as large as its teacher's, only ones that relate to each
    other in the same way. It wraps any loss on logits, which keeps its own temperature, so that the
    softmax is of

        (z − mean(z)) / std(z) / T

    for each example (or position) on its own, with the sample's standard deviation (n − 1) and the
    1e-7 beside it as in the authors' code. As the logits' scale is gone, that code raises the
    weight of the distillation: 9 for the classic loss at T = 2.

    Args:
        loss: a loss on logits, such as `kd.LogitsDistillation(temperature=2.0)`; labels go through
            to a loss that needs them.
        name: name in the logs. Defaults to `"logit_standardization"`.

    Raises:
        TypeError: "`loss` must be a loss on logits".
        ValueError: "`loss` must be a loss on the logits of one output" for one on features or
            values, and one with a list or dict of losses; "`loss` must not be for one output";
            "Logits of one class have no deviation"; and what the loss inside refuses.

    Reference:
        Sun et al. 2024, algorithms 1 and 2.

    Example:
    ```python
    import keras_kd as kd

    loss = kd.losses.LogitStandardization(kd.LogitsDistillation(temperature=2.0))
    print(float(loss.compute_loss([[4.0, 0.0, 2.0]], [[2.0, 0.0, 1.0]])))  # 0.0
    ```
    """

    paper = "Sun et al. 2024"

    def __init__(self, loss: base.DistillationLoss, name: str | None = None) -> None:
        super().__init__(name=name)
        self.loss = _on_logits(loss)
        self.activation = loss.activation
        self.needs_labels = loss.needs_labels

    def per_example(
        self, teacher: Tensor, student: Tensor, y: Tensor = None, present: Tensor = None
    ) -> Tensor:
        """Return the wrapped loss of standardised logits."""
        term = self.loss.terms()
        given = {"y": y, "present": present}
        taken = {name: given[name] for name in inspect.signature(term).parameters if name in given}
        return term(standardize(teacher), standardize(student), **taken)

    def check_shapes(self, teacher: tuple, student: tuple) -> None:
        """Refuse what the wrapped loss refuses, and a single class."""
        super().check_shapes(teacher, student)
        base.refuse_flat(self, student)
        if student[-1] == 1:
            raise checks.bad_value(
                f"{self.name}: Logits of one class have no deviation.",
                given=f"outputs of shape {student}",
                expected="two or more classes",
                fix=f"use {type(self.loss).__name__} without LogitStandardization.",
            )
        self.loss.check_shapes(teacher, student)


def _on_logits(loss: Any) -> base.DistillationLoss:
    if not isinstance(loss, base.DistillationLoss):
        raise checks.bad_type(
            "`loss` must be a loss on logits.",
            given=f"{loss!r} ({type(loss).__name__})",
            expected="a loss of keras_kd.losses",
            fix="wrap one, for example LogitStandardization(kd.LogitsDistillation()).",
        )
    if loss.space != "logits" or loss.takes_all or loss.trained_parts or not callable(loss.terms()):
        raise checks.bad_value(
            "`loss` must be a loss on the logits of one output.",
            given=f"{type(loss).__name__} on {loss.space}",
            expected="a loss on logits, without layers, trained parts or a list of losses",
            fix="wrap one, for example LogitStandardization(kd.LogitsDistillation()).",
        )
    if loss.output is not None:
        raise checks.bad_value(
            "`loss` must not be for one output: what wraps it is.",
            given=f"{type(loss).__name__}(…).on({loss.output!r})",
            expected="a loss on all outputs",
            fix=f"say it of the whole: LogitStandardization(…).on({loss.output!r}).",
        )
    return loss
