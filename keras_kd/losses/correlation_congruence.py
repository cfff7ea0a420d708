"""Peng et al., "Correlation Congruence for Knowledge Distillation" (ICCV 2019)."""

from __future__ import annotations

import math

import keras
from keras import ops

from keras_kd import checks
from keras_kd.features import flat, unit
from keras_kd.losses import base
from keras_kd.losses.base import Tensor


def taylor_kernel(products: Tensor, gamma: float, order: int) -> Tensor:
    """Return e^(−2γ) · Σ (2γ)ᵖ/p! · (x·y)ᵖ for p from 0 to the order.

    It is the Taylor expansion of the Gaussian kernel exp(−γ‖x − y‖²) of vectors of length 1.

    Args:
        products: cosines x·y, of any shape.
        gamma: γ > 0.
        order: the last power, 1 or more.
    """
    series = ops.ones_like(products)
    for power in range(order, 0, -1):
        series = 1.0 + series * products * (2.0 * gamma / power)
    return math.exp(-2.0 * gamma) * series


@keras.saving.register_keras_serializable(package="keras_kd")
class CorrelationCongruence(base.RelationLoss):
    """Teach the correlations between the examples of a batch, by a Gaussian kernel.

    Use it beside a loss on each example (the paper adds it to the KL on logits): it needs no
    projector, as only relations are compared. Features are brought to length 1. For n examples:

        C(x)ᵢⱼ = e^(−2γ) · Σₚ (2γ)ᵖ/p! · (xᵢ·xⱼ)ᵖ, p = 0 … P;   Σᵢⱼ (C(s)ᵢⱼ − C(t)ᵢⱼ)² / n²

    C is the Taylor expansion, of order P, of exp(−γ‖xᵢ − xⱼ‖²). The authors published no code, and
    what circulates under their name (a product of neighbouring rows) is another formula: this is
    the paper's. Examples of weight 0 leave the pairs.

    Args:
        gamma: γ > 0 of the Gaussian kernel. Defaults to 0.4.
        order: P, the last power of the expansion, a whole number of 1 or more. Defaults to 2.
        teacher_layer_name: path of the teacher's layer (or a list of paths); `None` is its output.
        student_layer_name: path of the student's layer (or as many); `None` is its output.
        name: name in the logs. Defaults to `"correlation_congruence"`.

    Raises:
        ValueError: "`gamma` must be positive", "`order` must be a whole number of 1 or more", "The
            shapes of teacher and student differ" for batches of different size, "The outputs have
            no axis but the batch's".

    Reference:
        Peng et al. 2019, section 3: the correlation congruence loss, and the P-order Taylor series
        of the Gaussian RBF kernel, γ = 0.4 and P = 2 in the experiments.

    Example:
    ```python
    import keras_kd as kd

    loss = kd.losses.CorrelationCongruence(gamma=0.5, order=1)
    apart, alike = [[1.0, 0.0], [0.0, 1.0]], [[1.0], [1.0]]
    print(float(loss.compute_loss(apart, alike)))  # 2·e⁻² / 4 = 0.0676…
    ```
    """

    paper = "Peng et al. 2019 (CCKD)"

    def __init__(
        self,
        gamma: float = 0.4,
        order: int = 2,
        teacher_layer_name: base.LayerNames = None,
        student_layer_name: base.LayerNames = None,
        name: str | None = None,
    ) -> None:
        super().__init__(teacher_layer_name, student_layer_name, name)
        self.gamma = checks.positive("gamma", gamma)
        self.order = checks.count("order", order)

    def per_example(self, teacher: Tensor, student: Tensor, present: Tensor) -> Tensor:
        """Return the squared differences of each example's row over n; 0 for absent ones."""
        count = ops.sum(ops.cast(present, "float32"))
        t, s = (self._correlations(side, present) for side in (teacher, student))
        return ops.divide_no_nan(ops.sum(ops.square(s - t), axis=1), count)

    def _correlations(self, features: Tensor, present: Tensor) -> Tensor:
        """Return the kernel of all pairs; that with an absent example is the same in both."""
        vectors = unit(ops.where(ops.expand_dims(present, 1), flat(features), 0.0))
        products = ops.matmul(vectors, ops.transpose(vectors))
        return taylor_kernel(products, self.gamma, self.order)
