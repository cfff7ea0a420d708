"""Detection: a class and a box in each of 16 cells; two heads, and a mask of matched cells.

    keras-kd run digit_detector

The canvases are made of scikit-learn's real 8x8 digits, so nothing is downloaded;
`--data digit_detector:tfds:mnist` or `digit_detector:npz:FILE` makes them of MNIST's. Training,
validation and test canvases share no digit.

The networks answer {"class": (cells, 11), "boxes": (cells, 4)}. A box means something only in the
cell that holds the middle of a digit: the data carries weights by output, which are 0 for the
boxes of all other cells, and they reach the labels' loss, the distillation losses and the
comparison alike. At the classes the student learns the teacher's distribution. At the boxes the
teacher is a bound (Chen et al. 2017): where the student is worse, it is pushed to the labels more.

The table shows the mean average precision of the detections: right where the class is right and
the boxes share half of their union. Expected result: the README's table of results, in under five
minutes on two cores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keras_kd.recipes import base

if TYPE_CHECKING:
    import keras

    from keras_kd.data import Dataset

CLASSES = 11
CELLS = 16


@dataclass(frozen=True, kw_only=True)
class DigitDetector(base.Recipe):
    """Convolutional networks of 24, 48 and 96 channels teach 8, 16 and 32."""

    summary: str = "Digits on a canvas, a class and a box in each cell: a CNN teaches a small one"
    data: str = "digit_detector"
    batch_size: int = 60
    teacher_epochs: int = 20
    epochs: int = 25
    learning_rate: float = 1e-2
    teacher_learning_rate: float = 3e-3
    temperature: float = 2.0
    student_loss_weight: float = 0.3
    steps_per_execution: int = 25

    def prepare(self, dataset: Dataset) -> Dataset:
        """Give the canvases the shape (32, 32, 1), as floats from 0 to 255."""
        return dataset.map_inputs(lambda x: x[..., None].astype("float32"))

    def teacher(self) -> keras.Model:
        """Build levels of 24, 48 and 96 channels, two convolutions each, and two heads."""
        return _network("teacher", (24, 48, 96), depth=2, dropout=0.4)

    def student(self) -> keras.Model:
        """Build levels of 8, 16 and 32 channels, one convolution each, and two heads."""
        return _network("student", (8, 16, 32), depth=1, dropout=0.0)

    def distillation_losses(self) -> list[Any]:
        """Return the divergence of the classes, and the teacher as a bound for the boxes."""
        from keras_kd.losses import BoundedRegression, LogitsDistillation

        return [
            LogitsDistillation(temperature=self.temperature).on("class"),
            BoundedRegression().on("boxes"),
        ]

    def distillation_loss_weights(self) -> list[float]:
        """Return 1 for the classes, and for the bound the 0.5 of its paper."""
        return [1.0, 0.5]

    def loss(self) -> dict[str, keras.losses.Loss]:
        """Return the cross-entropy of the cells' classes, and the boxes' squared error."""
        import keras

        return {
            "class": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "boxes": keras.losses.MeanSquaredError(),
        }

    def metrics(self) -> dict[str, list[keras.metrics.Metric]]:
        """Return the accuracy of the cells' classes."""
        import keras

        return {"class": [keras.metrics.SparseCategoricalAccuracy(name="accuracy")], "boxes": []}

    def measures(self) -> list[keras.metrics.Metric]:
        """Measure the mean average precision of the detections."""
        import numpy as np

        from keras_kd.data.sources.digit_detector import decode
        from keras_kd.detection import MeanAveragePrecision

        return [MeanAveragePrecision(lambda boxes: decode(boxes, np.arange(CELLS)))]


def _network(name: str, widths: tuple[int, ...], depth: int, dropout: float) -> keras.Model:
    """Build levels of 3x3 convolutions, each strided, down to 4x4 cells, and two heads."""
    import keras

    inputs = keras.Input((32, 32, 1), name="canvas")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="scale")(inputs)
    if dropout:
        x = keras.layers.GaussianNoise(0.3, name="noise")(x)
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
    if dropout:
        x = keras.layers.SpatialDropout2D(dropout, name="dropout")(x)
    heads = {}
    for head, size in {"class": CLASSES, "boxes": 4}.items():
        x_head = keras.layers.Conv2D(size, 3, padding="same", name=f"{head}_head")(x)
        heads[head] = keras.layers.Reshape((CELLS, size), name=head)(x_head)
    return keras.Model(inputs, heads, name=name)


RECIPE = DigitDetector()
