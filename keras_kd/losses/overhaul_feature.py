"""Heo et al., "A Comprehensive Overhaul of Feature Distillation" (ICCV 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_kd import replicas
from keras_kd.features import flat
from keras_kd.losses import base
from keras_kd.losses.base import Tensor
from keras_kd.projectors import projector_for

SCALE = 1000.0


def partial_distance(teacher_features: Tensor, student_features: Tensor) -> Tensor:
    """Return Σ (t − s)² over the elements with s > t or t > 0: `(batch,)`.

    What the teacher holds back (t ≤ 0) need only not be exceeded.

    Args:
        teacher_features: `(batch, …)`, behind the margin ReLU.
        student_features: the same shape.
    """
    counts = ops.logical_or(student_features > teacher_features, teacher_features > 0.0)
    squares = ops.square(teacher_features - student_features)
    return ops.sum(flat(ops.where(counts, squares, ops.zeros_like(squares))), axis=1)


def overhaul_feature(teachers: Sequence[Tensor], students: Sequence[Tensor]) -> Tensor:
    """Return Σᵢ partial_distanceᵢ / 2^(n−i) / 1000 of the layers i = 1 … n: `(batch,)`."""
    pairs = zip(reversed(teachers), reversed(students), strict=True)
    return sum(partial_distance(*pair) / 2.0**back for back, pair in enumerate(pairs)) / SCALE


class MarginReLU(keras.layers.Layer):
    """max(x, m) with m the mean of a channel's negative values, as seen so far in training.

    A channel without negative values has m = 0. In training a batch is counted before it is used.
    """

    def build(self, shape: Any) -> None:
        """Create the state: sum and number of each channel's negative values."""
        self.negative_sum, self.negative_count = (
            self.add_weight(
                shape=(shape[-1],),
                initializer="zeros",
                trainable=False,
                aggregation="mean",  # of replicas that all hold the total
                name=name,
            )
            for name in ("negative_sum", "negative_count")
        )

    def call(self, features: Tensor, training: bool = False) -> Tensor:
        """Count the features in training; return max(features, margin)."""
        if training:
            axes, zero = tuple(range(len(features.shape) - 1)), ops.zeros_like(features)
            negative = features < 0.0
            count = ops.sum(ops.cast(negative, "float32"), axis=axes)
            total = ops.sum(ops.where(negative, features, zero), axis=axes)
            self.negative_count.assign(self.negative_count + replicas.total(count))
            self.negative_sum.assign(self.negative_sum + replicas.total(total))
        return ops.maximum(features, ops.divide_no_nan(self.negative_sum, self.negative_count))


class OverhaulConnector(keras.layers.Layer):
    """Put the margin ReLU on the teacher's features, the transform on the student's.

    Args:
        teachers: shapes of the teacher's features.
        students: shapes of the student's features.
    """

    def __init__(self, teachers: list, students: list, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.margins, self.sizes, self.transforms, self.norms = [], [], [], []
        initializer = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
        for index, (teacher, student) in enumerate(zip(teachers, students, strict=True)):
            size = projector_for((*teacher[:-1], student[-1]), student)
            self.sizes.append(size)
            margin = MarginReLU(name=f"margin_{index}", dtype="float32")
            transform = keras.layers.Dense(
                teacher[-1],
                use_bias=False,
                kernel_initializer=initializer,
                name=f"transform_{index}",
                dtype="float32",
            )
            norm = keras.layers.BatchNormalization(
                momentum=0.9, epsilon=1e-5, name=f"norm_{index}", dtype="float32"
            )
            margin.build(teacher)
            transform.build(student)
            norm.build((*student[:-1], teacher[-1]))
            self.margins.append(margin)
            self.transforms.append(transform)
            self.norms.append(norm)
        self.built = True

    def call(self, teacher: Any, student: Any, training: bool = False) -> tuple[list, list]:
        """Return lists of the transformed features."""
        teachers, students = _listed(teacher), _listed(student)
        targets = [m(t, training=training) for m, t in zip(self.margins, teachers, strict=True)]
        sources = []
        for index, (t, s) in enumerate(zip(teachers, students, strict=True)):
            size = self.sizes[index]
            resized = s if size is None else size(s, like=t)
            sources.append(self.norms[index](self.transforms[index](resized), training=training))
        return targets, sources


@keras.saving.register_keras_serializable(package="keras_kd")
class OverhaulFeature(base.FeatureLoss):
    """Teach features before their ReLU: what the teacher says, and where it stays silent (OFD).

    Use it on layers *before* the activation, such as the BatchNorm that ends a block. The teacher's
    feature goes through a margin ReLU max(x, m), the student's through a 1×1 convolution r with
    BatchNorm; where the teacher is silent (t ≤ 0) only a student above it counts:

        Σᵢ 2^(i−n) / 1000 · Σ (tᵢ − sᵢ)²·[sᵢ > tᵢ or tᵢ > 0],  tᵢ = max(xᵢ, mᵢ),  sᵢ = r(student)ᵢ

    summed over the elements and layers i = 1 … n (the last counts most), averaged over the batch.
    m is E[x | x < 0] of each channel. The authors compute it from the teacher's BatchNorm, taking
    its output for normal; here it is the mean over all negative values seen in training, which is
    exact whatever the layer. It is state of the connector, saved with the Distiller, and counts a
    batch before it is used. The factors 1/1000 and 2^(i−n) and the sums are those of the authors'
    code (the paper leaves them to a weight). Where sizes differ, the student's feature is resized
    bilinearly. Neither convolution, BatchNorm nor margin is exported.

    Args:
        teacher_layer_name: path of the teacher's layer, or a list of paths in the model's order;
            `None` is the model's output. Its feature is `(batch, positions…, channels)`.
        student_layer_name: path of the student's layer, or a list of as many.
        name: name in the logs. Defaults to `"overhaul_feature"`.

    Raises:
        ValueError: "Features of different rank cannot be matched by a projector"; outside
            kd.Distiller "the shapes of teacher and student differ".

    Reference:
        Heo et al. 2019, section 3: margin ReLU, partial L2 distance; the
        authors' code for the convolution, its initial values and the normalisation.

    Example:
    ```python
    import numpy as np
    import keras_kd as kd

    loss = kd.losses.OverhaulFeature(teacher_layer_name="norm3", student_layer_name="norm2")
    connect = loss.connector((None, 2), (None, 3))
    features = np.array([[-1.0, 2.0], [-3.0, 4.0]])
    teacher, student = connect(features, np.zeros((2, 3)), training=True)
    print(teacher[0].numpy())  # the margin of the first channel is -2: [[-1, 2], [-2, 4]]
    print(float(loss.compute_loss(teacher, student)))  # (1 + 4 + 4 + 16) / 2 / 1000
    ```
    """

    paper = "Heo et al. 2019 (OFD)"
    trained_parts = "a 1x1 convolution with BatchNorm for each layer, and the teacher's margins"
    takes_all = True

    def connector(self, teacher_shapes: Any, student_shapes: Any) -> keras.layers.Layer:
        """Return the margin ReLUs and the student's transforms."""
        sides = [_shapes(side) for side in (teacher_shapes, student_shapes)]
        for shape in (*sides[0], *sides[1]):
            base.refuse_flat(self, shape)
        return OverhaulConnector(*sides, name=f"{self.name}_connector")

    def per_example(self, teacher: Any, student: Any) -> Tensor:
        """Return the partial distance of each example, over all layers."""
        return overhaul_feature(_listed(teacher), _listed(student))

    def _fix_for_shapes(self) -> str:
        return "train with kd.Distiller, which makes a 1×1 convolution between them."


def _listed(features: Any) -> list:
    return list(features) if isinstance(features, (list, tuple)) else [features]


def _shapes(given: Any) -> list[tuple]:
    """Return a list of shapes, also for a single one."""
    return list(given) if isinstance(given, list) else [given]
