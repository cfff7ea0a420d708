"""Join the stored answers to the examples of a data set, as `tf.data`.

Data that comes in the order of the store meets its rows in a stream beside it, without any Python
between the batches; the content of the examples is compared with their rows', and where they differ
the rows are looked up. Data whose order is not known beforehand is looked up batch by batch.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.data.ops.map_op import _MapDataset  # with arguments that `map` lacks

from keras_kd import checks, fingerprints
from keras_kd.data.batching import is_batched
from keras_kd.soft_batch import SoftBatch
from keras_kd.soft_targets import examples
from keras_kd.soft_targets.layout import FINGERPRINT_BYTES
from keras_kd.soft_targets.store import Store

TOGETHER = 256
"""How many examples of a data set without batches are joined at once."""

EVERY = 16
"""One example in so many, and one of each batch, is checked after a whole pass in order."""

FOR_EVER = 2**12
"""How many batches of data without an end are a pass."""

BLOCK_BYTES = 4 * 2**20
"""How many bytes of rows are read at once, where they are read in order."""


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
        attached = _beside_its_rows(source, finder, size or 1, batches, tells=in_batches)
    else:
        attached = _looked_up(source, finder)
    if not in_batches:
        attached = attached.unbatch()
    if not in_order and known != tf.data.INFINITE_CARDINALITY:
        whole = tf.nest.flatten(source.element_spec)[0].shape[0] if in_batches else 1
        attached = _counted(attached, finder, whole or 1)
    if known != tf.data.UNKNOWN_CARDINALITY:
        attached = attached.apply(tf.data.experimental.assert_cardinality(known))
    return _begun_when_read(attached.prefetch(tf.data.AUTOTUNE))


def _begun_when_read(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Prepare a pass when its first batch is asked for, so that an iterator not read costs nothing.

    Keras makes two iterators an epoch and reads one. The second part of a concatenation begins when
    the first one, which is empty here, has ended. With a prefetch after it, as TensorFlow would add
    one, the functions take twice as long to prepare.
    """
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False
    return dataset.take(0).concatenate(dataset).with_options(options)


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
        """Return the flat answers of rows."""
        return tf.nest.flatten(self.store.layout.teacher_of(rows))

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


def _joined(element: Any, found: Callable[..., list[tf.Tensor]], finder: Finder) -> tuple:
    """Put the answers beside the inputs of a batch, in TensorFlow operations.

    Args:
        element: x, (x, y) or (x, y, weights).
        found: gives the flat answers to the flat inputs.
        finder: knows the specs of the answers, and whose they are.
    """
    x, *rest = element if type(element) is tuple else (element,)
    leaves = keras.tree.flatten(x)
    teacher = tf.nest.map_structure(
        lambda tensor, spec: tf.ensure_shape(tensor, leaves[0].shape[:1] + spec.shape[1:]),
        tf.nest.pack_sequence_as(finder.specs, found(leaves)),
        finder.specs,
    )
    count = leaves[0].shape[0]
    count = tf.shape(leaves[0])[:1] if count is None else [count]
    store = tf.fill(count, tf.constant(finder.number, tf.int64))
    return (SoftBatch(x, teacher | {"store": store}), *rest)


def _looked_up(source: tf.data.Dataset, finder: Finder) -> tf.data.Dataset:
    """Join batches with the rows of their contents."""

    def found(leaves: list[tf.Tensor]) -> list[tf.Tensor]:
        return tf.numpy_function(finder, [fingerprints.of(leaves), *leaves], finder.dtypes)

    @tf.autograph.experimental.do_not_convert
    def join(*element: Any) -> tuple:
        return _joined(element, found, finder)

    return source.map(join)


def _beside_its_rows(
    source: tf.data.Dataset, finder: Finder, size: int, batches: int, tells: bool
) -> tf.data.Dataset:
    """Join batches with a stream of the rows, in which each has its place.

    A pass checks every example and looks up what has another place, until one came wholly in order:
    from then on a sample is checked.

    Args:
        source: batches of one size, but for the last of a pass.
        finder: looks up what has another place.
        size: of a batch, at most all rows.
        batches: how many there are; negative where they do not end.
        tells: whether to tell where the data ends too early.
    """
    whole = tf.nest.flatten(source.element_spec)[0].shape[0] is not None
    passes = _Passes(finder, size, batches, (size if whole else 1) if tells else None)
    rows = _rows_in_order(finder).rebatch(size, drop_remainder=whole).repeat()

    @tf.autograph.experimental.do_not_convert
    def join(place: tuple, element: Any, row: tuple) -> tuple:
        (where, begin, end, is_last), (expected, *came) = place, row

        def found(leaves: list[tf.Tensor]) -> list[tf.Tensor]:
            names = fingerprints.of([leaf[begin:end] for leaf in leaves])
            alike = _equal(names, expected[begin:end])
            if not whole:
                alike &= tf.equal(tf.shape(leaves[0])[0], tf.shape(expected)[0])

            def elsewhere(came: list[tf.Tensor], *given: tf.Tensor) -> list[tf.Tensor]:
                return tf.numpy_function(passes.look_up, given, finder.dtypes)

            given = (where, expected, names, *leaves)
            return _either(alike & ~is_last, lambda came, *_: came, elsewhere, came, *given)

        return _joined(element, found, finder)

    return _mapped_inline(tf.data.Dataset.zip(passes.places(), source, rows), join)


class _Passes:
    """Count the passes in which every batch was in its place, and say what to check in the next.

    Args:
        finder: looks up what has another place.
        size: of a batch, but for the last one.
        batches: of a pass; negative where it does not end.
        least: from how many missing examples on to tell of them; None: not at all.
    """

    def __init__(self, finder: Finder, size: int, batches: int, least: int | None) -> None:
        self._finder, self._size, self._batches, self._least = finder, size, batches, least
        self._moved: dict[int, tuple[int, int]] = {}  # by pass: batches out of place, examples
        self._numbers = itertools.count()
        self._in_order = 0  # passes since one was not in order

    def places(self) -> tf.data.Dataset:
        """Give what is to do with each batch: `(where, begin, end, is_last)`.

        `where` is what `look_up` takes, the examples from `begin` to `end` are checked, and the
        last batch of a pass that checks everything is looked up in any case. All is worked out in
        one call of Python a pass: what is worked out for each batch costs as much each time.
        """

        def begun(_: tf.Tensor) -> tuple[tf.Tensor, ...]:
            parts = tf.numpy_function(self._begin, [], [tf.int64, tf.int64, tf.int64, tf.bool])
            return tuple(map(tf.ensure_shape, parts, shapes))

        shapes = [(None, 3), (None,), (None,), (None,)]
        one = tf.data.Dataset.range(1).map(begun).unbatch()
        return one if self._batches >= 0 else one.repeat()

    def _begin(self) -> list[np.ndarray]:
        before = self._in_order
        sampled = before > 0
        self._in_order += sampled  # what is not in order is told of where it is seen
        number = np.arange(self._batches if self._batches >= 0 else FOR_EVER)
        is_last = number == self._batches - 1
        each = max(1, self._size // EVERY)
        begin = (number + before) % -(-self._size // each) * each
        whole = is_last | (not sampled)  # whatever its size is
        where = [np.full_like(number, next(self._numbers)), number, np.full_like(number, sampled)]
        return [
            np.stack(where, 1),
            np.where(whole, 0, begin),
            np.where(whole, np.iinfo(np.int64).max, begin + each),
            is_last & (not sampled),
        ]

    def look_up(
        self,
        where: np.ndarray,
        expected: np.ndarray,
        names: np.ndarray,
        *leaves: np.ndarray,
    ) -> list[np.ndarray]:
        """Find the answers to a batch that has another place, or that is the last one.

        Raises:
            ValueError: "The data has changed since the last pass over it", "There are no soft
                targets for …".
        """
        number_of_pass, number, sampled = map(int, where)
        if sampled:
            raise _changed()
        count, held = self._moved.pop(number_of_pass, (0, 0))
        if number == self._batches - 1:
            orderly = not count and np.array_equal(names, expected)
            self._in_order = self._in_order + 1 if orderly else 0
            if self._least is not None:
                seen = (number - count) * self._size + held + len(names)
                self._finder.tell(seen, self._least)
        else:
            self._moved[number_of_pass] = count + 1, held + len(names)
        return self._finder(names, *leaves)


def _mapped_inline(dataset: tf.data.Dataset, function: Callable[..., tuple]) -> tf.data.Dataset:
    """Map with a function of few small operations, all run in the thread that asks for a batch.

    `Dataset.map` hands them to a pool of threads, which takes several times as long as they do.
    """
    return _MapDataset(dataset, function, use_inter_op_parallelism=False, force_synchronous=True)


def _either(condition: tf.Tensor, then: Callable, other: Callable, *arguments: Any) -> Any:
    """Call one of two functions, as `tf.cond`, in what one thread runs: that takes no switches."""
    specs = tf.nest.map_structure(tf.TensorSpec.from_tensor, arguments)
    branches = [
        tf.function(branch, autograph=False).get_concrete_function(*specs)
        for branch in (then, other)
    ]
    return tf.raw_ops.If(
        cond=condition,
        input=tf.nest.flatten(arguments),
        Tout=[spec.dtype for spec in specs[0]],
        then_branch=branches[0],
        else_branch=branches[1],
    )


def _equal(names: tf.Tensor, expected: tf.Tensor) -> tf.Tensor:
    """Say whether all names are the expected ones; other numbers of them are not."""
    equal = tf.raw_ops.Equal(x=names, y=expected, incompatible_shape_error=False)
    return tf.reduce_all(tf.reshape(equal, [-1]))  # one False where the numbers differ


def _rows_in_order(finder: Finder) -> tf.data.Dataset:
    """Read all rows once, block by block: the names and the flat answers."""
    store = finder.store
    each = max(1, BLOCK_BYTES // store.row_bytes)

    def read(block: np.int64) -> list[np.ndarray]:
        start = int(block) * each
        rows = store.rows(np.arange(start, min(start + each, store.count)))
        return [np.ascontiguousarray(rows[:, :FINGERPRINT_BYTES]), *finder.answers(rows)]

    specs = [tf.TensorSpec((None, FINGERPRINT_BYTES), tf.uint8), *tf.nest.flatten(finder.specs)]

    def block(number: tf.Tensor) -> tuple[tf.Tensor, ...]:
        parts = tf.numpy_function(read, [number], [spec.dtype for spec in specs])
        return tuple(map(tf.ensure_shape, parts, [spec.shape for spec in specs]))

    return tf.data.Dataset.range(-(-store.count // each)).map(block).prefetch(1)


def _changed() -> ValueError:
    """Make the error for a sample that holds other examples than it held in the pass before."""
    return checks.bad_value(
        "The data has changed since the last pass over it.",
        given="a batch with other examples than in the pass before, which was in the order of the "
        "store",
        expected="the same examples in the same order in each pass",
        fix="shuffle and augment after attach; where the order before it may change, say so with "
        "tf.data.Options().deterministic = False, and every batch is looked up.",
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

    def begin() -> np.int64:
        finder.served = 0
        return np.int64(0)

    def end() -> np.int64:
        finder.tell(finder.served, size)
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
