"""The name of an example: 8 bytes of its content, by which its row is found again."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kd import checks

SIZE = 8


def of(inputs: Any) -> tf.Tensor:
    """Name every example of a batch by its content, cheaply, in TensorFlow operations.

    The content is the raw bytes of every tensor (FarmHash64), its dtype, its shape and its place
    among the others: 1.0 as float32 and 1 as uint8 are two examples, and so are an image and the
    same image rescaled. The order in a batch and the size of the batch play no part.

    Args:
        inputs: a tensor, or any structure of tensors (or arrays), batch first. Strings are allowed.

    Returns:
        `(batch, 8)` uint8.

    Raises:
        TypeError: "An example is no dense tensor" for ragged and sparse tensors.
        ValueError: "An example stands alone" for a tensor without a batch axis.

    Reference:
        Pike, FarmHash, https://github.com/google/farmhash.

    Example:
    ```python
    import numpy as np
    from keras_kd import fingerprints

    images = np.arange(12, dtype="uint8").reshape(3, 4)
    first, second = fingerprints.of(images), fingerprints.of(images[::-1])
    print((first.numpy() == second.numpy()[::-1]).all())  # True
    ```
    """
    leaves = [_dense(leaf) for leaf in keras.tree.flatten(inputs)]
    named = [_named(leaf, number, len(leaves)) for number, leaf in enumerate(leaves)]
    return tf.fingerprint(tf.concat(named, axis=1))


@functools.cache
def _head(number: int, count: int, dtype: tf.DType, shape: tuple[int, ...]) -> np.ndarray:
    """Say in bytes which of the tensors it is, of which type, and what shape an example has."""
    words = f"{number}/{count} {dtype.name}".encode()
    kind = np.frombuffer(hashlib.blake2b(words, digest_size=SIZE).digest(), np.uint8)
    return np.concatenate([kind, np.array(shape, "<i8").view(np.uint8)])


def as_numbers(fingerprints: np.ndarray) -> np.ndarray:
    """Turn `(n, 8)` uint8 into `(n,)` uint64, for sorting and searching."""
    return np.ascontiguousarray(fingerprints).view("<u8").reshape(-1)


def _dense(leaf: Any) -> tf.Tensor:
    if isinstance(leaf, (tf.RaggedTensor, tf.SparseTensor)):
        raise not_dense(type(leaf).__name__)
    tensor = tf.convert_to_tensor(leaf)
    if tensor.shape.rank == 0:
        raise checks.bad_value(
            "An example stands alone, without a batch.",
            given=f"a tensor of shape () and dtype {tensor.dtype.name}",
            expected="a batch: tensors whose first axis counts the examples",
            fix="batch it first: dataset.batch(32), or x[None].",
        )
    return tensor


def refuse_not_dense(element_spec: Any) -> None:
    """Refuse a data set whose inputs have no bytes of one length, by its specs.

    Raises:
        TypeError: "An example is no dense tensor".
    """
    x = element_spec[0] if type(element_spec) is tuple else element_spec
    for leaf in tf.nest.flatten(x):
        if not isinstance(leaf, tf.TensorSpec):
            raise not_dense(type(leaf).__name__.removesuffix("Spec"))


def not_dense(kind: str) -> TypeError:
    """Make the error for ragged and sparse tensors."""
    fix = "x.to_tensor()" if "Ragged" in kind else "tf.sparse.to_dense(x)"
    return checks.bad_type(
        "An example is no dense tensor.",
        given=f"a {kind}",
        expected="dense tensors of one shape for every example",
        fix=f"map the data set with {fix}, padded to one length.",
    )


def _named(leaf: tf.Tensor, number: int, count: int) -> tf.Tensor:
    """Name one tensor of each example: what it is, its shape, and its content; (batch, n) uint8."""
    heads = _heads(leaf, number, count)
    if leaf.dtype == tf.string:  # each string for itself: "ab", "c" is not "a", "bc"
        shape = tf.shape(leaf, out_type=tf.int64)
        each = tf.fingerprint(tf.reshape(leaf, [-1]))
        width = tf.reduce_prod(shape[1:]) * SIZE
        leaf = tf.reshape(each, tf.stack([shape[0], width]))
    return tf.concat([heads, tf.fingerprint(leaf)], axis=1)


def _heads(leaf: tf.Tensor, number: int, count: int) -> tf.Tensor | np.ndarray:
    """Say of each example what the tensor is, in no operation where its shape is known."""
    known = leaf.shape[1:].is_fully_defined()
    head = _head(number, count, leaf.dtype, tuple(leaf.shape[1:]) if known else ())
    if known and leaf.shape[0] is not None:
        return np.broadcast_to(head, (leaf.shape[0], len(head)))
    shape = tf.shape(leaf, out_type=tf.int64)
    if not known:
        head = tf.concat([head, tf.reshape(tf.bitcast(shape[1:], tf.uint8), [-1])], axis=0)
    return tf.broadcast_to(head, tf.stack([shape[0], tf.size(head, out_type=tf.int64)]))
