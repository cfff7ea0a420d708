"""Signals of length 40, ten classes: the default recipe. It needs no download.

    keras-kd run mnist1d

The data set is MNIST-1D (Greydanus and Kobak 2024): 5,000 generated signals, of which 1,000 are
the test set. The teacher learns from signals turned around at random, so that it knows their
form wherever it begins. The student sees the signals as they are: alone it knows all of them by
heart and is sure of too much, and the teacher's soft targets are what it lacks. Expected result:
the README's table of results, in about two minutes on two cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from keras_kd.recipes import base

if TYPE_CHECKING:
    import keras

    from keras_kd.data import Dataset


@dataclass(frozen=True, kw_only=True)
class Mnist1d(base.Recipe):
    """A convolutional teacher (32, 64, 64 channels) and a student of under a third of its size."""

    summary: str = "MNIST-1D signals: a Conv1D network teaches one of under a third of its size"
    data: str = "mnist1d"
    batch_size: int = 100
    teacher_epochs: int = 100
    epochs: int = 80
    learning_rate: float = 5e-3
    teacher_learning_rate: float = 5e-3
    temperature: float = 4.0
    student_loss_weight: float = 0.1
    steps_per_execution: int = 36

    def prepare(self, dataset: Dataset) -> Dataset:
        """Give each signal a channel axis: (40,) becomes (40, 1)."""
        return dataset.map_inputs(lambda x: x.reshape(len(x), -1, 1).astype("float32"))

    def teacher(self) -> keras.Model:
        """Build three convolutions of 32, 64 and 64 channels."""
        return _network("teacher", (32, 64, 64))

    def student(self) -> keras.Model:
        """Build three convolutions of 16, 32 and 32 channels."""
        return _network("student", (16, 32, 32))

    def teacher_augmentation(self) -> base.Transform:
        """Turn the signals around, so that the teacher learns their form wherever it begins."""
        return base.cyclic_shifts


def _network(name: str, channels: tuple[int, ...]) -> keras.Model:
    """Build three convolutions of width 5, two of them strided, and a dense layer of logits."""
    import keras

    x = inputs = keras.Input((40, 1), name="signal")
    for index, (width, stride) in enumerate(zip(channels, (2, 2, 1), strict=True), start=1):
        x = keras.layers.Conv1D(
            width, 5, strides=stride, padding="same", use_bias=False, name=f"conv{index}"
        )(x)
        x = keras.layers.BatchNormalization(name=f"norm{index}")(x)
        x = keras.layers.ReLU(name=f"relu{index}")(x)
    x = keras.layers.Flatten(name="flat")(x)
    logits = keras.layers.Dense(10, name="logits")(x)
    return keras.Model(inputs, logits, name=name)


RECIPE = Mnist1d()
