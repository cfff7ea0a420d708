"""Malignant or benign: a regularised perceptron teaches one of an eighth of its size.

    keras-kd run tabular

The data set is scikit-learn's copy of Breast Cancer Wisconsin (Street, Wolberg and Mangasarian
1993): 569 tumours of 30 measurements each, of which 114 are the test split. Nothing is downloaded.
A network ends in one logit, the log of the odds that the tumour is benign; the teacher's odds are
matched by `LogitsDistillation(activation="sigmoid")`.

Expected result: the README's table of results, in about a minute on two cores; `--smoke`
tells the same story in seconds.

The settings were chosen on validation splits, first for the student alone, then for the distilled
one. One tumour of the test split is 0.88 points of the accuracy, so look at the log loss (nats
for each tumour) as well: it says how sure the wrong answers were.

The measurements are scaled inside the networks, by the training split: the exported file takes
them as they were taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keras_kd.recipes import base

if TYPE_CHECKING:
    import keras

    from keras_kd.data import Dataset


@dataclass(frozen=True, kw_only=True)
class Tabular(base.Recipe):
    """Teacher 30-64-64-1 with noise and dropout, student 30-16-16-1."""

    summary: str = "Breast cancer, binary: a regularised perceptron teaches one of 785 weights"
    data: str = "breast_cancer"
    batch_size: int = 32
    teacher_epochs: int = 40
    epochs: int = 60
    learning_rate: float = 3e-3
    teacher_learning_rate: float = 3e-3
    temperature: float = 1.0
    student_loss_weight: float = 0.1
    steps_per_execution: int = 8
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    validation: float = 0.2

    def teacher(self) -> keras.Model:
        """Build 30-64-64-1 with noise on the measurements, and dropout."""
        return _network("teacher", (64, 64), noise=0.5, dropout=0.5)

    def student(self) -> keras.Model:
        """Build 30-16-16-1."""
        return _network("student", (16, 16))

    def prepare(self, dataset: Dataset) -> Dataset:
        """Standardise the measurements."""
        return dataset.standardised()

    def distillation_losses(self) -> list[Any]:
        """Return `LogitsDistillation` of one label: the divergence of two Bernoullis."""
        from keras_kd.losses import LogitsDistillation

        return [LogitsDistillation(temperature=self.temperature, activation="sigmoid")]

    def loss(self) -> keras.losses.Loss:
        """Return the cross-entropy of 0 or 1 and a logit."""
        import keras

        return keras.losses.BinaryCrossentropy(from_logits=True)

    def metrics(self) -> list[keras.metrics.Metric]:
        """Return accuracy: a logit above 0 says benign."""
        import keras

        return [keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)]

    def measures(self) -> list[keras.metrics.Metric]:
        """Return the log loss, in nats for each tumour."""
        import keras

        return [keras.metrics.BinaryCrossentropy(name="log_loss", from_logits=True)]


def _network(
    name: str, widths: tuple[int, ...], noise: float = 0.0, dropout: float = 0.0
) -> keras.Model:
    """Build dense layers with ReLU over standardised measurements, and one logit."""
    import keras

    inputs = x = keras.Input((30,), name="measurements")
    if noise:
        x = keras.layers.GaussianNoise(noise, name="noise")(x)
    for index, width in enumerate(widths, start=1):
        x = keras.layers.Dense(width, activation="relu", name=f"dense{index}")(x)
        if dropout:
            x = keras.layers.Dropout(dropout, name=f"dropout{index}")(x)
    logit = keras.layers.Dense(1, name="logit")(x)
    return keras.Model(inputs, logit, name=name)


RECIPE = Tabular()
