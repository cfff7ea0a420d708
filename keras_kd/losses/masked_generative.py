"""Yang et al., "Masked Generative Distillation" (ECCV 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_kd import checks
from keras_kd.features import flat
from keras_kd.losses import base
from keras_kd.losses.base import Tensor
from keras_kd.projectors import projector_for

CONVOLUTIONS = {3: keras.layers.Conv1D, 4: keras.layers.Conv2D}


def squared_distance(teacher_features: Tensor, generated: Tensor) -> Tensor:
    """Return Σ (t − g)² over all elements of a feature: `(batch,)`."""
    return ops.sum(flat(ops.square(teacher_features - generated)), axis=1)


class Generation(keras.layers.Layer):
    """Generate a teacher's feature from a student's, part of which is hidden in training.

    Args:
        teacher: shape of the teacher's feature.
        student: shape of the student's feature.
        mask_ratio: share of positions that are hidden.
        seed: seed of the masks, or `None`.
    """

    def __init__(
        self, teacher: tuple, student: tuple, mask_ratio: float, seed: int | None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.align = projector_for(teacher, student)
        self.mask_ratio = mask_ratio
        self.seed_generator = keras.random.SeedGenerator(seed)
        convolution, channels = CONVOLUTIONS[len(teacher)], teacher[-1]
        self.block = [
            convolution(channels, 3, padding="same", activation=ending, name=name, dtype="float32")
            for name, ending in (("first", "relu"), ("second", None))
        ]
        for layer in (self.align, *self.block):
            if layer is not None:
                layer.build(student if layer is self.align else teacher)
        self.built = True

    def save_own_variables(self, store: Any) -> None:
        """Save where the masks stand, which Keras does not; the layers save themselves."""
        store["masks"] = ops.convert_to_numpy(self.seed_generator.state)

    def load_own_variables(self, store: Any) -> None:
        """Go on with the masks where they stood."""
        self.seed_generator.state.assign(store["masks"])

    def mask(self, features: Tensor) -> Tensor:
        """Draw a mask, the same for all channels: 0 at hidden positions, else 1."""
        draws = keras.random.uniform(
            (*ops.shape(features)[:-1], 1), dtype="float32", seed=self.seed_generator
        )
        return ops.cast(draws >= self.mask_ratio, "float32")

    def call(self, student: Tensor, like: Tensor, training: bool) -> Tensor:
        """Align the student's feature with the teacher's, hide a part in training, generate."""
        features = student if self.align is None else self.align(student, like=like)
        if training:
            features = features * self.mask(features)
        for layer in self.block:
            features = layer(features)
        return features


class GenerativeConnector(keras.layers.Layer):
    """Pass the teacher's features through and generate each from the student's."""

    def __init__(self, generations: Sequence[Generation], **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.generations = list(generations)
        self.built = True

    def call(self, teacher: Any, student: Any, training: bool = False) -> tuple[Any, Any]:
        """Return the teacher's feature and the generated one, or lists of them."""
        if not isinstance(student, (list, tuple)):
            return teacher, self.generations[0](student, like=teacher, training=training)
        triples = zip(self.generations, teacher, student, strict=True)
        return list(teacher), [generate(s, like=t, training=training) for generate, t, s in triples]


@keras.saving.register_keras_serializable(package="keras_kd")
class MaskedGenerative(base.FeatureLoss):
    """Let the student's feature, partly hidden, generate the teacher's whole one (MGD).

    Use it on maps, above all for detection and segmentation: the student does not imitate the
    teacher, it must hold enough at each place to restore what lies beside it. The student's
    feature, aligned by a 1×1 convolution where channels differ, is hidden at random positions with
    probability λ, and two 3×3 convolutions with a ReLU between generate the teacher's feature:

        Σ (t − G(r(s)·M))² over the elements, averaged over the batch

    The sum is that of the paper and of its code, so the weight α of this loss must be small: 2e-5
    for detectors and segmentation, 7e-5 for classification (weights of the authors' code):
    `kd.Distiller(…, distillation_loss_weights=[2e-5])`. Positions are hidden in training only, by
    a generator whose state is saved with the Distiller. In the authors' code for classification
    whole channels are hidden instead (λ = 0.15); here it is positions, as in the paper. Where sizes
    differ, the student's feature is resized bilinearly (the authors ask for equal ones). Neither
    convolution is exported.

    Args:
        mask_ratio: λ, the probability that a position is hidden, 0 ≤ λ < 1. Defaults to 0.65, of
            the authors' code for one-stage detectors.
        seed: seed of the masks; `None` draws one from Keras's seed.
        teacher_layer_name: path of the teacher's layer, or a list of paths; `None` is the model's
            output. Its feature is a map `(batch, height, width, channels)` or a sequence.
        student_layer_name: path of the student's layer, or a list of as many; pairs are added up.
        name: name in the logs. Defaults to `"masked_generative"`.

    Raises:
        ValueError: "`mask_ratio` must be between 0 and 1", "`mask_ratio` must leave something to be
            seen", "hides positions of maps and sequences", "Features of different rank cannot be
            matched by a projector"; without kd.Distiller "the shapes of teacher and student
            differ".

    Reference:
        Yang et al. 2022, section 3 (mask, generation block, and the sum); the authors' code for λ.

    Example:
    ```python
    import numpy as np
    import keras_kd as kd

    loss = kd.losses.MaskedGenerative(mask_ratio=0.5)
    connect = loss.connector((None, 4, 4, 6), (None, 4, 4, 3))
    teacher, generated = connect(np.zeros((2, 4, 4, 6)), np.ones((2, 4, 4, 3)), training=True)
    print(generated.shape)  # (2, 4, 4, 6)
    ```
    """

    paper = "Yang et al. 2022 (MGD)"
    trained_parts = "a 1x1 convolution where channels differ, and two 3x3 convolutions"

    def __init__(
        self,
        mask_ratio: float = 0.65,
        seed: int | None = None,
        teacher_layer_name: base.LayerNames = None,
        student_layer_name: base.LayerNames = None,
        name: str | None = None,
    ) -> None:
        super().__init__(teacher_layer_name, student_layer_name, name)
        self.mask_ratio = checks.fraction("mask_ratio", mask_ratio)
        self.seed = seed
        if self.mask_ratio == 1.0:
            raise checks.bad_value(
                "`mask_ratio` must leave something to be seen.",
                given=f"mask_ratio={mask_ratio}, which hides every position",
                expected="0 <= mask_ratio < 1",
                fix="use mask_ratio=0.65.",
            )

    def connector(self, teacher_shapes: Any, student_shapes: Any) -> keras.layers.Layer:
        """Return what aligns, hides and generates, for each layer."""
        several = isinstance(teacher_shapes, list)
        sides = (
            (teacher_shapes, student_shapes) if several else ([teacher_shapes], [student_shapes])
        )
        for shape in sides[0]:
            self._refuse_rank(shape)
        generations = [
            Generation(
                t, s, self.mask_ratio, self.seed, name=f"generation_{index}", dtype="float32"
            )
            for index, (t, s) in enumerate(zip(*sides, strict=True))
        ]
        return GenerativeConnector(generations, name=f"{self.name}_connector")

    def per_example(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return the squared distance of each example's generated feature from the teacher's."""
        return squared_distance(teacher, student)

    def _refuse_rank(self, shape: tuple) -> None:
        if len(shape) not in CONVOLUTIONS:
            raise checks.bad_value(
                f"{self.name} hides positions of maps and sequences.",
                given=f"a feature of shape {shape}",
                expected="(batch, height, width, channels) or (batch, length, channels)",
                fix="name a layer before the pooling, or use kd.FeatureDistillation.",
            )

    def _fix_for_shapes(self) -> str:
        return "train with kd.Distiller, which makes convolutions between them."
