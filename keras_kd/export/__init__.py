"""Ship a trained student: one file a target, each verified against the Keras model.

A target is one file of this folder and one line of `TARGETS`; TensorFlow is loaded by the first
export, not by this import.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_kd import checks
from keras_kd.export.base import Student, Target, Tolerance

if TYPE_CHECKING:
    import keras

__all__ = ["TARGETS", "Artifact", "Tolerance", "export_student"]

TARGETS = {
    "saved_model": "keras_kd.export.saved_model",
    "tflite": "keras_kd.export.tflite",
}


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A file (or folder) that was verified, and what was seen of it.

    Attributes:
        path: The file, or the folder of a SavedModel. The certificate lies beside it, as
            `<name>.json`.
        certificate: Format, file, bytes, sha256, student, inputs, outputs, ops, tolerance, the
            measures of every output ("verified"), and versions.
    """

    path: Path
    certificate: dict[str, Any]


def export_student(
    student: keras.Model,
    directory: str | os.PathLike,
    formats: Iterable[str] = ("saved_model", "tflite"),
    *,
    verification_data: Any,
    verification_examples: int | None = None,
    tolerance: Tolerance | Mapping[str, Tolerance] | None = None,
    name: str = "student",
) -> dict[str, Artifact]:
    """Write the student in each format, run every file, and keep those that answer as it does.

    Use it when training is over. Each file is written under a temporary name, read back with
    the runtime of its users (`tf.saved_model.load`, LiteRT), run on the verification data and
    compared with the Keras model; only then does it take its place, with a certificate beside it.
    A file that is refused is removed, and an earlier good one stays as it was.

    Files hold float32 weights: a mixed-precision student is rebuilt in float32 first, and that
    form is compared with the student as trained. A `tflite` file takes one example at a time;
    other open axes (`None`) stay open in both formats. Names are those of dict keys,
    `keras.Input(name=...)` and output layers; names that Keras made by counting become "input"
    and "output" ("input_0", "input_1" where there are several).

    Args:
        student: A built `keras.Model`; it is not changed.
        directory: Where to write `saved_model/`, `<name>.tflite` and `saved_model.json`,
            `<name>.tflite.json`. Made with its parents where it does not exist.
        formats: Names out of `keras_kd.export.TARGETS`: "saved_model", "tflite".
        verification_data: A `tf.data.Dataset` (or `PyDataset`) of batches of `x`, `(x, y)` or
            `(x, y, sample_weight)`, or such arrays. `x` and `y` may be dicts or lists. With labels
            the certificate also holds the task metric of the file and of the Keras model. A
            subclassed student takes its input shapes and types from here.
        verification_examples: Verify on so many examples, the first ones. Default `None`: all.
        tolerance: How far a file may be off: one `Tolerance`, or a dict of format to `Tolerance`.
            Default: each format's own, 1e-4 of the largest output and 99.9% equal decisions.
        name: Name of the single-file formats, without an ending. Default "student".

    Returns:
        A dict of format to `Artifact`.

    Raises:
        ValueError: "does not answer as the student does", "does not decide as the student does",
            "answers NaN or infinity", "cannot be expressed in TFLite's builtin operators",
            "cannot be written to", "no export format", "has not been built", "is not a Keras
            model", and others for verification data that does not fit.
        TypeError: "`formats` must be a list of names", "`tolerance` must be".

    Example:
        ```python
        import tempfile

        import keras
        import numpy as np

        import keras_kd as kd

        x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        student = keras.Sequential([keras.Input((4,), name="features"), keras.layers.Dense(3)])
        with tempfile.TemporaryDirectory() as folder:
            artifacts = kd.export_student(student, folder, ["tflite"], verification_data=x)
            print(artifacts["tflite"].certificate["verified"]["outputs"]["output"]["agreement"])
        ```
    """
    from keras_kd.export import verify

    targets = _targets(formats)
    tolerances = _tolerances(tolerance, targets)
    _check_student(student)
    examples = verify.Examples(verification_data, verification_examples)
    first = examples.first()
    folder = _folder(directory)
    finals = {format: _free(folder, target, name) for format, target in targets.items()}
    seen, about = _prepared(student, first, examples)
    return {
        format: _export(format, target, finals[format], seen, about, examples, tolerances[format])
        for format, target in targets.items()
    }


def _prepared(student: keras.Model, first: Any, examples: Any) -> tuple[Student, dict[str, Any]]:
    """See the student as named tensors, in float32, and say who it is."""
    from keras_kd.export import float32, verify

    as_trained = Student(student, first)
    about = {
        "name": student.name,
        "class": type(student).__name__,
        "parameters": student.count_params(),
    }
    clone = float32.clone_of(student, first)
    if clone is None:
        return as_trained, about
    seen = Student(clone, first, named_by=student)
    report = verify.compare(seen.run, as_trained.run, seen, examples)
    verify.judge(
        report,
        float32.tolerance(student),
        what="The float32 form of the student",
        fix="build the student in float32, load its weights into it, and export that.",
    )
    return seen, about | {"rebuilt_in_float32_from": sorted(float32.types(student)), **report}


def _export(
    format: str,
    target: Target,
    final: Path,
    student: Student,
    about: dict[str, Any],
    examples: Any,
    tolerance: Tolerance,
) -> Artifact:
    """Write one file out of sight, verify it there, and put it in its place."""
    from keras_kd.export import verify

    with tempfile.TemporaryDirectory(prefix=".export-", dir=final.parent) as scratch:
        new = Path(scratch) / final.name
        target.write(student, new)
        opened = target.open(new)
        report = verify.compare(opened.run, student.run, student, examples)
        verify.judge(
            report,
            tolerance,
            what=f"The {format} file",
            fix=f"where that is good enough, pass tolerance={{{format!r}: export.Tolerance(...)}}; "
            "else look for layers that compute differently there.",
        )
        certificate = {
            "format": format,
            "file": final.name,
            "bytes": sum(path.stat().st_size for path in _files(new)),
            "sha256": _sha256(new),
            "student": about,
            "inputs": opened.inputs,
            "outputs": opened.outputs,
            "ops": opened.ops,
            "tolerance": dataclasses.asdict(tolerance),
            "verified": report,
            "versions": verify.versions(),
        }
        note = Path(scratch) / f"{final.name}.json"
        note.write_text(json.dumps(certificate, indent=2) + "\n", encoding="utf-8")
        _put(new, final, scratch)
        _put(note, final.with_name(note.name), scratch)
    return Artifact(final, certificate)


def _targets(formats: Iterable[str]) -> dict[str, Target]:
    if isinstance(formats, str) or not isinstance(formats, Iterable):
        raise checks.bad_type(
            "`formats` must be a list of names.",
            given=repr(formats),
            expected=f"a list out of {', '.join(TARGETS)}",
            fix=f"write formats=[{formats!r}].",
        )
    names = list(dict.fromkeys(formats))
    for name in names:
        if name not in TARGETS:
            raise checks.unknown_name("export format", name, TARGETS)
    if not names:
        raise checks.bad_value(
            "`formats` is empty.",
            given="no format",
            expected=f"one or more of {', '.join(TARGETS)}",
            fix="leave it out to write all of them.",
        )
    return {name: importlib.import_module(TARGETS[name]).TARGET for name in names}


def _tolerances(
    tolerance: Tolerance | Mapping[str, Tolerance] | None, targets: Mapping[str, Target]
) -> dict[str, Tolerance]:
    defaults = {format: target.tolerance for format, target in targets.items()}
    if isinstance(tolerance, Tolerance):
        return dict.fromkeys(defaults, tolerance)
    given = {} if tolerance is None else tolerance
    if not isinstance(given, Mapping) or not all(isinstance(t, Tolerance) for t in given.values()):
        raise checks.bad_type(
            "`tolerance` must be a Tolerance or a dict of format to Tolerance.",
            given=repr(tolerance),
            expected="Tolerance(max_difference=..., agreement=...)",
            fix="write tolerance=keras_kd.export.Tolerance(max_difference=1e-3).",
        )
    for format in given:
        if format not in defaults:
            raise checks.unknown_name("format to write with the tolerance", format, defaults)
    return defaults | dict(given)


def _check_student(student: Any) -> None:
    import keras

    if not isinstance(student, keras.Model):
        raise checks.bad_value(
            "`student` is not a Keras model.",
            given=f"{student!r} ({type(student).__name__})",
            expected="a keras.Model: Functional, Sequential or subclassed",
            fix="pass the model itself, for example distiller.student.",
        )
    if not student.built:
        raise checks.bad_value(
            "The student has not been built, so it has no weights to export.",
            given=f"{type(student).__name__} {student.name!r}, never called",
            expected="a trained model",
            fix="fit it, load its weights, or call it once on a batch.",
        )


def _folder(directory: str | os.PathLike) -> Path:
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise checks.bad_value(
            f"The folder {str(folder)!r} cannot be written to.",
            given=str(error),
            expected="a folder that exists or can be made, with the right to write",
            fix="choose another `directory`, or change its rights.",
        ) from error


def _free(folder: Path, target: Target, name: str) -> Path:
    """Return where the file goes, unless something that is not ours lies there."""
    if not name or Path(name).name != name or name.startswith("."):
        raise checks.bad_value(
            "`name` must be a plain file name.",
            given=repr(name),
            expected="a name without folders and ending, not starting with a dot",
            fix='write name="student", and the folder as `directory`.',
        )
    final = folder / target.file.format(name=name)
    ours = (final / "saved_model.pb").exists() if final.is_dir() else True
    if not ours:
        raise checks.bad_value(
            f"{str(final)!r} is in the way.",
            given="a folder that is no SavedModel",
            expected="nothing there, or an earlier export",
            fix="move it away, or choose another `directory`.",
        )
    return final


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _sha256(path: Path) -> str:
    """Hash a file; of a folder, hash the lines "<sha256>  <relative path>" in order."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    lines = [f"{_sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in _files(path)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _put(new: Path, final: Path, scratch: str) -> None:
    """Sync a finished file or folder to disk and give it its name in one step."""
    for path in [*_files(new), *([new] if new.is_dir() else [])]:
        _sync(path)
    old = Path(scratch) / f"{final.name}.old"
    if final.is_dir():  # a folder is not replaced in one step: the old one steps aside
        os.rename(final, old)
    try:
        os.replace(new, final)
    except OSError:
        if old.exists():
            os.rename(old, final)
        raise
    if old.exists():
        shutil.rmtree(old)
    _sync(final.parent)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
