"""Numbers instead of classes: a regularised perceptron teaches one of eight hidden units.

    keras-kd run tabular_regression

The data set is the diabetes data of Efron et al. 2004, as scikit-learn carries it: 10 measurements
of 442 patients, and how far the disease went in a year, from 25 to 346 points; 88 patients are the
test split. Nothing is downloaded. What is matched are the teacher's values (`LogitMatching`; a run
says `kd.Teacher(outputs="values")` where labels are numbers), so there is no temperature: the
field is not used.

Expected result: the README's table of results, in about a minute on two cores; `--smoke`
tells the same story in seconds.

The settings were chosen on validation splits, first for the student alone (8 units and 40 epochs:
more of either is worse for it), then for the distilled one.

The measurements are standardised before the networks, by the training split (`run.json` and the
files say by what): an integer file has one scale for all. The target is scaled inside: the exported
file answers in points. Errors are in points too, the MSE in points squared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keras_kd.recipes import base

if TYPE_CHECKING:
    import keras

    from keras_kd.data import Dataset


@dataclass(frozen=True, kw_only=True)
class TabularRegression(base.Recipe):
    """Teacher 10-128-1 with noise and dropout, student 10-8-1."""

    summary: str = "Diabetes, regression: a regularised perceptron teaches one of 97 weights"
    data: str = "diabetes"
    batch_size: int = 32
    teacher_epochs: int = 40
    epochs: int = 40
    learning_rate: float = 1e-2
    teacher_learning_rate: float = 3e-3
    temperature: float = 1.0
    student_loss_weight: float = 0.1
    steps_per_execution: int = 8
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    validation: float = 0.2

    def teacher(self) -> keras.Model:
        """Build 10-128-1 with noise on the measurements, and dropout."""
        return _network("teacher", 128, noise=0.5, dropout=0.5)

    def student(self) -> keras.Model:
        """Build 10-8-1."""
        return _network("student", 8)

    def prepare(self, dataset: Dataset) -> Dataset:
        """Standardise the measurements."""
        return dataset.standardised()

    def adapt(self, model: keras.Model, dataset: Dataset) -> None:
        """Scale the target by its mean and spread in the training split."""
        import numpy as np

        model.get_layer("points").adapt(np.asarray(dataset.train.y).reshape(-1, 1))

    def distillation_losses(self) -> list[Any]:
        """Return half the squared distance to the teacher's values."""
        from keras_kd.losses import LogitMatching

        return [LogitMatching()]

    def loss(self) -> keras.losses.Loss:
        """Return the squared error."""
        import keras

        return keras.losses.MeanSquaredError()

    def metrics(self) -> list[keras.metrics.Metric]:
        """Return the absolute error, in points."""
        import keras

        return [keras.metrics.MeanAbsoluteError(name="mean_absolute_error")]

    def measures(self) -> list[keras.metrics.Metric]:
        """Return the absolute error, in points."""
        return self.metrics()


def _network(name: str, width: int, noise: float = 0.0, dropout: float = 0.0) -> keras.Model:
    """Build a hidden layer with ReLU over standardised measurements, and a value in points."""
    import keras

    inputs = x = keras.Input((10,), name="measurements")
    if noise:
        x = keras.layers.GaussianNoise(noise, name="noise")(x)
    x = keras.layers.Dense(width, activation="relu", name="dense")(x)
    if dropout:
        x = keras.layers.Dropout(dropout, name="dropout")(x)
    x = keras.layers.Dense(1, name="value")(x)
    points = keras.layers.Normalization(invert=True, name="points")(x)
    return keras.Model(inputs, points, name=name)


RECIPE = TabularRegression()
