"""Features as vectors: what the losses on layers and on relations are made of.

Where a norm or a distance has no slope (at 0), its gradient here is 0 and not NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from keras import ops

Tensor = Any


def flat(features: Tensor) -> Tensor:
    """Return each example's feature as one vector, `(batch, everything)`."""
    shape = tuple(features.shape)
    if len(shape) == 2:
        return features
    size = 1
    for extent in shape[1:]:
        size = -1 if extent is None or size == -1 else size * extent
    if size == -1:
        return ops.reshape(features, (ops.shape(features)[0], -1))
    return ops.reshape(features, (-1, size))


def positions(features: Tensor) -> Tensor:
    """Return a map or sequence as `(batch, positions, channels)`; a vector is one position."""
    shape = tuple(features.shape)
    if len(shape) == 3:
        return features
    if None in shape[1:-1]:
        return ops.reshape(features, (ops.shape(features)[0], -1, shape[-1]))
    size = 1
    for extent in shape[1:-1]:
        size *= extent
    return ops.reshape(features, (-1, size, shape[-1]))


def mean_square(teacher: Tensor, student: Tensor) -> Tensor:
    """Return the mean over the last axis of (s − t)²; its slope by s, 2·(s − t)/n, is written out.

    The slope is one pass over the features where that of the parts is six.
    """

    @tf.custom_gradient
    def squares(student: Tensor) -> tuple[Tensor, Callable]:
        difference = student - teacher

        def slope(upstream: Tensor) -> Tensor:
            share = 2.0 / ops.cast(ops.shape(difference)[-1], difference.dtype)
            return difference * (share * upstream)[..., None]

        return ops.mean(ops.square(difference), axis=-1), slope

    return squares(student)


def safe_sqrt(squares: Tensor) -> Tensor:
    """Return √x with gradient 0 where x is 0."""
    zero = squares <= 0.0
    beside = ops.where(zero, 1.0, squares)  # guard: any number whose root has a slope
    return ops.where(zero, 0.0, ops.sqrt(beside))


def norm(vectors: Tensor, axis: Any = -1) -> Tensor:
    """Return the length of vectors, with the axis kept; its gradient at 0 is 0."""
    return safe_sqrt(ops.sum(ops.square(vectors), axis=axis, keepdims=True))


def unit(vectors: Tensor, axis: Any = -1) -> Tensor:
    """Return vectors of length 1; a vector of zeros stays one, and its gradient is 0."""
    length = norm(vectors, axis)
    zero = length <= 0.0
    beside = ops.where(zero, 1.0, length)  # guard: it divides only zeros
    return ops.where(zero, 0.0, vectors / beside)


def squared_distances(vectors: Tensor) -> Tensor:
    """Return ‖aᵢ − aⱼ‖² of all pairs, `(batch, batch)`.

    It is computed from the products of the centred vectors, which needs batch² numbers and not
    batch²·length. What is below the rounding of these products counts as 0, the diagonal too.
    """
    vectors = vectors - ops.mean(vectors, axis=0)
    squares = ops.sum(ops.square(vectors), axis=1)
    sums = ops.expand_dims(squares, 1) + ops.expand_dims(squares, 0)
    pairs = sums - 2.0 * ops.matmul(vectors, ops.transpose(vectors))
    apart = 1.0 - ops.eye(ops.shape(vectors)[0], dtype="float32")
    return ops.where(pairs > 1e-6 * sums, pairs, 0.0) * apart  # guard: rounding of the products


def distances(vectors: Tensor) -> Tensor:
    """Return ‖aᵢ − aⱼ‖ of all pairs, `(batch, batch)`; the gradient of a distance of 0 is 0."""
    return safe_sqrt(squared_distances(vectors))
