"""What an example is, in 8 bytes: the hash of its inputs' raw bytes and types."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def of(inputs: Any) -> tf.Tensor:
    """Hash the content of each example of a batch: (batch, 8) uint8.

    Args:
        inputs: a dense tensor, or a nest of them, batch first.
    """
    leaves = [_of_leaf(leaf) for leaf in tf.nest.flatten(inputs)]
    return tf.fingerprint(tf.concat(leaves, axis=1))


def _of_leaf(leaf: tf.Tensor) -> tf.Tensor:
    """Give the type and the content's hash of one tensor for each example: (batch, 9) uint8."""
    batch = tf.shape(leaf)[0]
    if leaf.dtype == tf.string:
        leaf = tf.reshape(tf.fingerprint(tf.reshape(leaf, [-1])), (batch, 8 * _size(leaf)))
    kind = tf.fill((batch, 1), tf.constant(leaf.dtype.as_datatype_enum, tf.uint8))
    return tf.concat([kind, tf.fingerprint(leaf)], axis=1)


def _size(leaf: tf.Tensor) -> tf.Tensor:
    return tf.reduce_prod(tf.shape(leaf)[1:])
