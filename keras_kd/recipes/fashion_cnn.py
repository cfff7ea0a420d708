"""Pictures of clothes: a residual network teaches a depthwise-separable one under 20k parameters.

    keras-kd run fashion_cnn

The data set is Fashion-MNIST (Xiao, Rasul and Vollgraf 2017); `--data npz:FILE` reads it from a
file of your own. Expected result: the README's table of results, in about an
hour on two cores; `--smoke` tells the same story in seconds.

The teacher learns from pictures mirrored and moved by up to two pixels, with dropout. The student
sees the pictures as they are, alone and distilled, for long enough that alone it knows too much of
them by heart.

The pixels are scaled inside the networks, so that the exported file takes the bytes of an image
as they are: on the phone there is no scaling to forget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keras_kd.recipes import base

if TYPE_CHECKING:
    import keras

    from keras_kd.data import Dataset


@dataclass(frozen=True, kw_only=True)
class FashionCnn(base.Recipe):
    """A residual teacher (32, 64, 128 channels), a depthwise-separable student (< 20k)."""

    summary: str = "Fashion-MNIST: a residual CNN teaches a depthwise-separable one, < 20k"
    data: str = "tfds:fashion_mnist"
    batch_size: int = 128
    teacher_epochs: int = 20
    epochs: int = 30
    learning_rate: float = 3e-3
    teacher_learning_rate: float = 3e-3
    temperature: float = 3.0
    student_loss_weight: float = 0.1
    steps_per_execution: int = 32

    def prepare(self, dataset: Dataset) -> Dataset:
        """Give the images the shape (28, 28, 1), as floats from 0 to 255."""
        return dataset.map_inputs(lambda x: x.reshape(-1, 28, 28, 1).astype("float32"))

    def teacher(self) -> keras.Model:
        """Build a stem and three strided residual stages of 32, 64 and 128 channels."""
        import keras

        inputs = keras.Input((28, 28, 1), name="image")
        x = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="scale")(inputs)
        x = _conv(x, 16, 3, 1, "stem")
        for index, width in enumerate((32, 64, 128), start=1):
            x = _residual(x, width, stride=2, name=f"block{index}")
        x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
        x = keras.layers.Dropout(0.3, name="dropout")(x)
        return keras.Model(inputs, keras.layers.Dense(10, name="logits")(x), name="teacher")

    def student(self) -> keras.Model:
        """Build a strided stem and three depthwise-separable convolutions."""
        import keras

        inputs = keras.Input((28, 28, 1), name="image")
        x = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="scale")(inputs)
        x = _conv(x, 32, 3, 2, "stem")
        for index, (width, stride) in enumerate(((48, 1), (96, 2), (96, 1)), start=1):
            x = _separable(x, width, stride, name=f"block{index}")
        x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
        return keras.Model(inputs, keras.layers.Dense(10, name="logits")(x), name="student")

    def teacher_augmentation(self) -> base.Transform:
        """Mirror the pictures and move them by up to two pixels each way."""
        return base.chain(base.flips, base.shifts(2))


def _conv(x: Any, width: int, kernel: int, stride: int, name: str) -> Any:
    """Build a convolution with batch normalisation and ReLU."""
    import keras

    x = keras.layers.Conv2D(
        width, kernel, strides=stride, padding="same", use_bias=False, name=f"{name}_conv"
    )(x)
    x = keras.layers.BatchNormalization(name=f"{name}_norm")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _residual(x: Any, width: int, stride: int, name: str) -> Any:
    """Build two convolutions with a way around them."""
    import keras

    around = keras.layers.Conv2D(width, 1, strides=stride, use_bias=False, name=f"{name}_around")(x)
    x = _conv(x, width, 3, stride, f"{name}_1")
    x = keras.layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"{name}_2_conv")(x)
    x = keras.layers.BatchNormalization(name=f"{name}_2_norm")(x)
    x = keras.layers.Add(name=f"{name}_add")([x, around])
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _separable(x: Any, width: int, stride: int, name: str) -> Any:
    """Build a depthwise 3x3 convolution and a pointwise one, each with batch normalisation."""
    import keras

    x = keras.layers.DepthwiseConv2D(
        3, strides=stride, padding="same", use_bias=False, name=f"{name}_depthwise_conv"
    )(x)
    x = keras.layers.BatchNormalization(name=f"{name}_depthwise_norm")(x)
    x = keras.layers.ReLU(name=f"{name}_depthwise_relu")(x)
    return _conv(x, width, 1, 1, f"{name}_pointwise")


RECIPE = FashionCnn()
