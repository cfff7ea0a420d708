"""A store on the disk, written: batch after batch, so that a broken build can go on.

While it is built, the folder `building` holds

    plan.json   what is built, so that nothing else goes on with it
    journal     the checksum of every whole batch, 16 bytes each
    rows        the rows of the shard at work
    lock        held by the process that builds

A shard moves up to its place when it is full and on the disk. When a build goes on, the batches
that fit the journal are kept, up to the first that does not. The manifest comes last.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from keras_kd import checks
from keras_kd.soft_targets import files
from keras_kd.soft_targets.layout import Layout
from keras_kd.soft_targets.store import BUILDING, FORMAT, MANIFEST, read_manifest

SHARD_BYTES = 64 * 2**20


class Writer:
    """Write a store, or go on with one; in a `with` block, which holds the folder's lock.

    Args:
        directory: the folder to fill; it is made where there is none.

    Raises:
        ValueError: "… is no folder", "Another process is building", "… holds shards and no
            manifest".
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.kept = 0
        self._work = self.directory / BUILDING
        self._lock: int | None = None
        self._open: list[BinaryIO] = []
        self._shards: list[dict[str, Any]] = []

    def __enter__(self) -> Writer:
        if self.directory.exists() and not self.directory.is_dir():
            raise checks.bad_value(
                f"{self.directory} is no folder.",
                given="the path of a file",
                expected="a folder for the store, new or empty",
                fix="choose another path.",
            )
        self._work.mkdir(parents=True, exist_ok=True)
        self._lock = files.lock(self._work / "lock")
        if self._lock is None:
            raise checks.bad_value(
                f"Another process is building in {self.directory}.",
                given="a folder whose lock is held",
                expected="one process for each folder",
                fix="wait for it, or build a part in each process: shard=(i, n) into folders of "
                "their own, then SoftTargets.merge.",
            )
        return self

    def __exit__(self, *error: object) -> None:
        try:
            for file in self._open:
                file.close()
            if self.is_complete or self.planned is None:
                shutil.rmtree(self._work)
        finally:
            if self._lock is not None:
                os.close(self._lock)

    @property
    def is_complete(self) -> bool:
        """Whether the store is there and needs nothing more."""
        return (self.directory / MANIFEST).is_file()

    @property
    def planned(self) -> dict[str, Any] | None:
        """What is built here, or was: the `build` of the manifest; None in a new folder."""
        plan = self._work / "plan.json"
        if self.is_complete:
            return read_manifest(self.directory)["build"]
        words = files.from_text(plan.read_bytes()) if plan.is_file() else None
        return None if words is None else words["build"]

    def begin(self, build: Mapping[str, Any], total: str) -> None:
        """Begin a build, or go on with the one that is planned here.

        Args:
            build: what is built, in plain words and numbers: `layout`, `batch_size`,
                `rows_per_shard`, and whatever else decides about the bytes.
            total: how many rows there will be, in words.
        """
        old = self.planned
        if old is None:
            self._refuse_orphans()
            plan = files.to_text({"build": build, "total": total})
            files.write(self._work / "plan.json", plan)
        self._build = dict(build if old is None else old)
        self.row_bytes = Layout.from_json(self._build["layout"]).row_bytes
        self.batch_size: int = self._build["batch_size"]
        self._batch_bytes = self.batch_size * self.row_bytes
        self._per_shard = self._build["rows_per_shard"] // self.batch_size
        self._recover()

    def stored(self, number: int) -> np.ndarray:
        """Read a batch that is there: `(batch_size, row_bytes)` uint8; `number` < `kept`."""
        shard, place = divmod(number, self._per_shard)
        path = self._work / "rows" if shard == len(self._shards) else self._path(shard)
        with open(path, "rb") as file:
            file.seek(place * self._batch_bytes)
            data = file.read(self._batch_bytes)
        return np.frombuffer(data, np.uint8).reshape(self.batch_size, self.row_bytes)

    def append(self, rows: np.ndarray) -> None:
        """Write one batch; only the last of all may be smaller than `batch_size`."""
        data = np.ascontiguousarray(rows).view(np.uint8).reshape(-1)
        part, journal = self._open
        part.write(data.data)
        part.flush()
        self._digest.update(data)
        self._in_part += len(rows)
        if len(rows) == self.batch_size:
            journal.write(files.checksum(data.data).digest())
            journal.flush()
        self._close_if_full()

    def finish(self, data: str) -> None:
        """Write the manifest: the store is complete.

        Args:
            data: the fingerprint of all the data.
        """
        if self._in_part:
            self._close_shard()
        manifest = {
            "format": FORMAT,
            "build": self._build,
            "data": data,
            "rows": sum(shard["rows"] for shard in self._shards),
            "shards": self._shards,
        }
        files.write(self.directory / MANIFEST, files.to_text(manifest))

    def _recover(self) -> None:
        """Keep the whole batches that fit the journal, and drop what comes after them."""
        path, size = self._work / "journal", files.DIGEST_BYTES
        known = path.read_bytes() if path.is_file() else b""
        digests = [known[at : at + size] for at in range(0, len(known) - size + 1, size)]
        while self._keep_shard(digests[len(self._shards) * self._per_shard :]):
            pass
        number = len(self._shards)
        for path in self.directory.glob("shard-*.rows"):
            after = path.stem.removeprefix("shard-")
            if after.isdecimal() and int(after) >= number:
                path.unlink()
        self._begin_shard()
        wanted = digests[number * self._per_shard :][: self._per_shard]
        good, self._digest = self._fitting(self._work / "rows", wanted)
        self._in_part = good * self.batch_size
        self.kept = number * self._per_shard + good
        for file, end in zip(self._open, (good * self._batch_bytes, self.kept * size), strict=True):
            file.truncate(end)
            file.seek(end)
        self._close_if_full()

    def _keep_shard(self, wanted: list[bytes]) -> bool:
        """Keep the next shard where it is whole; else take what there is of it for the work."""
        shard = self._path(len(self._shards))
        if not shard.is_file():
            return False
        good, digest = self._fitting(shard, wanted[: self._per_shard])
        if good == self._per_shard and shard.stat().st_size == good * self._batch_bytes:
            self._note(digest, good * self.batch_size)
            return True
        files.rename(shard, self._work / "rows")
        return False

    def _fitting(self, path: Path, wanted: list[bytes]) -> tuple[int, Any]:
        """Count the batches at the head of a file that fit their checksums; and hash these."""
        whole = files.checksum()
        with open(path, "rb") as file:
            for number, digest in enumerate(wanted):
                data = file.read(self._batch_bytes)
                if len(data) < self._batch_bytes or files.checksum(data).digest() != digest:
                    return number, whole
                whole.update(data)
        return len(wanted), whole

    def _begin_shard(self) -> None:
        for file in self._open:
            file.close()
        names = [self._work / "rows", self._work / "journal"]
        for path in names:
            path.touch()
        self._open = [open(path, "r+b") for path in names]  # noqa: SIM115 (__exit__ closes)
        self._open[1].seek(0, os.SEEK_END)
        self._digest, self._in_part = files.checksum(), 0

    def _close_if_full(self) -> None:
        if self._in_part == self._build["rows_per_shard"]:
            self._close_shard()
            self._begin_shard()

    def _close_shard(self) -> None:
        part, journal = self._open
        files.flush(part)
        files.flush(journal)
        files.rename(self._work / "rows", self._path(len(self._shards)))
        self._note(self._digest, self._in_part)

    def _note(self, digest: Any, rows: int) -> None:
        name = self._path(len(self._shards)).name
        self._shards.append({"file": name, "rows": rows, "checksum": digest.hexdigest()})

    def _path(self, number: int) -> Path:
        return self.directory / f"shard-{number:05d}.rows"

    def _refuse_orphans(self) -> None:
        orphans = sorted(self.directory.glob("shard-*.rows"))
        if orphans:
            raise checks.bad_value(
                f"{self.directory} holds shards and no manifest, and would be written over.",
                given=f"{len(orphans)} files such as {orphans[0].name}",
                expected="a new or empty folder, or a build that was broken off",
                fix="choose another folder, or delete this one.",
            )


def rows_per_shard(batch_size: int, row_bytes: int) -> int:
    """Choose how many rows a shard has: whole batches, about 64 MiB, one batch at least."""
    return max(1, SHARD_BYTES // (batch_size * row_bytes)) * batch_size
