"""Layers that make a student's feature fit a teacher's: a linear map for channels, resizing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_kd import checks

Shape = tuple[int | None, ...]


@keras.saving.register_keras_serializable(package="keras_kd")
class Projector(keras.layers.Layer):
    """Map a student feature onto the shape of a teacher feature (the regressor of FitNets).

    Channels that differ are mapped by a 1×1 convolution (maps) or a dense layer (vectors,
    sequences), which is one and the same linear map of the last axis; height, width or length that
    differ are resized bilinearly first. It computes in float32 whatever the policy.

    Args:
        channels: number of channels of the teacher's feature, or `None` to leave them.
        size: `(height, width)` or `(length,)` of the teacher's feature, or `None` to leave it. With
            `like=` in the call it is the size of that feature.
        layer: a layer of your own in the place of the linear map, or `None`.

    Example:
    ```python
    import keras
    from keras_kd.projectors import Projector

    project = Projector(channels=16, size=(8, 8))
    print(project(keras.ops.ones((2, 4, 4, 3))).shape)  # (2, 8, 8, 16)
    ```
    """

    def __init__(
        self,
        channels: int | None = None,
        size: tuple[int | None, ...] | None = None,
        layer: keras.layers.Layer | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.channels = channels
        self.size = tuple(size) if size else None
        self.layer = layer
        self._brought = layer is not None
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        """Create the linear map, unless the user brought a layer."""
        if self.layer is None and self.channels is not None:
            self.layer = keras.layers.Dense(self.channels, name="linear", dtype="float32")
        if self.layer is not None and not self.layer.built:
            self.layer.build(self._resized_shape(tuple(input_shape)))

    def call(self, features: Any, like: Any = None) -> Any:
        """Resize, then map the channels."""
        if self.size is not None:
            size = self.size if like is None else keras.ops.shape(like)[1:-1]
            features = resize(features, tuple(size))
        return features if self.layer is None else self.layer(features)

    def _resized_shape(self, shape: Shape) -> Shape:
        return shape if self.size is None else (shape[0], *self.size, shape[-1])

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs; the linear map is made again by `build`."""
        own = self.layer if self._brought else None
        layer = None if own is None else keras.saving.serialize_keras_object(own)
        return {
            **super().get_config(),
            "channels": self.channels,
            "size": self.size,
            "layer": layer,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Projector:
        """Make the layer again from `get_config()`."""
        layer = config.pop("layer", None)
        own = None if layer is None else keras.saving.deserialize_keras_object(layer)
        return cls(layer=own, **config)


@keras.saving.register_keras_serializable(package="keras_kd")
class ProjectingConnector(keras.layers.Layer):
    """Pass the teacher's feature through and project the student's onto its shape."""

    def __init__(self, projector: keras.layers.Layer, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.projector = projector
        self.supports_masking = True

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        """Set no mask: the student's travels beside its feature."""

    def build(self, teacher_shape: Any, student_shape: Any) -> None:
        """Create the projector's weights."""
        if not self.projector.built:
            self.projector.build(student_shape)

    def call(self, teacher: Any, student: Any) -> tuple[Any, Any]:
        """Return both features in the teacher's shape."""
        if isinstance(self.projector, Projector):
            return teacher, self.projector(student, like=teacher)
        return teacher, self.projector(student)

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        projector = keras.saving.serialize_keras_object(self.projector)
        return {**super().get_config(), "projector": projector}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ProjectingConnector:
        """Make the layer again from `get_config()`."""
        projector = keras.saving.deserialize_keras_object(config["projector"])
        return cls(**{**config, "projector": projector})


class ProjectingConnectors(keras.layers.Layer):
    """Pass the teacher's features through and project the student's onto their shapes.

    Args:
        projectors: one for each layer; `None` where a feature fits as it is.
        student_shapes: the shapes of the student's features.
    """

    def __init__(
        self, projectors: Sequence[Projector | None], student_shapes: Sequence, **kwargs: Any
    ) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.projectors = list(projectors)
        self.supports_masking = True
        for projector, shape in zip(projectors, student_shapes, strict=True):
            if projector is not None:
                projector.build(shape)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        """Set no mask: the student's travels beside its feature."""

    def call(self, teacher: Any, student: Any) -> tuple[Any, Any]:
        """Return both features, or lists of them, in the teacher's shapes."""
        if not isinstance(student, (list, tuple)):
            return teacher, self._fitted(self.projectors[0], teacher, student)
        triples = zip(self.projectors, teacher, student, strict=True)
        return list(teacher), [self._fitted(*triple) for triple in triples]

    def _fitted(self, projector: Projector | None, teacher: Any, student: Any) -> Any:
        return student if projector is None else projector(student, like=teacher)


def resize(features: Any, size: tuple) -> Any:
    """Resize maps or sequences bilinearly; a size may be known only when the graph runs.

    Args:
        features: `(batch, height, width, channels)` or `(batch, length, channels)`.
        size: `(height, width)` or `(length,)`.
    """
    if len(size) == 2:
        return tf.image.resize(features, size)
    return tf.squeeze(tf.image.resize(tf.expand_dims(features, 2), (*size, 1)), 2)


def projector_for(teacher: Shape, student: Shape) -> Projector | None:
    """Make the projector from a student feature to a teacher feature; `None` where they fit.

    Args:
        teacher: shape of the teacher's feature, batch first, channels last.
        student: shape of the student's feature.

    Raises:
        ValueError: "Features of different rank cannot be matched …".
    """
    if len(teacher) != len(student):
        raise checks.bad_value(
            "Features of different rank cannot be matched by a projector.",
            given=f"teacher {teacher}, student {student}",
            expected="the same number of axes",
            fix="tap layers of the same kind; kd.FeatureDistillation takes a `projector=` of your "
            "own.",
        )
    extents = list(zip(teacher[1:-1], student[1:-1], strict=True))
    differ = any(None not in pair and pair[0] != pair[1] for pair in extents)
    if differ and len(extents) not in (1, 2):
        raise checks.bad_value(
            "These features differ in an extent that cannot be resized.",
            given=f"teacher {teacher}, student {student}",
            expected="(batch, length, channels) or (batch, height, width, channels)",
            fix="tap layers of the same extent; kd.FeatureDistillation takes a `projector=` of "
            "your own.",
        )
    open_maps = len(extents) == 2 and any(None in pair for pair in extents)
    channels = teacher[-1] if teacher[-1] != student[-1] else None
    size = tuple(teacher[1:-1]) if differ or open_maps else None
    if channels is None and size is None:
        return None
    return Projector(channels, size, name="projector")
