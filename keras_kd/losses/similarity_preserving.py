"""Tung and Mori, "Similarity-Preserving Knowledge Distillation" (ICCV 2019)."""

from __future__ import annotations

import keras
from keras import ops

from keras_kd.features import flat, unit
from keras_kd.losses import base
from keras_kd.losses.base import Tensor


def similarities(features: Tensor, present: Tensor) -> Tensor:
    """Return the products of all pairs, `(batch, batch)`, each row of length 1 (L2).

    Args:
        features: `(batch, …)`.
        present: boolean `(batch,)`; the others' rows and columns are 0.
    """
    vectors = ops.where(ops.expand_dims(present, 1), flat(features), 0.0)
    return unit(ops.matmul(vectors, ops.transpose(vectors)))


@keras.saving.register_keras_serializable(package="keras_kd")
class SimilarityPreserving(base.RelationLoss):
    """Teach which examples of a batch are alike: those that excite the teacher alike.

    Use it on a late layer of networks of different kinds or widths: it asks for the pattern of
    similarities and not for the features, so no projector is needed. With Q the n features as rows:

        G = Q·Qᵀ, each row divided by its L2 norm;   ‖G(t) − G(s)‖²_F / n²

    Examples of weight 0 leave the pairs. Batches of one example teach nothing.

    Args:
        teacher_layer_name: path of the teacher's layer (or a list of paths); `None` is its output.
        student_layer_name: path of the student's layer (or as many); `None` is its output.
        name: name in the logs. Defaults to `"similarity_preserving"`.

    Raises:
        ValueError: "The shapes of teacher and student differ" for batches of different size, "The
            outputs have no axis but the batch's".

    Reference:
        Tung and Mori 2019, equations 1 to 3. The paper weights it 3000 on CIFAR-10:
        `distillation_loss_weights=[3000.0]`.

    Example:
    ```python
    import keras_kd as kd

    loss = kd.losses.SimilarityPreserving()
    apart, alike = [[1.0, 0.0], [0.0, 1.0]], [[1.0], [1.0]]
    print(float(loss.compute_loss(apart, alike)))  # (4 − 2√2) / 4 = 0.2928…
    ```
    """

    paper = "Tung and Mori 2019 (SP)"

    def per_example(self, teacher: Tensor, student: Tensor, present: Tensor) -> Tensor:
        """Return the squared distance of each example's rows over n; 0 for absent ones."""
        count = ops.sum(ops.cast(present, "float32"))
        gaps = similarities(teacher, present) - similarities(student, present)
        return ops.divide_no_nan(ops.sum(ops.square(gaps), axis=1), count)
