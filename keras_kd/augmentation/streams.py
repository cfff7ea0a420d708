"""What a data set is made of: examples or batches of them, and how to regroup it and go back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_kd import checks

Change = Callable[..., tf.data.Dataset]
_SIZE = 2**32  # a batch's key is its number times this, plus its size


def check(dataset: Any) -> None:
    """Refuse what is no data set of x, (x, y) or (x, y, w) with dense x."""
    if not isinstance(dataset, tf.data.Dataset):
        raise checks.bad_type(
            "An augmentation is applied to a data set.",
            given=f"{type(dataset).__name__}",
            expected="a tf.data.Dataset of x, (x, y) or (x, y, w)",
            fix="write tf.data.Dataset.from_tensor_slices((x, y)).apply(augmentation).",
        )
    x, *rest = parts(dataset.element_spec)
    if len(rest) > 2:
        raise checks.bad_value(
            "The data set's elements have more than x, y and weights.",
            given=f"{len(rest) + 1} parts",
            expected="x, (x, y) or (x, y, w)",
            fix="put several inputs into one part: data.map(lambda a, b, y, w: ((a, b), y, w)).",
        )
    for leaf in tf.nest.flatten(x):
        if not isinstance(leaf, tf.TensorSpec):
            raise checks.bad_value(
                "An augmentation takes dense tensors.",
                given=f"inputs of {leaf}",
                expected="tensors",
                fix="make them dense first: x.to_tensor(), or tf.sparse.to_dense(x).",
            )


def parts(element: Any) -> tuple[Any, ...]:
    """Give an element as a tuple that begins with x."""
    return element if type(element) is tuple else (element,)


def regrouped(dataset: tf.data.Dataset, batched: bool, size: int) -> Callable[[Change], Any]:
    """Prepare to change a data set in batches of exactly `size`, and to give it back as it was.

    Returns:
        A function that takes what is done to a data set of such batches, and returns the changed
        data set: not batched where this one is not, else in the same batches.
    """
    if not batched:
        return lambda change: change(dataset.batch(size)).unbatch()
    leading = {leaf.shape[0] for leaf in tf.nest.flatten(dataset.element_spec)}
    known = leading.pop() if len(leading) == 1 else None
    if (known or _size_of_first(dataset)) in (size, 0):
        return lambda change: change(dataset)
    if known:
        batches = dataset.rebatch(size)
        return lambda change: change(batches).rebatch(known, drop_remainder=True)
    return lambda change: _same_batches(dataset, size, change)


def _size_of_first(dataset: tf.data.Dataset) -> int | None:
    """Count the examples of the first batch; 0 where there is none, None inside a graph."""
    if not tf.executing_eagerly():
        return None
    for element in dataset.take(1):
        return len(tf.nest.flatten(element)[0])
    return 0


def _same_batches(dataset: tf.data.Dataset, size: int, change: Change) -> tf.data.Dataset:
    """Change a data set of batches of any sizes in batches of `size`, and restore its own.

    Each example carries the number and the size of the batch that it came in.
    """

    def with_keys(number: tf.Tensor, element: Any) -> tuple[tf.Tensor, Any]:
        count = tf.shape(tf.nest.flatten(element)[0], out_type=tf.int64)[0]
        return tf.fill([count], number * _SIZE + count), element

    keyed = dataset.enumerate().map(lambda number, *e: with_keys(number, e if len(e) > 1 else e[0]))
    examples = change(keyed.unbatch().batch(size), keyed=True).unbatch()
    return examples.group_by_window(
        key_func=lambda key, element: key,
        reduce_func=lambda key, window: window.map(lambda _, e: e).batch(tf.math.mod(key, _SIZE)),
        window_size_func=lambda key: tf.math.mod(key, _SIZE),
    )
