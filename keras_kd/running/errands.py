"""Short errands with models that are there: compare them, export one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_kd.running import lessons, records, user_models
from keras_kd.running.progress import Progress

if TYPE_CHECKING:
    import keras

    from keras_kd.data import Dataset
    from keras_kd.evaluation import Comparison
    from keras_kd.export import Artifact

BATCH = 256
"""Examples in a batch where nothing is trained."""

FORMATS = ("saved_model", "tflite")
"""What a run exports."""

INTEGER = ("tflite_int8", "tflite_uint8")
"""The formats that a quantised student is made for."""


def evaluate(
    teacher: str,
    students: Mapping[str, str],
    data: str,
    *,
    data_dir: str | Path | None = None,
) -> Comparison:
    """Compare students with their teacher on a data set's test split.

    Args:
        teacher: `FILE.keras` or `module:function`.
        students: name -> `FILE.keras` or `module:function`.
        data: name of the data set.
        data_dir: where TensorFlow Datasets are prepared.

    Returns:
        The comparison; it prints as a table.

    Raises:
        ValueError: for a model or data that cannot be read or do not fit each other.
    """
    from keras_kd.evaluation import compare

    dataset = lessons.load_data(data, data_dir, 0.1)
    model = user_models.load_model("teacher", teacher)
    models = {name: user_models.load_model(name, source) for name, source in students.items()}
    for role, one in {"teacher": model, **models}.items():
        lessons.check(one, role, dataset)
    teaching = lessons.stated(model, dataset)
    test = dataset.test.examples  # as arrays: all the labels say what the task is
    return compare(teacher=teaching, students=models, data=test, batch_size=BATCH)


def export(
    model: str,
    data: str,
    out: str | Path,
    *,
    formats: Sequence[str] = FORMATS,
    data_dir: str | Path | None = None,
) -> Mapping[str, Artifact]:
    """Export a model, calibrated on a data set's training split and verified on its test split.

    Args:
        model: `FILE.keras` or `module:function`.
        data: name of the data set.
        out: the folder for the files.
        formats: names of export formats.
        data_dir: where TensorFlow Datasets are prepared.

    Returns:
        format -> artifact, with its path and certificate.

    Raises:
        ValueError: for a model or data that cannot be read, and for a file that does not agree.
    """
    from keras_kd.export import export_student

    folder = records.writable(Path(out))
    dataset = lessons.load_data(data, data_dir, 0.1)
    loaded = user_models.load_model("model", model)
    lessons.check(loaded, "model", dataset)
    return export_student(
        loaded,
        folder,
        formats=formats,
        representative_data=dataset.train.batches(BATCH),
        verification_data=dataset.test.batches(BATCH),
        provenance={"data": dataset.fingerprint},
    )


def ship(
    student: keras.Model, dataset: Dataset, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Export the student in each format; one that cannot be written costs no training.

    Args:
        student: the chosen student.
        dataset: its test split is what the files are verified on.
        folder: the run's folder.
        progress: hears of a format that was refused.

    Returns:
        format -> {"path", "certificate"}, or {"refused": the words}.
    """
    from keras_kd.export import export_student

    exports: dict[str, Any] = {}
    for form in FORMATS:
        progress.say(f"Exporting {form} …")
        try:
            made = export_student(
                student,
                folder,
                formats=[form],
                verification_data=dataset.test.batches(BATCH),
                provenance={"data": dataset.fingerprint, **records.scaling(dataset)},
            )[form]
        except (ValueError, TypeError, RuntimeError) as error:
            exports[form] = {"refused": str(error)}
            progress.say(f"There is no {form} file: {error}")
        else:
            path = Path(made.path).relative_to(folder)
            exports[form] = {"path": path, "certificate": made.certificate}
    return exports


def certify(
    models: Mapping[str, keras.Model],
    dataset: Dataset,
    folder: Path,
    progress: Progress,
    *,
    formats: Sequence[str],
    measures: Callable[[], list[keras.metrics.Metric]],
    teacher: Mapping[str, float],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Export each format from the model that was made for it; one refused costs no other.

    Integer formats come from the model "quantised", where there is one, and carry the ranges that
    it learned; the others come from the last model before it.

    Args:
        models: stage -> model, in the order in which they were made.
        dataset: calibrates with its training split and verifies on its test split.
        folder: where the files go.
        progress: hears of each format.
        formats: names of export formats.
        measures: makes the metrics that the task is judged by, beside accuracy.
        teacher: what the teacher reached, by metric.
        about: provenance to write into each file.

    Returns:
        format -> {"path", "stage", "certificate"}, or {"refused": the words, "stage"}.
    """
    from keras_kd.litert import converting

    with converting.converter():  # its child loads TensorFlow once for all formats
        return {
            form: _certified(form, models, dataset, folder, progress, measures(), teacher, about)
            for form in formats
        }


def _certified(
    form: str,
    models: Mapping[str, keras.Model],
    dataset: Dataset,
    folder: Path,
    progress: Progress,
    metrics: list[keras.metrics.Metric],
    teacher: Mapping[str, float],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Export one format, or say why there is no such file."""
    from keras_kd.export import export_student

    whole = [stage for stage in models if stage != "quantised"][-1]
    stage = "quantised" if form in INTEGER and "quantised" in models else whole
    progress.say(f"Exporting {form} …")
    try:
        made = export_student(
            models[stage],
            folder,
            formats=[form],
            representative_data=dataset.train.batches(BATCH),
            verification_data=dataset.test.batches(BATCH),
            metrics=metrics or None,
            teacher=teacher,
            provenance={**about, **records.scaling(dataset), "stage": stage},
        )[form]
    except (ValueError, TypeError, RuntimeError) as error:
        progress.say(f"There is no {form} file: {error}")
        return {"stage": stage, "refused": str(error)}
    path = Path(made.path).relative_to(folder)
    return {"stage": stage, "path": path, "certificate": made.certificate}
