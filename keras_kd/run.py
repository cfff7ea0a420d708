"""The whole story on one page: data, teacher, the student alone and distilled, the comparison.

`run` tells it for a recipe, `distill` for a person's own models. Alone and distilled have the same
data in the same order, the same augmentation, the same first weights, the same number of steps
and the same learning rates, seed by seed. Both are judged with their last epoch's weights: no
epoch is picked, for neither. Which seed's student is exported, the validation split decides; the
test split decides nothing.
"""

from __future__ import annotations

import dataclasses
import datetime
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_kd import checks, recipes
from keras_kd.running import errands, lessons, plans, records, soft_lessons, user_models
from keras_kd.running.progress import Progress

if TYPE_CHECKING:
    import keras

    from keras_kd.data import Dataset, Split
    from keras_kd.recipes import Recipe
    from keras_kd.running.plans import StudentPlan
    from keras_kd.teachers import Teacher

SETTINGS = (
    "seeds",
    "epochs",
    "batch_size",
    "learning_rate",
    "temperature",
    "student_loss_weight",
    "distillation_losses",
    "distillation_loss_weights",
)
"""The settings of `distill` that can be checked before anything loads."""


def run(
    recipe: str | Recipe = recipes.DEFAULT,
    *,
    out: str | Path = "saved_models",
    name: str | None = None,
    data_dir: str | Path | None = None,
    progress: Progress | None = None,
    command: Sequence[str] | None = None,
    **changes: Any,
) -> Path:
    """Train a recipe's teacher and its students over the seeds, compare, export, and write it down.

    The teacher is trained once and kept under `<out>/<recipe>/teachers`, and its answers to the
    training data under `<out>/<recipe>/soft_targets`, where the students' batches are not
    augmented; the next run takes both from there where everything that decides them is the same.

    Args:
        recipe: a recipe's name, or a `Recipe`.
        out: the folder of all runs.
        name: the run's name; None: the time of day, such as `2026-11-24T101500`.
        data_dir: where TensorFlow Datasets are prepared, for data named `tfds:...`.
        progress: hears where the run is; None: silence.
        command: the command line to write down, if there is one.
        **changes: other values for fields of the recipe: `seeds=(0,)`, `epochs=3`, `data=...`.

    Returns:
        The run's folder, `<out>/<recipe>/<run>`, with `student.keras`, `saved_model/`,
        `student.tflite`, `logs/` and `run.json`.

    Raises:
        ValueError: for a recipe, field, folder, data set or shape that does not fit, before
            anything is trained.
    """
    started, progress = records.now(), progress or Progress()
    recipe_name, plan = resolve(recipe, changes)
    home = records.writable(Path(out) / recipe_name)
    path = records.new_path(home, name)
    dataset = prepared(plan, data_dir)
    teaching = lessons.Teaching(plan, dataset, home / "teachers")
    with records.whole(path) as folder, progress:
        progress.begin(stages(plan, 0 if teaching.kept else plan.teacher_epochs))
        teacher, about = teaching.teach(folder / "logs" / "teacher", progress)
        tell(
            plan,
            teacher,
            about,
            dataset,
            folder,
            progress,
            home=home,
            started=started,
            recipe=recipe_name,
            command=command,
        )
    return path


def distill(
    teacher: str,
    student: str,
    data: str,
    *,
    out: str | Path = "saved_models",
    name: str | None = None,
    data_dir: str | Path | None = None,
    validation: float = 0.1,
    seeds: tuple[int, ...] = (0,),
    epochs: int = 10,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    temperature: float = 4.0,
    student_loss_weight: float = 0.1,
    loss: str | None = None,
    distillation_losses: Sequence[str] = (),
    distillation_loss_weights: Sequence[float] | None = None,
    soft_targets: bool = True,
    progress: Progress | None = None,
    command: Sequence[str] | None = None,
) -> Path:
    """Distil a person's own teacher into their own student, with the same honest comparison.

    A student given as `module:function` gets new first weights for each seed. A student given as
    a .keras file starts from the file's weights for every seed: then only the order of the data
    (and dropout) differs between the seeds.

    Args:
        teacher: `FILE.keras` or `module:function`; trained already.
        student: `FILE.keras` or `module:function`.
        data: name of the data set: `npz:FILE`, `tfds:NAME`, `idx:FOLDER`, `digits`, `mnist1d`.
        out: the folder of all runs; this one goes to `<out>/distill/<run>`.
        name: the run's name; None: the time of day.
        data_dir: where TensorFlow Datasets are prepared.
        validation: share of the training examples that chooses between seeds, above 0.
        seeds: one training alone and one distilled for each.
        epochs: passes over the training data, for alone and distilled alike.
        batch_size: examples in a step.
        learning_rate: Adam's rate at the start; it falls to 0 as a cosine.
        temperature: T for the distillation losses that take one.
        student_loss_weight: the labels' share of the total loss, 0 to 1.
        loss: a Keras loss for the labels; None: by the labels and the last activation.
        distillation_losses: `NAME` or `NAME(key=value, ...)` of `keras_kd.losses`; none: by the
            outputs, `LogitsDistillation` for classes.
        distillation_loss_weights: one for each of them.
        soft_targets: whether the teacher's answers are kept under `<out>/distill/soft_targets`,
            for every seed and for the next run; False: it is asked in each step.
        progress: hears where the run is; None: silence.
        command: the command line to write down, if there is one.

    Returns:
        The run's folder, as for `run`.

    Raises:
        ValueError: for models, data or settings that do not fit each other, before training.
    """
    from keras_kd.teachers import fingerprint

    started, progress = records.now(), progress or Progress()
    plans.check_settings(
        seeds=seeds,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        temperature=temperature,
        student_loss_weight=student_loss_weight,
        distillation_losses=distillation_losses,
        distillation_loss_weights=distillation_loss_weights,
    )
    user_models.check_source("teacher", teacher)
    user_models.check_source("student", student)
    home = records.writable(Path(out) / "distill")
    path = records.new_path(home, name)
    dataset = lessons.load_data(data, data_dir, validation)
    teacher_model = user_models.load_model("teacher", teacher)
    plan = plans.for_user(
        user_models.load_model("student", student),
        dataset,
        student_source=student,
        loss_name=loss,
        loss_specs=tuple(distillation_losses),
        loss_weights=None
        if distillation_loss_weights is None
        else tuple(distillation_loss_weights),
        temperature=temperature,
        batch_size=batch_size,
        epochs=epochs,
        learning_rate=learning_rate,
        student_loss_weight=student_loss_weight,
        seeds=seeds,
        soft_targets=soft_targets,
    )
    lessons.check(teacher_model, "teacher", dataset)
    lessons.rehearse(plan, teacher_model, dataset)
    about = {"source": teacher, "fingerprint": fingerprint([teacher_model])}
    if teacher.endswith(".keras"):
        about["sha256"] = records.checksum(Path(teacher))
    with records.whole(path) as folder, progress:
        progress.begin(stages(plan))
        if student.endswith(".keras") and len(seeds) > 1:
            progress.say(
                "Every seed starts from the student file's weights, in its own data order."
            )
        tell(
            plan,
            teacher_model,
            about,
            dataset,
            folder,
            progress,
            home=home,
            started=started,
            recipe=None,
            command=command,
        )
    return path


def tell(
    plan: StudentPlan,
    teacher: keras.Model,
    about_teacher: Mapping[str, Any],
    dataset: Dataset,
    folder: Path,
    progress: Progress,
    *,
    home: Path,
    started: datetime.datetime,
    recipe: str | None,
    command: Sequence[str] | None,
) -> None:
    """Teach the students, compare them with the teacher, export the best, write run.json.

    Args:
        plan: the student and its numbers.
        teacher: the trained teacher.
        about_teacher: what there is to write down about it.
        dataset: the prepared data.
        folder: the run's folder, to be filled.
        progress: hears where it is.
        home: the folder of the runs, where the teacher's answers are kept.
        started: when the run began.
        recipe: the recipe's name, or None for a person's own models.
        command: the command line, if there is one.
    """
    compared = lessons.stated(teacher, dataset)
    soft, about_soft = soft_lessons.ask_once(plan, compared, about_teacher, dataset, home, progress)
    students = {
        f"{arm}-seed{seed}": lessons.teach_student(
            arm, plan, teacher, dataset, seed, folder / "logs" / f"{arm}-seed{seed}", progress, soft
        )
        for seed in plan.seeds
        for arm in lessons.ARMS
    }
    progress.say("Comparing on the validation and the test split …")
    models = {"teacher": teacher, **{name: trained.model for name, trained in students.items()}}
    rows = {
        split: measure(plan, compared, models, getattr(dataset, split))
        for split in ("validation", "test")
    }
    chosen = choose(plan.seeds, students, rows["validation"])
    best = students[chosen["student"]].model
    best.save(folder / "student.keras")
    exports = errands.ship(best, dataset, folder, progress)
    record = {
        "schema": records.SCHEMA,
        "recipe": recipe,
        "command": command,
        "started": started.isoformat(timespec="seconds"),
        "seconds": (records.now() - started).total_seconds(),
        "seeds": plan.seeds,
        "config": plans.config_of(plan),
        "versions": records.versions(),
        "machine": records.machine(),
        "data": records.about_data(dataset),
        "teacher": {
            **about_teacher,
            "soft_targets": about_soft,
            **{split: row["teacher"] for split, row in rows.items()},
        },
        "students": {arm: records.arm(arm, plan.seeds, students, rows) for arm in lessons.ARMS},
        "chosen": chosen,
        "exports": exports,
    }
    records.write_json(folder / "run.json", record)


def resolve(recipe: str | Recipe, changes: Mapping[str, Any]) -> tuple[str, Recipe]:
    """Find a recipe by name and change its fields, without loading Keras.

    Args:
        recipe: its name, or a `Recipe`, whose file's name is used.
        changes: field -> new value.

    Returns:
        The name and the changed recipe.

    Raises:
        ValueError: "There is no recipe ...", "There is no field of a recipe ...".
    """
    if isinstance(recipe, str):
        name, plan = recipe, recipes.load(recipe)
    else:
        name, plan = type(recipe).__module__.rpartition(".")[2], recipe
    fields = [field.name for field in dataclasses.fields(plan)]
    for field in changes:
        if field not in fields:
            raise checks.unknown_name("field of a recipe", field, fields)
    return name, dataclasses.replace(plan, **changes)


def stages(plan: StudentPlan, teacher_epochs: int = 0) -> dict[str, int]:
    """List what will be trained and for how many epochs, in order."""
    teacher = {"teacher": teacher_epochs} if teacher_epochs else {}
    return teacher | {
        f"{arm} seed {seed}": plan.epochs for seed in plan.seeds for arm in lessons.ARMS
    }


def prepared(recipe: Recipe, data_dir: str | Path | None) -> Dataset:
    """Load a recipe's data, cut it to the recipe's limit, and shape it for the networks."""
    dataset = lessons.load_data(recipe.data, data_dir, recipe.validation)
    if recipe.limit is not None:
        dataset = dataclasses.replace(dataset, train=dataset.train.select(slice(recipe.limit)))
    return recipe.prepare(dataset)


def measure(
    plan: StudentPlan,
    teacher: keras.Model | Teacher,
    models: Mapping[str, keras.Model],
    split: Split,
) -> dict[str, dict[str, Any]]:
    """Measure all models on one split: row name -> metric -> number.

    Args:
        plan: its `measures` come after those of `keras_kd.compare`.
        teacher: the teacher as it is compared with, its values stated.
        models: "teacher" and the students by name.
        split: the examples.
    """
    from keras_kd.evaluation import compare

    students = {name: model for name, model in models.items() if name != "teacher"}
    data = split.examples  # as arrays, so that all the labels say what the task is
    rows = compare(teacher=teacher, students=students, data=data, batch_size=errands.BATCH).rows
    return {
        name: row | lessons.measured(models[name], plan.measures(), split, errands.BATCH)
        for name, row in rows.items()
    }


def choose(
    seeds: Sequence[int],
    students: Mapping[str, lessons.Trained],
    rows: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """Choose the distilled student to export, by the validation split.

    Args:
        seeds: the seeds, in order; the first of equals is taken.
        students: name -> trained student, with its history.
        rows: name -> metric -> number, measured on the validation split.

    Returns:
        The student's name, its seed, and by which number it was chosen. Accuracy decides where
        it is measured (the mean over outputs), else the last validation loss.
    """
    names = {f"distilled-seed{seed}": seed for seed in seeds}
    accuracies = {
        name: [value for key, value in rows[name].items() if key.endswith("accuracy")]
        for name in names
    }
    if all(accuracies.values()):
        scores = {name: statistics.fmean(found) for name, found in accuracies.items()}
        by, best = "highest validation accuracy", max(scores, key=scores.__getitem__)
    else:
        scores = {name: students[name].history["val_loss"][-1] for name in names}
        by, best = "lowest validation loss", min(scores, key=scores.__getitem__)
    return {"student": best, "seed": names[best], "by": by, "value": scores[best]}
