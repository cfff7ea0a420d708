"""The work of `SoftTargets.merge`: shards of one build, or stores one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from keras_kd import checks
from keras_kd.soft_targets.building import SETTINGS, setting, write
from keras_kd.soft_targets.layout import FINGERPRINT_BYTES
from keras_kd.soft_targets.progress import Told
from keras_kd.soft_targets.store import Store


def merge(stores: Sequence[Store], directory: Path, verbose: bool) -> None:
    """Do the work of `SoftTargets.merge`, whose arguments these are."""
    stores = _in_order(stores)
    plan = {**stores[0].manifest["build"], "shard": None}
    count = sum(store.count for store in stores)
    size: int = plan["batch_size"]
    sharded = stores[0].manifest["build"]["shard"] is not None
    take = _interleaved if sharded else _one_after_the_other

    def later(rows: np.ndarray) -> Callable[[], np.ndarray]:
        return lambda: rows

    def batches() -> Iterator[tuple[np.ndarray, Callable[[], np.ndarray]]]:
        for start in range(0, count, size):
            rows = take(stores, np.arange(start, min(start + size, count)))
            yield rows[:, :FINGERPRINT_BYTES], later(rows)

    head = take(stores, np.arange(min(size, count)))
    write(directory, plan, batches(), head, Told("merging", count, verbose), count)


def _in_order(stores: Sequence[Store]) -> list[Store]:
    """Refuse stores that are no parts of one whole; put shards in their order."""
    builds = [store.manifest["build"] for store in stores]
    for store, build in zip(stores, builds, strict=True):
        keys = [
            key
            for key in SETTINGS
            if key != "shard" and setting(build, key) != setting(builds[0], key)
        ]
        if build["teacher"]["fingerprint"] != builds[0]["teacher"]["fingerprint"]:
            keys.insert(0, "teacher")
        if keys:
            raise checks.bad_value(
                f"{store.directory} and {stores[0].directory} are not of one build.",
                given=f"another {', '.join(keys)}",
                expected="stores of one teacher and the same settings",
                fix="build them with the same teacher and arguments, but for `shard`.",
            )
    shards = [build["shard"] for build in builds]
    if not any(shards):
        return list(stores)
    count = max(shard[1] for shard in shards if shard)
    if sorted(shards, key=str) != sorted(([n, count] for n in range(count)), key=str):
        raise checks.bad_value(
            "The stores are not the shards of one build, each once.",
            given=f"shards {', '.join(map(str, shards))}",
            expected=f"{count} stores: shard=(0, {count}) to ({count - 1}, {count})",
            fix="merge all the shards in one call, each once.",
        )
    ordered = [store for _, store in sorted(zip(shards, stores, strict=True), key=_number)]
    _refuse_other_lengths(ordered)
    return ordered


def _number(pair: tuple[list[int], Store]) -> int:
    return pair[0][0]


def _refuse_other_lengths(stores: list[Store]) -> None:
    """Refuse shards whose lengths are not those of one data set."""
    counts = [store.count for store in stores]
    total = sum(counts)
    expected = [len(range(number, total, len(stores))) for number in range(len(stores))]
    if counts != expected:
        raise checks.bad_value(
            "The shards were not built from one data set.",
            given=f"{counts} examples",
            expected=f"{expected} of {total:,}",
            fix="build every shard from the whole data set, with shard=(i, n).",
        )


def _interleaved(stores: Sequence[Store], numbers: np.ndarray) -> np.ndarray:
    rows = np.empty((len(numbers), stores[0].row_bytes), np.uint8)
    for number, store in enumerate(stores):
        mine = numbers % len(stores) == number
        rows[mine] = store.rows(numbers[mine] // len(stores))
    return rows


def _one_after_the_other(stores: Sequence[Store], numbers: np.ndarray) -> np.ndarray:
    ends = np.cumsum([store.count for store in stores])
    owner = np.searchsorted(ends, numbers, side="right")
    rows = np.empty((len(numbers), stores[0].row_bytes), np.uint8)
    for number, store in enumerate(stores):
        mine = owner == number
        if mine.any():
            rows[mine] = store.rows(numbers[mine] - (ends[number] - store.count))
    return rows
