"""What a run leaves on the disk: whole folders, trained teachers to use again, and its record.

A folder made here appears under its name when everything in it is written, or not at all. What
is read back is checked against its checksum first.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_kd import __version__, checks

if TYPE_CHECKING:
    import keras

    from keras_kd.data import Dataset
    from keras_kd.recipes import Recipe

SCHEMA = 1
"""The version of run.json's layout; it changes when a field changes its meaning or goes."""

PACKAGES = (
    "keras",
    "tensorflow",
    "numpy",
    "ai-edge-litert",
    "scikit-learn",
    "tensorboard",
    "tensorflow-datasets",
)
KEPT = ("teachers", "soft_targets")
"""Folders beside the runs, with what the next run takes again."""

TEACHER_FIELDS = ("batch_size", "teacher_epochs", "teacher_learning_rate", "limit")
STUDENT_METHODS = (
    "student",
    "student_augmentation",
    "distillation_losses",
    "distillation_loss_weights",
    "measures",
)


def writable(folder: Path) -> Path:
    """Make a folder and try to write into it, so that a long training cannot end at a closed door.

    Args:
        folder: the folder for results; it and its parents are made.

    Returns:
        The same folder.

    Raises:
        ValueError: "The folder ... cannot be written to.", with what the system says.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise checks.bad_value(
            f"The folder {str(folder)!r} cannot be written to.",
            given=f"{folder} ({error.strerror})",
            expected="a folder that this user may write to",
            fix="choose another one with --out (in Python: out=...).",
        ) from error
    return folder


def new_path(parent: Path, name: str | None) -> Path:
    """Choose the folder of a new run: the given name, or the time of day.

    Args:
        parent: the folder that holds the runs.
        name: the run's name, or None for one like `2026-11-24T101500`.

    Returns:
        A path that does not exist yet.

    Raises:
        ValueError: "There is a run ... already.", or "`name` must be the name of a folder."
    """
    if name is None:
        stamp = datetime.datetime.now().strftime("%Y-%m-%dT%H%M%S")
        taken = sum(1 for path in parent.glob(f"{stamp}*"))
        return parent / (f"{stamp}-{taken + 1}" if taken else stamp)
    if name in ("", *KEPT) or name.startswith(".") or Path(name).name != name:
        raise checks.bad_value(
            "`name` must be the name of a folder.",
            given=repr(name),
            expected="a name without slashes and without a dot in front, and not "
            + " or ".join(map(repr, KEPT)),
            fix="pass, for example, name='first-try', and the place for all runs with out=...",
        )
    if (parent / name).exists():
        raise checks.bad_value(
            f"There is a run {name!r} already.",
            given=str(parent / name),
            expected="the name of a new run",
            fix="choose another name, or move the old run away.",
        )
    return parent / name


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Fill a folder that appears under its name only when all of it is written.

    Args:
        path: the folder to make; it must not exist.

    Yields:
        A temporary folder beside it, to write into. When the block ends well, its files are
        flushed to the disk and it is renamed; after an error or Ctrl-C it is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                _flush(file)
        temporary.chmod(0o755)
        temporary.rename(path)
        _flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all; NaN and infinity become their names.

    Args:
        path: the file.
        content: a mapping of what JSON knows, NumPy numbers, paths and tuples.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    text = json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    temporary.write_text(text + "\n", encoding="utf-8")
    _flush(temporary)
    temporary.replace(path)


def plain(value: Any) -> Any:
    """Turn what a run knows (NumPy numbers, paths, tuples, dataclasses) into JSON's own types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    if type(value).__module__.split(".")[0] == "numpy":
        return plain(value.tolist())
    return str(value)


def checksum(file: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def teacher_key(recipe: Recipe, dataset: Dataset, teacher: keras.Model, seed: int) -> str:
    """Hash everything that decides what a recipe's trained teacher is.

    That is the data, the untrained network with its first weights, the recipe's numbers for the
    teacher, the code of the recipe's file without what serves the student only, the seed, and
    the versions of the packages that compute.

    Args:
        recipe: the recipe.
        dataset: its prepared data.
        teacher: the network, built and untrained.
        seed: what its first weights and the order of its data come from.

    Returns:
        16 hexadecimal digits, the same in every process.
    """
    from keras_kd.teachers import fingerprint

    material = {
        "data": dataset.fingerprint,
        "examples": len(dataset.train),
        "network and first weights": fingerprint([teacher]),
        "numbers": {name: getattr(recipe, name) for name in TEACHER_FIELDS},
        "code": teacher_code(recipe),
        "seed": seed,
        "versions": {name: versions()[name] for name in ("keras", "tensorflow", "numpy")},
    }
    return hashlib.sha256(json.dumps(plain(material), sort_keys=True).encode()).hexdigest()[:16]


def teacher_code(recipe: Recipe) -> str:
    """Return the code of a recipe's file that can decide its teacher, without its words.

    Docstrings, comments, and the methods for the student only are left out, so that changing
    them does not train the teacher again. Where Python cannot see the code, this is empty.
    """
    try:
        source = inspect.getsource(sys.modules[type(recipe).__module__])
    except (OSError, TypeError):
        return ""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [part for part in node.body if not _is_for_people(part)]
        if isinstance(node, ast.ClassDef):
            node.body = [part for part in node.body if not _is_for_students(part)]
    return ast.dump(tree)


def save_teacher(folder: Path, teacher: keras.Model, record: Mapping[str, Any], logs: Path) -> None:
    """Keep a trained teacher for the next run: its model, record and logs, whole or not at all.

    Args:
        folder: the folder to make.
        teacher: the trained model.
        record: what to remember (history, seconds).
        logs: its TensorBoard logs; they are copied.
    """
    shutil.rmtree(folder, ignore_errors=True)
    with whole(folder) as temporary:
        teacher.save(temporary / "teacher.keras")
        shutil.copytree(logs, temporary / "logs")
        digest = checksum(temporary / "teacher.keras")
        write_json(temporary / "teacher.json", {"schema": SCHEMA, "sha256": digest, **record})


def load_teacher_record(folder: Path) -> dict[str, Any] | None:
    """Read the record of a kept teacher, if it is there and its model is what was written.

    Args:
        folder: where `save_teacher` put it.

    Returns:
        The record; None where there is no teacher, or its checksum does not fit.
    """
    file, model = folder / "teacher.json", folder / "teacher.keras"
    if not (file.is_file() and model.is_file()):
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    if record.get("schema") != SCHEMA or record.get("sha256") != checksum(model):
        return None
    return record


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version(), "keras-kd": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Return what a time depends on: processors, system and accelerators; no names of hosts."""
    import tensorflow as tf

    devices = tf.config.list_physical_devices()
    return {
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "accelerators": [d.device_type for d in devices if d.device_type != "CPU"],
    }


def about_data(dataset: Dataset) -> dict[str, Any]:
    """Say which data it was."""
    return {
        "name": dataset.name,
        "fingerprint": dataset.fingerprint,
        "train": len(dataset.train),
        "validation": len(dataset.validation),
        "test": len(dataset.test),
        "classes": dataset.classes,
        **scaling(dataset),
    }


def scaling(dataset: Dataset) -> dict[str, Any]:
    """Say how the inputs were standardised, where they were."""
    if dataset.scaling is None:
        return {}
    scale, offset = dataset.scaling
    return {"standardised": {"scale": list(scale), "offset": list(offset)}}


def now() -> datetime.datetime:
    """Return the time, with its zone."""
    return datetime.datetime.now(datetime.UTC)


def spread(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Summarise one row of numbers a seed.

    Args:
        rows: for each seed, metric -> value.

    Returns:
        metric -> {"mean": mean, "sd": the sample's standard deviation, None for one seed}, for
        what is a number in every row.
    """
    summary: dict[str, dict[str, float | None]] = {}
    for name in rows[0] if rows else ():
        values = [row.get(name) for row in rows]
        numbers = [float(v) for v in values if isinstance(v, int | float)]
        if len(numbers) == len(rows):
            sd = statistics.stdev(numbers) if len(numbers) > 1 else None
            summary[name] = {"mean": statistics.fmean(numbers), "sd": sd}
    return summary


def arm(
    name: str, seeds: Sequence[int], students: Mapping[str, Any], rows: Mapping[str, Any]
) -> dict[str, Any]:
    """Gather what one arm (alone or distilled) did over the seeds.

    Args:
        name: "alone" or "distilled".
        seeds: the seeds, in order.
        students: `<name>-seed<seed>` -> trained student with `history` and `seconds`.
        rows: split -> `<name>-seed<seed>` -> metric -> number.

    Returns:
        "per_seed" with every number and history, "validation" and "test" with mean and sd.
    """
    per_seed = {}
    for seed in seeds:
        key = f"{name}-seed{seed}"
        trained = students[key]
        measured = {split: found[key] for split, found in rows.items()}
        history = {"history": trained.history, "seconds": trained.seconds}
        per_seed[str(seed)] = {**measured, **history}
    summary = {split: spread([row[split] for row in per_seed.values()]) for split in rows}
    return {**summary, "per_seed": per_seed}


def _flush(path: Path) -> None:
    """Ask the system to put a file or a folder's list on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_for_people(node: ast.stmt) -> bool:
    """Say whether a statement is a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_for_students(node: ast.stmt) -> bool:
    """Say whether a part of a recipe's class cannot reach the teacher: fields count by value."""
    if isinstance(node, ast.FunctionDef):
        return node.name in STUDENT_METHODS
    return isinstance(node, ast.AnnAssign)
