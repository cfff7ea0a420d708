"""Files that are whole or absent, and a checksum for each."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

DIGEST_BYTES = 16


def checksum(data: bytes | memoryview = b"") -> Any:
    """Begin a checksum: BLAKE2b of 16 bytes, as `b2sum --length 128` computes it."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES)


def file_checksum(file: BinaryIO) -> str:
    """Compute the checksum of an open file, from where it stands to its end, piece by piece."""
    return hashlib.file_digest(file, checksum).hexdigest()  # type: ignore[arg-type]


def to_text(content: Mapping[str, Any]) -> bytes:
    """Write a dict as JSON that holds its own checksum, always in the same way."""
    body = _canonical(content)
    return _canonical({**content, "checksum": checksum(body).hexdigest()}) + b"\n"


def from_text(text: bytes) -> dict[str, Any] | None:
    """Read what `to_text` wrote, or return None where one byte is not as it was written."""
    try:
        content = json.loads(text)
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    content.pop("checksum", None)
    return content if to_text(content) == text else None


def write(path: Path, data: bytes) -> None:
    """Write a small file under a temporary name, put it on the disk, and give it its name."""
    temporary = path.with_name(f".{path.name}.new")
    with open(temporary, "wb") as file:
        file.write(data)
        flush(file)
    rename(temporary, path)


def rename(old: Path, new: Path) -> None:
    """Give a file that is on the disk its name, and put the name on the disk too."""
    os.replace(old, new)
    flush_folder(new.parent)


def flush(file: BinaryIO) -> None:
    """Put on the disk what was written to an open file."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Put a folder's list of names on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock(path: Path) -> int | None:
    """Take a file's lock, which ends with this process at the latest.

    Returns:
        The open file, to be closed when the work is done; None where another holds the lock.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
            return handle
        os.close(handle)  # its last holder has removed the file in between


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False).encode()
