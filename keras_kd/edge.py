"""The whole way to the edge on one page: distil, prune, distil, quantise, export, certify.

`compress` goes it for a recipe, `compress_student` for a person's own student. Each stage learns
from the same teacher on the same data; each file is verified before it is left on disk, and
its certificate stands in compress.json.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_kd import recipes, run
from keras_kd.running import errands, lessons, plans, records, soft_lessons, user_models
from keras_kd.running.progress import Progress
from keras_kd.running.squeezing import Squeeze, Squeezing

if TYPE_CHECKING:
    import keras

    from keras_kd.data import Dataset
    from keras_kd.recipes import Recipe
    from keras_kd.running.plans import StudentPlan

SCHEMA = 1
"""The form of compress.json."""


def compress(
    recipe: str | Recipe = recipes.DEFAULT,
    squeeze: Squeeze | None = None,
    *,
    out: str | Path = "saved_models",
    name: str | None = None,
    data_dir: str | Path | None = None,
    progress: Progress | None = None,
    command: Sequence[str] | None = None,
    **changes: Any,
) -> Path:
    """Distil a recipe's student, make it smaller in every way, and certify all its files.

    The teacher is the one of `keras_kd.run.run`: kept by a run before, or trained. The student is
    that of the first seed.

    Args:
        recipe: a recipe's name, or a `Recipe`.
        squeeze: how much to prune and how to quantise; None: the defaults of `Squeeze`.
        out: the folder of all runs.
        name: the run's name; None: the time of day.
        data_dir: where TensorFlow Datasets are prepared, for data named `tfds:...`.
        progress: hears where the run is; None: silence.
        command: the command line to write down, if there is one.
        **changes: other values for fields of the recipe.

    Returns:
        The run's folder, `<out>/<recipe>/<run>`, with `distilled.keras`, `pruned.keras`,
        `quantised.keras`, the files of all formats with their certificates, `logs/` and
        `compress.json`.

    Raises:
        ValueError: for settings, data or layers that do not fit, before anything is trained.
    """
    started, progress = records.now(), progress or Progress()
    squeeze = squeeze or Squeeze()
    recipe_name, plan = run.resolve(recipe, changes)
    home = records.writable(Path(out) / recipe_name)
    path = records.new_path(home, name)
    dataset = run.prepared(plan, data_dir)
    teaching = lessons.Teaching(plan, dataset, home / "teachers")
    squeeze.rehearse(lessons.new_student(plan, dataset, plan.seeds[0]), plan, dataset)
    with records.whole(path) as folder, progress:
        teacher_epochs = 0 if teaching.kept else plan.teacher_epochs
        first = {f"distilled seed {plan.seeds[0]}": plan.epochs}
        begun = {"teacher": teacher_epochs} if teacher_epochs else {}
        progress.begin(begun | first | squeeze.stages(plan))
        teacher, about = teaching.teach(folder / "logs" / "teacher", progress)
        _tell(
            plan,
            squeeze,
            teacher,
            about,
            None,
            dataset,
            folder,
            progress,
            home=home,
            facts={"recipe": recipe_name, "command": command, "started": started},
        )
    return path


def compress_student(
    student: str,
    data: str,
    squeeze: Squeeze | None = None,
    *,
    teacher: str | None = None,
    out: str | Path = "saved_models",
    name: str | None = None,
    data_dir: str | Path | None = None,
    validation: float = 0.1,
    epochs: int = 10,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    temperature: float = 4.0,
    student_loss_weight: float = 0.1,
    progress: Progress | None = None,
    command: Sequence[str] | None = None,
) -> Path:
    """Make a person's own trained student smaller in every way, and certify all its files.

    Args:
        student: `FILE.keras` or `module:function`; trained already.
        data: name of the data set: `npz:FILE`, `tfds:NAME`, `idx:FOLDER`, `digits`, `mnist1d`.
        squeeze: how much to prune and how to quantise; None: the defaults of `Squeeze`.
        teacher: `FILE.keras` or `module:function` to learn from; None: the student as it came.
        out: the folder of all runs; this one goes to `<out>/compress/<run>`.
        name: the run's name; None: the time of day.
        data_dir: where TensorFlow Datasets are prepared.
        validation: share of the training examples that is measured after each epoch, above 0.
        epochs: passes over the training data after pruning.
        batch_size: examples in a step.
        learning_rate: Adam's rate at the start; it falls to 0 as a cosine.
        temperature: T of the distillation loss.
        student_loss_weight: the labels' share of the total loss, 0 to 1.
        progress: hears where the run is; None: silence.
        command: the command line to write down, if there is one.

    Returns:
        The run's folder, as for `compress`; `distilled.keras` is the student as it came.

    Raises:
        ValueError: for models, data or settings that do not fit each other, before training.
    """
    from keras_kd.teachers import fingerprint

    started, progress = records.now(), progress or Progress()
    squeeze = squeeze or Squeeze()
    numbers: dict[str, Any] = {
        "seeds": (0,),
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "temperature": temperature,
        "student_loss_weight": student_loss_weight,
    }
    plans.check_settings(**numbers, distillation_losses=(), distillation_loss_weights=None)
    sources = {"student": student, "teacher": teacher or student}
    for role, source in sources.items():
        user_models.check_source(role, source)
    home = records.writable(Path(out) / "compress")
    path = records.new_path(home, name)
    dataset = lessons.load_data(data, data_dir, validation)
    models = {role: user_models.load_model(role, source) for role, source in sources.items()}
    for role, model in models.items():
        lessons.check(model, role, dataset)
    plan = plans.for_user(
        models["student"],
        dataset,
        student_source=student,
        loss_name=None,
        loss_specs=(),
        loss_weights=None,
        **numbers,
    )
    squeeze.rehearse(models["student"], plan, dataset)
    about = {
        "source": sources["teacher"],
        "fingerprint": fingerprint([models["teacher"]]),
    }
    if sources["teacher"].endswith(".keras"):
        about["sha256"] = records.checksum(Path(sources["teacher"]))
    with records.whole(path) as folder, progress:
        progress.begin(squeeze.stages(plan))
        _tell(
            plan,
            squeeze,
            models["teacher"],
            about,
            models["student"],
            dataset,
            folder,
            progress,
            home=home,
            facts={"recipe": None, "command": command, "started": started},
        )
    return path


def _tell(
    plan: StudentPlan,
    squeeze: Squeeze,
    teacher: keras.Model,
    about_teacher: Mapping[str, Any],
    student: keras.Model | None,
    dataset: Dataset,
    folder: Path,
    progress: Progress,
    *,
    home: Path,
    facts: Mapping[str, Any],
) -> None:
    """Go the whole way with a student (None: distil one first), and write compress.json."""
    compared = lessons.stated(teacher, dataset)
    soft, about_soft = soft_lessons.ask_once(plan, compared, about_teacher, dataset, home, progress)
    histories: dict[str, Any] = {}
    if student is None:
        seed = plan.seeds[0]
        logs = folder / "logs" / "distilled"
        trained = lessons.teach_student(
            "distilled", plan, teacher, dataset, seed, logs, progress, soft
        )
        student, histories["distilled"] = trained.model, _learned(trained)
    squeezing = Squeezing(plan, squeeze, compared if soft is None else soft, dataset, progress)
    models = {"distilled": student}
    for stage, trained in squeezing.stages(student, folder / "logs"):
        models[stage], histories[stage] = trained.model, _learned(trained)
    progress.say("Comparing on the test split …")
    rows = run.measure(plan, compared, {"teacher": teacher, **models}, dataset.test)
    for stage, model in models.items():
        model.save(folder / f"{stage}.keras")
    exports = errands.certify(
        models,
        dataset,
        folder,
        progress,
        formats=squeeze.formats,
        measures=plan.measures,
        teacher=rows["teacher"],
        about={"teacher": about_teacher["fingerprint"], "data": dataset.fingerprint},
    )
    started: datetime.datetime = facts["started"]
    record = {
        "schema": SCHEMA,
        "recipe": facts["recipe"],
        "command": facts["command"],
        "started": started.isoformat(timespec="seconds"),
        "seconds": (records.now() - started).total_seconds(),
        "squeeze": dataclasses.asdict(squeeze),
        "config": plans.config_of(plan),
        "versions": records.versions(),
        "machine": records.machine(),
        "data": records.about_data(dataset),
        "teacher": {**about_teacher, "soft_targets": about_soft, "test": rows["teacher"]},
        "stages": {stage: {**histories.get(stage, {}), "test": rows[stage]} for stage in models},
        "pruning": squeezing.report,
        "exports": exports,
    }
    records.write_json(folder / "compress.json", record)


def _learned(trained: lessons.Trained) -> dict[str, Any]:
    return {"history": trained.history, "seconds": trained.seconds}
