"""Errands with stores of soft targets: build one of named data, check it, merge several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_kd import checks
from keras_kd.data.arrays import whole
from keras_kd.running import lessons, records, user_models

if TYPE_CHECKING:
    import keras

    from keras_kd.data import Dataset
    from keras_kd.soft_targets import SoftTargets
    from keras_kd.soft_targets.targets import Info
    from keras_kd.teachers import Teacher

MANIFEST = "manifest.json"


class Damaged(ValueError):
    """A store whose bytes are not those that were written."""


def check_build(
    *,
    top_k: int | None,
    temperatures: Sequence[float],
    batch_size: int,
    validation: float,
    shard: str | None,
) -> tuple[int, int] | None:
    """Refuse numbers that a store cannot be built with, before anything loads.

    Args:
        top_k: how many logits to keep, or None for all.
        temperatures: each T to keep for `top_k`.
        batch_size: how many examples the teacher is asked at once.
        validation: the share of the training examples that is not in the train split.
        shard: "I/N", such as "0/4", or None.

    Returns:
        The shard as two numbers, or None.

    Raises:
        ValueError: "`top_k` …", "`temperatures` …", "`batch_size` …", "The shard … cannot be read".
    """
    if top_k is not None:
        whole("top_k", top_k, at_least=1)
    whole("batch_size", batch_size, at_least=1)
    checks.fraction("validation", validation, open_ends=True)
    for temperature in temperatures:
        checks.positive("temperatures", temperature)
    if top_k is None and tuple(temperatures) != (1.0,):
        raise checks.bad_value(
            "`temperatures` belongs to `top_k`: all logits serve at any temperature.",
            given=f"temperatures {tuple(temperatures)}, and no top_k",
            expected="temperatures with --top-k",
            fix="leave --temperatures out, or pass --top-k.",
        )
    return None if shard is None else _shard(shard)


def build(
    teachers: Sequence[str],
    data: str,
    out: str | Path,
    *,
    split: str = "train",
    data_dir: str | Path | None = None,
    validation: float = 0.1,
    outputs: str = "auto",
    activation: str = "softmax",
    **settings: Any,
) -> SoftTargets:
    """Ask a teacher for every example of one split of named data, and keep the answers.

    The split is the very one that `keras_kd.run.distill` uses with the same share for validation.

    Args:
        teachers: `FILE.keras` or `module:function`; several are asked as an ensemble.
        data: name of the data set.
        out: the folder of the store.
        split: "train", "validation" or "test".
        data_dir: where TensorFlow Datasets are prepared.
        validation: the share of the training examples that is drawn for validation.
        outputs: what the teachers answer, as in `kd.Teacher`; "auto": values where the labels are
            values, and else by the last activation and the first examples.
        activation: "softmax" or "sigmoid", as in `kd.Teacher`.
        **settings: for `SoftTargets.build`: layers, top_k, temperatures, dtype, …

    Returns:
        The complete store, opened.

    Raises:
        ValueError: for teachers or data that cannot be read or do not fit each other, and what
            `SoftTargets.build` refuses.
    """
    from keras_kd.soft_targets import SoftTargets
    from keras_kd.teachers import EnsembleTeacher

    out = Path(out)
    records.writable(out.parent)
    dataset = lessons.load_data(data, data_dir, validation)
    members = [
        _said(user_models.load_model("teacher", source), dataset, outputs, activation)
        for source in teachers
    ]
    teacher = members[0] if len(members) == 1 else EnsembleTeacher(members, activation=activation)
    return SoftTargets.build(teacher, getattr(dataset, split).x, out, **settings)


def info(folder: str | Path, *, every_byte: bool = False) -> Info:
    """Say what a store holds, having checked its manifest and files.

    Args:
        folder: the folder of a store.
        every_byte: whether to read all of it and compare it with its checksums.

    Returns:
        What the store holds; it prints as a list.

    Raises:
        Damaged: "… is damaged", with the file and the rows in it.
        ValueError: "There is no store …", "… is not complete".
    """
    from keras_kd.soft_targets import SoftTargets

    is_complete = (Path(folder) / MANIFEST).is_file()
    try:
        soft = SoftTargets(folder)
        return soft.verify() if every_byte else soft.info()
    except ValueError as error:
        if is_complete:
            raise Damaged(str(error)) from error
        raise


def check_folders(folders: Sequence[Path]) -> None:
    """Refuse folders that are not there, before anything loads.

    Raises:
        ValueError: "There is no folder …".
    """
    for folder in folders:
        if not folder.is_dir():
            raise checks.bad_value(
                f"There is no folder {str(folder)!r}.",
                given=str(folder),
                expected="the folder of a store of soft targets",
                fix="check the path; `keras-kd soft-targets build` makes a store.",
            )


def _said(model: keras.Model, dataset: Dataset, outputs: str, activation: str) -> Teacher:
    """Make a teacher that says what it answers: as a person said, or as the labels do."""
    from keras_kd.teachers import Teacher

    if outputs != "auto":
        user_models.first_outputs("teacher", model, dataset.train)
        return Teacher(model, outputs=outputs, activation=activation)
    lessons.check(model, "teacher", dataset)
    teacher = lessons.stated(model, dataset)
    return teacher if isinstance(teacher, Teacher) else Teacher(teacher, activation=activation)


def _shard(text: str) -> tuple[int, int]:
    """Read I/N."""
    first, slash, count = text.partition("/")
    if not (slash and first.isdecimal() and count.isdecimal() and int(first) < int(count)):
        raise checks.bad_value(
            f"The shard {text!r} cannot be read.",
            given=text,
            expected="I/N with 0 <= I < N",
            fix="write --shard 0/4 for the first of four parts.",
        )
    return int(first), int(count)
