"""The optimizer's part of a step: many small passes over large weights as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_kd.fusing import XLA

LARGE = 1 << 13  # numbers in a weight, on average, from which one compiled pass is faster


def apply(optimizer: Any, gradients: Sequence[Any], weights: Sequence[Any]) -> None:
    """Apply gradients to weights as the optimizer does, in one compiled pass where that is faster.

    An update reads and writes each weight about ten times, which is most of the step of a network
    whose few weights are large; XLA makes it one pass. What is computed stays the optimizer's own.

    Args:
        optimizer: a built Keras optimizer.
        gradients: one for each weight; `None` and sparse ones are left to the optimizer.
        weights: the trained variables.
    """

    def update(*gradients: Any) -> None:
        optimizer.apply_gradients(zip(gradients, weights, strict=True))

    if _fuses(gradients):
        update = tf.function(update, jit_compile=XLA, autograph=False)
    update(*gradients)


def _fuses(gradients: Sequence[Any]) -> bool:
    """Say whether one pass is possible and pays."""
    if tf.executing_eagerly() or tf.distribute.has_strategy():
        return False
    dense = all(isinstance(gradient, tf.Tensor) for gradient in gradients)
    if not dense or not all(gradient.shape.is_fully_defined() for gradient in gradients):
        return False
    return sum(gradient.shape.num_elements() for gradient in gradients) >= LARGE * len(gradients)
