"""Numbers drawn from what an example is: the same ones in any process, order and batch.

All of them come from `tf.fingerprint` (farmhash64), whose values are the same on every platform,
for a whole batch at once: row by row, so that an example's numbers do not depend on its batch.
"""

from __future__ import annotations

import functools
import statistics
from typing import Any

import numpy as np
import tensorflow as tf

BITS_OF_A_FLOAT = 24  # a float32 in [0, 1) with an equal distance between its values


def view_seeds(fingerprints: tf.Tensor, view: Any, seed: int) -> tf.Tensor:
    """Derive the seed of one view of each example.

    Args:
        fingerprints: (batch, n) uint8, the content of each example.
        view: which view, a whole number or an int64 tensor of shape ().
        seed: the augmentation's seed.

    Returns:
        Seeds for `tf.random.stateless_*`, (batch, 2) int32.
    """
    rows = _beside(fingerprints, _bytes(tf.stack([tf.cast(view, tf.int64), _int64(seed)])))
    return tf.bitcast(tf.reshape(tf.fingerprint(rows), (-1, 2, 4)), tf.int32)


def batch_seed(fingerprints: tf.Tensor, view: Any, seed: int) -> tf.Tensor:
    """Derive one seed, (2,) int32, from all the examples of a batch in order, and their number."""
    size = _bytes(tf.shape(fingerprints, out_type=tf.int64)[:1])
    whole = tf.concat([tf.reshape(fingerprints, [-1]), size], axis=0)
    return view_seeds(whole[None], view, seed)[0]


def derived(seeds: tf.Tensor, number: int) -> tf.Tensor:
    """Derive from each seed, (batch, 2), the seed of step `number`, (batch, 2) int32."""
    return tf.bitcast(tf.reshape(_hashes(seeds, [-1 - number]), (-1, 2, 4)), tf.int32)


def numbers(seeds: tf.Tensor, count: Any) -> tf.Tensor:
    """Draw `count` int64 numbers for each seed, (batch, 2) -> (batch, count), all 64 bits free."""
    bits = _hashes(seeds, tf.range(tf.cast(count, tf.int64)))
    return tf.reshape(tf.bitcast(bits, tf.int64), (tf.shape(seeds)[0], count))


def whole(seeds: tf.Tensor, count: Any, below: Any) -> tf.Tensor:
    """Draw `count` whole numbers from 0 to `below` - 1 for each seed, (batch, count) int64."""
    return tf.math.floormod(numbers(seeds, count), tf.cast(below, tf.int64))


def uniform(seeds: tf.Tensor, count: Any) -> tf.Tensor:
    """Draw `count` numbers from [0, 1) for each seed, (batch, count) float32."""
    steps = 2**BITS_OF_A_FLOAT
    return tf.cast(whole(seeds, count, steps), tf.float32) * (1.0 / steps)


def normal(seeds: tf.Tensor, count: Any) -> tf.Tensor:
    """Draw `count` numbers from N(0, 1) for each seed, (batch, count) float32.

    Each takes 16 bits of a hash and reads a table: no logarithm or cosine whose last bit depends
    on the machine, or on how many are computed at once.
    """
    words = tf.bitcast(numbers(seeds, (count + 3) // 4), tf.uint16)
    places = tf.reshape(words, (tf.shape(seeds)[0], -1))[:, :count]
    return tf.gather(tf.constant(normal_table()), tf.cast(places, tf.int32))


@functools.cache
def normal_table() -> np.ndarray:
    """Give the medians of 2¹⁶ equally likely parts of N(0, 1), scaled to a variance of 1."""
    half = 2**15
    inverse = statistics.NormalDist().inv_cdf
    above = np.array([inverse(0.5 + (place + 0.5) / (2 * half)) for place in range(half)])
    both = np.concatenate([-above[::-1], above])
    return (both / np.sqrt(np.mean(both**2))).astype("float32")


def _hashes(seeds: tf.Tensor, counters: Any) -> tf.Tensor:
    """Hash each seed with each counter: (batch, 2), (count,) -> (batch · count, 8) uint8."""
    batch, counters = tf.shape(seeds)[0], _int64(counters)
    count = tf.shape(counters)[0]
    seed_bytes = tf.reshape(_bytes(tf.reshape(_int64(seeds), [-1])), (batch, 1, 16))
    counter_bytes = tf.reshape(_bytes(counters), (1, count, 8))
    rows = tf.concat(
        [tf.tile(seed_bytes, (1, count, 1)), tf.tile(counter_bytes, (batch, 1, 1))], axis=2
    )
    return tf.fingerprint(tf.reshape(rows, (batch * count, 24)))


def _beside(rows: tf.Tensor, same: tf.Tensor) -> tf.Tensor:
    """Write the same bytes, (m,), behind each row, (batch, n)."""
    return tf.concat([rows, tf.tile(same[None], (tf.shape(rows)[0], 1))], axis=1)


def _bytes(values: tf.Tensor) -> tf.Tensor:
    """Give the bytes of int64 numbers in a row."""
    return tf.reshape(tf.bitcast(values, tf.uint8), [-1])


def _int64(values: Any) -> tf.Tensor:
    return tf.cast(tf.convert_to_tensor(values), tf.int64)
