"""The verification data, as batches that can be gone through again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kd import checks

BATCH = 256


class Examples:
    """The verification data, as batches of NumPy arrays that can be gone through again.

    Args:
        data: A `tf.data.Dataset` or `keras.utils.PyDataset` of batches, or arrays: `x`, `(x, y)`
            or `(x, y, sample_weight)`, where x may be a dict or a list of several inputs.
        limit: Use only so many examples, the first ones. `None` for all.
    """

    def __init__(self, data: Any, limit: int | None = None) -> None:
        """Refuse what cannot be gone through."""
        if isinstance(data, tf.data.Dataset):
            endless = int(data.cardinality()) == tf.data.INFINITE_CARDINALITY
        elif isinstance(data, keras.utils.PyDataset):
            endless = data.num_batches is None
        elif isinstance(data, np.ndarray | tf.Tensor | Mapping | list | tuple):
            endless = False
            _same_length(data)
        else:
            raise checks.bad_type(
                "`verification_data` is of a type that cannot be read.",
                given=type(data).__name__,
                expected="a tf.data.Dataset or PyDataset of batches, or arrays x, (x, y)",
                fix="pass the data that the student is evaluated on, for example (x_test, y_test).",
            )
        if limit is not None and (isinstance(limit, bool) or int(limit) != limit or limit < 1):
            raise checks.bad_value(
                "`verification_examples` must be a positive whole number or None.",
                given=repr(limit),
                expected="a number of examples, 1 or more",
                fix="leave it out to verify on all of the verification data.",
            )
        if endless and limit is None:
            raise checks.bad_value(
                "`verification_data` never ends.",
                given="a data set that repeats for ever",
                expected="data with an end",
                fix="leave out `.repeat()`, or say how many: verification_examples=1000.",
            )
        self._data, self._limit = data, limit

    def __iter__(self) -> Iterator[tuple[Any, Any, Any]]:
        """Yield (x, y, sample_weight), with `None` for what is not there."""
        left = self._limit
        for batch in self._batches():
            count = len(keras.tree.flatten(batch)[0])
            if left is not None and count > left:
                batch = keras.tree.map_structure(lambda array, end=left: array[:end], batch)
                count = left
            yield keras.utils.unpack_x_y_sample_weight(batch)
            if left is not None:
                left -= count
                if left <= 0:
                    return

    def first(self) -> Any:
        """Return the inputs of the first batch.

        Raises:
            ValueError: "`verification_data` holds no example."
        """
        for x, _, _ in self:
            if len(keras.tree.flatten(x)[0]):
                return x
        raise checks.bad_value(
            "`verification_data` holds no example.",
            given="0 examples",
            expected="at least one batch",
            fix="pass the data that the student is evaluated on, for example (x_test, y_test).",
        )

    def _batches(self) -> Iterator[Any]:
        if isinstance(self._data, tf.data.Dataset):
            yield from self._data.as_numpy_iterator()
        elif isinstance(self._data, keras.utils.PyDataset):
            for index in range(self._data.num_batches or self._limit or 0):
                yield self._data[index]
        else:
            arrays = self._data if isinstance(self._data, tuple) else (self._data,)
            arrays = keras.tree.map_structure(np.asarray, arrays)
            for start in range(0, len(keras.tree.flatten(arrays)[0]), BATCH):
                yield keras.tree.map_structure(lambda a, s=start: a[s : s + BATCH], arrays)


def _same_length(data: Any) -> None:
    leaves = keras.tree.flatten(data)
    lengths = sorted({len(leaf) for leaf in leaves if np.ndim(leaf)})
    if len(lengths) != 1 or not all(np.ndim(leaf) for leaf in leaves):
        raise checks.bad_value(
            "The arrays of `verification_data` do not have the same number of examples.",
            given=f"lengths {lengths}",
            expected="arrays whose first axis is the example",
            fix="pass x, (x, y) or (x, y, sample_weight) of the same length.",
        )
