"""Join batches that come in the order of the store with the rows of their places.

A pass compares the content of every example with that of its row, and looks up what has another
place, in one small call of Python a batch. After a pass that came wholly in order a sample is
compared: the rows are a stream beside the batches, with no Python between them.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.data.ops.unbatch_op import _UnbatchDataset  # without `unbatch`'s own map

from keras_kd import checks, fingerprints
from keras_kd.inline import flat_mapped, mapped
from keras_kd.numbered import numbered
from keras_kd.soft_targets.finding import Finder, joined
from keras_kd.soft_targets.layout import FINGERPRINT_BYTES

EVERY = 16
"""One example in so many, and one of each batch, is checked after a whole pass in order."""

FOR_EVER = 2**12
"""How many batches of data without an end are a pass."""

BLOCK_BYTES = 4 * 2**20
"""How many bytes of rows are read at once, where they are a stream."""

END = np.iinfo(np.int64).max
"""A place behind every example of a batch, and more passes than there can be."""


def beside_its_rows(
    source: tf.data.Dataset, finder: Finder, size: int, batches: int, tells: bool
) -> tf.data.Dataset:
    """Join batches with the rows of their places.

    Args:
        source: batches of one size, but for the last of a pass.
        finder: looks up what has another place.
        size: of a batch, at most all rows.
        batches: how many there are; negative where they do not end.
        tells: whether to tell where the data ends too early.
    """
    whole = tf.nest.flatten(source.element_spec)[0].shape[0] is not None
    passes = _Passes(finder, size, batches, whole, tells)

    def check(where: tf.Tensor, element: Any) -> tuple:
        def found(leaves: list[tf.Tensor]) -> list[tf.Tensor]:
            given = [where, fingerprints.of(leaves), *leaves]
            return tf.numpy_function(passes.answers, given, finder.dtypes)

        return joined(element, found, finder)

    def sample(row: tuple, element: Any) -> tuple:
        begin, end, expected, *answers = row

        def found(leaves: list[tf.Tensor]) -> list[tf.Tensor]:
            names = fingerprints.of([_part(leaf, begin, end, expected) for leaf in leaves])
            alike = _equal(names, expected)
            if not whole:
                alike &= tf.equal(tf.shape(leaves[0])[0], tf.shape(answers[0])[0])
            tf.debugging.Assert(alike, [str(_changed())])
            return answers

        return joined(element, found, finder)

    checked = mapped(tf.data.Dataset.zip(passes.places(), source), check)
    if batches < 0:
        return checked.prefetch(tf.data.AUTOTUNE)
    sampled = mapped(tf.data.Dataset.zip(passes.rows(), source), sample)
    kinds = [kind.prefetch(tf.data.AUTOTUNE) for kind in (checked, sampled)]

    def taken(*counts: tf.Tensor) -> tf.data.Dataset:
        """Take all of one kind; what nothing is taken of is not even prepared."""
        first, second = (kind.take(count) for kind, count in zip(kinds, counts, strict=True))
        return first.concatenate(second)

    count = tf.TensorSpec((), tf.int64)
    return flat_mapped(numbered(1, passes.begun, (count, count)), taken)


class _Passes:
    """Count the passes in which every batch was in its place, and say what to check in the next.

    Args:
        finder: looks up what has another place.
        size: of a batch, but for the last one.
        batches: of a pass; negative where it does not end.
        whole: whether every batch is of this size.
        tells: whether to tell where the data ends too early.
    """

    def __init__(self, finder: Finder, size: int, batches: int, whole: bool, tells: bool) -> None:
        self._finder, self._size, self._batches = finder, size, batches
        self._whole, self._tells = whole, tells
        rows = finder.store.count
        self._cycle = rows // size if whole else -(-rows // size)  # batches of all rows
        self._moved: dict[int, tuple[int, int]] = {}  # by pass: batches out of place, examples
        self._numbers = itertools.count()
        self._in_order = 0  # passes since one was not in order

    def begun(self, _: np.int64) -> list[np.ndarray]:
        """Return for a pass that begins how many batches are checked whole, and by a sample."""
        sampled = self._in_order > 0
        self._in_order += sampled  # what is not in order is told of where it is seen
        counts = np.array([0, self._batches]) if sampled else np.array([self._batches, 0])
        return [*counts]

    def places(self) -> tf.data.Dataset:
        """Give for each batch what `answers` takes: the number of the pass, and its own in it."""
        endless = self._batches < 0

        def begun(part: np.int64) -> list[np.ndarray]:
            number = np.arange(FOR_EVER if endless else self._batches) + part * FOR_EVER
            return [np.stack([np.full_like(number, next(self._numbers)), number], 1)]

        return _stream(END if endless else 1, begun, [tf.TensorSpec((2,), tf.int64)])

    def answers(
        self, where: np.ndarray, names: np.ndarray, *leaves: np.ndarray
    ) -> list[np.ndarray]:
        """Return the flat answers to a batch: those of its place, if it is there.

        Args:
            where: the numbers of the pass, and of the batch in it.
            names: the fingerprints of its examples.
            *leaves: the flat arrays of its inputs.

        Raises:
            ValueError: "There are no soft targets for …".
        """
        of_pass, number = where.tolist()
        first = number % self._cycle
        rows = self._between(first, first + 1)
        alike = np.array_equal(names, rows[:, :FINGERPRINT_BYTES])
        if number == self._batches - 1:
            self._end(*self._moved.pop(of_pass, (0, 0)), len(names), alike)
        elif not alike:
            count, held = self._moved.get(of_pass, (0, 0))
            self._moved[of_pass] = count + 1, held + len(names)
        return self._finder.answers(rows) if alike else self._finder(names, *leaves)

    def _end(self, count: int, held: int, last: int, alike: bool) -> None:
        """Note what a pass says in which every example was compared.

        Args:
            count: how many batches before the last one were out of place.
            held: how many examples these held.
            last: how many the last one held.
            alike: whether the last one was in its place.
        """
        self._in_order = self._in_order + 1 if alike and not count else 0
        if self._tells:
            seen = (self._batches - 1 - count) * self._size + held + last
            self._finder.tell(seen, self._size if self._whole else 1)

    def rows(self) -> tf.data.Dataset:
        """Give for each batch the rows of its place, and the names of those to compare.

        That is `(begin, end, names, *answers)`. The rows are read block by block, a block being
        whole batches of one size.
        """
        each = max(1, self._size // EVERY)
        most = max(1, BLOCK_BYTES // (self._finder.store.row_bytes * self._size))
        full = self._finder.store.count // self._size
        ends = [*range(most, full, most), *range(full, self._cycle + 1)]
        cycles, others = divmod(self._batches, self._cycle)
        blocks = cycles * len(ends) + (bisect.bisect_left(ends, others) + 1 if others else 0)

        def block(number: np.int64) -> list[np.ndarray]:
            cycle, place = divmod(int(number), len(ends))
            first = ends[place - 1] if place else 0
            last = min(ends[place], self._batches - cycle * self._cycle)
            rows = self._between(first, last)
            begin = (np.arange(first, last) + self._in_order) % -(-self._size // each) * each
            begin = np.minimum(begin, self._size - each)[:, None]
            parts = rows[:, :FINGERPRINT_BYTES], *self._finder.answers(rows)
            names, *answers = (part.reshape(last - first, -1, *part.shape[1:]) for part in parts)
            if names.shape[1] < self._size:
                return [np.array([[0]]), np.array([[END]]), names, *answers]
            names = np.take_along_axis(names, (begin + np.arange(each))[..., None], 1)
            return [begin, begin + each, names, *answers]

        bound, size = tf.TensorSpec((1,), tf.int64), self._size if self._whole else None
        names = tf.TensorSpec((each if self._whole else None, FINGERPRINT_BYTES), tf.uint8)
        answers = [
            tf.TensorSpec((size, *spec.shape[1:]), spec.dtype)
            for spec in tf.nest.flatten(self._finder.specs)
        ]
        return _stream(blocks, block, [bound, bound, names, *answers])

    def _between(self, first: int, last: int) -> np.ndarray:
        """Read the rows of some batches that follow each other, counted from the first row."""
        stop = min(last * self._size, self._finder.store.count)
        return self._finder.store.between(first * self._size, stop)


def _stream(
    parts: int, function: Callable[[np.int64], list[np.ndarray]], specs: list[tf.TensorSpec]
) -> tf.data.Dataset:
    """Give what a function of Python holds for many batches at once, batch by batch.

    What is worked out for each batch costs as much each time as what is worked out for all.

    Args:
        parts: how many times it is called.
        function: number of the call -> arrays, whose first axis counts the batches.
        specs: of the arrays of one batch.
    """
    together = [tf.TensorSpec((None, *spec.shape), spec.dtype) for spec in specs]
    packed = tuple(together) if len(together) > 1 else together[0]
    return _UnbatchDataset(numbered(parts, function, packed).prefetch(1))


def _part(leaf: tf.Tensor, begin: tf.Tensor, end: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Take the examples of a batch whose names are given."""
    part = tf.strided_slice(leaf, begin, end)
    part.set_shape((like.shape[0], *leaf.shape[1:]))
    return part


def _equal(names: tf.Tensor, expected: tf.Tensor) -> tf.Tensor:
    """Say whether all names are the expected ones; other numbers of them are not."""
    equal = tf.raw_ops.Equal(x=names, y=expected, incompatible_shape_error=False)
    return tf.reduce_all(tf.reshape(equal, [-1]))  # one False where the numbers differ


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
