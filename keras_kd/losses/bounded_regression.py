"""The teacher as a bound: Chen et al. (NeurIPS 2017).

"Learning Efficient Object Detection Models with Knowledge Distillation".
"""

from __future__ import annotations

import keras
from keras import ops

from keras_kd import checks
from keras_kd.losses import base
from keras_kd.losses.base import Tensor


def bounded_regression(
    teacher_values: Tensor, student_values: Tensor, targets: Tensor, margin: float = 0.0
) -> Tensor:
    """Return ‖s − y‖² where ‖s − y‖² + m > ‖t − y‖², else 0, of shape `values.shape[:-1]`."""
    teacher, student = (
        ops.sum(ops.square(values - targets), axis=-1)
        for values in (teacher_values, student_values)
    )
    return ops.where(student + margin > teacher, student, 0.0)


@keras.saving.register_keras_serializable(package="keras_kd")
class BoundedRegression(base.DistillationLoss):
    """Regress on the labels until the student is better than its teacher, then stop.

    A teacher's box may point away from the true one, so it is no target; what it gives is a bound
    that can be reached. Use it on the box head of a detector (the last axis is the box; give
    unmatched anchors a `sample_weight` of 0) or on any regression, in addition to the usual loss:

        ‖s − y‖² where ‖s − y‖² + m > ‖t − y‖², else 0, averaged over boxes

    Args:
        margin: m, in squared units of the outputs: how much better than the teacher the student has
            to be (negative: how much worse it may be). Defaults to 0.0.
        name: name in the logs. Defaults to `"bounded_regression"`.

    Raises:
        TypeError: "`margin` must be a number".
        ValueError: "needs labels", "The labels are no values like the outputs", "The outputs have
            no axis but the batch's".

    Reference:
        Chen et al. 2017, section 3.3 (the loss L_b, which they add to the smooth L1 loss with a
        weight of 0.5).

    Example:
    ```python
    import keras_kd as kd

    loss = kd.losses.BoundedRegression()
    print(float(loss.compute_loss([[1.0, 1.0]], [[3.0, 1.0]], y=[[0.0, 1.0]])))  # 9.0
    print(float(loss.compute_loss([[1.0, 1.0]], [[0.5, 1.0]], y=[[0.0, 1.0]])))  # 0.0
    ```
    """

    paper = "Chen et al. 2017"
    space = "values"
    needs_labels = True

    def __init__(self, margin: float = 0.0, name: str | None = None) -> None:
        super().__init__(name=name)
        self.margin = checks.number("margin", margin)

    def per_example(self, teacher: Tensor, student: Tensor, y: Tensor = None) -> Tensor:
        """Return each box's squared error, or 0 where it beats the teacher's."""
        return bounded_regression(teacher, student, self._targets(y, student), self.margin)

    def _targets(self, y: Tensor, student: Tensor) -> Tensor:
        """Return the labels as float32 of the outputs' shape; one value each needs no last axis."""
        y = ops.cast(ops.convert_to_tensor(y), "float32")
        shape, target = tuple(y.shape), tuple(student.shape)
        if target[-1] == 1 and len(shape) == len(target) - 1:
            y, shape = ops.expand_dims(y, -1), (*shape, 1)
        pairs = zip(shape, target, strict=False)
        if len(shape) != len(target) or any(None not in p and p[0] != p[1] for p in pairs):
            raise checks.bad_value(
                f"{self.name}: The labels are no values like the outputs.",
                given=f"labels of shape {shape}, outputs of shape {target}",
                expected=f"labels of shape {target}",
                fix="give y the boxes (or values) that the model is to predict.",
            )
        return y

    def check_shapes(self, teacher: tuple, student: tuple) -> None:
        """Refuse different sizes, and outputs without an axis for them."""
        super().check_shapes(teacher, student)
        base.refuse_flat(self, student)
