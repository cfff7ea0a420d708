"""A large store from a generated teacher: built, and read back on one core."""

from __future__ import annotations

import pathlib
import time
from typing import Any

import numpy as np

from benchkit import children

CLASSES = 1000
TOP_K = 16
TABLE = 4096  # different answers of the teacher
BATCH = 1024
BLOCK = 1 << 20


def dataset(examples: int) -> Any:
    """Count up to `examples`: an example is its number."""
    import tensorflow as tf

    return tf.data.Dataset.range(examples).batch(BATCH)


def teacher() -> Any:
    """Make a function that answers to numbers with logits out of a table."""
    rng = np.random.default_rng(0)
    table = rng.normal(scale=3.0, size=(TABLE, CLASSES)).astype("float32")
    return lambda numbers: table[numbers * 2654435761 % TABLE]


def build(job: dict[str, Any]) -> dict[str, Any]:
    """Build the store; say how fast, how large, and by what the process grew."""
    import keras_kd as kd

    answer, data = teacher(), dataset(job["examples"])
    for batch in data.take(1):
        answer(batch.numpy())
    children.forget_peak()
    before, began = children.resident(), time.perf_counter()
    soft = kd.SoftTargets.build(
        answer,
        data,
        job["folder"],
        top_k=TOP_K,
        dtype="float16",
        batch_size=BATCH,
        fingerprint="a table",
        batched=True,
        verbose=0,
    )
    seconds = time.perf_counter() - began
    return {
        "examples_per_second": round(job["examples"] / seconds),
        "before_mb": round(before, 1),
        "growth_mb": round(children.peak() - before, 1),
        "bytes_per_example": soft.info()["bytes_per_example"],
    }


def read(job: dict[str, Any]) -> dict[str, Any]:
    """Read the store through `attach` and its files plainly, in turns, each time from the disk."""
    import keras_kd as kd

    folder, times = pathlib.Path(job["folder"]), []
    for _ in range(job["rounds"]):
        forget(folder)
        plain = plainly(folder)
        forget(folder)
        attached = kd.SoftTargets(folder).attach(dataset(job["examples"]), batched=True)
        times.append((plain, *(once(attached) for _ in range(2))))
    names = ("plain_read", "first_pass", "later_pass")
    seconds = dict(zip(names, np.median(times, axis=0), strict=True))
    rates = {name: round(job["examples"] / taken) for name, taken in seconds.items()}
    over = {name: rates[name] / rates["plain_read"] for name in names[1:]}
    return {
        "examples_per_second": rates,
        "over_plain_read": {name: round(number, 4) for name, number in over.items()},
    }


def once(data: Any) -> float:
    """Return the seconds of one pass."""
    began = time.perf_counter()
    for _ in data:
        pass
    return time.perf_counter() - began


def plainly(folder: pathlib.Path) -> float:
    """Return the seconds that the files take, one after the other, in blocks of 1 MiB."""
    block = bytearray(BLOCK)
    began = time.perf_counter()
    for path in sorted(folder.iterdir()):
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass
    return time.perf_counter() - began


def forget(folder: pathlib.Path) -> None:
    """Let the system forget the files, so that they come from the disk."""
    import os

    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
