"""The examples of a data set, batched or not, in batches of one size, each with its name."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_kd import checks, fingerprints
from keras_kd.data.batching import is_batched
from keras_kd.numbered import numbered


class Batch(NamedTuple):
    """Examples as tensors, and their fingerprints `(n, 8)` uint8."""

    inputs: Any
    names: np.ndarray


class Examples:
    """Read the inputs of a data set in batches of one size, whatever batches it comes in.

    Args:
        dataset: a `tf.data.Dataset` of x, (x, y) or (x, y, weight), batched or not; or arrays, x
            or a tuple (x, y[, weight]).
        batch_size: examples a batch; the last may be smaller.
        shard: `(i, n)` for the examples i, i + n, …, or None for all.
        batched: whether the data set is batched; None: by `takes` and by the shapes.
        takes: the shapes that the teacher takes, batch first, where they are known.

    Raises:
        ValueError: "It is not clear whether the data is batched", "The data never ends", "The data
            is empty", "The data does not repeat", "The examples differ in shape".
        TypeError: "The data is no data set", "An example is no dense tensor".
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        shard: tuple[int, int] | None,
        batched: bool | None,
        takes: list[tuple] | None,
    ) -> None:
        self._size = batch_size
        self._shard = shard or (0, 1)
        self._raw: int | None = None
        if isinstance(dataset, tf.data.Dataset):
            self._known = int(dataset.cardinality())
            fingerprints.refuse_not_dense(dataset.element_spec)
            self._is_batched = is_batched(dataset.element_spec, batched, takes)
            _refuse_endless(dataset)
            batches = self._rebatched(dataset)
        else:
            _refuse_no_arrays(dataset, batched)
            x = _arrays(dataset[0] if isinstance(dataset, tuple) else dataset)
            self._known, self._is_batched = len(keras.tree.flatten(x)[0]), False
            batches = self._sliced(x)
        options = tf.data.Options()
        options.deterministic = True
        self._batches = batches.with_options(options).prefetch(2)

    @property
    def total(self) -> int | None:
        """How many examples there are, as far as is known; the last batch is taken for whole."""
        if self._known < 0 or (self._is_batched and self._raw is None):
            return None
        total = self._known * (self._raw or 1)
        number, count = self._shard
        return -(-(total - number) // count)

    @property
    def total_is_sure(self) -> bool:
        """Whether `total` is the number of examples, and no more than about it."""
        return self.total is not None and not self._is_batched

    def first(self) -> tuple[Batch, Iterator[Batch]]:
        """Read the first batch twice, and compare; return it, and all batches (it too)."""
        first = next(self._read(), None)
        again = self._read()
        second = next(again, None)
        if first is None:
            raise checks.bad_value(
                "The data is empty: there is no example to ask the teacher.",
                given="0 examples" + (f" of shard {self._shard}" if self._shard[1] > 1 else ""),
                expected="at least one example",
                fix="check the data set, for example with next(iter(dataset)).",
            )
        if second is None or not np.array_equal(first.names, second.names):
            raise checks.bad_value(
                "The data does not repeat: its first batch differs when it is read again.",
                given="another content or order on the second reading",
                expected="the same examples in the same order at each reading",
                fix="build from the data without shuffle and without random augmentation "
                "(kd.ReplayableAugmentation makes views that repeat).",
            )
        return second, itertools.chain([second], again)

    def signature(self, first: Any) -> Any:
        """Describe any batch of inputs as `tf.TensorSpec`s, given the first."""
        specs, structure = self._batches.element_spec[0], tf.nest.map_structure
        return structure(
            lambda spec, leaf: tf.TensorSpec(
                (None, *(leaf.shape if spec.shape.rank is None else spec.shape)[1:]), spec.dtype
            ),
            specs,
            first,
        )

    def _read(self) -> Iterator[Batch]:
        batches = iter(self._batches)
        while True:
            try:
                x, names, raw = next(batches)
            except StopIteration:
                return
            except (tf.errors.InvalidArgumentError, tf.errors.FailedPreconditionError) as error:
                raise _of_other_shapes(error) from error
            self._raw = int(raw)
            yield Batch(x, names.numpy())

    def _rebatched(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Take x alone, in batches of one size; each example knows its first batch's size."""
        number, count = self._shard
        batched, size = self._is_batched, self._size

        def inputs_of(x: Any, *_: Any) -> dict[str, Any]:
            if not batched:
                return {"x": x, "raw": tf.constant(1, tf.int64)}
            rows = tf.shape(keras.tree.flatten(x)[0], out_type=tf.int64)[:1]
            return {"x": x, "raw": tf.tile(rows, rows)}

        inputs = dataset.map(inputs_of)
        if batched and count == 1:
            batches = inputs.rebatch(size)
        else:
            single = inputs.unbatch() if batched else inputs
            batches = single.shard(count, number).batch(size)
        return batches.map(lambda part: (part["x"], fingerprints.of(part["x"]), part["raw"][0]))

    def _sliced(self, x: Any) -> tf.data.Dataset:
        """Cut arrays into batches."""
        number, count = self._shard
        mine = keras.tree.map_structure(lambda array: array[number::count], x)
        length = len(keras.tree.flatten(mine)[0])

        def cut(number: np.int64) -> list[np.ndarray]:
            piece = slice(number * self._size, (number + 1) * self._size)
            pieces = [array[piece] for array in tf.nest.flatten(mine)]
            return [one.astype(object) if one.dtype.kind == "U" else one for one in pieces]

        specs = keras.tree.map_structure(
            lambda array: tf.TensorSpec((None, *array.shape[1:]), _dtype(array)), x
        )
        pieces = numbered(-(-length // self._size), cut, {"x": specs})
        one = tf.constant(1, tf.int64)
        return pieces.map(lambda part: (part["x"], fingerprints.of(part["x"]), one))


def _refuse_endless(dataset: tf.data.Dataset) -> None:
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise checks.bad_value(
            "The data never ends, so the teacher could not be asked to its end.",
            given="a data set of infinite cardinality",
            expected="each example once",
            fix="build from the data without repeat(); attach(dataset).repeat() comes after.",
        )


def as_dataset(dataset: Any, batched: bool | None) -> tf.data.Dataset:
    """Return a data set as it is, and arrays as a data set of single examples.

    Raises:
        TypeError: "The data is no data set".
        ValueError: "`batched` says how …", "The arrays do not hold the same number of examples".
    """
    if isinstance(dataset, tf.data.Dataset):
        return dataset
    _refuse_no_arrays(dataset, batched)
    return tf.data.Dataset.from_tensor_slices(_arrays(dataset))


def description(array: np.ndarray, shape: tuple | None = None) -> dict[str, Any]:
    """Describe a batch of inputs for a manifest: dtype, shape of an example, and range.

    Args:
        array: the batch.
        shape: the shape of an example, None where a size is free; None: as it is here.
    """
    words: dict[str, Any] = {"dtype": "string" if array.dtype.kind in "OSU" else str(array.dtype)}
    words["shape"] = list(array.shape[1:] if shape is None else shape)
    if array.dtype.kind in "biuf" and array.size:
        words["range"] = [f"{float(end):.6g}" for end in (array.min(), array.max())]
    return words


def in_words(description: Mapping[str, Any]) -> str:
    """Say what `description` found in a few words."""
    lowest_highest = description.get("range")
    between = f" from {' to '.join(lowest_highest)}" if lowest_highest else ""
    return f"{description['dtype']} {tuple(description['shape'])}{between}"


def described(array: np.ndarray) -> str:
    """Say what a batch of inputs is, in a few words."""
    return in_words(description(array))


def _refuse_no_arrays(dataset: Any, batched: bool | None) -> None:
    x = dataset[0] if isinstance(dataset, tuple) and dataset else dataset
    leaves = keras.tree.flatten(x)
    if not leaves or not all(isinstance(leaf, (np.ndarray, tf.Tensor)) for leaf in leaves):
        raise checks.bad_type(
            "The data is no data set.",
            given=f"{dataset!r:.80} ({type(dataset).__name__})",
            expected="a tf.data.Dataset, or arrays: x, (x, y) or (x, y, weights)",
            fix="make one, for example tf.data.Dataset.from_tensor_slices((x, y)).",
        )
    if batched is not None:
        raise checks.bad_value(
            "`batched` says how a tf.data.Dataset comes, and the data is arrays.",
            given=f"batched={batched}",
            expected="nothing: the first axis of an array counts the examples",
            fix="leave `batched` out.",
        )
    shapes = [tuple(leaf.shape) for leaf in leaves]
    if not all(shapes) or len({shape[0] for shape in shapes}) > 1:
        raise checks.bad_value(
            "The arrays do not hold the same number of examples.",
            given=f"shapes {', '.join(map(str, shapes))}",
            expected="one first axis, which counts the examples",
            fix="check how the arrays were made.",
        )


def _arrays(x: Any) -> Any:
    """Turn tensors into arrays, and lists into tuples, which `tf.data` leaves as they are."""
    if isinstance(x, dict):
        return {key: _arrays(part) for key, part in x.items()}
    if isinstance(x, (list, tuple)):
        return tuple(_arrays(part) for part in x)
    return x.numpy() if isinstance(x, tf.Tensor) else x


def _dtype(array: np.ndarray) -> tf.DType:
    return tf.string if array.dtype.kind in "OSU" else tf.as_dtype(array.dtype)


def _of_other_shapes(error: Exception) -> ValueError:
    said = str(error).partition("\n")[0]
    return checks.bad_value(
        "The examples could not be read: most likely they differ in shape.",
        given=f"{said:.200}",
        expected="one shape for every example, padding included",
        fix="pad or resize them to one shape, for example with padded_batch(…, padded_shapes=…).",
    )
