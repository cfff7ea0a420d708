"""A store on the disk, read: rows by number, numbers by fingerprint, and every byte checked.

    manifest.json      what the rows are and where they came from, with a checksum of its own
    shard-00000.rows   rows one after the other, and so on; all shards but the last are as long

While a store is built there is a folder `building` and no manifest.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from keras_kd import checks, fingerprints
from keras_kd.soft_targets import files
from keras_kd.soft_targets.layout import FINGERPRINT_BYTES, Layout

MANIFEST = "manifest.json"
BUILDING = "building"
FORMAT = 1
_MOST_MAPS = 128  # each open map takes a file handle, of which a process has 256 or more


class Store:
    """Rows on the disk, as `SoftTargets` reads them; it knows nothing of teachers.

    A shard is checked against its checksum when this object first touches it. Several threads and
    processes may read one store at once.

    Args:
        directory: the folder of a complete store.

    Raises:
        ValueError: "There is no store …", "… is not complete", "… is damaged", "… was written by
            another version".
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.manifest = read_manifest(self.directory)
        self.layout = Layout.from_json(self.manifest["build"]["layout"])
        self.row_bytes = self.layout.row_bytes
        self.shards: list[dict[str, Any]] = self.manifest["shards"]
        self.count: int = self.manifest["rows"]
        self._each = self.shards[0]["rows"]
        self._lock = threading.Lock()
        self._maps: OrderedDict[int, np.ndarray] = OrderedDict()
        self._checked: set[int] = set()
        self._index: tuple[np.ndarray, np.ndarray] | None = None
        for number in range(len(self.shards)):
            self._refuse_other_size(number)

    @classmethod
    def open(cls, directory: str | Path) -> Store:
        """Open a complete store: the manifest is checked, and that all files are there."""
        return cls(directory)

    @property
    def number(self) -> int:
        """A number of 63 bits by which batches tell whose rows they carry; a copy has the same."""
        whose = {"build": self.manifest["build"], "data": self.manifest["data"]}
        return int.from_bytes(files.checksum(files.to_text(whose)).digest()[:8]) >> 1

    @property
    def bytes(self) -> int:
        """How many bytes the store takes, manifest and all."""
        manifest = (self.directory / MANIFEST).stat().st_size
        return manifest + self.count * self.row_bytes

    @property
    def bytes_per_example(self) -> float:
        """How many bytes an example takes, all told."""
        return self.bytes / self.count

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Read rows.

        Args:
            numbers: `(n,)` whole numbers from 0 to `count - 1`, in any order.

        Returns:
            `(n, row_bytes)` uint8, a copy.

        Raises:
            ValueError: "There is no row …", "… is damaged".
        """
        numbers = np.asarray(numbers, np.int64)
        if not numbers.size:
            return np.empty((0, self.row_bytes), np.uint8)
        first, last = int(numbers.min()), int(numbers.max())
        if first < 0 or last >= self.count:
            raise checks.bad_value(
                f"There is no row {first if first < 0 else last} in {self.directory}.",
                given=f"numbers from {first} to {last}",
                expected=f"numbers from 0 to {self.count - 1}",
                fix="ask for the rows that `find` gives.",
            )
        if first // self._each == last // self._each:  # one shard
            start = first // self._each * self._each
            return self._take(first // self._each, numbers - start)
        shards = numbers // self._each
        order = np.argsort(shards, kind="stable")
        bounds = np.flatnonzero(np.diff(shards[order])) + 1
        rows = np.empty((len(numbers), self.row_bytes), np.uint8)
        for places in np.split(order, bounds):
            shard = int(shards[places[0]])
            rows[places] = self._take(shard, numbers[places] - shard * self._each)
        return rows

    def between(self, first: int, last: int) -> np.ndarray:
        """Read the rows from `first` to before `last`, without a copy where one shard holds them.

        Raises:
            ValueError: "… is damaged".
        """
        shard = first // self._each
        start = shard * self._each
        if last <= start + self._each:
            return self._map(shard)[first - start : last - start]
        return self.rows(np.arange(first, last))

    def find(self, wanted: np.ndarray) -> np.ndarray:
        """Find the rows of some examples, through an index that is sorted on the first call.

        The index takes 12 bytes of memory a row.

        Args:
            wanted: `(n,)` uint64, as `fingerprints.as_numbers` gives them.

        Returns:
            `(n,)` int64: the number of the row, of the first one where there are equals, or -1.
        """
        known, order = self._sorted()
        place = np.searchsorted(known, wanted)
        place[place == len(known)] = 0
        return np.where(known[place] == wanted, order[place].astype(np.int64), -1)

    def verify(self) -> None:
        """Read every byte again, and compare it with its checksum.

        Raises:
            ValueError: "… is damaged", with the file and the rows in it.
        """
        if read_manifest(self.directory) != self.manifest:
            raise checks.bad_value(
                f"{self.directory} is another store than when it was opened.",
                given=f"another {MANIFEST}",
                expected="the store as it was",
                fix="open it again: kd.SoftTargets(directory).",
            )
        for number in range(len(self.shards)):
            with self._file(number) as file:
                self._check(number, file)

    def fingerprints(self) -> np.ndarray:
        """Read the fingerprints of all rows: `(count,)` uint64, 8 bytes of memory a row."""
        found = np.empty(self.count, np.uint64)
        for number, shard in enumerate(self.shards):
            start = number * self._each
            pieces = self._map(number)[:, :FINGERPRINT_BYTES]
            found[start : start + shard["rows"]] = fingerprints.as_numbers(pieces)
        return found

    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        if self._index is None:
            names = self.fingerprints()
            order = np.argsort(names, kind="stable")
            small = order.astype(np.uint32) if self.count < 2**32 else order
            self._index = names[order], small
        return self._index

    def _take(self, shard: int, places: np.ndarray) -> np.ndarray:
        """Copy rows of one shard, in one piece where they follow each other."""
        rows, first = self._map(shard), int(places[0])
        if len(places) == int(places[-1]) - first + 1 and (np.diff(places) == 1).all():
            return np.array(rows[first : first + len(places)])
        return rows[places]

    def _map(self, number: int) -> np.ndarray:
        """Open one shard as `(rows, row_bytes)`, having checked it the first time."""
        with self._lock:
            if number not in self._maps:
                with self._file(number) as file:
                    if number not in self._checked:
                        self._check(number, file)
                    shape = (self.shards[number]["rows"], self.row_bytes)
                    mapped = np.memmap(file, np.uint8, "r", shape=shape)
                self._maps[number] = mapped.view(np.ndarray)
                self._checked.add(number)
                if len(self._maps) > _MOST_MAPS:
                    self._maps.popitem(last=False)
            self._maps.move_to_end(number)
            return self._maps[number]

    def _check(self, number: int, file: BinaryIO) -> None:
        if files.file_checksum(file) != self.shards[number]["checksum"]:
            raise self._damaged(number, "bytes that do not fit the checksum")

    def _refuse_other_size(self, number: int) -> None:
        path = self.directory / self.shards[number]["file"]
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            raise self._damaged(number, "no such file")
        if size != self.shards[number]["rows"] * self.row_bytes:
            raise self._damaged(number, f"a file of {size:,} bytes")

    def _file(self, number: int) -> BinaryIO:
        self._refuse_other_size(number)
        return open(self.directory / self.shards[number]["file"], "rb")

    def _damaged(self, number: int, found: str) -> ValueError:
        shard, start = self.shards[number], number * self._each
        return checks.bad_value(
            f"{self.directory / shard['file']} is damaged: rows {start:,} to "
            f"{start + shard['rows'] - 1:,} cannot be trusted.",
            given=found,
            expected=f"{shard['rows'] * self.row_bytes:,} bytes of checksum {shard['checksum']}",
            fix="copy the file again from where it came, or delete the folder and build it again.",
        )


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read the manifest of a complete store, or say why there is none."""
    path = directory / MANIFEST
    if not path.is_file():
        raise _no_store(directory)
    manifest = files.from_text(path.read_bytes())
    if manifest is None:
        raise checks.bad_value(
            f"{path} is damaged: its content does not fit its checksum.",
            given=f"a file of {path.stat().st_size:,} bytes",
            expected="the manifest as it was written",
            fix="copy the file again from where it came, or delete the folder and build it again.",
        )
    if manifest.get("format") != FORMAT:
        raise checks.bad_value(
            f"{directory} was written by another version of keras_kd.",
            given=f"format {manifest.get('format')!r}",
            expected=f"format {FORMAT}",
            fix="install the version that wrote it, or build it again.",
        )
    return manifest


def _no_store(directory: Path) -> ValueError:
    plan = progress(directory)
    if plan is not None:
        done, total = plan
        return checks.bad_value(
            f"{directory} is not complete: {done:,} of {total} rows are there.",
            given="a build that was broken off, or is still going on",
            expected="a store that is complete",
            fix="run the same SoftTargets.build(…) again: it goes on where it stopped.",
        )
    return checks.bad_value(
        f"There is no store of soft targets in {directory}.",
        given="a folder without a manifest.json" if directory.is_dir() else "no such folder",
        expected="the folder that SoftTargets.build(…) filled",
        fix="check the path, or build one: kd.SoftTargets.build(teacher, dataset, directory).",
    )


def progress(directory: Path) -> tuple[int, str] | None:
    """Say how far an unfinished build is: the rows that are there, and how many there will be."""
    plan, journal = (directory / BUILDING / name for name in ("plan.json", "journal"))
    if not plan.is_file():
        return None
    words = files.from_text(plan.read_bytes()) or {}
    batches = journal.stat().st_size // files.DIGEST_BYTES if journal.is_file() else 0
    done = batches * words.get("build", {}).get("batch_size", 0)
    return done, words.get("total", "an unknown number of")
