"""Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer"."""

from __future__ import annotations

import keras
from keras import ops

from keras_kd.features import flat, unit
from keras_kd.losses import base
from keras_kd.losses.base import Tensor

FLOOR = 1e-7
"""What the authors' code adds to each probability inside the logarithm."""


def neighbours(features: Tensor, present: Tensor) -> Tensor:
    """Return p(j|i) ∝ 1 + cos(xᵢ, xⱼ), `(batch, batch)`, each row a distribution.

    The half of the kernel (1 + cos) / 2 cancels in a row.

    Args:
        features: `(batch, …)`.
        present: boolean `(batch,)`; the others' rows and columns are 0.
    """
    keep = ops.cast(present, "float32")
    here = ops.expand_dims(present, 1)
    vectors = unit(ops.where(here, flat(features), 0.0))  # guard: `keep` takes absent ones out
    kernel = ops.maximum(1.0 + ops.matmul(vectors, ops.transpose(vectors)), 0.0)
    kernel *= ops.expand_dims(keep, 1) * ops.expand_dims(keep, 0)
    return ops.divide_no_nan(kernel, ops.sum(kernel, axis=1, keepdims=True))


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return Σ p·log((p + ε) / (q + ε)) of each row, ε = 1e-7, exact to float32 near p = q.

    Σ q − Σ p, which is 0, is added, so that each summand is of second order in q − p.
    """
    change = (q - p) / (p + FLOOR)
    near = ops.log1p(ops.maximum(change, -0.5))  # guard: log 0 in the branch that is not taken
    far = ops.log((q + FLOOR) / (p + FLOOR))
    return ops.sum((q - p) - p * ops.where(change > -0.5, near, far), axis=1)


@keras.saving.register_keras_serializable(package="keras_kd")
class ProbabilisticTransfer(base.RelationLoss):
    """Teach which examples are each other's neighbours, as probabilities in feature space.

    Use it to transfer a representation (between networks of other widths, or of other kinds of
    input) rather than predictions: no projector and no labels are needed. For n examples:

        p(j|i) = k(tᵢ, tⱼ) / Σⱼ k(tᵢ, tⱼ), q(j|i) alike of s, k(a, b) = (1 + cos(a, b)) / 2
        Σᵢⱼ p(j|i) · log((p(j|i) + ε) / (q(j|i) + ε)) / n²

    The paper sums over j ≠ i. The authors' code keeps the pairs of an example with itself, takes
    the mean over all n² pairs and ε = 1e-7; that is what is computed here. Examples of weight 0
    leave the pairs.

    Args:
        teacher_layer_name: path of the teacher's layer (or a list of paths); `None` is its output.
        student_layer_name: path of the student's layer (or as many); `None` is its output.
        name: name in the logs. Defaults to `"probabilistic_transfer"`.

    Raises:
        ValueError: "The shapes of teacher and student differ" for batches of different size, "The
            outputs have no axis but the batch's".

    Reference:
        Passalis and Tefas, ECCV 2018, section 3: the cosine kernel, the conditional probabilities
        and their divergence. The mean over n² makes it small: 30000 is a usual weight.

    Example:
    ```python
    import keras_kd as kd

    loss = kd.losses.ProbabilisticTransfer()
    apart, alike = [[1.0, 0.0], [0.0, 1.0]], [[1.0], [1.0]]
    print(float(loss.compute_loss(apart, alike)))  # KL((2/3, 1/3) ‖ (1/2, 1/2)) / 2 = 0.0283…
    ```
    """

    paper = "Passalis and Tefas 2018 (PKT)"

    def per_example(self, teacher: Tensor, student: Tensor, present: Tensor) -> Tensor:
        """Return the divergence of each example's neighbours over n; 0 for absent ones."""
        count = ops.sum(ops.cast(present, "float32"))
        rows = divergence(neighbours(teacher, present), neighbours(student, present))
        return ops.divide_no_nan(rows, count)
