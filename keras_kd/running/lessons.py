"""One training at a time: the teacher, the student alone, the student distilled.

All of them go through `fit`, so that what is the same for the student alone and the distilled
one is the same line of code.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_kd import checks
from keras_kd.running import answers, records, user_models
from keras_kd.running.progress import Progress

if TYPE_CHECKING:
    import keras

    from keras_kd.data import Dataset, Split
    from keras_kd.recipes import Recipe
    from keras_kd.running.plans import StudentPlan
    from keras_kd.soft_targets import SoftTargets
    from keras_kd.teachers import Teacher

TEACHER_SEED = 0
"""A recipe has one teacher; its first weights and the order of its data come from this seed."""

ARMS = ("alone", "distilled")


@dataclass(frozen=True)
class Budget:
    """What a training may spend, and the seed of its data's order.

    Args:
        epochs: passes over the training data.
        learning_rate: the optimizer's highest rate.
        augmentation: what changes the training batches, or None.
        seed: for the order of the data, the augmentation, and what TensorFlow draws.
        soft: the teacher's answers that go with the training batches, or None.
    """

    epochs: int
    learning_rate: float
    augmentation: Callable[..., Any] | None
    seed: int
    soft: SoftTargets | None = None


@dataclass(frozen=True)
class Trained:
    """A trained model and how it came to be.

    Args:
        model: the model; a plain one for the distilled student too.
        history: name in the logs -> one number an epoch.
        seconds: wall time of the training.
    """

    model: keras.Model
    history: dict[str, list[float]]
    seconds: float


class Teaching:
    """A recipe's teacher: kept by a run before, or still to be trained.

    Args:
        recipe: the recipe.
        dataset: its prepared data.
        kept: the folder of kept teachers.
    """

    def __init__(self, recipe: Recipe, dataset: Dataset, kept: Path) -> None:
        import keras

        keras.utils.set_random_seed(TEACHER_SEED)
        self._recipe, self._dataset = recipe, dataset
        self._model = recipe.teacher()
        recipe.adapt(self._model, dataset)
        check(self._model, "teacher", dataset)
        rehearse(recipe, self._model, dataset)
        key = records.teacher_key(recipe, dataset, self._model, TEACHER_SEED)
        self.folder = kept / key
        self.record = records.load_teacher_record(self.folder)
        self.kept = self.record is not None

    def teach(self, logs: Path, progress: Progress) -> tuple[keras.Model, dict[str, Any]]:
        """Train the teacher and keep it, or take the kept one.

        Args:
            logs: the folder to make for its TensorBoard logs.
            progress: hears where it is.

        Returns:
            The teacher as read back from its file, so that both ways give the same model, and
            what there is to write down about it.
        """
        from keras_kd.teachers import fingerprint

        if self.record is None:
            self.record = self._train(logs, progress)
        else:
            progress.say(f"The teacher is taken from {self.folder}.")
            shutil.copytree(self.folder / "logs", logs)
        teacher = user_models.load_model("teacher", str(self.folder / "teacher.keras"))
        about = {"key": self.folder.name, "kept": self.kept, "fingerprint": fingerprint([teacher])}
        return teacher, about | self.record

    def _train(self, logs: Path, progress: Progress) -> dict[str, Any]:
        budget = Budget(
            epochs=self._recipe.teacher_epochs,
            learning_rate=self._recipe.teacher_learning_rate,
            augmentation=self._recipe.teacher_augmentation(),
            seed=TEACHER_SEED,
        )
        trained = fit(self._model, self._recipe, self._dataset, budget, "teacher", logs, progress)
        record = {"history": trained.history, "seconds": trained.seconds}
        records.save_teacher(self.folder, trained.model, record, logs)
        return record


def load_data(name: str, data_dir: str | Path | None, validation: float) -> Dataset:
    """Load a data set whose validation split has something in it: it chooses the student."""
    from keras_kd import data

    checks.fraction("validation", validation, open_ends=True)
    return data.load(name, data_dir=data_dir, validation=validation)


def check(model: keras.Model, role: str, dataset: Dataset) -> None:
    """Refuse a model that does not take the data's inputs or cannot answer its labels.

    Args:
        model: the model; it is built by this, if it was not.
        role: "teacher" or "student", for the words.
        dataset: the prepared data.
    """
    outputs = user_models.first_outputs(role, model, dataset.train)
    answers.understand(role, user_models.named(model, outputs), dataset.train.y)


def stated(teacher: keras.Model, dataset: Dataset) -> keras.Model | Teacher:
    """Say of a teacher which of its outputs are values, where the labels tell that they are.

    Whoever learns from it or is compared with it then stays in the labels' own space, whatever
    activation either of them ends in: what is called values is never turned into logits.

    Args:
        teacher: the model.
        dataset: the prepared data.

    Returns:
        A `kd.Teacher` where there are values, else the model as it is.

    Raises:
        ValueError: where the teacher's outputs cannot be read, or do not fit the labels.
    """
    from keras_kd.teachers import Teacher

    outputs, structure = answers.look("teacher", teacher, dataset.train)
    words = {name: "values" if o.task == "values" else "auto" for name, o in outputs.items()}
    if "values" not in words.values():
        return teacher
    return Teacher(teacher, outputs=answers.nested(words, structure))


def new_student(plan: StudentPlan, dataset: Dataset, seed: int) -> keras.Model:
    """Make the student of a seed; twice the same call gives twice the same first weights."""
    import keras

    keras.utils.set_random_seed(seed)
    student = plan.student()
    plan.adapt(student, dataset)
    check(student, "student", dataset)
    return student


def distiller(
    plan: StudentPlan, teacher: keras.Model | Teacher, student: keras.Model
) -> keras.Model:
    """Join a teacher and a student by the plan's losses and weights."""
    from keras_kd.distiller import Distiller

    return Distiller(
        teacher=teacher,
        student=student,
        distillation_losses=plan.distillation_losses(),
        distillation_loss_weights=plan.distillation_loss_weights(),
        student_loss_weight=plan.student_loss_weight,
    )


def rehearse(plan: StudentPlan, teacher: keras.Model, dataset: Dataset) -> None:
    """Distil one batch into a student that is thrown away, so that what cannot work fails now.

    Without it a layer's wrong name or a teacher that answers NaN would be found only after the
    teacher and the student alone were trained.

    Args:
        plan: the student and its numbers.
        teacher: the teacher, trained or not.
        dataset: the prepared data.

    Raises:
        ValueError: what `stated` and the Distiller refuse.
    """
    teaching = stated(teacher, dataset)
    learner = distiller(plan, teaching, new_student(plan, dataset, plan.seeds[0]))
    learner.compile(
        optimizer=plan.optimizer(plan.learning_rate, 1),
        loss=plan.loss(),
        metrics=plan.metrics(),
        run_eagerly=True,
    )
    learner.fit(dataset.train.batches(plan.batch_size).take(1), shuffle=False, verbose=0)


def teach_student(
    arm: str,
    plan: StudentPlan,
    teacher: keras.Model,
    dataset: Dataset,
    seed: int,
    logs: Path,
    progress: Progress,
    soft: SoftTargets | None = None,
) -> Trained:
    """Train the student of a seed, alone or distilled; nothing else differs between the two.

    Args:
        arm: "alone" or "distilled".
        plan: the student and its numbers.
        teacher: the trained teacher.
        dataset: the prepared data.
        seed: for first weights, the order of the data, augmentation and dropout.
        logs: the folder for TensorBoard.
        progress: hears where it is.
        soft: the teacher's answers to the training split, where they are kept; None: it is asked.

    Returns:
        The plain student, its history and time.
    """
    student = new_student(plan, dataset, seed)
    learner = student
    budget = Budget(plan.epochs, plan.learning_rate, plan.student_augmentation(), seed)
    if arm == "distilled":
        learner = distiller(plan, stated(teacher, dataset) if soft is None else soft, student)
        budget = dataclasses.replace(budget, soft=soft)
    stage = f"{arm} seed {seed}"
    trained = fit(learner, plan, dataset, budget, stage, logs, progress)
    return Trained(student, trained.history, trained.seconds)


def measured(
    model: keras.Model, metrics: Sequence[keras.metrics.Metric], split: Split, batch_size: int
) -> dict[str, float]:
    """Measure a model with metrics that see the labels and its own outputs, as it gives them.

    Labels of one number each get the axis of an output of one unit, as in `fit`.

    Args:
        model: the model.
        metrics: new metrics, called with labels, outputs and the split's weights, where it has
            some; none: the model is not asked.
        split: the examples.
        batch_size: examples in a batch.

    Returns:
        A metric's name -> its result over the whole split.
    """
    import keras
    import tensorflow as tf

    if not metrics:
        return {}
    answer = tf.function(lambda x: model(x, training=False), reduce_retracing=True)
    for x, y, *weights in split.batches(batch_size):
        outputs = answer(x)
        single = not keras.tree.is_nested(outputs) and outputs.shape[-1] == 1
        if single and len(y.shape) < len(outputs.shape):
            y = y[..., None]
        for metric in metrics:
            metric.update_state(y, outputs, *weights)
    return {metric.name: float(metric.result()) for metric in metrics}


def fit(
    model: keras.Model,
    plan: StudentPlan,
    dataset: Dataset,
    budget: Budget,
    stage: str,
    logs: Path,
    progress: Progress,
) -> Trained:
    """Compile and fit a model with a budget; the weights are the last epoch's.

    Args:
        model: a plain model or a Distiller.
        plan: gives optimizer, loss, metrics and the sizes of steps.
        dataset: the prepared data; validation is measured after each epoch.
        budget: epochs, rate, augmentation, seed, and the teacher's answers.
        stage: its name for `progress`.
        logs: the folder for TensorBoard.
        progress: hears of each epoch.

    Returns:
        The same model, its history and time.
    """
    import keras

    keras.utils.set_random_seed(budget.seed)
    batches = dataset.train.batches(
        plan.batch_size, shuffle_seed=budget.seed, transform=budget.augmentation
    )
    if budget.soft is not None:
        batches = budget.soft.attach(batches)
    model.compile(
        optimizer=plan.optimizer(budget.learning_rate, int(batches.cardinality()) * budget.epochs),
        loss=plan.loss(),
        metrics=plan.metrics(),
        steps_per_execution=plan.steps_per_execution,
    )
    tell = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, found: progress.epoch(stage, epoch + 1, found or {})
    )
    started = time.monotonic()
    history = model.fit(
        batches,
        validation_data=dataset.validation.batches(plan.batch_size),
        epochs=budget.epochs,
        shuffle=False,
        verbose=0,
        callbacks=[keras.callbacks.TensorBoard(logs, write_graph=False), tell],
    ).history
    numbers = {name: [float(value) for value in values] for name, values in history.items()}
    return Trained(model, numbers, time.monotonic() - started)
