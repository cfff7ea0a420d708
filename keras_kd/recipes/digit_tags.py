"""Multi-label: which of the ten digits are on a noisy canvas; a sigmoid for each.

    keras-kd run digit_tags

The canvases are made of scikit-learn's real 8x8 digits, so nothing is downloaded;
`--data digit_tags:tfds:mnist` or `digit_tags:npz:FILE` makes them of MNIST's. Training,
validation and test canvases share no digit.

Canvases are moved by up to four pixels in training, for the teacher and for the student, alone
and distilled: without it, both know the noise of the training canvases by heart.

Each label is a decision of its own, so the distillation is a Bernoulli divergence for each:
`LogitsDistillation(activation="sigmoid")`. Beside the accuracy of the decisions, of which four in
five are "not there", the table shows the mean over the digits of average precision. Expected
result: the README's table of results, in under five minutes on two cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keras_kd.recipes import base

if TYPE_CHECKING:
    import keras

    from keras_kd.data import Dataset

LABELS = 10


@dataclass(frozen=True, kw_only=True)
class DigitTags(base.Recipe):
    """Convolutional networks of 24, 48 and 96 channels teach 12, 24 and 48."""

    summary: str = "Which digits are on a canvas, a sigmoid each: a CNN teaches a small one"
    data: str = "digit_tags"
    batch_size: int = 60
    teacher_epochs: int = 30
    epochs: int = 30
    learning_rate: float = 1e-2
    teacher_learning_rate: float = 3e-3
    temperature: float = 2.0
    student_loss_weight: float = 0.1
    steps_per_execution: int = 25

    def prepare(self, dataset: Dataset) -> Dataset:
        """Give the canvases the shape (32, 32, 1), as floats from 0 to 255."""
        return dataset.map_inputs(lambda x: x[..., None].astype("float32"))

    def teacher(self) -> keras.Model:
        """Build levels of 24, 48 and 96 channels, two convolutions each."""
        return _network("teacher", (24, 48, 96), depth=2, dropout=0.4)

    def student(self) -> keras.Model:
        """Build levels of 12, 24 and 48 channels, one convolution each."""
        return _network("student", (12, 24, 48), depth=1, dropout=0.0)

    def teacher_augmentation(self) -> base.Transform:
        """Move the canvases by up to four pixels each way."""
        return base.shifts(4)

    def student_augmentation(self) -> base.Transform:
        """Move the student's canvases alike, alone and distilled."""
        return base.shifts(4)

    def distillation_losses(self) -> list[Any]:
        """Return a Bernoulli divergence for each label, at the temperature."""
        from keras_kd.losses import LogitsDistillation

        return [LogitsDistillation(temperature=self.temperature, activation="sigmoid")]

    def loss(self) -> keras.losses.Loss:
        """Return the cross-entropy of each label, from logits."""
        import keras

        return keras.losses.BinaryCrossentropy(from_logits=True)

    def metrics(self) -> list[keras.metrics.Metric]:
        """Return the accuracy of the decisions, at a probability of 0.5."""
        import keras

        return [keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)]

    def measures(self) -> list[keras.metrics.Metric]:
        """Measure the mean over the digits of average precision (area under precision-recall)."""
        import keras

        return [
            keras.metrics.AUC(
                curve="PR",
                multi_label=True,
                num_labels=LABELS,
                from_logits=True,
                name="mean_average_precision",
            )
        ]


def _network(name: str, widths: tuple[int, ...], depth: int, dropout: float) -> keras.Model:
    """Build levels of 3x3 convolutions, each strided, and a logit for each digit anywhere."""
    import keras

    inputs = keras.Input((32, 32, 1), name="canvas")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="scale")(inputs)
    for level, width in enumerate(widths, start=1):
        for index in range(1, depth + 1):
            part = f"{level}_{index}"
            x = keras.layers.Conv2D(
                width,
                3,
                strides=2 if index == 1 else 1,
                padding="same",
                use_bias=False,
                name=f"conv{part}",
            )(x)
            x = keras.layers.BatchNormalization(name=f"norm{part}")(x)
            x = keras.layers.ReLU(name=f"relu{part}")(x)
    x = keras.layers.GlobalMaxPooling2D(name="anywhere")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    return keras.Model(inputs, keras.layers.Dense(LABELS, name="logits")(x), name=name)


RECIPE = DigitTags()
