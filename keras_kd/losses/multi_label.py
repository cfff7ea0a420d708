"""Multi-label distillation (MLD): Yang et al., "Multi-Label Knowledge Distillation" (ICCV 2023)."""

from __future__ import annotations

import keras

from keras_kd import distributions
from keras_kd.losses import base
from keras_kd.losses.base import Tensor


def one_versus_all_divergence(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Return Σ over labels of KL((p, 1 − p) ‖ (q, 1 − q)), of shape `logits.shape[:-1]`.

    p and q are the sigmoid of each label's logit.
    """
    return distributions.softened_divergence(teacher_logits, student_logits, 1.0, "sigmoid")


@keras.saving.register_keras_serializable(package="keras_kd")
class MultiLabelDistillation(base.DistillationLoss):
    """Match the answers to "this label or not?", one question for each label.

    Use it where an example may have several labels (or none): their probabilities do not sum to 1,
    so there is no softmax to match:

        Σ over labels of KL((p, 1 − p) ‖ (q, 1 − q)), averaged over the batch

    with p and q the sigmoid of the logits. There is no temperature in the paper;
    `kd.LogitsDistillation(activation="sigmoid")` has one. The sum over the labels is that of the
    authors' code, which weighs this loss by 10; its clipping of the probabilities to 1e-8 is left
    out, as the logarithms are exact here. The paper's two losses on label-wise embeddings, for
    which both models need an embedding of each label, are not part of this class.

    Args:
        name: name in the logs. Defaults to `"multi_label_distillation"`.

    Raises:
        ValueError: "The shapes of teacher and student differ", "The outputs have no axis but the
            batch's".

    Reference:
        Yang et al. 2023, the multi-label logits distillation loss L_MLD.

    Example:
    ```python
    import keras_kd as kd

    loss = kd.losses.MultiLabelDistillation()
    print(float(loss.compute_loss([[2.0, -1.0]], [[2.0, -1.0]])))  # 0.0
    ```
    """

    paper = "Yang et al. 2023 (L2D)"
    activation = "sigmoid"

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)

    def per_example(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return the sum of the labels' divergences of each example or position."""
        return one_versus_all_divergence(teacher, student)

    def check_shapes(self, teacher: tuple, student: tuple) -> None:
        """Refuse different label counts, and outputs without an axis for them."""
        super().check_shapes(teacher, student)
        base.refuse_flat(self, student)
