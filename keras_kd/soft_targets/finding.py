"""Find the stored answers of examples by their content, and put them beside a batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kd import checks, fingerprints
from keras_kd.soft_batch import SoftBatch
from keras_kd.soft_targets import examples
from keras_kd.soft_targets.store import Store


class Finder:
    """Find the rows of examples by their content.

    Args:
        store: where the rows are.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.number = store.number
        self.specs = store.layout.specs()
        self.dtypes = [spec.dtype for spec in tf.nest.flatten(self.specs)]
        self._record, self._fields = store.layout.record, store.layout.flat_fields()
        self.served = 0

    def __call__(self, names: np.ndarray, *leaves: np.ndarray) -> list[np.ndarray]:
        """Return the flat answers to a batch.

        Args:
            names: the fingerprints of its examples, `(batch, 8)` uint8.
            *leaves: the flat arrays of its inputs, for an error.

        Raises:
            ValueError: "There are no soft targets for …".
        """
        self.served += len(names)
        numbers = self.store.find(fingerprints.as_numbers(names))
        unknown = np.flatnonzero(numbers < 0)
        if unknown.size:
            raise self._unknown(leaves, unknown)
        return self.answers(self.store.rows(numbers))

    def answers(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return the flat answers of rows, as copies."""
        records = rows.view(self._record)[:, 0]
        return [np.array(records[field], dtype, order="C") for field, dtype in self._fields]

    def tell(self, seen: int, least: int) -> None:
        """Warn where so many or more of the stored examples were not seen."""
        if seen + least <= self.store.count:
            tell_of_missing(seen, self.store.count)

    def _unknown(self, leaves: tuple[np.ndarray, ...], unknown: np.ndarray) -> ValueError:
        first, size = int(unknown[0]), len(leaves[0])
        known = self.store.manifest["build"]["inputs"]
        return checks.bad_value(
            f"There are no soft targets for example {first} of a batch of {size}.",
            given="; ".join(examples.described(leaf[first : first + 1]) for leaf in leaves)
            + f"; {unknown.size} of {size} are unknown",
            expected=f"an example that the teacher saw, by its content; of {self.store.count:,} "
            f"the first ones held {'; '.join(map(examples.in_words, known))}",
            fix="attach to the data that the store was built from: the same scaling, type and "
            "shape, and no augmentation but a kd.ReplayableAugmentation that both apply; augment "
            "or rescale after attach, or build the soft targets from this data.",
        )


def joined(element: Any, found: Callable[..., list[tf.Tensor]], finder: Finder) -> tuple:
    """Put the answers beside the inputs of a batch, in TensorFlow operations.

    Args:
        element: x, (x, y) or (x, y, weights).
        found: gives the flat answers to the flat inputs.
        finder: knows the specs of the answers, and whose they are.
    """
    x, *rest = element if type(element) is tuple else (element,)
    leaves = keras.tree.flatten(x)
    count = leaves[0].shape[0]
    answers = [
        _shaped(answer, (count, *spec.shape[1:]))
        for answer, spec in zip(found(leaves), tf.nest.flatten(finder.specs), strict=True)
    ]
    teacher = tf.nest.pack_sequence_as(finder.specs, answers)
    if count is None:
        store = tf.fill(tf.shape(leaves[0])[:1], tf.constant(finder.number, tf.int64))
    else:
        store = tf.constant(finder.number, tf.int64, (count,))
    return (SoftBatch(x, teacher | {"store": store}), *rest)


def _shaped(answer: tf.Tensor, shape: tuple) -> tf.Tensor:
    """See to a shape; where it is known already, in no operation."""
    known = answer.shape.is_fully_defined() and answer.shape == shape
    return answer if known else tf.ensure_shape(answer, shape)


def tell_of_missing(given: int, stored: int) -> None:
    """Warn of a data set that is shorter than the store."""
    warnings.warn(
        checks.message(
            f"The data has fewer examples than there are soft targets: about {given:,} of "
            f"{stored:,}.",
            given=f"about {given:,} examples a pass",
            expected=f"{stored:,}, as the teacher saw them",
            fix="check that the data is whole; a part of it, taken on purpose, is learned from as "
            "it is.",
        ),
        stacklevel=4,
    )
