"""Signals of length 40, ten classes: the default recipe. It needs no download.

    keras-kd run mnist1d

The data set is MNIST-1D (Greydanus and Kobak 2020): 5,000 generated signals, of which 1,000 are
the test set. The teacher learns from signals turned around at random; the student sees the
signals as they are and has too few of them, which is where soft targets help. Expected result:
the README's table of results.
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
    """A convolutional teacher (32, 64, 64 channels) and a student of a sixth of its size."""

    summary: str = "MNIST-1D signals: a Conv1D teacher, a Conv1D student a sixth of its size"
    data: str = "mnist1d"
    batch_size: int = 100
    teacher_epochs: int = 80
    epochs: int = 60
    learning_rate: float = 3e-3
    teacher_learning_rate: float = 3e-3
    temperature: float = 4.0
    student_loss_weight: float = 0.1
    steps_per_execution: int = 18

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
    """Build strided convolutions of width 5 and a dense layer of logits."""
    import keras

    x = inputs = keras.Input((40, 1), name="signal")
    for index, width in enumerate(channels, start=1):
        x = keras.layers.Conv1D(
            width, 5, strides=2, padding="same", activation="relu", name=f"conv{index}"
        )(x)
    x = keras.layers.Flatten(name="flat")(x)
    logits = keras.layers.Dense(10, name="logits")(x)
    return keras.Model(inputs, logits, name=name)


RECIPE = Mnist1d()
