"""Chen et al., "Distilling Knowledge via Knowledge Review" (CVPR 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_kd import checks
from keras_kd.features import flat
from keras_kd.losses import base
from keras_kd.losses.base import Tensor

LEVELS = (4, 2, 1)
WIDEST = 512


def hierarchical_context(teacher_features: Tensor, student_features: Tensor) -> Tensor:
    """Return the weighted mean of the maps' squared distance at several scales: `(batch,)`.

    The maps as they are weigh 1; averaged into 4×4, 2×2 and 1×1 cells they weigh ½, ¼ and ⅛. A
    level with as many cells as the map has rows, or more, is left out and the next one takes its
    weight. The weights are divided by their sum.

    Args:
        teacher_features: `(batch, height, width, channels)` of known height and width.
        student_features: the same shape.
    """
    difference = teacher_features - student_features  # averaging is linear
    height, width = difference.shape[1:3]
    weight, weights, total = 1.0, 1.0, _mean_square(difference)
    for level in LEVELS:
        if level < height:
            weight /= 2.0
            cells = along(difference, averages(height, level), averages(width, level))
            weights, total = weights + weight, total + weight * _mean_square(cells)
    return total / weights


def _mean_square(difference: Tensor) -> Tensor:
    return ops.mean(flat(ops.square(difference)), axis=1)


def averages(size: int, cells: int) -> np.ndarray:
    """Return the matrix `(cells, size)` that averages an axis into cells, adaptively.

    Cell i goes from ⌊i·size/cells⌋ to ⌈(i + 1)·size/cells⌉, so cells may share positions.
    """
    matrix = np.zeros((cells, size), "float32")
    for cell in range(cells):
        start, end = cell * size // cells, -(-(cell + 1) * size // cells)
        matrix[cell, start:end] = 1.0 / (end - start)
    return matrix


def nearest(size: int, target: int) -> np.ndarray:
    """Return the matrix `(target, size)` that takes position ⌊i·size/target⌋ for each i."""
    return np.eye(size, dtype="float32")[np.arange(target) * size // target]


def along(maps: Tensor, rows: np.ndarray, columns: np.ndarray) -> Tensor:
    """Multiply the height and the width of maps by a matrix each."""
    return ops.einsum("jw,biwc->bijc", columns, ops.einsum("ih,bhwc->biwc", rows, maps))


class Fusion(keras.layers.Layer):
    """Attention-based fusion: a student's map, and what comes from the deeper layers.

    Args:
        student: shape of the student's map.
        teacher: shape of the teacher's map.
        channels: number of channels in which maps are fused.
        deepest: whether no deeper layer comes before it.
    """

    def __init__(
        self, student: tuple, teacher: tuple, channels: int, deepest: bool, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.size, self.target = student[1:-1], teacher[1:-1]
        self.reduce = _convolution(channels, 1, student[-1], "reduce")
        self.reduce_norm = _norm(channels, "reduce_norm")
        self.expand = _convolution(teacher[-1], 3, channels, "expand")
        self.expand_norm = _norm(teacher[-1], "expand_norm")
        self.attention = None
        if not deepest:
            self.attention = keras.layers.Dense(
                2, activation="sigmoid", name="attention", dtype="float32"
            )
            self.attention.build((None, 2 * channels))
        self.built = True

    def call(self, student: Tensor, deeper: Tensor | None, training: bool) -> tuple[Tensor, Tensor]:
        """Return the map that is compared with the teacher's, and the one that is passed on."""
        fused = self.reduce_norm(self.reduce(student), training=training)
        if self.attention is not None:
            deeper = _enlarged(deeper, self.size)
            shares = self.attention(ops.concatenate([fused, deeper], axis=-1))
            fused = fused * shares[..., :1] + deeper * shares[..., 1:]
        fused = _enlarged(fused, self.target)
        return self.expand_norm(self.expand(fused), training=training), fused


class ReviewConnector(keras.layers.Layer):
    """Fuse the student's maps from the deepest to the first; pass the teacher's through.

    Args:
        teachers: shapes of the teacher's maps.
        students: shapes of the student's maps.
        channels: number of channels in which maps are fused.
    """

    def __init__(self, teachers: list, students: list, channels: int, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        last = len(students) - 1
        self.fusions = [
            Fusion(s, t, channels, index == last, name=f"fusion_{index}", dtype="float32")
            for index, (t, s) in enumerate(zip(teachers, students, strict=True))
        ]
        self.built = True

    def call(self, teacher: Any, student: Any, training: bool = False) -> tuple[list, list]:
        """Return lists of maps, in the order of the layers."""
        deeper = None
        reviewed: list[Tensor] = []
        for fusion, features in zip(reversed(self.fusions), reversed(_maps(student)), strict=True):
            compared, deeper = fusion(features, deeper, training=training)
            reviewed.insert(0, compared)
        return _maps(teacher), reviewed


@keras.saving.register_keras_serializable(package="keras_kd")
class KnowledgeReview(base.FeatureLoss):
    """Let the student's deeper layers help its earlier ones to learn the teacher's (ReviewKD).

    Use it on two to five maps of a convolutional network, named from the first to the deepest; a
    last vector (after pooling) counts as a map of one position, as in the authors' networks. Going
    from deep to shallow, each student's map is reduced by a 1×1 convolution and fused with what
    comes from below by attention (two gates at each position); a 3×3 convolution gives the map that
    is compared with the teacher's, at several scales:

        Σ over layers of  [ mse + Σₗ 2^(−k) · mse of the maps averaged into l×l cells ] / Σ weights

    for l = 4, 2, 1 with weights ½, ¼, ⅛ (a level that a small map does not have is left out),
    averaged over the batch. Convolutions have BatchNorm and no bias, sizes are changed to the
    nearest position, as in the authors' code. Their runs take the teacher's maps before the ReLU,
    weigh the sum by 0.6 to 8 (`distillation_loss_weights`) and warm it up over the first 20 epochs
    (a schedule does so). One layer alone is learned through its two convolutions. None of the
    convolutions is exported.

    Args:
        channels: number of channels in which maps are fused. `None`: those of the student's last
            layer, at most 512, as in the authors' code for CIFAR-100.
        teacher_layer_name: list of paths of the teacher's layers from the first to the deepest.
            Features are `(batch, height, width, channels)` or `(batch, channels)`.
        student_layer_name: list of as many paths of the student's layers, in the same order.
        name: name in the logs. Defaults to `"knowledge_review"`.

    Raises:
        ValueError: "`channels` must be a whole number", "reviews maps (and vectors)", "needs maps
            of known height and width"; without kd.Distiller "the shapes of teacher and student
            differ".

    Reference:
        Chen et al. 2021, section 3 (review, attention-based fusion, hierarchical context loss); the
        authors' code for levels, weights and layers.

    Example:
    ```python
    import numpy as np
    import keras_kd as kd

    loss = kd.losses.KnowledgeReview(
        teacher_layer_name=["block1", "block2"], student_layer_name=["block1", "block2"]
    )
    connect = loss.connector([(None, 8, 8, 6), (None, 4, 4, 9)], [(None, 8, 8, 2), (None, 4, 4, 3)])
    student = [np.zeros((2, 8, 8, 2)), np.zeros((2, 4, 4, 3))]
    teacher, reviewed = connect([np.ones((2, 8, 8, 6)), np.ones((2, 4, 4, 9))], student)
    print(float(loss.compute_loss(teacher, reviewed)))  # 1 + 1
    ```
    """

    paper = "Chen et al. 2021 (ReviewKD)"
    trained_parts = "attention-based fusion: two convolutions and a gate for each layer"
    takes_all = True

    def __init__(
        self,
        channels: int | None = None,
        teacher_layer_name: base.LayerNames = None,
        student_layer_name: base.LayerNames = None,
        name: str | None = None,
    ) -> None:
        super().__init__(teacher_layer_name, student_layer_name, name)
        self.channels = None if channels is None else checks.count("channels", channels)

    def connector(self, teacher_shapes: Any, student_shapes: Any) -> keras.layers.Layer:
        """Return the fusions of the student's maps."""
        teachers, students = (
            [self._as_map(shape) for shape in (side if isinstance(side, list) else [side])]
            for side in (teacher_shapes, student_shapes)
        )
        channels = self.channels or min(WIDEST, students[-1][-1])
        return ReviewConnector(teachers, students, channels, name=f"{self.name}_connector")

    def per_example(self, teacher: Any, student: Any) -> Tensor:
        """Return the hierarchical context loss of each example, added up over the layers."""
        pairs = zip(_maps(teacher), _maps(student), strict=True)
        return sum(hierarchical_context(*pair) for pair in pairs)

    def _as_map(self, shape: tuple) -> tuple:
        if len(shape) not in (2, 4):
            raise checks.bad_value(
                f"{self.name} reviews maps (and vectors).",
                given=f"a feature of shape {shape}",
                expected="(batch, height, width, channels) or (batch, channels)",
                fix="name convolutional layers, or use kd.FeatureDistillation.",
            )
        if None in shape[1:]:
            raise checks.bad_value(
                f"{self.name} needs maps of known height and width.",
                given=f"a feature of shape {shape}",
                expected="known sizes",
                fix="give the models inputs of fixed size: keras.Input((32, 32, 3)).",
            )
        return (None, 1, 1, shape[1]) if len(shape) == 2 else shape

    def check_shapes(self, teacher: Any, student: Any) -> None:
        """Refuse what is no map, and shapes that differ."""
        for side in (teacher, student):
            for shape in side if isinstance(side, list) else [side]:
                self._as_map(shape)
        super().check_shapes(teacher, student)

    def _fix_for_shapes(self) -> str:
        return "train with kd.Distiller, which makes convolutions between them."


def _maps(features: Any) -> list[Tensor]:
    """Return a list of maps, also for a single one and for vectors."""
    given: Sequence = features if isinstance(features, (list, tuple)) else [features]
    return [f if len(f.shape) == 4 else ops.expand_dims(f, (1, 2)) for f in given]


def _enlarged(maps: Tensor, size: tuple) -> Tensor:
    """Bring maps to another size, each position taking the nearest one before it."""
    height, width = maps.shape[1:3]
    if (height, width) == tuple(size):
        return maps
    return along(maps, nearest(height, size[0]), nearest(width, size[1]))


def _convolution(channels: int, kernel: int, given: int, name: str) -> keras.layers.Layer:
    """Make a convolution with the authors' initial values, uniform within √(3 / fan-in)."""
    layer = keras.layers.Conv2D(
        channels,
        kernel,
        padding="same",
        use_bias=False,
        kernel_initializer="lecun_uniform",
        name=name,
        dtype="float32",
    )
    layer.build((None, None, None, given))
    return layer


def _norm(channels: int, name: str) -> keras.layers.Layer:
    layer = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name, dtype="float32")
    layer.build((None, None, None, channels))
    return layer
