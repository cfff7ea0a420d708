"""What a recipe is: the data, the two networks, the losses and the numbers of one experiment.

The fields are plain values, so that the command line can change each of them; the methods build
what needs Keras, and load it only then. Beside them stand the augmentations that recipes share:
stateless functions `(x, y, seed) -> (x, y)` of a batch, for `Split.batches(transform=...)`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keras_kd import checks

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from keras_kd.data import Dataset

Transform = Callable[[Any, Any, Any], tuple[Any, Any]]
"""A batch of inputs, its labels and a seed of shape (2,) -> the changed inputs and the labels."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One experiment: a teacher, and a student that is trained alone and distilled.

    A recipe is a file with a subclass of this, which gives the fields their values and builds
    the two networks in `teacher` and `student`. The numbers of the student (`epochs`,
    `batch_size`, `learning_rate`, augmentation, seeds) serve the student alone and the distilled
    one alike, so that the comparison is fair.

    Args:
        summary: one line for `keras-kd list`.
        data: the name of the data set, as `keras_kd.data.load` takes it.
        batch_size: examples in a training step.
        teacher_epochs: passes over the training data for the teacher.
        epochs: passes over the training data for the student, alone and distilled alike.
        learning_rate: the student's highest learning rate.
        teacher_learning_rate: the teacher's highest learning rate.
        temperature: the T that softens the logits of teacher and student, > 0.
        student_loss_weight: the share of the labels' loss in the total, from 0 to 1.
        steps_per_execution: training steps in one call of the compiled graph; more is faster.
        seeds: one training of the student alone and one distilled for each.
        validation: the share of the training examples that chooses, and does not train.
        limit: the number of training examples to use (the first after the seeded split), or
            None for all.
        soft_targets: whether the teacher is asked once and its answers are kept for all seeds,
            where the student's batches are not augmented; False: it is asked in each step.

    Raises:
        TypeError: "`epochs` must be a whole number.", or another field of a wrong type.
        ValueError: "`temperature` must be positive.", or another field out of its range.
    """

    summary: str
    data: str
    batch_size: int
    teacher_epochs: int
    epochs: int
    learning_rate: float
    teacher_learning_rate: float
    temperature: float
    student_loss_weight: float
    steps_per_execution: int
    seeds: tuple[int, ...] = (0, 1, 2)
    validation: float = 0.1
    limit: int | None = None
    soft_targets: bool = True

    def __post_init__(self) -> None:
        """Refuse values that cannot be trained with, before anything loads."""
        for name in ("batch_size", "teacher_epochs", "epochs", "steps_per_execution"):
            _whole(name, getattr(self, name), minimum=1)
        for name in ("learning_rate", "teacher_learning_rate", "temperature"):
            checks.positive(name, getattr(self, name))
        checks.fraction("student_loss_weight", self.student_loss_weight)
        checks.fraction("validation", self.validation, open_ends=True)
        if self.limit is not None:
            _whole("limit", self.limit, minimum=1)
        _check_seeds(self.seeds)
        if not isinstance(self.soft_targets, bool):
            raise checks.bad_type(
                "`soft_targets` must be True or False.",
                given=f"{self.soft_targets!r} ({type(self.soft_targets).__name__})",
                expected="a bool",
                fix="pass soft_targets=False to ask the teacher in each step.",
            )

    def prepare(self, dataset: Dataset) -> Dataset:
        """Give the inputs the shape and type that the networks take; here: as they are."""
        return dataset

    def teacher(self) -> keras.Model:
        """Build the teacher, untrained; its output is logits."""
        raise _missing(self, "teacher")

    def student(self) -> keras.Model:
        """Build the student, untrained; its output is logits."""
        raise _missing(self, "student")

    def teacher_augmentation(self) -> Transform | None:
        """Return what changes the teacher's training batches, or None."""
        return None

    def student_augmentation(self) -> Transform | None:
        """Return what changes the student's training batches, alone and distilled alike, or None.

        The teacher looks at the changed batch too when it teaches.
        """
        return None

    def distillation_losses(self) -> list[Any]:
        """Return new distillation losses; here: `LogitsDistillation` at the temperature."""
        from keras_kd.losses import LogitsDistillation

        return [LogitsDistillation(temperature=self.temperature)]

    def distillation_loss_weights(self) -> list[float] | None:
        """Return one weight for each distillation loss, or None for 1 each."""
        return None

    def optimizer(self, learning_rate: float, total_steps: int) -> keras.optimizers.Optimizer:
        """Return a new optimizer; here: Adam, with a cosine decay to 0 over `total_steps`."""
        import keras

        schedule = keras.optimizers.schedules.CosineDecay(learning_rate, total_steps)
        return keras.optimizers.Adam(schedule)

    def loss(self) -> Any:
        """Return a new loss of the labels; here: cross-entropy of class numbers and logits.

        A network with several outputs takes one for each, nested as they are.
        """
        import keras

        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def metrics(self) -> Any:
        """Return a list of new metrics, the deciding one first; here: accuracy.

        A network with several outputs takes a list for each, nested as they are.
        """
        import keras

        return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]

    def measures(self) -> list[keras.metrics.Metric]:
        """Return new metrics to measure beside those of `keras_kd.compare`; here: none.

        They see the labels and a model's own outputs, are shown in the table of the run for
        teacher, alone and distilled, and are written into run.json under their names.
        """
        return []

    def adapt(self, model: keras.Model, dataset: Dataset) -> None:
        """Set what a new network takes from the training data before it learns; here: nothing.

        Use it for `keras.layers.Normalization`: a scaling inside the network is exported with it.
        Features of very different size are standardised in `prepare` instead, for integer files.

        Args:
            model: the teacher or the student, just built.
            dataset: the prepared data; only its `train` split may be looked at.
        """

    def smoke(self) -> Recipe:
        """Return the same story at its smallest: one seed, two epochs, a few hundred examples."""
        return dataclasses.replace(
            self,
            seeds=self.seeds[:1],
            epochs=min(self.epochs, 2),
            teacher_epochs=min(self.teacher_epochs, 2),
            batch_size=min(self.batch_size, 64),
            steps_per_execution=min(self.steps_per_execution, 2),
            limit=min(self.limit or 256, 256),
        )


def cyclic_shifts(x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Turn each signal around by a number of places of its own; what leaves at one end returns.

    For signals whose meaning does not depend on where they begin.

    Args:
        x: signals, (batch, length, channels).
        y: labels, returned as they are.
        seed: two whole numbers, shape (2,); the same seed gives the same shifts.

    Returns:
        The turned signals and the labels.
    """
    import tensorflow as tf

    batch, length = tf.shape(x)[0], tf.shape(x)[1]
    shift = tf.random.stateless_uniform((batch, 1), seed, maxval=length, dtype=tf.int32)
    places = (tf.range(length)[None, :] + shift) % length
    return tf.gather(x, places, axis=1, batch_dims=1), y


def shifts(pixels: int) -> Transform:
    """Make a transform that moves each image by up to `pixels` each way and fills with zeros.

    Args:
        pixels: the largest move up, down, left or right, >= 0.

    Returns:
        A transform of images, (batch, height, width) or (batch, height, width, channels).
    """

    def transform(x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        import tensorflow as tf

        shape = tf.shape(x)
        batch, height, width = shape[0], shape[1], shape[2]
        moves = tf.random.stateless_uniform((batch, 2), seed, 0, 2 * pixels + 1, tf.int32)
        border = [[0, 0], [pixels, pixels], [pixels, pixels]] + [[0, 0]] * (len(x.shape) - 3)
        rows = moves[:, :1] + tf.range(height)[None, :]
        columns = moves[:, 1:] + tf.range(width)[None, :]
        moved = tf.gather(tf.pad(x, border), rows, axis=1, batch_dims=1)
        return tf.ensure_shape(tf.gather(moved, columns, axis=2, batch_dims=1), x.shape), y

    return transform


def flips(x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mirror half of the images, drawn by chance, left to right.

    Args:
        x: images, (batch, height, width, channels) or (batch, height, width).
        y: labels, returned as they are.
        seed: two whole numbers, shape (2,); the same seed mirrors the same images.

    Returns:
        The images, some mirrored, and the labels.
    """
    import tensorflow as tf

    chance = tf.random.stateless_uniform(tf.shape(x)[:1], seed)
    drawn = tf.reshape(chance < 0.5, tf.concat([tf.shape(x)[:1], [1] * (len(x.shape) - 1)], 0))
    return tf.where(drawn, tf.reverse(x, axis=[2]), x), y


def chain(*transforms: Transform) -> Transform:
    """Make one transform of several, in their order, each with a seed of its own.

    Args:
        *transforms: functions `(x, y, seed) -> (x, y)`.

    Returns:
        A transform that does one after the other.
    """

    def transform(x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        import tensorflow as tf

        seeds = tf.random.split(seed, len(transforms))
        for index, one in enumerate(transforms):
            x, y = one(x, y, seeds[index])
        return x, y

    return transform


def _whole(name: str, value: object, *, minimum: int) -> None:
    """Refuse what is not a whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise checks.bad_type(
            f"`{name}` must be a whole number.",
            given=f"{value!r} ({type(value).__name__})",
            expected=f"an int >= {minimum}",
            fix=f"pass a whole number, for example {name}={max(minimum, 1)}.",
        )
    if value < minimum:
        raise checks.bad_value(
            f"`{name}` must be at least {minimum}.",
            given=value,
            expected=f"an int >= {minimum}",
            fix=f"pass a larger number, for example {name}={max(minimum, 1)}.",
        )


def _check_seeds(seeds: object) -> None:
    """Refuse seeds that are no tuple of different whole numbers."""
    if not isinstance(seeds, tuple):
        raise checks.bad_type(
            "`seeds` must be a tuple.",
            given=f"{seeds!r} ({type(seeds).__name__})",
            expected="a tuple of whole numbers >= 0",
            fix="pass a tuple, for example seeds=(0, 1, 2).",
        )
    for seed in seeds:
        _whole("seeds", seed, minimum=0)
    if not seeds or len(set(seeds)) < len(seeds):
        raise checks.bad_value(
            "`seeds` must be different numbers, one at least.",
            given=seeds,
            expected="one seed or more, none twice",
            fix="pass, for example, seeds=(0, 1, 2).",
        )


def _missing(recipe: Recipe, network: str) -> TypeError:
    """Make the error for a recipe that does not build one of its networks."""
    return checks.bad_type(
        f"The recipe {type(recipe).__name__} has no {network}.",
        given=f"a recipe without a `{network}` method",
        expected=f"a method `{network}(self)` that returns a keras.Model with logits out",
        fix=f"define `def {network}(self) -> keras.Model` in the recipe's class.",
    )
