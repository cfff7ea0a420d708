"""Join batches that come in the order of the store with a stream of its rows.

What a batch holds is compared with what the rows beside it are of, and where they differ the rows
are looked up; nothing else is between the batches but TensorFlow's operations.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.data.ops.map_op import _MapDataset  # with arguments that `map` lacks

from keras_kd import checks, fingerprints
from keras_kd.soft_targets.finding import Finder, joined
from keras_kd.soft_targets.layout import FINGERPRINT_BYTES

EVERY = 16
"""One example in so many, and one of each batch, is checked after a whole pass in order."""

FOR_EVER = 2**12
"""How many batches of data without an end are a pass."""

BLOCK_BYTES = 4 * 2**20
"""How many bytes of rows are read at once, where they are read in order."""


def beside_its_rows(
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

        return joined(element, found, finder)

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
