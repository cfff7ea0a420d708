"""Local files as a TensorFlow data set, for machines without a network."""

from __future__ import annotations

import os
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_kd import checks
from keras_kd.data import loading
from keras_kd.data.arrays import Arrays
from keras_kd.data.sources.tfds import quiet, supervised_keys, unknown, unknown_config
from keras_kd.data.splits import Source, Split


def prepare_tfds(name: str, source: str, data_dir: str | os.PathLike[str]) -> Path:
    """Write local npz or idx files as a TensorFlow data set, under its usual name.

    Use it where there is no network: afterwards `tfds.load("mnist", data_dir=data_dir)` and
    `data.load("tfds:mnist", data_dir=data_dir)` read it as if it had been downloaded. The
    folder is written by TFDS's own builder of that name (features, version, labels), beside
    its place, and moved there when it is whole.

    Args:
        name: The name that TFDS knows the data set by: "mnist", "fashion_mnist", or with a
            configuration "emnist:letters".
        source: "npz:FILE" or "idx:FOLDER"; every split of it is written.
        data_dir: Folder of the TensorFlow data sets; made where it is missing.

    Returns:
        The folder of the data set, data_dir/name/version.

    Raises:
        ValueError: for a name that TFDS does not know, arrays that do not fit the features of
            that name ("differs"), a data set that "is there already", a folder that "cannot be
            written to", and all that `load` refuses.

    Example:
        ```python
        import tempfile
        import numpy as np
        from keras_kd import data

        images, labels = np.zeros((4, 28, 28), "uint8"), np.array([0, 1, 2, 3])
        with tempfile.TemporaryDirectory() as folder:
            arrays = dict(x_train=images, y_train=labels, x_test=images, y_test=labels)
            np.savez(f"{folder}/tiny.npz", **arrays)
            data.prepare_tfds("mnist", f"npz:{folder}/tiny.npz", folder)
            tiny = data.load("tfds:mnist", data_dir=folder, validation=0)
        assert tiny.test.x.shape == (4, 28, 28)
        ```
    """
    given = loading.read(source)
    loading.check_source(given)
    return _write(name, given, Path(data_dir).expanduser())


def _write(name: str, source: Source, data_dir: Path) -> Path:
    import tensorflow_datasets as tfds

    builder_type, config = _builder_type(name)
    _make_folder(data_dir)
    with tempfile.TemporaryDirectory(prefix=".prepare_tfds-", dir=data_dir) as temporary:
        local = types.new_class(
            builder_type.__name__,
            (builder_type,),
            {"skip_registration": True},
            lambda body: body.update(
                name=builder_type.name,
                __module__=builder_type.__module__,
                _split_generators=lambda self, dl_manager: _examples(name, self, source),
            ),
        )
        builder = local(data_dir=temporary, config=config)
        target = data_dir / Path(builder.data_dir).relative_to(temporary)
        if target.exists():
            raise checks.bad_value(
                f"The TFDS data set {name!r} is there already.",
                given=str(target),
                expected="a data_dir without it",
                fix="delete that folder first, or choose another data_dir.",
            )
        with quiet():
            builder.download_and_prepare(
                download_dir=Path(temporary) / "downloads",
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
        _move(Path(builder.data_dir), target)
    return target


def _builder_type(name: str) -> tuple[Any, str | None]:
    import tensorflow_datasets as tfds

    plain, _, config = name.partition(":")
    try:
        builder_type = tfds.builder_cls(plain)
    except tfds.core.DatasetNotFoundError as error:
        raise unknown(plain, None) from error
    configs = builder_type.builder_configs
    if config and config not in configs:
        raise unknown_config(plain, config, ValueError(f"no configuration {config!r}"))
    return builder_type, config or None


def _make_folder(data_dir: Path) -> None:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=data_dir).close()
    except OSError as error:
        raise checks.bad_value(
            "The data_dir cannot be written to.",
            given=f"{data_dir} ({type(error).__name__}: {error})",
            expected="a folder that you may write to",
            fix="choose another data_dir.",
        ) from error


def _examples(name: str, builder: Any, source: Source) -> dict[str, Iterator[tuple[int, Any]]]:
    """Make the examples of each split as the real builder would; check them against its spec."""
    keys = supervised_keys(name, builder)
    splits = {"train": source.train, "test": source.test}
    if source.validation is not None:
        splits["validation"] = source.validation
    return {split: _rows(name, builder, keys, arrays) for split, arrays in splits.items()}


def _rows(
    name: str, builder: Any, keys: tuple[str, str], split: Split
) -> Iterator[tuple[int, dict[str, Any]]]:
    x, y = (
        _fit(name, key, builder.info.features[key], values)
        for key, values in zip(keys, (split.x, split.y), strict=True)
    )
    return ((row, {keys[0]: x[row], keys[1]: y[row]}) for row in range(len(split)))


def _fit(name: str, key: str, feature: Any, values: Arrays) -> np.ndarray:
    """Give the values the dtype and shape of the feature, where nothing is lost by it."""
    import tensorflow_datasets as tfds

    classes = feature.num_classes if isinstance(feature, tfds.features.ClassLabel) else None
    dtype = np.dtype(feature.np_dtype)
    given = "a dict of arrays"
    if not isinstance(values, dict):
        given = f"{values.dtype}{values.shape[1:]}"
        if (*values.shape[1:], 1) == feature.shape:
            values = values[..., None]
        if values.shape[1:] == feature.shape and np.can_cast(values.dtype, dtype):
            if classes is None or (values.min() >= 0 and values.max() < classes):
                return values.astype(dtype)
            given = f"labels {values.min()} to {values.max()}"
    raise checks.bad_value(
        f"The arrays are not those of the TFDS data set {name!r}: {key} differs.",
        given=given,
        expected=f"{dtype}{feature.shape}" + (f" from 0 to {classes - 1}" if classes else ""),
        fix="check the name and the files: they must belong to the same data set.",
    )


def _move(folder: Path, target: Path) -> None:
    """Put a finished folder in its place in one step, when its bytes are on the disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    target.parent.mkdir(parents=True, exist_ok=True)
    os.rename(folder, target)
