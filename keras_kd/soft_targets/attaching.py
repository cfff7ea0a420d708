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
    fingerprints.refuse_not_dense(dataset.element_spec)
    takes = [(None, *described["shape"]) for described in store.manifest["build"]["inputs"]]
    in_batches = is_batched(dataset.element_spec, batched, takes)
    source = dataset if in_batches else dataset.batch(TOGETHER)
    finder, layout = RowFinder(store), store.layout
    specs = layout.specs()
    dtypes = [spec.dtype for spec in tf.nest.flatten(specs)]

    def answers(*leaves: np.ndarray) -> list[np.ndarray]:
        return tf.nest.flatten(layout.teacher_of(finder(*leaves)))

    def join(*element: Any) -> tuple:
        x, *rest = element
        leaves = keras.tree.flatten(x)
        found = tf.nest.pack_sequence_as(specs, tf.numpy_function(answers, leaves, dtypes))
        batch = leaves[0].shape[:1]
        teacher = tf.nest.map_structure(
            lambda tensor, spec: tf.ensure_shape(tensor, batch + spec.shape[1:]), found, specs
        )
        return (SoftBatch(x, teacher), *rest)

    if _reads_alike(dataset):
        _look_at_first(source, finder)
    known = int(dataset.cardinality())
    attached = source.map(join)
    if not in_batches:
        attached = attached.unbatch()
        if 0 <= known < store.count:
            tell_of_missing(known, store.count)
    if known != tf.data.INFINITE_CARDINALITY and (in_batches or known < 0):
        size = tf.nest.flatten(dataset.element_spec)[0].shape[0] if in_batches else 1
        attached = _counted(attached, finder, size or 1)
    if known != tf.data.UNKNOWN_CARDINALITY:
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
        self.count = store.count
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
        if self._in_order >= self.count:
            self._place = (self._place + 1) % min(EVERY, size)
            every = slice(self._place, None, EVERY)
        names = fingerprints.of_arrays([leaf[every] for leaf in leaves])
        for start in dict.fromkeys((self._next, 0)):
            rows = self._store.rows((start + np.arange(size)) % self.count)
            if np.array_equal(rows[every, :FINGERPRINT_BYTES], names):
                self._in_order = size + (self._in_order if start == self._next else 0)
                self._next = (start + size) % self.count
                return rows
        self._in_order = 0
        return None

    def _by_name(self, leaves: tuple[np.ndarray, ...]) -> np.ndarray:
        """Look each example up in the index."""
        numbers = self._store.find(fingerprints.as_numbers(fingerprints.of_arrays(leaves)))
        unknown = np.flatnonzero(numbers < 0)
        if unknown.size:
            raise self._unknown(leaves, unknown)
        self._next = int(numbers[-1] + 1) % self.count
        return self._store.rows(numbers)

    def _unknown(self, leaves: tuple[np.ndarray, ...], unknown: np.ndarray) -> ValueError:
        first, size = int(unknown[0]), len(leaves[0])
        known = self._store.manifest["build"]["inputs"]
        return checks.bad_value(
            f"There are no soft targets for example {first} of a batch of {size}.",
            given="; ".join(examples.described(leaf[first : first + 1]) for leaf in leaves)
            + f"; {unknown.size} of {size} are unknown",
            expected=f"an example that the teacher saw, by its content; of {self.count:,} "
            f"the first ones held {'; '.join(map(examples.in_words, known))}",
            fix="attach to the data that the store was built from: the same scaling, type and "
            "shape, and no augmentation but a kd.ReplayableAugmentation that both apply; augment "
            "or rescale after attach, or build the soft targets from this data.",
        )


def _reads_alike(dataset: tf.data.Dataset) -> bool:
    """Say whether a look at the first batch leaves what comes later as it is.

    A shuffle draws another order for each reading, a cache is filled by the first one, and behind
    a `flat_map` may be a generator. Such data is looked at when it is trained on, not before.
    """
    kind = type(dataset).__name__.strip("_").removesuffix("Dataset")
    alike = any(kind.startswith(one) for one in _READ_ALIKE)
    return alike and all(_reads_alike(source) for source in dataset._inputs())


_READ_ALIKE = (
    *("TensorSlice", "Tensor", "Range", "Batch", "ParallelBatch", "Rebatch", "Map", "ParallelMap"),
    *("Prefetch", "Options", "Take", "Skip", "Repeat", "Zip", "Concatenate", "Filter", "Shard"),
    *("Unbatch", "Enumerate", "AssertCardinality"),
)


def _look_at_first(source: tf.data.Dataset, finder: RowFinder) -> None:
    """Find the rows of the first batch now, so that foreign data is refused at once."""
    for element in source.take(1):
        x = element[0] if isinstance(element, tuple) else element
        finder(*[leaf.numpy() for leaf in keras.tree.flatten(x)])
        return
    raise checks.bad_value(
        "The data is empty, so there is nothing to attach soft targets to.",
        given="0 examples",
        expected="at least one example",
        fix="check the data set, for example with next(iter(dataset)).",
    )


def _counted(attached: tf.data.Dataset, finder: RowFinder, size: int) -> tf.data.Dataset:
    """Count the examples of each pass, and tell where `size` of them or more did not come.

    A data set of batches of one known size leaves out the remainder.
    """

    def begin() -> np.int64:
        finder.served = 0
        return np.int64(0)

    def end() -> np.int64:
        if finder.served + size <= finder.count:
            tell_of_missing(finder.served, finder.count)
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
