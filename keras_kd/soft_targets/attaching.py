"""Join the stored answers to the examples of a data set, as `tf.data`."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kd import checks, fingerprints
from keras_kd.data.batching import is_batched
from keras_kd.soft_batch import SoftBatch
from keras_kd.soft_targets import examples
from keras_kd.soft_targets.layout import FINGERPRINT_BYTES
from keras_kd.soft_targets.store import Store

TOGETHER = 256
"""How many examples of a data set without batches are looked up at once."""

EVERY = 16
"""One example in so many is checked, once a whole pass was checked and came in order."""


def attach(store: Store, dataset: Any, batched: bool | None) -> tf.data.Dataset:
    """Do the work of `SoftTargets.attach`, whose arguments these are."""
    dataset = examples.as_dataset(dataset, batched)
    takes = [(None, *described["shape"]) for described in store.manifest["build"]["inputs"]]
    fingerprints.refuse_not_dense(dataset.element_spec)
    in_batches = is_batched(dataset.element_spec, batched, takes)
    source = dataset if in_batches else dataset.batch(TOGETHER)
    finder = RowFinder(store)

    def join(*element: Any) -> tuple:
        x, *rest = element
        leaves = keras.tree.flatten(x)
        rows = tf.numpy_function(finder, leaves, tf.uint8)
        rows = tf.ensure_shape(rows, (leaves[0].shape[0], store.row_bytes))
        return (SoftBatch(x, store.layout.teacher_of(rows)), *rest)

    size = _look_at_first(source, finder)
    known = int(dataset.cardinality())
    attached = source.map(join)
    if not in_batches:
        attached = attached.unbatch()
    if known == tf.data.UNKNOWN_CARDINALITY:
        attached = _counted(attached, finder)
    else:
        if 0 <= known < store.count // (size if in_batches else 1):
            tell_of_missing(known * size if in_batches else known, store.count)
        attached = attached.apply(tf.data.experimental.assert_cardinality(known))
    return attached.prefetch(tf.data.AUTOTUNE)


class RowFinder:
    """Find the rows of the examples that come, batch by batch.

    Each example is looked for where it would be if the data came in the order of the store, and
    else by its fingerprint. While the order holds, every example of one whole pass is checked, and
    after that one in `EVERY`, at changing places.

    Args:
        store: where the rows are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._next = 0
        self._in_order = 0
        self._place = 0
        self.served = 0

    def __call__(self, *leaves: np.ndarray) -> np.ndarray:
        """Return the rows of a batch, given the flat arrays of its inputs.

        Raises:
            ValueError: "There are no soft targets for …".
        """
        size = len(leaves[0])
        self.served += size
        rows = self._by_order(leaves, size)
        return self._by_name(leaves) if rows is None else rows

    def _by_order(self, leaves: tuple[np.ndarray, ...], size: int) -> np.ndarray | None:
        """Take the rows that come next, or the first ones, where the fingerprints agree."""
        every = slice(None)
        if self._in_order >= self._store.count:
            self._place = (self._place + 1) % min(EVERY, size)
            every = slice(self._place, None, EVERY)
        names = fingerprints.of([leaf[every] for leaf in leaves]).numpy()
        for start in dict.fromkeys((self._next, 0)):
            rows = self._store.rows((start + np.arange(size)) % self._store.count)
            if np.array_equal(rows[every, :FINGERPRINT_BYTES], names):
                self._in_order = size + (self._in_order if start == self._next else 0)
                self._next = (start + size) % self._store.count
                return rows
        self._in_order = 0
        return None

    def _by_name(self, leaves: tuple[np.ndarray, ...]) -> np.ndarray:
        """Look each example up in the index."""
        numbers = self._store.find(fingerprints.as_numbers(fingerprints.of(list(leaves)).numpy()))
        unknown = np.flatnonzero(numbers < 0)
        if unknown.size:
            raise self._unknown(leaves, unknown)
        self._next = int(numbers[-1] + 1) % self._store.count
        return self._store.rows(numbers)

    def _unknown(self, leaves: tuple[np.ndarray, ...], unknown: np.ndarray) -> ValueError:
        first, size = int(unknown[0]), len(leaves[0])
        known = self._store.manifest["build"]["inputs"]
        return checks.bad_value(
            f"There are no soft targets for example {first} of a batch of {size}.",
            given="; ".join(examples.described(leaf[first : first + 1]) for leaf in leaves)
            + f"; {unknown.size} of {size} are unknown",
            expected=f"an example that the teacher saw, by its content; of {self._store.count:,} "
            f"the first ones held {'; '.join(map(examples.in_words, known))}",
            fix="attach to the data that the store was built from: the same scaling, type and "
            "shape, and no augmentation but a kd.ReplayableAugmentation that both apply; augment "
            "or rescale after attach, or build the soft targets from this data.",
        )


def _look_at_first(source: tf.data.Dataset, finder: RowFinder) -> int:
    """Find the rows of the first batch now, so that foreign data is refused before training."""
    for element in source.take(1):
        x = element[0] if isinstance(element, tuple) else element
        return len(finder(*[leaf.numpy() for leaf in keras.tree.flatten(x)]))
    raise checks.bad_value(
        "The data is empty, so there is nothing to attach soft targets to.",
        given="0 examples",
        expected="at least one example",
        fix="check the data set, for example with next(iter(dataset)).",
    )


def _counted(attached: tf.data.Dataset, finder: RowFinder) -> tf.data.Dataset:
    """Count the examples of each pass, and tell of those that did not come."""

    def begin() -> np.int64:
        finder.served = 0
        return np.int64(0)

    def end() -> np.int64:
        if finder.served < finder._store.count:
            tell_of_missing(finder.served, finder._store.count)
        return np.int64(0)

    def at(moment: Any) -> tf.Tensor:
        return tf.numpy_function(moment, [], tf.int64)

    one = tf.data.Dataset.range(1)
    whole = one.flat_map(lambda _: attached.skip(at(begin)))
    return whole.concatenate(one.flat_map(lambda _: attached.take(at(end))))


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
