"""The stages that make a trained student smaller: prune and distil back, quantise and distil."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_kd import checks
from keras_kd.running import answers, lessons, plans
from keras_kd.running.progress import Progress

if TYPE_CHECKING:
    import keras

    from keras_kd.data import Dataset
    from keras_kd.running.plans import StudentPlan
    from keras_kd.soft_targets import SoftTargets
    from keras_kd.teachers import Teacher

FORMATS = (
    "saved_model",
    "tflite",
    "tflite_float16",
    "tflite_dynamic",
    "tflite_int8",
    "tflite_uint8",
    "tflite_int16x8",
)
"""What is exported: all formats that need no other package."""

EXAMPLES = 1024
"""How many training examples tell which channels matter and which ranges activations have."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Squeeze:
    """How a student is made smaller.

    Args:
        keep: share of the channels that stay, above 0 and up to 1; at 1 nothing is pruned.
        importance: what decides which: "taylor", "magnitude" or "batchnorm".
        quantise: whether the last stage learns with quantised weights and activations.
        weight_bits: 8 or 4, of the weights of that stage.
        prune_epochs: passes over the data after pruning; None: as many as the student had.
        quantise_epochs: passes of the last stage, in which the quantised student learns from its
            own float form, without labels; None: a third of the student's, one at least.
        quantise_rate: the last stage's share of the learning rate; None: 1/30 with 8 bits, which
            only has rounding to make up for, 1/3 with 4 bits.
        formats: names of export formats.

    Raises:
        ValueError: "`keep` must be", "`weight_bits` must be 8 or 4", "no export format", and the
            like.
    """

    keep: float = 0.5
    importance: str = "taylor"
    quantise: bool = True
    weight_bits: int = 8
    prune_epochs: int | None = None
    quantise_epochs: int | None = None
    quantise_rate: float | None = None
    formats: tuple[str, ...] = FORMATS

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        from keras_kd.export import TARGETS

        checks.fraction("keep", checks.positive("keep", self.keep))
        if self.quantise_rate is not None:
            checks.positive("quantise_rate", self.quantise_rate)
        for name in ("prune_epochs", "quantise_epochs"):
            if getattr(self, name) is not None:
                checks.count(name, getattr(self, name))
        if self.weight_bits not in (4, 8):
            raise checks.bad_value(
                "`weight_bits` must be 8 or 4.",
                given=self.weight_bits,
                expected="8 or 4",
                fix="leave it out for 8.",
            )
        for form in self.formats:
            if form not in TARGETS:
                raise checks.unknown_name("export format", form, TARGETS)

    @property
    def rate_share(self) -> float:
        """The last stage's share of the learning rate."""
        if self.quantise_rate is not None:
            return self.quantise_rate
        return {8: 1 / 30, 4: 1 / 3}[self.weight_bits]

    def stages(self, plan: StudentPlan) -> dict[str, int]:
        """List the stages to come and their epochs."""
        pruned = self.prune_epochs or plan.epochs
        quantised = self.quantise_epochs or max(1, plan.epochs // 3)
        stages = {"pruned": pruned} if self.keep < 1.0 else {}
        return stages | ({"quantised": quantised} if self.quantise else {})

    def rehearse(self, student: keras.Model, plan: StudentPlan, dataset: Dataset) -> None:
        """Go through the stages with a student that has not learned, and train nothing.

        Raises:
            ValueError: what pruning and quantisation refuse, such as layers they do not know.
        """
        from keras_kd import compress

        if self.keep < 1.0:
            student = compress.prune_channels(student, keep=self.keep, importance="magnitude")
        if self.quantise:
            compress.quantization_aware(student, weight_bits=self.weight_bits)


class Squeezing:
    """A student on its way through the stages.

    Args:
        plan: gives losses, optimizer, metrics and the sizes of steps.
        squeeze: what to do.
        teacher: a teacher, or its answers to the training split.
        dataset: the prepared data.
        progress: hears where it is.
    """

    def __init__(
        self,
        plan: StudentPlan,
        squeeze: Squeeze,
        teacher: keras.Model | Teacher | SoftTargets,
        dataset: Dataset,
        progress: Progress,
    ) -> None:
        self._plan, self._squeeze, self._teacher = plan, squeeze, teacher
        self._dataset, self._progress = dataset, progress
        self.report: dict[str, Any] | None = None

    def stages(self, student: keras.Model, logs: Path) -> Iterator[tuple[str, lessons.Trained]]:
        """Yield the name and the trained model of each stage; each goes on from the one before."""
        from keras_kd import compress
        from keras_kd.soft_targets import SoftTargets

        for stage, epochs in self._squeeze.stages(self._plan).items():
            rate = self._plan.learning_rate
            if stage == "pruned":
                small = self._pruned(student)
                self.report = compress.pruning_report(student, small).to_dict()
                learner = lessons.distiller(self._plan, self._teacher, small)
                soft = self._teacher if isinstance(self._teacher, SoftTargets) else None
            else:
                rate *= self._squeeze.rate_share
                small = self._quantised(student, epochs)
                learner = self._of_itself(student, small)
                soft = None
            augmentation = self._plan.student_augmentation()
            budget = lessons.Budget(epochs, rate, augmentation, self._plan.seeds[0], soft)
            trained = lessons.fit(
                learner, self._plan, self._dataset, budget, stage, logs / stage, self._progress
            )
            student = small
            yield stage, dataclasses.replace(trained, model=small)

    def _pruned(self, student: keras.Model) -> keras.Model:
        from keras_kd import compress

        return compress.prune_channels(
            student,
            keep=self._squeeze.keep,
            importance=self._squeeze.importance,
            data=self._some(),
            loss=self._plan.loss(),
        )

    def _quantised(self, student: keras.Model, epochs: int) -> keras.Model:
        """Quantise a student; its ranges are frozen after half of the epochs."""
        from keras_kd import compress

        steps = math.ceil(len(self._dataset.train) / self._plan.batch_size)
        return compress.quantization_aware(
            student,
            weight_bits=self._squeeze.weight_bits,
            data=self._some(),
            freeze_after=max(1, epochs * steps // 2),
        )

    def _of_itself(self, student: keras.Model, quantised: keras.Model) -> keras.Model:
        """Join a quantised student to its float form, whose answers it is to keep."""
        from keras_kd.distiller import Distiller

        outputs, structure = answers.look("student", student, self._dataset.train)
        return Distiller(
            teacher=lessons.stated(student, self._dataset),
            student=quantised,
            distillation_losses=plans.default_losses(outputs, structure, self._plan.temperature),
            student_loss_weight=0.0,
        )

    def _some(self) -> Any:
        """Return the first training examples, as batches."""
        train = self._dataset.train
        return train.select(slice(EXAMPLES)).batches(self._plan.batch_size)
