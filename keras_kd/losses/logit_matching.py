"""Ba and Caruana, "Do Deep Nets Really Need to be Deep?" (2014)."""

from __future__ import annotations

import keras
from keras import ops

from keras_kd.losses import base
from keras_kd.losses.base import Tensor


def logit_matching(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Return ½·Σ(s − t)², of shape `logits.shape[:-1]`."""
    return 0.5 * ops.sum(ops.square(student_logits - teacher_logits), axis=-1)


@keras.saving.register_keras_serializable(package="keras_kd")
class LogitMatching(base.DistillationLoss):
    """Match the logits themselves by squared error: regression on the teacher.

    It also teaches values that no softmax follows (a regression output). For logits it is the
    high-temperature limit of the KL form with centred logits. The sum runs over the classes and the
    ½ is the paper's:

        ½ · Σ (s − t)², averaged over the batch

    A teacher that gives probabilities is matched on log-probabilities, which are its logits up to
    one constant for each example.

    Args:
        name: name in the logs. Defaults to `"logit_matching"`.

    Raises:
        ValueError: "The shapes of teacher and student differ", "The outputs have no axis but the
            batch's".

    Reference:
        Ba and Caruana 2014, equation 1.

    Example:
    ```python
    import keras_kd as kd

    loss = kd.losses.LogitMatching()
    print(float(loss.compute_loss([[1.0, 2.0]], [[1.0, 4.0]])))  # 2.0
    ```
    """

    paper = "Ba and Caruana 2014"

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)

    def per_example(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return half the squared distance of each example's logits."""
        return logit_matching(teacher, student)

    def check_shapes(self, teacher: tuple, student: tuple) -> None:
        """Refuse different class counts, and outputs without an axis for them."""
        super().check_shapes(teacher, student)
        base.refuse_flat(self, student)
