"""Tian et al., "Contrastive Representation Distillation" (ICLR 2020)."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_kd import checks, schedules
from keras_kd.features import flat, unit
from keras_kd.losses import base
from keras_kd.losses.base import Tensor

TERMS = 512  # guard: the series below has converged for temperatures above 0.002


def log_chance(size: int, temperature: Any) -> Tensor:
    """Return log z̄, z̄ the mean of exp(u·v/τ) over all u of length 1, v one of them.

    It is what an embedding scores against random ones: ₀F₁(; d/2; 1/(4τ²)), whose series is summed
    in log space.

    Args:
        size: d, the number of dimensions.
        temperature: τ > 0, a float or a scalar tensor.
    """
    half, powers = size / 2.0, range(TERMS)
    divisors = [math.lgamma(k + 1) + math.lgamma(half + k) - math.lgamma(half) for k in powers]
    log_ratio = -2.0 * ops.log(2.0 * ops.convert_to_tensor(temperature, "float32"))
    steps = np.arange(TERMS, dtype="float32")
    return ops.logsumexp(steps * log_ratio - np.asarray(divisors, "float32"))


def contrast(
    teacher: Tensor,
    student: Tensor,
    teacher_negatives: Tensor,
    student_negatives: Tensor,
    temperature: Any,
) -> Tensor:
    """Return −2·log h(t, s) − Σ log(1 − h(t⁻, s)) − Σ log(1 − h(t, s⁻)) of each example.

    Args:
        teacher: `(batch, d)` embeddings of length 1.
        student: `(batch, d)`, of the same examples.
        teacher_negatives: `(N, d)`, of other examples.
        student_negatives: `(N, d)`.
        temperature: τ > 0.
    """
    count, size = teacher_negatives.shape
    noise = math.log(count) + log_chance(size, temperature)
    same = ops.sum(teacher * student, axis=1) / temperature - noise
    others = [
        ops.matmul(anchors, ops.transpose(negatives)) / temperature - noise
        for anchors, negatives in ((student, teacher_negatives), (teacher, student_negatives))
    ]
    return -2.0 * ops.log_sigmoid(same) + sum(ops.sum(ops.softplus(z), 1) for z in others)


class UnitVectors(keras.initializers.Initializer):
    """Start a queue with random vectors of length 1."""

    def __call__(self, shape: Any, dtype: Any = None) -> Tensor:
        """Return them, one a row."""
        return unit(keras.initializers.RandomNormal()(shape, dtype))


class _Maskless(keras.layers.Layer):
    """A layer that takes a masked feature and sets no mask: the student's travels beside it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        """Set none."""


class ContrastiveHead(_Maskless):
    """A linear map onto the unit sphere, and a queue of what it gave for earlier examples."""

    def __init__(self, embedding_size: int, queue_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.linear = keras.layers.Dense(embedding_size, name="linear", dtype=self.dtype_policy)
        self.shape_of_queue = (queue_size, embedding_size)

    def build(self, shape: Any) -> None:
        """Create the linear map for flat features, and the queue."""
        self.linear.build((None, math.prod(shape[1:])))
        self.queue = self.add_weight(
            shape=self.shape_of_queue,
            initializer=UnitVectors(),
            trainable=False,
            aggregation="only_first_replica",
            name="queue",
        )

    def call(self, features: Tensor, training: bool) -> list[Tensor]:
        """Return the embeddings and the queue as it was; while training, put the new ones in."""
        embeddings = unit(self.linear(flat(features)))
        queue = ops.copy(self.queue)
        if training:
            latest = ops.concatenate([ops.stop_gradient(embeddings), queue])
            kept = latest[: self.shape_of_queue[0]]
            self.queue.assign(ops.reshape(kept, self.shape_of_queue))
        return [embeddings, queue]


class ContrastiveConnector(_Maskless):
    """A head for each layer of the two models."""

    def __init__(self, layers: int, embedding_size: int, queue_size: int, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.teacher_heads, self.student_heads = (
            [
                ContrastiveHead(embedding_size, queue_size, dtype="float32", name=f"{who}_{place}")
                for place in range(layers)
            ]
            for who in ("teacher", "student")
        )

    def build(self, teacher_shape: Any, student_shape: Any) -> None:
        """Create the weights and the queues."""
        sides = ((self.teacher_heads, teacher_shape), (self.student_heads, student_shape))
        for heads, shapes in sides:
            for head, shape in zip(heads, _as_list(shapes), strict=True):
                head.build(shape)

    def call(self, teacher: Any, student: Any, training: bool = False) -> tuple[list, list]:
        """Return `[embeddings, queue]` of each layer, of the teacher's and of the student's."""
        sides = ((self.teacher_heads, teacher), (self.student_heads, student))
        embedded, contrasted = (
            [
                head(feature, training=training)
                for head, feature in zip(heads, _as_list(side), strict=True)
            ]
            for heads, side in sides
        )
        return embedded, contrasted


@keras.saving.register_keras_serializable(package="keras_kd")
class ContrastiveRepresentation(base.FeatureLoss):
    """Bring the two models' embeddings of an example together, and away from other examples'.

    Use it on the layer before the classifier to transfer a representation; it costs a product of
    the batch with the queues, and two queues of memory. A linear head on either side maps flat
    features to t and s of length 1; N negatives t⁻, s⁻ are earlier embeddings of the same side:

        h(t, s) = e^(t·s/τ) / (e^(t·s/τ) + N·z̄)
        −2·log h(t, s) − Σ log(1 − h(t⁻, s)) − Σ log(1 − h(t, s⁻)), averaged over the batch

    It is the sum of both directions (student against teacher's negatives, and the reverse), as in
    the authors' code. What differs:

    - *Negatives*: no number of an example reaches a loss, so two first-in first-out queues take the
      place of the memory bank that is indexed by examples. The positive is the pair of this step
      (the bank held the example's former embedding), so both heads learn from it, as in the
      paper's equation. Queues start with random vectors, as the bank does, and are filled by
      training steps only, with all of the batch: a head sees neither weights nor `y`, so an example
      of weight 0 is a negative of later steps. A queue that outlasts an epoch holds an example's
      own embedding too: keep it below the number of training examples. Under several replicas the
      first one's examples fill it.
    - *Noise*: the paper has N/M, M the number of training examples. The authors' code divides e^(…)
      by M·z̄, z̄ its mean over the first batch, when the bank is random, and M cancels. Here z̄ is
      that mean's expected value, the mean of e^(u·v/τ) over all u of length 1, so that no value
      depends on the first batch.

    Args:
        embedding_size: length of the embeddings. Defaults to 128.
        temperature: τ > 0, a number or a schedule. Defaults to 0.07, the authors' code's.
        queue_size: N, the embeddings that are kept of either side. Defaults to 16384, the paper's
            number of negatives on CIFAR-100; for small data take less than a quarter of it.
        teacher_layer_name: path of the teacher's layer (or a list of paths); `None` is its output.
        student_layer_name: path of the student's layer (or as many); `None` is its output.
        name: name in the logs. Defaults to `"contrastive_representation"`.

    Raises:
        ValueError: "`embedding_size` must be a whole number of 1 or more" (and `queue_size`),
            "`temperature` must be positive", "A contrastive head needs features of a known size",
            "ContrastiveRepresentation compares embeddings", "The shapes of teacher and student
            differ" for batches of different size.

    Reference:
        Tian et al. 2020, section 3.1: the critic h and its objective; the authors' code for both
        directions and the normalisation.

    Example:
    ```python
    import keras
    import keras_kd as kd

    loss = kd.losses.ContrastiveRepresentation(embedding_size=8, queue_size=16)
    heads = loss.connector((None, 6), (None, 3))
    t, s = heads(keras.ops.ones((4, 6)), keras.ops.ones((4, 3)), training=True)
    print(float(loss.compute_loss(t, s)) > 0.0)  # True
    ```
    """

    paper = "Tian et al. 2020 (CRD)"
    trained_parts = "a linear head for the teacher's and one for the student's feature"
    takes_all = True

    def __init__(
        self,
        embedding_size: int = 128,
        temperature: Any = 0.07,
        queue_size: int = 16384,
        teacher_layer_name: base.LayerNames = None,
        student_layer_name: base.LayerNames = None,
        name: str | None = None,
    ) -> None:
        super().__init__(teacher_layer_name, student_layer_name, name)
        self.embedding_size = checks.count("embedding_size", embedding_size)
        self.temperature = schedules.positive("temperature", temperature)
        self.queue_size = checks.count("queue_size", queue_size)

    def per_example(self, teacher: Any, student: Any) -> Tensor:
        """Return the sum of both directions for each example, over the layers."""
        pairs = zip(teacher, student, strict=True)
        return sum(
            contrast(t, s, others_t, others_s, self.temperature)
            for (t, others_t), (s, others_s) in pairs
        )

    def connector(self, teacher_shapes: Any, student_shapes: Any) -> keras.layers.Layer:
        """Return the heads and their queues."""
        for who, side in (("teacher", teacher_shapes), ("student", student_shapes)):
            for shape in _as_list(side):
                base.refuse_flat(self, shape)
                _refuse_unknown_size(who, shape)
        return ContrastiveConnector(
            len(_as_list(student_shapes)),
            self.embedding_size,
            self.queue_size,
            name=f"{self.name}_connector",
        )

    def check_shapes(self, teacher: Any, student: Any) -> None:
        """Refuse what no head has embedded, and batches of different size."""
        for side in (teacher, student):
            if not isinstance(side, list) or not all(isinstance(pair, list) for pair in side):
                raise checks.bad_value(
                    "ContrastiveRepresentation compares embeddings, and these are features.",
                    given=f"teacher {teacher}, student {student}",
                    expected="what its heads return: [[embeddings, queue], …]",
                    fix="train with kd.Distiller, or call loss.connector(…)(teacher, student) "
                    "first.",
                )
        super().check_shapes(teacher, student)

    def _fix_for_shapes(self) -> str:
        return "compare features of the same examples."


def _as_list(side: Any) -> list:
    """Return the layers (or shapes) of a side, which is a list where several are named."""
    return side if isinstance(side, list) else [side]


def _refuse_unknown_size(who: str, shape: tuple) -> None:
    if None in shape[1:]:
        raise checks.bad_value(
            "A contrastive head needs features of a known size.",
            given=f"a {who} feature of shape {shape}",
            expected="None for the batch alone",
            fix="name a layer after the pooling, or give the model's input its size.",
        )
