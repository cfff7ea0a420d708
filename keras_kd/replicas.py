"""One batch over several replicas: what makes `tf.distribute` give the loss of one device.

Each replica averages over its own examples, and the optimizer adds the replicas' gradients. To be
exact with uneven shares, a replica's mean must count by its part of the global batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_kd import checks


def count() -> int:
    """Return the number of replicas that train in step; 1 without a strategy."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def total(local: Any) -> Any:
    """Add up a number over the replicas."""
    context = tf.distribute.get_replica_context()
    if count() == 1 or context is None:
        return local
    return context.all_reduce(tf.distribute.ReduceOp.SUM, local)


def share(local: Any) -> Any:
    """Return this replica's part of the global batch: local / total (1.0 without a strategy)."""
    return 1.0 if count() == 1 else tf.math.divide_no_nan(local, total(local))


def once(losses: Sequence[Any]) -> Any:
    """Add up losses that every replica has (regularisers), so that the replicas' sum is theirs."""
    total = tf.zeros(())
    for loss in losses:
        total += tf.reduce_sum(tf.cast(loss, tf.float32))
    return total / count()


def examples(outputs: Any) -> Any:
    """Count what a loss on these outputs averages over: real tokens under a mask, else examples."""
    leaves = keras.tree.flatten(outputs)
    masks = [mask for leaf in leaves if (mask := getattr(leaf, "_keras_mask", None)) is not None]
    if not masks:
        return tf.cast(tf.shape(leaves[0])[0], tf.float32)
    if len(leaves) > 1 and count() > 1:
        raise checks.bad_value(
            "Several outputs with masks cannot be averaged exactly over several replicas.",
            given=f"{len(leaves)} outputs, {len(masks)} of them masked, {count()} replicas",
            expected="one masked output, or outputs without masks",
            fix="train on one device, or mask by sample_weight.",
        )
    return tf.reduce_sum(tf.cast(masks[0], tf.float32))
