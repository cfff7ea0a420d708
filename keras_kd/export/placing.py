"""Where files go: whole or absent, and nothing of the caller's is overwritten."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from keras_kd import checks


def folder_of(directory: str | os.PathLike) -> Path:
    """Make a folder with its parents, and see that it can be written to.

    Raises:
        ValueError: "cannot be written to".
    """
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise checks.bad_value(
            f"The folder {str(folder)!r} cannot be written to.",
            given=str(error),
            expected="a folder that exists or can be made, with the right to write",
            fix="choose another `directory`, or change its rights.",
        ) from error


def free(folder: Path, file: str, name: str) -> Path:
    """Return where a file goes, unless something that is not ours lies there.

    Args:
        folder: The caller's folder.
        file: The name that the format gives, with `{name}` for the caller's.
        name: The caller's name.

    Raises:
        ValueError: "`name` must be a plain file name", "is in the way".
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise checks.bad_value(
            "`name` must be a plain file name.",
            given=repr(name),
            expected="a name without folders and ending, not starting with a dot",
            fix='write name="student", and the folder as `directory`.',
        )
    final = folder / file.format(name=name)
    ours = (final / "saved_model.pb").exists() if final.is_dir() else True
    if not ours:
        raise checks.bad_value(
            f"{str(final)!r} is in the way.",
            given="a folder that is no SavedModel",
            expected="nothing there, or an earlier export",
            fix="move it away, or choose another `directory`.",
        )
    return final


def files_of(path: Path) -> list[Path]:
    """Return a file, or all files of a folder, in order."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in files_of(path))


def sha256(path: Path) -> str:
    """Hash a file; of a folder, hash the lines "<sha256>  <relative path>" in order."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    lines = [f"{sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files_of(path)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def put(new: Path, final: Path, scratch: str) -> None:
    """Sync a finished file or folder to disk and give it its name in one step."""
    for path in [*files_of(new), *([new] if new.is_dir() else [])]:
        _sync(path)
    old = Path(scratch) / f"{final.name}.old"
    if final.is_dir():  # a folder is not replaced in one step: the old one steps aside
        os.rename(final, old)
    try:
        os.replace(new, final)
    except OSError:
        if old.exists():
            os.rename(old, final)
        raise
    if old.exists():
        shutil.rmtree(old)
    _sync(final.parent)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows opens no folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
