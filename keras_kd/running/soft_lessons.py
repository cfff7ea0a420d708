"""The teacher of a run asked once: its answers to the training split, kept for every seed."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_kd.running import records
from keras_kd.running.progress import Progress

if TYPE_CHECKING:
    import keras
    import numpy as np

    from keras_kd.data import Dataset, Split
    from keras_kd.running.plans import StudentPlan
    from keras_kd.soft_targets import SoftTargets
    from keras_kd.teachers import Teacher

LARGEST = 2 * 10**9
"""The most bytes that are kept; a teacher with more to say is asked anew in each step."""

FIRST = 64
"""How many examples are looked at to see how much there is to keep, and whether it is kept."""

CLOSE = 1e-3
"""Kept answers are those of this teacher where they differ by no more, of the largest number:
the same network on another machine is nearer."""


def ask_once(
    plan: StudentPlan,
    teacher: keras.Model | Teacher,
    about: Mapping[str, Any],
    dataset: Dataset,
    home: Path,
    progress: Progress,
) -> tuple[SoftTargets | None, dict[str, Any] | None]:
    """Keep the teacher's answers to the training split, or take those that a run before kept.

    They are float32 and whole: outputs, and the layers that the losses name. So a student learns
    from them what it would learn from the teacher itself, but for rounding. What is kept is read
    to its end and compared with the teacher before it is used; where it does not fit, it is made
    again.

    Args:
        plan: the student and its losses.
        teacher: the trained teacher, its values stated.
        about: what decides what the teacher is: its key, its file's checksum or its source.
        dataset: the prepared data.
        home: the folder of the recipe's runs; the answers go to `soft_targets/<key>` in it.
        progress: hears where they are, or why there are none.

    Returns:
        The answers, and what to write down about them. None and None where `plan.soft_targets` is
        off, where the student's batches are changed (the teacher looks at each changed batch), and
        where they would take more than `LARGEST` bytes.
    """
    if not plan.soft_targets or plan.student_augmentation() is not None:
        return None, None
    started = time.monotonic()
    paths = _layers(plan)
    first = _first_answers(teacher, paths, dataset.train)
    size = len(dataset.train) * (8 + sum(4 * math.prod(a.shape[1:]) for a in first))
    if size > LARGEST:
        progress.say(
            f"The teacher is asked anew in each step: its answers would take {size / 1e9:,.1f} GB, "
            f"and at most {LARGEST / 1e9:,.0f} GB are kept."
        )
        return None, None
    folder = home / "soft_targets" / _key(about, dataset, paths)
    soft = _kept(folder, first, paths)
    was_kept = soft is not None
    if soft is None:
        soft = _keep(folder, teacher, dataset.train, paths)
    info, seconds = soft.info(), time.monotonic() - started
    progress.say(
        f"The teacher's answers are taken from {folder}."
        if was_kept
        else f"The teacher's answers are stored once: {info['examples']:,} examples, "
        f"{info['bytes'] / 1e6:,.1f} MB, {seconds:,.1f} s, in {folder}."
    )
    record = {"path": f"../soft_targets/{folder.name}", "kept": was_kept, "seconds": seconds}
    return soft, record | {name: info[name] for name in ("bytes", "examples")}


def _layers(plan: StudentPlan) -> list[str]:
    """List the teacher's layers that the losses name, each once."""
    from keras_kd.connections import Connections

    connections = Connections(plan.distillation_losses(), plan.distillation_loss_weights())
    return list(dict.fromkeys(connections.teacher_paths))


def _first_answers(
    teacher: keras.Model | Teacher, paths: Sequence[str], split: Split
) -> list[np.ndarray]:
    """Ask the teacher for the first examples: its outputs in log space, then the layers."""
    import keras

    from keras_kd.teachers import as_teacher

    x = keras.tree.map_structure(lambda array: array[:FIRST], split.x)
    attached = as_teacher(teacher).attached(paths)
    attached.learn(attached(x).raw)
    answer = attached(x)
    found = [*keras.tree.flatten(answer.outputs), *(answer.features[path] for path in paths)]
    return [keras.ops.convert_to_numpy(one) for leaf in found for one in keras.tree.flatten(leaf)]


def _key(about: Mapping[str, Any], dataset: Dataset, paths: Sequence[str]) -> str:
    """Hash what decides what the answers are; the name of the folder."""
    from keras_kd.soft_targets.store import FORMAT

    who = next(about[name] for name in ("key", "sha256", "source") if name in about)
    material = {
        "teacher": [who, about["fingerprint"]],
        "data": dataset.fingerprint,
        "examples": len(dataset.train),
        "layers": list(paths),
        "format": FORMAT,
        "versions": {name: records.versions()[name] for name in ("keras", "tensorflow")},
    }
    return hashlib.sha256(json.dumps(material, sort_keys=True).encode()).hexdigest()[:16]


def _kept(folder: Path, first: Sequence[np.ndarray], paths: Sequence[str]) -> SoftTargets | None:
    """Open what a run before kept, if every byte is as written and this teacher answers so."""
    import keras
    import numpy as np

    from keras_kd.soft_targets import SoftTargets

    if not folder.is_dir():
        return None
    try:
        soft = SoftTargets(folder)
        soft.verify()
    except ValueError:
        return None
    rows = soft.store.rows(np.arange(min(FIRST, len(soft))))
    teacher = soft.store.layout.teacher_of(rows)
    stored = [*keras.tree.flatten(teacher["outputs"]), *(teacher["layers"][p] for p in paths)]
    for old, new in zip(map(np.asarray, stored), first, strict=True):
        if not np.abs(old - new).max(initial=0.0) <= CLOSE * np.abs(new).max(initial=0.0):
            return None
    return soft


def _keep(
    folder: Path, teacher: keras.Model | Teacher, split: Split, paths: Sequence[str]
) -> SoftTargets:
    """Ask the teacher for every example, and keep the answers whole or not at all."""
    from keras_kd.soft_targets import SoftTargets

    shutil.rmtree(folder, ignore_errors=True)
    try:
        with records.whole(folder) as temporary:
            SoftTargets.build(
                teacher, split.x, temporary, layers=list(paths), dtype="float32", verbose=0
            )
    except OSError:
        if not folder.is_dir():  # else another run has made it in the meantime
            raise
    return SoftTargets(folder)
