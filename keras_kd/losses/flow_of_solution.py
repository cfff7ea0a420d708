"""Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation" (CVPR 2017)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_kd import checks
from keras_kd.features import positions
from keras_kd.losses import base
from keras_kd.losses.base import Tensor
from keras_kd.projectors import Projector
from keras_kd.structures import alike


def flow_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Return F₁ᵀF₂ / (height·width) of two layers of a model, `(batch, channels₁, channels₂)`.

    Args:
        first: `(batch, positions…, channels₁)`.
        second: `(batch, positions…, channels₂)`. The larger of the two is max-pooled to the
            smaller one's size, in height and width each; unknown sizes are taken as equal.
    """
    sizes = zip(tuple(first.shape)[1:-1], tuple(second.shape)[1:-1], strict=True)
    size = [None if None in pair else min(pair) for pair in sizes]
    first, second = _max_pool(first, size), _max_pool(second, size)
    left, right = positions(first), positions(second)
    count = ops.cast(ops.shape(left)[1], "float32")
    return ops.matmul(ops.transpose(left, (0, 2, 1)), right) / count


def flow_of_solution(
    teacher_features: Sequence[Tensor], student_features: Sequence[Tensor]
) -> Tensor:
    """Return the mean squared difference of the flow matrices, `(batch,)`, summed over the pairs.

    Args:
        teacher_features: two or more layers in order; each is paired with the next.
        student_features: as many layers of the same numbers of channels.
    """
    flows = [
        [flow_matrix(*pair) for pair in itertools.pairwise(side)]
        for side in (teacher_features, student_features)
    ]
    return sum(ops.mean(ops.square(t - s), axis=(1, 2)) for t, s in zip(*flows, strict=True))


def _max_pool(features: Tensor, size: Sequence[int | None]) -> Tensor:
    """Shrink each axis of positions to a size, by the largest value of each of its windows.

    Window i of n is from ⌊i·extent/n⌋ to ⌈(i + 1)·extent/n⌉, so that every position is in one:
    the pooling with a stride where the size divides the extent.
    """
    for axis, wanted in enumerate(size, start=1):
        extent = features.shape[axis]
        if wanted is not None and extent != wanted:
            edges = [(i * extent // wanted, -((i + 1) * -extent // wanted)) for i in range(wanted)]
            before = (slice(None),) * axis
            windows = [features[(*before, slice(*edge))] for edge in edges]
            features = ops.stack([ops.max(part, axis=axis) for part in windows], axis=axis)
    return features


class FlowConnector(keras.layers.Layer):
    """Pass the teacher's layers through and map the channels of the student's onto theirs."""

    def __init__(self, teacher_shapes: Sequence, student_shapes: Sequence, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.projectors = [
            Projector(teacher[-1] if teacher[-1] != student[-1] else None, name=f"layer_{index}")
            for index, (teacher, student) in enumerate(
                zip(teacher_shapes, student_shapes, strict=True)
            )
        ]
        for projector, shape in zip(self.projectors, student_shapes, strict=True):
            projector.build(shape)

    def call(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> tuple[list, list]:
        """Return both lists of features, with the teacher's numbers of channels."""
        return list(teacher), [
            projector(feature) for projector, feature in zip(self.projectors, student, strict=True)
        ]


@keras.saving.register_keras_serializable(package="keras_kd")
class FlowOfSolution(base.FeatureLoss):
    """Teach how features turn into the next ones: match the flow matrices between layers (FSP).

    Name two layers or more of each model, in the same order, for example the first and the last of
    a block; each is paired with the next one. Sizes of teacher and student may differ, as the
    matrices hold channels only. With Gₖ = Fₖᵀ Fₖ₊₁ / (height · width):

        sum over the pairs k of mean (Gₖ(t) − Gₖ(s))², averaged over the batch

    The paper sums over the entries of a matrix (it is that many times larger), and names no weights
    λₖ other than equal ones; the mean is that of RepDistiller's code. As in the paper, the larger
    of two layers of one model is max-pooled to the smaller one's size. Where the models differ in
    channels, a 1×1 convolution is trained with each of the student's layers that does; it is not
    exported.

    Args:
        teacher_layer_name: list of paths of two or more of the teacher's layers; `None` is the
            model's outputs. Features are `(batch, positions…, channels)`.
        student_layer_name: list of as many of the student's.
        name: name in the logs. Defaults to `"flow_of_solution"`.

    Raises:
        ValueError: "… compares 2 layers or more", "cannot pair the layers of the two models", "a
            vector has no positions", "the layers of one model differ in their number of axes", "the
            shapes of teacher and student differ" (channels, where no connector maps them).

    Reference:
        Yim et al. 2017, equations 1 and 2.

    Example:
    ```python
    import numpy as np
    import keras_kd as kd

    loss = kd.losses.FlowOfSolution(["conv1", "conv2"], ["conv1", "conv2"])
    ones = np.ones((1, 4, 4, 2))
    print(float(loss.compute_loss([ones, ones], [ones, 3.0 * ones])))  # (1 - 3)² = 4.0
    ```
    """

    paper = "Yim et al. 2017 (FSP)"
    trained_parts = "a 1x1 convolution of each student layer whose channels differ"
    takes_all = True
    layers = 2

    def connector(self, teacher_shapes: Any, student_shapes: Any) -> keras.layers.Layer | None:
        """Return the maps from the student's channels to the teacher's; `None` where they agree."""
        teacher, student = self._paired(teacher_shapes, student_shapes)
        if all(t[-1] == s[-1] for t, s in zip(teacher, student, strict=True)):
            return None
        return FlowConnector(teacher, student, name=f"{self.name}_connector")

    def per_example(self, teacher: Any, student: Any) -> Tensor:
        """Return each example's distance of the flow matrices."""
        return flow_of_solution(teacher, student)

    def check_shapes(self, teacher: Any, student: Any) -> None:
        """Refuse layers that do not pair up, of other channels or another number of examples."""
        teacher, student = self._paired(teacher, student)
        for who, shapes in (("teacher", teacher), ("student", student)):
            if len({len(shape) for shape in shapes}) > 1:
                raise checks.bad_value(
                    f"{self.name}: the layers of one model differ in their number of axes.",
                    given=f"{who} {shapes}",
                    expected="maps only, or sequences only",
                    fix="name layers of the same kind.",
                )
        ends = [[(shape[0], shape[-1]) for shape in side] for side in (teacher, student)]
        if not alike(*ends):
            raise checks.bad_value(
                f"{self.name}: the shapes of teacher and student differ.",
                given=f"teacher {teacher}, student {student}",
                expected="the same examples and channels (sizes may differ)",
                fix="train with kd.Distiller, which maps the student's channels to the teacher's.",
            )

    def _paired(self, teacher: Any, student: Any) -> tuple[list[tuple], list[tuple]]:
        """Return the shapes of both models' layers as lists, or refuse what is no such pair."""
        sides = (teacher, student)
        self.check_layers(*sides)
        if len(sides[0]) != len(sides[1]):
            raise checks.bad_value(
                f"{self.name} cannot pair the layers of the two models.",
                given=f"teacher {teacher}, student {student}",
                expected="as many layers of the one as of the other, in order",
                fix='name them: teacher_layer_name=["block1", "block2"], '
                'student_layer_name=["block1", "block2"].',
            )
        for side in sides:
            if any(len(shape) < 3 for shape in side):
                raise checks.bad_value(
                    f"{self.name}: a vector has no positions over which channels could flow.",
                    given=f"layers of shapes {side}",
                    expected="(batch, height, width, channels) or (batch, length, channels)",
                    fix="name layers before the pooling and the dense layers.",
                )
        return list(sides[0]), list(sides[1])
