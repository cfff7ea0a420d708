"""From arrays to a `tf.data.Dataset` of batches that comes out the same for the same seed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_kd import checks
from keras_kd.data.arrays import Arrays, whole

if TYPE_CHECKING:
    import tensorflow as tf

Transform = Callable[[Any, Any, Any], tuple[Any, Any]]


def batches(
    examples: tuple[Arrays, ...],
    size: int,
    batch_size: int,
    *,
    shuffle_seed: int | None,
    repeat: bool,
    transform: Transform | None,
    drop_remainder: bool,
) -> tf.data.Dataset:
    """Do the work of `Split.batches`: shuffle row numbers, gather, transform, prefetch."""
    _check(size, batch_size, shuffle_seed, transform, drop_remainder)
    import tensorflow as tf

    passes = _passes(size, shuffle_seed, repeat)
    with tf.device("CPU:0"):
        tensors = tf.nest.map_structure(tf.constant, examples)

    def rows_of(order: tf.Tensor, seed: tf.Tensor) -> tf.data.Dataset:
        rows = tf.data.Dataset.from_tensor_slices(order).batch(batch_size, drop_remainder)
        return rows.enumerate().map(lambda number, row: (row, tf.stack([seed, number])))

    def batch_of(rows: tf.Tensor, seed: tf.Tensor) -> Any:
        x, y, *weights = tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), tensors)
        pair = (x, y) if transform is None else transform(x, y, seed)
        return (*pair, *weights) if isinstance(pair, tuple) else pair

    stream = passes.flat_map(rows_of).map(batch_of, tf.data.AUTOTUNE, deterministic=True)
    _check_parts(stream.element_spec, len(examples))
    steps = size // batch_size if drop_remainder else -(-size // batch_size)
    count = tf.data.INFINITE_CARDINALITY if repeat else steps
    return stream.apply(tf.data.experimental.assert_cardinality(count)).prefetch(tf.data.AUTOTUNE)


def is_batched(
    element_spec: Any, stated: bool | None = None, takes: list[tuple] | None = None
) -> bool:
    """Decide whether a data set is batched: as stated, by what a model takes, by the shapes.

    Where all leading sizes are unknown it is; where a part has no axes it is not.

    Args:
        element_spec: the specs of x, (x, y) or (x, y, weights).
        stated: True or False where the caller said it, else None.
        takes: the shapes of the inputs that a model takes, batch first, where they are known.

    Raises:
        ValueError: "It is not clear whether the data is batched", "The data cannot be batched".
    """
    import tensorflow as tf

    x = element_spec[0] if type(element_spec) is tuple else element_spec
    shapes, every = (
        [leaf.shape for leaf in tf.nest.flatten(part) if isinstance(leaf, tf.TensorSpec)]
        for part in (x, element_spec)
    )
    if any(shape.rank == 0 for shape in every):
        if stated:
            raise checks.bad_value(
                "The data cannot be batched.",
                given=f"batched=True, and elements of shape {', '.join(map(str, every))}",
                expected="a batch axis in each part",
                fix="leave batched=True out, or batch the data set first.",
            )
        return False
    if stated is not None:
        return stated
    if takes is not None and len(takes) == len(shapes):
        pairs = list(zip(shapes, takes, strict=True))
        whole = all(shape.is_compatible_with(taken) for shape, taken in pairs)
        single = all(shape.is_compatible_with(taken[1:]) for shape, taken in pairs)
        if whole != single:
            return whole
    if all(shape.rank and shape[0] is None for shape in every):
        return True
    raise checks.bad_value(
        "It is not clear whether the data is batched.",
        given=f"elements of shape {', '.join(map(str, every))}",
        expected="leading sizes of None (batched), or a part without axes (not batched)",
        fix="say it: batched=True or batched=False.",
    )


def _passes(size: int, seed: int | None, repeat: bool) -> tf.data.Dataset:
    """Make the passes: the order of the rows, and the transform's seed.

    They draw raw bits of PCG64, whose stream NumPy keeps for good; the shuffles of its `Generator`,
    and TensorFlow's (which mix in the global seed), promise less. No `from_generator` makes them:
    it would slow down every later step under Python 3.11 (see `keras_kd.numbered`).
    """
    import tensorflow as tf

    iterations = itertools.count()

    def begun(_: np.int64) -> np.int64:
        return np.int64(next(iterations))

    def drawn(iteration: np.int64, number: np.int64) -> tuple[np.ndarray, np.int64]:
        bits = np.random.PCG64([seed or 0, int(iteration), int(number)])
        transform_seed = np.int64(bits.random_raw() >> 1)
        order = np.arange(size)
        if seed is not None:
            order = np.argsort(bits.random_raw(size), kind="stable")
        return order, transform_seed

    def of_iteration(zero: tf.Tensor) -> tf.data.Dataset:
        iteration = tf.ensure_shape(tf.numpy_function(begun, [zero], tf.int64), ())
        return numbers.map(lambda number: one_pass(iteration, number))

    def one_pass(iteration: tf.Tensor, number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        order, drawn_seed = tf.numpy_function(drawn, [iteration, number], [tf.int64, tf.int64])
        return tf.ensure_shape(order, (size,)), tf.ensure_shape(drawn_seed, ())

    numbers = tf.data.Dataset.range(np.iinfo(np.int64).max if repeat else 1)
    return tf.data.Dataset.range(1).flat_map(of_iteration)


def _check(
    size: int,
    batch_size: int,
    shuffle_seed: int | None,
    transform: Transform | None,
    drop_remainder: bool,
) -> None:
    whole("batch_size", batch_size, at_least=1)
    if shuffle_seed is not None:
        whole("shuffle_seed", shuffle_seed, at_least=0)
    if transform is not None and not callable(transform):
        raise checks.bad_type(
            "`transform` must be a function.",
            given=repr(transform),
            expected="a function (x_batch, y_batch, seed) -> (x_batch, y_batch), or None",
            fix="pass the function itself, for example transform=my_transform.",
        )
    if size == 0:
        raise checks.bad_value(
            "The split is empty: there is no batch to give.",
            given="0 examples",
            expected="at least one example",
            fix="load the data with validation > 0, or leave this split out.",
        )
    if drop_remainder and size < batch_size:
        raise checks.bad_value(
            "Not one batch would be left with `drop_remainder=True`.",
            given=f"batch_size={batch_size} and {size} examples",
            expected="batch_size <= the number of examples",
            fix=f"pass batch_size={size} or less, or drop_remainder=False.",
        )


def _check_parts(spec: object, count: int) -> None:
    if not isinstance(spec, tuple) or len(spec) != count:
        raise checks.bad_type(
            "`transform` must return a pair.",
            given=f"a result of {spec}",
            expected="a tuple (x_batch, y_batch)",
            fix="end the function with `return x, y`.",
        )
