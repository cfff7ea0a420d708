"""Segmentation: one to four digits on a noisy canvas, a class for each pixel; two U-Nets.

    keras-kd run multi_digit

The canvases are made of scikit-learn's real 8x8 digits, so nothing is downloaded;
`--data multi_digit:tfds:mnist` or `multi_digit:npz:FILE` makes them of MNIST's. Training,
validation and test canvases share no digit.

The student learns from its teacher at every pixel: `LogitsDistillation` takes the logits
(batch, height, width, classes) as they are, one distribution a position. A second loss asks of
each class where it is: `ChannelWiseDistillation` (Shu et al. 2021) on the same logits, at its
paper's temperature. Beside the accuracy of the pixels, of which five in six are background, the
table shows the mean over the classes of intersection over union. Expected result: the README's
table of results, in about five minutes on two cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keras_kd.recipes import base

if TYPE_CHECKING:
    import keras

    from keras_kd.data import Dataset

CLASSES = 11


@dataclass(frozen=True, kw_only=True)
class MultiDigit(base.Recipe):
    """U-Nets of three levels: 24, 48 and 64 channels teach 12, 24 and 32."""

    summary: str = "Digits on a canvas, a class for each pixel: a U-Net teaches a small one"
    data: str = "multi_digit"
    batch_size: int = 60
    teacher_epochs: int = 15
    epochs: int = 20
    learning_rate: float = 1e-2
    teacher_learning_rate: float = 3e-3
    temperature: float = 1.0
    student_loss_weight: float = 0.1
    steps_per_execution: int = 25

    def prepare(self, dataset: Dataset) -> Dataset:
        """Give the canvases the shape (32, 32, 1), as floats from 0 to 255."""
        return dataset.map_inputs(lambda x: x[..., None].astype("float32"))

    def teacher(self) -> keras.Model:
        """Build a U-Net of 24, 48 and 64 channels, two convolutions a level."""
        return _unet("teacher", (24, 48, 64), depth=2)

    def student(self) -> keras.Model:
        """Build a U-Net of 12, 24 and 32 channels, one convolution a level."""
        return _unet("student", (12, 24, 32), depth=1)

    def distillation_losses(self) -> list[Any]:
        """Return the divergence at every pixel, and of every class over the pixels."""
        from keras_kd.losses import ChannelWiseDistillation, LogitsDistillation

        return [LogitsDistillation(temperature=self.temperature), ChannelWiseDistillation()]

    def measures(self) -> list[keras.metrics.Metric]:
        """Measure the mean over the classes of intersection over union."""
        import keras

        return [keras.metrics.MeanIoU(CLASSES, sparse_y_pred=False, name="mean_iou")]


def _unet(name: str, widths: tuple[int, ...], depth: int) -> keras.Model:
    """Build a strided stem, a way down with pooling, a way up that sees what the way down saw."""
    import keras

    inputs = keras.Input((32, 32, 1), name="canvas")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="scale")(inputs)
    seen = []
    for level, width in enumerate(widths, start=1):
        x = _block(x, width, depth, f"down{level}", stride=2 if level == 1 else 1)
        seen.append(x)
        if level < len(widths):
            x = keras.layers.MaxPooling2D(name=f"down{level}_pool")(x)
    for level in range(len(widths) - 1, 0, -1):
        x = keras.layers.UpSampling2D(name=f"up{level}_size")(x)
        x = keras.layers.Concatenate(name=f"up{level}_join")([x, seen[level - 1]])
        x = _block(x, widths[level - 1], depth, f"up{level}")
    logits = keras.layers.Conv2DTranspose(CLASSES, 4, strides=2, padding="same", name="logits")(x)
    return keras.Model(inputs, logits, name=name)


def _block(x: Any, width: int, depth: int, name: str, stride: int = 1) -> Any:
    """Build 3x3 convolutions with batch normalisation and ReLU, of which the first may stride."""
    import keras

    for index in range(1, depth + 1):
        x = keras.layers.Conv2D(
            width,
            3,
            strides=stride if index == 1 else 1,
            padding="same",
            use_bias=False,
            name=f"{name}_conv{index}",
        )(x)
        x = keras.layers.BatchNormalization(name=f"{name}_norm{index}")(x)
        x = keras.layers.ReLU(name=f"{name}_relu{index}")(x)
    return x


RECIPE = MultiDigit()
