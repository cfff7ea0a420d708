"""Mapping inline: the elements, specs, cardinalities and errors of `map` and `flat_map`."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import tensorflow as tf

from keras_kd.inline import flat_mapped, mapped

PAIRS = tf.data.Dataset.from_tensor_slices((np.arange(6.0), {"a": np.arange(12).reshape(6, 2)}))
RANGE = tf.data.Dataset.range(5)
CONSTANT = tf.constant([10, 20], tf.int64)
MAPS = {
    "a tensor": (RANGE, lambda x: 2 * x + 1),
    "a structure": (PAIRS, lambda x, y: {"sum": x + tf.cast(y["a"][0], x.dtype), "both": (x, y)}),
    "what it holds": (RANGE, lambda x: x + CONSTANT),
    "Python": (RANGE, lambda x: tf.ensure_shape(tf.numpy_function(np.negative, [x], "int64"), ())),
    "of unknown shape": (RANGE, lambda x: tf.range(x)),
    "batches": (PAIRS.batch(4), lambda x, y: (x[:1], y)),
    "without an end": (RANGE.repeat(), lambda x: x),
    "strings": (RANGE, tf.strings.as_string),
}
FLAT = {
    "numbers": lambda x: tf.data.Dataset.range(x),
    "another data set": lambda x: PAIRS.take(x).concatenate(PAIRS.take(1)),
    "mapped inside": lambda x: mapped(tf.data.Dataset.range(x), lambda y: y - x),
    "nothing": lambda x: PAIRS.take(0),
}


def elements(dataset) -> list[list]:
    taken = dataset.take(12).as_numpy_iterator()
    return [[leaf.tolist() for leaf in map(np.asarray, tf.nest.flatten(one))] for one in taken]


def assert_alike(ours, theirs) -> None:
    for _ in range(2):
        assert elements(ours) == elements(theirs)
    assert ours.element_spec == theirs.element_spec
    assert ours.cardinality() == theirs.cardinality()


@pytest.mark.parametrize("name", MAPS)
def test_mapped_gives_what_map_gives(name):
    source, function = MAPS[name]
    plain = tf.autograph.experimental.do_not_convert(function)
    assert_alike(mapped(source, function), source.map(plain))


@pytest.mark.parametrize("name", FLAT)
def test_flat_mapped_gives_what_flat_map_gives(name):
    plain = tf.autograph.experimental.do_not_convert(FLAT[name])
    ours, theirs = flat_mapped(RANGE, FLAT[name]), RANGE.flat_map(plain)
    assert_alike(ours, theirs)


OPTIONS = {
    "threading.private_threadpool_size": 2,
    "threading.max_intra_op_parallelism": 1,
    "experimental_optimization.inject_prefetch": True,
    "experimental_optimization.map_parallelization": True,
    "experimental_optimization.apply_default_optimizations": False,
    "deterministic": False,
    "autotune.enabled": False,
}


@pytest.mark.parametrize("option", OPTIONS)
def test_it_takes_any_option(option):
    """TensorFlow rewrites data sets for these, and looks into the functions that it knows."""
    options = tf.data.Options()
    *rooms, name = option.split(".")
    setattr(getattr(options, rooms[0]) if rooms else options, name, OPTIONS[option])
    numbers = mapped(RANGE, lambda x: (tf.cast(x, tf.int32), tf.cast(x, tf.int32) + 1))
    for dataset in (numbers, numbers.batch(2).prefetch(1), flat_mapped(RANGE, lambda _: numbers)):
        expected = elements(dataset)
        assert elements(dataset.with_options(options)) == expected


def test_data_of_other_than_dense_tensors_is_mapped_too():
    ragged = tf.data.Dataset.from_tensor_slices(tf.ragged.constant([[1], [2, 3]]))
    assert elements(mapped(ragged, lambda x: tf.reduce_sum(x))) == [[1], [5]]


def test_it_stands_among_other_data_sets():
    ours = mapped(RANGE.shuffle(5, seed=1, reshuffle_each_iteration=False), lambda x: x * x)
    theirs = RANGE.shuffle(5, seed=1, reshuffle_each_iteration=False).map(lambda x: x * x)
    for dataset in (lambda d: d.batch(2).prefetch(2), lambda d: d.repeat(2).unbatch()):
        assert elements(dataset(ours.batch(1))) == elements(dataset(theirs.batch(1)))
    total = tf.function(lambda: ours.reduce(np.int64(0), lambda a, b: a + b), autograph=False)
    assert int(total()) == 0 + 1 + 4 + 9 + 16


def test_what_is_asserted_is_checked_though_nothing_uses_it():
    def function(x: tf.Tensor) -> tf.Tensor:
        tf.debugging.Assert(x < 3, ["three is too many"])
        return tf.identity(CONSTANT)

    with pytest.raises(tf.errors.InvalidArgumentError, match="three is too many"):
        elements(mapped(RANGE, function))


def test_an_error_of_python_is_told():
    def refuse(x: np.int64) -> np.int64:
        raise ValueError(f"No {x}.")

    data = mapped(RANGE, lambda x: tf.numpy_function(refuse, [x], tf.int64))
    with pytest.raises(tf.errors.OpError, match=r"ValueError: No 0\."):
        elements(data)


def test_what_python_gives_lives_as_long_as_the_data_set():
    def made() -> tf.data.Dataset:
        inner = mapped(RANGE, lambda x: tf.numpy_function(lambda n: n + 1, [x], tf.int64))
        return flat_mapped(RANGE.take(2), lambda _: inner)

    data = made()
    gc.collect()
    assert elements(data) == [[n] for n in (1, 2, 3, 4, 5)] * 2
    iterator = iter(data)
    del data
    gc.collect()
    assert len(list(iterator)) == 10
