"""Hard-label distillation: Touvron et al., "Training data-efficient image transformers" (2021)."""

from __future__ import annotations

import keras
from keras import ops

from keras_kd.losses import base
from keras_kd.losses.base import Tensor


def hard_label(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Return −log softmax(s)[argmax t], of shape `logits.shape[:-1]`."""
    chosen = ops.one_hot(ops.argmax(teacher_logits, axis=-1), student_logits.shape[-1])
    return -ops.sum(chosen * ops.log_softmax(student_logits, axis=-1), axis=-1)


@keras.saving.register_keras_serializable(package="keras_kd")
class HardLabelDistillation(base.DistillationLoss):
    """Take the teacher's decision as the label.

    It needs no temperature, and also serves a teacher whose scores are no calibrated
    probabilities. What the teacher finds second most likely is lost:

        −log softmax(s)[argmax t], averaged over the batch

    Args:
        name: name in the logs. Defaults to `"hard_label_distillation"`.

    Raises:
        ValueError: "A softmax over one class is constant" for a single logit.

    Reference:
        Touvron et al. 2021, equation 3 (its second term).

    Example:
    ```python
    import keras_kd as kd

    loss = kd.losses.HardLabelDistillation()
    print(float(loss.compute_loss([[5.0, 1.0]], [[0.0, 0.0]])))  # log 2 = 0.693…
    ```
    """

    paper = "Touvron et al. 2021 (DeiT)"
    activation = "softmax"

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)

    def per_example(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return the cross-entropy with the teacher's decision."""
        return hard_label(teacher, student)

    def check_shapes(self, teacher: tuple, student: tuple) -> None:
        """Refuse different class counts, and a single logit."""
        super().check_shapes(teacher, student)
        base.refuse_single_class(self, student)
