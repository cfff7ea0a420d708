"""Data sets whose elements Python gives by their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_kd.inline import mapped


def numbered(
    count: int, function: Callable[[np.int64], Sequence[np.ndarray | np.generic]], specs: Any
) -> tf.data.Dataset:
    """Make a data set of what a function returns for 0, 1, … `count - 1`.

    It stands for `tf.data.Dataset.from_generator`, which under Python 3.11 makes TensorFlow tell
    the C library to take every 128 KB or more from the system, and to give them back
    (`ApplyPython311MemoryPatch` in 2.21). That holds for the whole process: a step whose
    intermediates are larger then takes up to twice as long, in page faults.

    Args:
        count: how many elements there are.
        function: number -> the flat arrays of an element.
        specs: structure of `tf.TensorSpec`s of an element.
    """
    flat = tf.nest.flatten(specs)

    def element(number: tf.Tensor) -> Any:
        leaves = tf.numpy_function(function, [number], [spec.dtype for spec in flat])
        pairs = zip(leaves, flat, strict=True)
        return tf.nest.pack_sequence_as(specs, [tf.ensure_shape(x, s.shape) for x, s in pairs])

    return mapped(tf.data.Dataset.range(count), element)
