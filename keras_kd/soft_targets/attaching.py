"""Join the stored answers to the examples of a data set, as `tf.data`.

Data that comes in the order of the store meets its rows in a stream beside it (`in_order`); data
whose order is not known beforehand is looked up batch by batch.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kd import checks, fingerprints
from keras_kd.data.batching import is_batched
from keras_kd.inline import flat_mapped, mapped
from keras_kd.numbered import numbered
from keras_kd.soft_targets import examples
from keras_kd.soft_targets.finding import Finder, joined, tell_of_missing
from keras_kd.soft_targets.in_order import beside_its_rows
from keras_kd.soft_targets.layout import FINGERPRINT_BYTES
from keras_kd.soft_targets.store import Store

TOGETHER = 256
"""How many examples of a data set without batches are joined at once."""


def attach(store: Store, dataset: Any, batched: bool | None) -> tf.data.Dataset:
    """Do the work of `SoftTargets.attach`, whose arguments these are."""
    dataset = examples.as_dataset(dataset, batched)
    fingerprints.refuse_not_dense(dataset.element_spec)
    takes = [(None, *described["shape"]) for described in store.manifest["build"]["inputs"]]
    in_batches = is_batched(dataset.element_spec, batched, takes)
    source = dataset if in_batches else dataset.batch(TOGETHER)
    finder, known = Finder(store), int(dataset.cardinality())
    size = _look_at_first(source, finder) if _reads_alike(dataset) else None
    if not in_batches and 0 <= known < store.count:
        tell_of_missing(known, store.count)
    in_order = known != tf.data.UNKNOWN_CARDINALITY and _keeps_its_order(dataset)
    if in_order := in_order and size is not None and size <= store.count:
        batches = known if in_batches or known < 0 else -(-known // TOGETHER)
        attached = beside_its_rows(source, finder, size or 1, batches, tells=in_batches)
    else:
        attached = _looked_up(source, finder)
    if not in_batches:
        attached = attached.unbatch()
    if not in_order and known != tf.data.INFINITE_CARDINALITY:
        whole = tf.nest.flatten(source.element_spec)[0].shape[0] if in_batches else 1
        attached = _counted(attached, finder, whole or 1)
    if known != tf.data.UNKNOWN_CARDINALITY:
        attached = attached.apply(tf.data.experimental.assert_cardinality(known))
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False  # it prepares all functions twice
    return attached.with_options(dataset.options()).with_options(options)


def _looked_up(source: tf.data.Dataset, finder: Finder) -> tf.data.Dataset:
    """Join batches with the rows of their contents."""

    def found(leaves: list[tf.Tensor]) -> list[tf.Tensor]:
        return tf.numpy_function(finder, [fingerprints.of(leaves), *leaves], finder.dtypes)

    def join(*element: Any) -> tuple:
        return joined(element, found, finder)

    return mapped(source, join).prefetch(tf.data.AUTOTUNE)


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


def _keeps_its_order(dataset: tf.data.Dataset) -> bool:
    """Say whether nothing in the data may give its elements in the order in which they are ready.

    Such data can come in order once and not the next time, so that no sample would do.
    """
    free = dataset.options().deterministic is False
    free |= getattr(dataset, "_deterministic", "default") == "false"
    return not free and all(map(_keeps_its_order, dataset._inputs()))


def _look_at_first(source: tf.data.Dataset, finder: Finder) -> int | None:
    """Refuse foreign data at once; count the first batch, if it is in the order of the store."""
    for element in source.take(1):
        x = element[0] if isinstance(element, tuple) else element
        names = fingerprints.of(x).numpy()
        finder(names, *[leaf.numpy() for leaf in keras.tree.flatten(x)])
        rows = finder.store.rows(np.arange(len(names)) % finder.store.count)
        return len(names) if np.array_equal(rows[:, :FINGERPRINT_BYTES], names) else None
    raise checks.bad_value(
        "The data is empty, so there is nothing to attach soft targets to.",
        given="0 examples",
        expected="at least one example",
        fix="check the data set, for example with next(iter(dataset)).",
    )


def _counted(attached: tf.data.Dataset, finder: Finder, size: int) -> tf.data.Dataset:
    """Count the examples of each pass, and tell where `size` of them or more did not come.

    A data set of batches of one known size leaves out the remainder.
    """

    def begin(_: np.int64) -> list[np.int64]:
        finder.served = 0
        return [np.int64(0)]

    def end(_: np.int64) -> list[np.int64]:
        finder.tell(finder.served, size)
        return [np.int64(0)]

    nothing = tf.TensorSpec((), tf.int64)
    whole = flat_mapped(numbered(1, begin, nothing), attached.skip)
    return whole.concatenate(flat_mapped(numbered(1, end, nothing), attached.take))
