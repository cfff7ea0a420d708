"""The four files of the MNIST family (MNIST, Fashion-MNIST, KMNIST), in LeCun's IDX format.

A file is a magic number (two zero bytes, the type 8 for unsigned bytes, the number of axes), one
big-endian 32-bit size an axis, and the bytes: http://yann.lecun.com/exdb/mnist.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from keras_kd import checks
from keras_kd.data.splits import Source, Split

USAGE = "idx:FOLDER"
EXAMPLE = "idx:my_folder"
USES_DATA_DIR = False

_TYPE_UNSIGNED_BYTES = 8


def read(argument: str, data_dir: Path | None) -> Source:
    """Read train and t10k images and labels of a folder, packed with gzip or not."""
    del data_dir
    folder = Path(argument).expanduser()
    train, test = (
        Split(
            x=_values(_find(folder, f"{part}-images", 3), 3),
            y=_values(_find(folder, f"{part}-labels", 1), 1),
        )
        for part in ("train", "t10k")
    )
    return Source(train=train, test=test)


def _find(folder: Path, stem: str, axes: int) -> Path:
    names = [
        f"{stem}{mark}idx{axes}-ubyte{packed}" for mark in ("-", ".") for packed in ("", ".gz")
    ]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else None
    raise checks.bad_value(
        f"The folder {folder.name!r} has no file of {stem}.",
        given=f"{folder}: " + ("no such folder" if there is None else ", ".join(there[:20])),
        expected=" or ".join(names),
        fix="name the folder that holds the four files of the data set.",
    )


def _values(path: Path, axes: int) -> np.ndarray:
    raw = _bytes(path)
    header = 4 + 4 * axes
    if raw[:4] != bytes([0, 0, _TYPE_UNSIGNED_BYTES, axes]):
        raise checks.bad_value(
            f"The file {path.name!r} is not an IDX file of unsigned bytes with {axes} axes.",
            given=f"{path}: first bytes {raw[:4].hex(' ') or '(none)'}",
            expected=f"first bytes 00 00 08 {axes:02x}",
            fix="download the file again, or check that images and labels are not mixed up.",
        )
    shape = np.frombuffer(raw[4:header], ">u4").tolist() if len(raw) >= header else []
    size = math.prod(shape)
    if not shape or len(raw) != header + size:
        raise checks.bad_value(
            f"The file {path.name!r} has not the size that its header says.",
            given=f"{path}: {len(raw)} bytes",
            expected=f"a header of {header} bytes, and {size} bytes for shape {shape}",
            fix="download the file again: it is cut short or damaged.",
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def _bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise checks.bad_value(
            f"The file {path.name!r} cannot be read.",
            given=f"{path} ({type(error).__name__}: {error})",
            expected="an IDX file, packed with gzip where its name ends in .gz",
            fix="download the file again.",
        ) from error
