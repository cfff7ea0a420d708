"""The work of `SoftTargets.build`: ask for what is missing, and write it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_kd
from keras_kd import checks
from keras_kd.soft_targets import files
from keras_kd.soft_targets.asking import AskedFunction, AskedModel, asked
from keras_kd.soft_targets.examples import Batch, Examples, description
from keras_kd.soft_targets.keeping import Keeping, refuse_faults
from keras_kd.soft_targets.layout import FINGERPRINT_BYTES, Layout
from keras_kd.soft_targets.progress import Told
from keras_kd.soft_targets.store import BUILDING, MANIFEST, Store
from keras_kd.soft_targets.writing import Writer, rows_per_shard

Batches = Iterable[tuple[np.ndarray, Callable[[], np.ndarray]]]
"""Fingerprints of a batch, and a function that gives its rows where they are wanted."""
SETTINGS = (
    "layers",
    "top_k",
    "temperatures",
    "dtype",
    "batch_size",
    "shard",
    "kinds",
    "activation",
    "layout",
)
CLOSE = 0.05  # of the largest number: the same teacher on another machine is nearer


def build(
    teacher: Any,
    dataset: Any,
    directory: Path,
    *,
    keeping: Keeping,
    batch_size: int,
    shard: tuple[int, int] | None,
    outputs: Any,
    activation: str,
    fingerprint: str | None,
    batched: bool | None,
    verbose: bool,
) -> None:
    """Do the work of `SoftTargets.build`, whose arguments these are."""
    teacher = asked(teacher, keeping, outputs, activation, fingerprint)
    examples = Examples(dataset, batch_size, shard, batched, teacher.takes)
    first, stream = examples.first()
    signature = examples.signature(first.inputs)
    layout, kept = teacher.begin(first.inputs, signature)
    offset, step = shard or (0, 1)

    def rows(kept: Any, names: np.ndarray, start: int) -> np.ndarray:
        refuse_faults(kept, layout, keeping.dtype, lambda row: offset + step * (start + row))
        return _as_bytes(layout.rows_of(names, kept.teacher))

    head = rows(kept, first.names, 0)

    def later(batch: Batch, start: int) -> Callable[[], np.ndarray]:
        return lambda: rows(teacher(batch.inputs), batch.names, start) if start else head

    def batches() -> Iterator[tuple[np.ndarray, Callable[[], np.ndarray]]]:
        start = 0
        for batch in stream:
            yield batch.names, later(batch, start)
            start += len(batch.names)

    pairs = zip(*map(keras.tree.flatten, (first.inputs, signature)), strict=True)
    inputs = [description(leaf.numpy(), tuple(spec.shape)[1:]) for leaf, spec in pairs]
    plan = _plan(teacher, layout, batch_size, shard, inputs)
    told = Told("soft targets", examples.total, verbose)
    total = examples.total if examples.total_is_sure else None
    write(directory, plan, batches(), head, told, total)


def write(
    directory: Path,
    plan: Mapping[str, Any],
    batches: Batches,
    head: np.ndarray,
    told: Told,
    total: int | None,
) -> None:
    """Fill a folder with rows, go on with it, or see that it is complete.

    Args:
        directory: the folder.
        plan: what decides about the bytes, and where they come from.
        batches: the fingerprints of each batch, and a function that gives its rows.
        head: the rows of the first batch.
        told: who hears how far it is.
        total: the number of rows, where it is known for sure.

    Raises:
        ValueError: "… holds another build", "The data is not what the build in … began with".
    """
    with told:
        if (directory / MANIFEST).is_file() and not (directory / BUILDING).exists():
            return _see_that_it_is_the_same(directory, plan, batches, head, told)
        with Writer(directory) as writer:
            if writer.is_complete:
                return _see_that_it_is_the_same(directory, plan, batches, head, told)
            old = writer.planned
            writer.begin(plan, told.total_in_words(sure=total is not None))
            if old is not None:
                stored = writer.stored(0) if writer.kept else None
                _refuse_other(directory, old, plan, stored, head)
            data = _fill(writer, plan, batches, told)
            writer.finish(data)
        told.end(directory, Store.open(directory).bytes)
    return None


def _fill(writer: Writer, plan: Mapping[str, Any], batches: Batches, told: Told) -> str:
    """Write what is missing; return the fingerprint of all the data."""
    data, seen = files.checksum(), 0
    for number, (names, rows) in enumerate(batches):
        data.update(np.ascontiguousarray(names))
        kept = number < writer.kept
        if kept:
            start = number * writer.batch_size
            _refuse_other_names(writer.directory, plan, writer.stored(number), names, start)
        else:
            writer.append(rows())
        told.advance(len(names), kept=kept)
        seen += 1
    if seen < writer.kept:
        raise _other_data(writer.directory, plan, seen * writer.batch_size)
    return data.hexdigest()


def _see_that_it_is_the_same(
    directory: Path, plan: Mapping[str, Any], batches: Batches, head: np.ndarray, told: Told
) -> None:
    """Accept a complete store of the same build, or refuse it; read the data to its end."""
    store = Store.open(directory)
    stored = store.rows(np.arange(min(len(head), store.count)))
    _refuse_other(directory, store.manifest["build"], plan, stored, head)
    row = 0
    for names, _ in batches:
        stored = store.rows(np.arange(row, min(row + len(names), store.count)))
        _refuse_other_names(directory, plan, stored, names, row)
        row += len(names)
        told.advance(len(names), kept=False)
    if row < store.count:
        raise _other_data(directory, plan, row)
    told.say(f"{directory} is already complete: {store.count:,} examples")


def _refuse_other_names(
    directory: Path, plan: Mapping[str, Any], stored: np.ndarray, names: np.ndarray, start: int
) -> None:
    """Refuse examples that are not those of the stored rows from `start` on."""
    both = min(len(stored), len(names))
    others = (stored[:both, :FINGERPRINT_BYTES] != names[:both]).any(axis=1)
    if others.any():
        raise _other_data(directory, plan, start + int(others.argmax()))
    if len(stored) != len(names):
        raise _other_data(directory, plan, start + both)


def _refuse_other(
    directory: Path,
    old: Mapping[str, Any],
    plan: Mapping[str, Any],
    stored: np.ndarray | None,
    head: np.ndarray,
) -> None:
    """Refuse to go on with a build of other settings, data or teacher than this one."""
    changed = [key for key in SETTINGS if setting(old, key) != setting(plan, key)]
    if changed:
        differ = [
            f"{key}={setting(plan, key)!r:.60} (there: {setting(old, key)!r:.60})"
            for key in changed
        ]
        raise _other_build(directory, "; ".join(differ))
    if stored is not None:
        _refuse_other_names(directory, plan, stored, head[:, :FINGERPRINT_BYTES], 0)
    if old["teacher"]["fingerprint"] != plan["teacher"]["fingerprint"]:
        mine, theirs = (
            f"{side['teacher']['name']!r}, fingerprint {side['teacher']['fingerprint']:.12}"
            for side in (plan, old)
        )
        raise _other_build(directory, f"teacher {mine} (there: {theirs})", plan)
    if stored is not None and not _agree(stored, head, Layout.from_json(plan["layout"])):
        given = f"teacher {plan['teacher']['name']!r} of the same weights, with other answers"
        raise _other_build(directory, given, plan)


def setting(build: Mapping[str, Any], key: str) -> Any:
    """Look one of `SETTINGS` up in a plan."""
    return build["answer"][key] if key in ("kinds", "activation") else build[key]


def _agree(stored: np.ndarray, head: np.ndarray, layout: Layout) -> bool:
    """Say whether a teacher answers as it did, but for rounding."""
    old, new = (rows.view(layout.record)[:, 0] for rows in (stored, head))
    for number, column in enumerate(layout.columns):
        if not column.dtype.startswith("float"):
            continue
        was, now = (rows[str(number)].astype(np.float64) for rows in (old, new))
        if np.abs(was - now).max(initial=0.0) > CLOSE * np.abs(was).max(initial=0.0):
            return False
    return True


def _other_build(directory: Path, given: str, plan: Mapping[str, Any] | None = None) -> ValueError:
    fix = "build into another folder, or delete this one."
    if plan is not None and plan["teacher"]["function"]:
        fix += (
            " A function is known by its answers to the first batch; where these differ a little "
            'from run to run, name it: fingerprint="my model, version 1".'
        )
    return checks.bad_value(
        f"{directory} holds another build.",
        given=given,
        expected="the teacher and the settings that it was begun with",
        fix=fix,
    )


def _other_data(directory: Path, plan: Mapping[str, Any], row: int) -> ValueError:
    offset, step = plan["shard"] or (0, 1)
    return checks.bad_value(
        f"The data is not what the build in {directory} began with.",
        given=f"other data from example {offset + step * row:,} on, or another number of examples",
        expected="the same examples in the same order",
        fix="build from the same data or into another folder, or delete this one.",
    )


def _plan(
    teacher: AskedModel | AskedFunction,
    layout: Layout,
    batch_size: int,
    shard: tuple[int, int] | None,
    inputs: list[dict[str, Any]],
) -> dict[str, Any]:
    """Write down what decides about the bytes, and where they come from."""
    keeping = teacher.keeping
    versions = {
        "keras": keras.__version__,
        "keras_kd": keras_kd.__version__,
        "tensorflow": tf.__version__,
    }
    return {
        "teacher": {
            "name": teacher.name,
            "fingerprint": teacher.fingerprint(),
            "function": teacher.is_function,
        },
        "answer": {
            "kinds": teacher.kinds,
            "names": teacher.names,
            "structure": teacher.structure,
            "activation": teacher.activation,
        },
        "inputs": inputs,
        "layers": list(keeping.layers),
        "top_k": keeping.top_k,
        "temperatures": list(keeping.temperatures) if keeping.top_k else None,
        "dtype": keeping.dtype,
        "batch_size": batch_size,
        "shard": None if shard is None else list(shard),
        "layout": layout.to_json(),
        "rows_per_shard": rows_per_shard(batch_size, layout.row_bytes),
        "versions": versions,
    }


def _as_bytes(records: np.ndarray) -> np.ndarray:
    return records.view(np.uint8).reshape(len(records), -1)
