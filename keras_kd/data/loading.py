"""From the name of a data set to its three splits."""

from __future__ import annotations

import importlib
import os
import pkgutil
from pathlib import Path

from keras_kd import checks
from keras_kd.data import sources
from keras_kd.data.arrays import check, check_lengths, signature, whole
from keras_kd.data.splits import Dataset, Source, Split, draw


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    validation: float = 0.1,
    seed: int = 0,
) -> Dataset:
    """Load a named data set into memory, in train, validation and test splits.

    The test split is the source's own and depends on no seed. Where the source has no validation
    split, one is drawn from its train split by the hash of each example's inputs and the seed: the
    same examples whatever their order and the source, exact duplicates of an input on one side (so
    the share may be exceeded by a few). The train split comes in the order of that hash.

    Arrays stay as they are stored (digits: 0 to 16, MNIST: uint8 0 to 255), with three
    exceptions that make equal data equal: integer targets are int64, bytes are in the machine's
    order, and the channel axis of one-channel images of tfds, (28, 28, 1), is taken away, since
    npz and idx have none. Scale and reshape with `Dataset.map_inputs`.

    Args:
        name: one of `keras-kd list data`: "digits", "mnist1d", "tfds:NAME[:CONFIG]", "npz:FILE",
            "idx:FOLDER" and others.
        data_dir: Folder of the prepared TensorFlow Datasets, for tfds only; default: TFDS's own,
            ~/tensorflow_datasets. What is not there is downloaded into it.
        validation: Share of the train split to draw, 0 <= validation < 1; used where the source
            has no validation split of its own. 0 leaves it empty.
        seed: Whole number >= 0 that chooses the validation examples.

    Returns:
        The data set.

    Raises:
        ValueError: in three parts (given, expected, fix) for an unknown name, a file that is
            missing, damaged or lacks arrays, arrays of different lengths, NaN, empty data, a data
            set that cannot be downloaded.
        TypeError: where arrays do not hold numbers.

    Example:
        ```python
        from keras_kd import data

        digits = data.load("digits", validation=0.1, seed=0)
        assert digits.train.x.shape[1:] == (8, 8)
        assert len(digits.train) > len(digits.test) > len(digits.validation)
        ```
    """
    share = _share(validation)
    whole("seed", seed, at_least=0)
    source = read(name, data_dir=data_dir)
    check_source(source)
    drawn, train = draw(
        source.train,
        share if source.validation is None else 0.0,
        seed=int(seed),
        purpose=b"validation",
    )
    kept = drawn if source.validation is None else source.validation
    return Dataset(
        name=name,
        train=train,
        validation=kept,
        test=source.test,
        classes=source.classes or _classes(train, kept, source.test),
        label_names=source.label_names,
    )


def read(name: str, *, data_dir: str | os.PathLike[str] | None = None) -> Source:
    """Find the source of a name (a file of `sources/`, no list to keep) and read it."""
    if not isinstance(name, str):
        raise checks.bad_type(
            "The name of a data set must be a string.",
            given=f"{name!r} ({type(name).__name__})",
            expected="a string",
            fix='pass a name, for example data.load("digits").',
        )
    kind, _, argument = name.partition(":")
    kinds = sorted(module.name for module in pkgutil.iter_modules(sources.__path__))
    if kind not in kinds:
        raise _unknown(name, kind, argument, kinds)
    source = importlib.import_module(f"{sources.__name__}.{kind}")
    alone, wanted = kind == source.USAGE.partition("[")[0], ":" in source.USAGE
    if (not argument and not alone) or (argument and not wanted):
        raise checks.bad_value(
            f"The name {name!r} is not complete." if not argument else f"{kind!r} stands alone.",
            given=repr(name),
            expected=repr(source.USAGE),
            fix=f"write it as {source.EXAMPLE!r}.",
        )
    if data_dir is not None and not source.USES_DATA_DIR:
        raise checks.bad_value(
            f"`data_dir` means nothing to {kind!r}.",
            given=f"{name!r} with data_dir={str(data_dir)!r}",
            expected="data_dir with tfds:NAME only",
            fix="leave `data_dir` out; for npz and idx, write the whole path into the name.",
        )
    return source.read(argument, None if data_dir is None else Path(data_dir))


def _unknown(name: str, kind: str, argument: str, kinds: list[str]) -> ValueError:
    usages = [importlib.import_module(f"{sources.__name__}.{known}").USAGE for known in kinds]
    close = checks.closest(kind, kinds)
    fixes = [f"did you mean {close[0]!r}?"] if close else []
    if not argument:
        fixes.append(f"a TensorFlow data set is written 'tfds:{name}'.")
    return checks.bad_value(
        f"There is no data set {name!r}.",
        given=repr(name),
        expected=", ".join(usages),
        fix=" ".join(fixes) or "choose one of the forms above.",
    )


def _share(validation: float) -> float:
    share = checks.fraction("validation", validation)
    if share == 1:
        raise checks.bad_value(
            "`validation` leaves nothing to train on.",
            given=validation,
            expected="0 <= validation < 1",
            fix="pass a share such as validation=0.1.",
        )
    return share


def check_source(source: Source) -> None:
    """Refuse what no model can learn from, and splits whose examples differ in kind."""
    splits = {"train": source.train, "val": source.validation, "test": source.test}
    for label, split in splits.items():
        if split is None:
            continue
        check(f"x_{label}", split.x)
        check(f"y_{label}", split.y)
        check_lengths(label, split.x, split.y)
        given = tuple(map(signature, split.examples))
        expected = tuple(map(signature, source.train.examples))
        if given != expected:
            raise checks.bad_value(
                f"The {label} examples are not like the train examples.",
                given=f"(name, dtype, shape) of an example of {label}: {given}",
                expected=f"as in train: {expected}",
                fix="give every split the same names, dtypes and shapes.",
            )


def _classes(train: Split, validation: Split, test: Split) -> int | None:
    """Count the classes by the labels that may choose; test labels must be among them."""
    largest = []
    for split in (train, validation, test):
        y = split.y
        if isinstance(y, dict) or y.ndim != 1 or y.dtype.kind != "i" or (len(y) and y.min() < 0):
            return None
        largest.append(int(y.max()) if len(y) else -1)
    known = 1 + max(largest[:2])
    if largest[2] >= known:
        raise checks.bad_value(
            "The test split has a class that training has never seen.",
            given=f"test label {largest[2]}",
            expected=f"labels 0 to {known - 1}, as in train and validation",
            fix="check the labels, or take that class out of the test split.",
        )
    return known
