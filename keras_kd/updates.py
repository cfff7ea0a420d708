"""The optimizer's part of a step: many small passes over large weights as one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
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
    with _read_once(optimizer):
        update(*gradients)


def _fuses(gradients: Sequence[Any]) -> bool:
    """Say whether one pass is possible and pays."""
    if tf.executing_eagerly() or tf.distribute.has_strategy():
        return False
    dense = all(isinstance(gradient, tf.Tensor) for gradient in gradients)
    if not dense or not all(gradient.shape.is_fully_defined() for gradient in gradients):
        return False
    return sum(gradient.shape.num_elements() for gradient in gradients) >= LARGE * len(gradients)


@contextlib.contextmanager
def _read_once(optimizer: Any) -> Iterator[None]:
    """Read the number of the step and the learning rate once, not for each weight anew.

    What Keras's optimizers work out from these two alone, such as Adam's 1 - β²ᵗ, then is one
    operation in the graph instead of as many as there are weights; TensorFlow merges equal
    operations, but not those on two readings of a variable.
    """
    numbers = [] if tf.executing_eagerly() else _fixed_in_an_update(optimizer)
    try:
        for number in numbers:
            number._cached_value = number.read_value()  # TensorFlow's own place for it
        yield
    finally:
        for number in numbers:
            number._cached_value = None


def _fixed_in_an_update(optimizer: Any) -> list[tf.Variable]:
    """Return the variables that Keras's own optimizers change after an update, or not at all.

    None of an optimizer that somebody else wrote, or that hands the update on to others.
    """
    kind = type(optimizer)
    own = kind.__module__.startswith("keras.") and kind.apply is keras.optimizers.Optimizer.apply
    if not own or tf.distribute.has_strategy():
        return []
    numbers = [optimizer.iterations, optimizer._learning_rate]
    return [number.value for number in numbers if isinstance(number, keras.Variable)]
