"""Handwritten digits: a perceptron teaches one of a fifth of its size.

    keras-kd run mnist_mlp

The data set is MNIST (LeCun, Cortes and Burges); `--data npz:FILE` reads it from a file of your
own. Expected result: the README's table of results, in about four minutes on two cores;
`--smoke` tells the same story in seconds.

The teacher learns from digits moved by up to two pixels, with dropout. The student sees the
digits as they are, alone and distilled: alone it knows the training set by heart, and what the
teacher learned from the moved digits reaches it through the soft targets only.

The pixels are scaled inside the networks, so that the exported file takes the bytes of an image
as they are: on the phone there is no scaling to forget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from keras_kd.recipes import base

if TYPE_CHECKING:
    import keras

    from keras_kd.data import Dataset


@dataclass(frozen=True, kw_only=True)
class MnistMlp(base.Recipe):
    """Teacher 784-512-256-10 with dropout, student 784-128-64-10."""

    summary: str = "MNIST digits: a perceptron 512-256 teaches a perceptron 128-64"
    data: str = "tfds:mnist"
    batch_size: int = 128
    teacher_epochs: int = 40
    epochs: int = 40
    learning_rate: float = 1e-3
    teacher_learning_rate: float = 1e-3
    temperature: float = 4.0
    student_loss_weight: float = 0.1
    steps_per_execution: int = 32

    def prepare(self, dataset: Dataset) -> Dataset:
        """Give the images the shape (28, 28), as floats from 0 to 255."""
        return dataset.map_inputs(lambda x: x.reshape(-1, 28, 28).astype("float32"))

    def teacher(self) -> keras.Model:
        """Build 784-512-256-10 with dropout."""
        return _network("teacher", (512, 256), dropout=0.2)

    def student(self) -> keras.Model:
        """Build 784-128-64-10."""
        return _network("student", (128, 64), dropout=0.0)

    def teacher_augmentation(self) -> base.Transform:
        """Move the digits by up to two pixels each way."""
        return base.shifts(2)


def _network(name: str, widths: tuple[int, ...], dropout: float) -> keras.Model:
    """Build dense layers with ReLU over scaled pixels, and logits."""
    import keras

    inputs = keras.Input((28, 28), name="image")
    x = keras.layers.Rescaling(1 / 255, name="scale")(inputs)
    x = keras.layers.Flatten(name="flat")(x)
    for index, width in enumerate(widths, start=1):
        x = keras.layers.Dense(width, activation="relu", name=f"dense{index}")(x)
        if dropout:
            x = keras.layers.Dropout(dropout, name=f"dropout{index}")(x)
    logits = keras.layers.Dense(10, name="logits")(x)
    return keras.Model(inputs, logits, name=name)


RECIPE = MnistMlp()
