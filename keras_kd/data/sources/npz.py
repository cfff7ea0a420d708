"""Your own arrays in one NumPy file.

The keys are x_train, y_train, x_test, y_test and, where you have your own validation split, x_val
and y_val. Several inputs or targets are written x_train_NAME, y_train_NAME and so on.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path

import numpy as np

from keras_kd import checks
from keras_kd.data.arrays import Arrays, check_lengths
from keras_kd.data.splits import Source, Split

USAGE = "npz:FILE"
EXAMPLE = "npz:mnist.npz"
USES_DATA_DIR = False

_KEY = re.compile(r"([xy]_(?:train|val|test))(?:_(.+))?")
_EXPECTED = "x_train, y_train, x_test, y_test (and x_val, y_val), or x_train_NAME … for several"


def read(argument: str, data_dir: Path | None) -> Source:
    """Read the arrays of a .npz file, without pickle."""
    del data_dir
    path = Path(argument).expanduser()
    groups = _group(path, _arrays(path))
    train, test = _split(path, groups, "train"), _split(path, groups, "test")
    has_validation = "x_val" in groups or "y_val" in groups
    validation = _split(path, groups, "val") if has_validation else None
    return Source(train=train, test=test, validation=validation)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as raw, np.lib.npyio.NpzFile(raw, allow_pickle=False) as file:
            return {key: file[key] for key in file.files if key[:2] in ("x_", "y_")}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        missing = isinstance(error, FileNotFoundError)
        pickled = "allow_pickle" in str(error)
        raise checks.bad_value(
            f"The file {path.name!r} " + ("does not exist." if missing else "cannot be read."),
            given=f"{path} ({type(error).__name__}: {error})",
            expected="a .npz file written by numpy.savez, of plain arrays (no objects, no pickle)",
            fix="turn object arrays into arrays of numbers and write the file again."
            if pickled
            else "check the path, or write the file again with numpy.savez.",
        ) from error


def _group(path: Path, found: dict[str, np.ndarray]) -> dict[str, Arrays]:
    """Gather `x_train_left`, `x_train_right` under `x_train`; refuse names that fit nowhere."""
    groups: dict[str, Arrays] = {}
    for key, array in found.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise checks.bad_value(
                f"The file {path.name!r} has an array that belongs to no split.",
                given=key,
                expected=_EXPECTED,
                fix=f"rename {key!r}, or give it a name that does not begin with x_ or y_.",
            )
        group, name = match.groups()
        if name is None:
            groups[group] = array
        else:
            several = groups.setdefault(group, {})
            if isinstance(several, dict):
                several[name] = array
    _check_not_both(path, found, groups)
    return groups


def _check_not_both(path: Path, found: dict[str, np.ndarray], groups: dict[str, Arrays]) -> None:
    for group in groups:
        keys = sorted(key for key in found if key == group or key.startswith(f"{group}_"))
        if group in keys and len(keys) > 1:
            raise checks.bad_value(
                f"The file {path.name!r} has {group!r} both alone and by name.",
                given=", ".join(keys),
                expected=f"either {group} or {group}_NAME",
                fix=f"give the array {group!r} a name too, for example {group}_main.",
            )


def _split(path: Path, groups: dict[str, Arrays], split: str) -> Split:
    missing = [key for key in (f"x_{split}", f"y_{split}") if key not in groups]
    if missing:
        raise checks.bad_value(
            f"The file {path.name!r} lacks {' and '.join(missing)}.",
            given=", ".join(sorted(groups)) or "no array whose name begins with x_ or y_",
            expected=_EXPECTED,
            fix="write the file again with numpy.savez(file, x_train=…, y_train=…, …).",
        )
    x, y = groups[f"x_{split}"], groups[f"y_{split}"]
    check_lengths(split, x, y)
    return Split(x=x, y=y)
