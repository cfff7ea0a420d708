"""TensorFlow Datasets: read a data set that is prepared, or let TFDS download it."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_kd import checks
from keras_kd.data.splits import Source, Split

USAGE = "tfds:NAME[:CONFIG]"
EXAMPLE = "tfds:mnist"
USES_DATA_DIR = True

_RETRIES = 3
_ARRAYS_INSTEAD = (
    "make arrays of it with tfds.as_numpy, write them with numpy.savez as x_train_NAME, "
    "y_train_NAME … and load npz:FILE."
)


def read(argument: str, data_dir: Path | None) -> Source:
    """Read the train, test and (where there is one) validation split into arrays."""
    import tensorflow_datasets as tfds

    builder = _builder(argument, data_dir)
    keys = supervised_keys(argument, builder)
    if not builder.is_prepared():
        _download(argument, builder)
    for split in ("train", "test"):
        if split not in builder.info.splits:
            raise checks.bad_value(
                f"The TFDS data set {argument!r} has no {split} split.",
                given=f"splits {', '.join(sorted(builder.info.splits))}",
                expected="train and test (and validation, where there is one)",
                fix="split it yourself, write the arrays with numpy.savez and load npz:FILE.",
            )
    has_validation = "validation" in builder.info.splits
    label = builder.info.features[keys[1]]
    is_class = isinstance(label, tfds.features.ClassLabel)
    return Source(
        train=_split(builder, keys, "train"),
        test=_split(builder, keys, "test"),
        validation=_split(builder, keys, "validation") if has_validation else None,
        classes=label.num_classes if is_class else None,
        label_names=tuple(label.names) if is_class and label.names else None,
    )


def _builder(argument: str, data_dir: Path | None) -> Any:
    import tensorflow_datasets as tfds

    name, _, config = argument.partition(":")
    try:
        with quiet():
            return tfds.builder(f"{name}/{config}" if config else name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise unknown(name, data_dir) from error
    except (ValueError, KeyError) as error:
        raise unknown_config(name, config, error) from error


def unknown(name: str, data_dir: Path | None) -> ValueError:
    """Make the error for a name that TFDS does not know, with the closest one."""
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    if data_dir is not None and data_dir.is_dir():
        known += [path.name for path in data_dir.iterdir() if path.is_dir()]
    return checks.unknown_name("TFDS data set", name, set(known) - {"downloads"})


def unknown_config(name: str, config: str, error: Exception) -> ValueError:
    """Make the error for a configuration that the data set does not have."""
    import tensorflow_datasets as tfds

    if name not in tfds.list_builders(with_community_datasets=False):
        return unknown(name, None)
    if configs := tfds.builder_cls(name).builder_configs:
        return checks.unknown_name(f"configuration of tfds:{name}", config, configs)
    return checks.bad_value(
        f"The TFDS data set {name!r} cannot be opened as {config!r}.",
        given=f"tfds:{name}:{config} ({error})",
        expected=f"tfds:{name}, which has no configurations",
        fix=f"write 'tfds:{name}'.",
    )


def _download(argument: str, builder: Any) -> None:
    """Let TFDS download, with its progress bars: that may take minutes."""
    import tensorflow_datasets as tfds

    settings = tfds.download.DownloadConfig(try_download_gcs=False)
    name = argument.partition(":")[0]
    try:
        with contextlib.redirect_stdout(io.StringIO()), _few_retries():
            builder.download_and_prepare(download_config=settings)
    # TFDS lets through what requests (an OSError), its checks and the builders themselves raise.
    except (OSError, RuntimeError, AssertionError, ValueError, ImportError) as error:
        raise checks.bad_value(
            f"The TFDS data set {argument!r} is not prepared, and could not be downloaded.",
            given=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            expected=f"a prepared data set in {builder.data_dir}, or a way to download it",
            fix="connect to the network and try again, or pass the data_dir that holds it, or "
            f"prepare it from local files: scripts/prepare_tfds --name {name} "
            "--from npz:FILE --data-dir DIR",
        ) from error


@contextlib.contextmanager
def _few_retries() -> Iterator[None]:
    """Let TFDS give up after seconds: its ten retries take over three minutes with no network."""
    from tensorflow_datasets.core.download import downloader

    log = logging.getLogger("urllib3.connectionpool")
    before = downloader.MAX_RETRIES, log.level
    downloader.MAX_RETRIES = _RETRIES
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        downloader.MAX_RETRIES = before[0]
        log.setLevel(before[1])


def supervised_keys(argument: str, builder: Any) -> tuple[str, str]:
    """Return the feature names of input and target, where they are arrays of one shape."""
    keys = builder.info.supervised_keys
    features = builder.info.features
    if (
        not isinstance(keys, tuple)
        or len(keys) != 2
        or not all(isinstance(key, str) for key in keys)
    ):
        raise checks.bad_value(
            f"The TFDS data set {argument!r} does not say what is input and what is target.",
            given=f"features {', '.join(features)}; supervised keys {keys}",
            expected="supervised keys (input, target)",
            fix=_ARRAYS_INSTEAD,
        )
    for key in keys:
        shape, dtype = features[key].shape, features[key].np_dtype
        is_array = isinstance(shape, tuple) and None not in shape
        if not is_array or np.dtype(dtype).kind not in "biuf":
            raise checks.bad_value(
                f"The feature {key!r} of the TFDS data set {argument!r} does not fit an array.",
                given=f"{type(features[key]).__name__} of shape {shape}, {dtype}",
                expected="numbers, of the same shape in every example",
                fix=_ARRAYS_INSTEAD,
            )
    return keys


def _split(builder: Any, keys: tuple[str, str], split: str) -> Split:
    import tensorflow_datasets as tfds

    with quiet():
        x, y = builder.as_dataset(split=split, batch_size=-1, as_supervised=True)
    image = builder.info.features[keys[0]]
    x = x.numpy()
    # TFDS stores grey images with a channel axis that npz and idx files do not have. Without it
    # the same data is the same arrays, whatever the source.
    if isinstance(image, tfds.features.Image) and image.shape[-1] == 1:
        x = x[..., 0]
    return Split(x=x, y=y.numpy())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the lines and progress bars of TFDS from the terminal."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
