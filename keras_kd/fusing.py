"""Many small operations as one: functions that XLA compiles on their own, inside any step."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from typing import Any

import tensorflow as tf

XLA = platform.system() != "Darwin" or None  # TensorFlow has none on Apple's GPUs
MATRIX, VECTOR = tf.TensorSpec((None, None)), tf.TensorSpec((None,))


def fused(*signature: tf.TensorSpec) -> Callable[[Callable], Any]:
    """Compile a function of float32 tensors to one pass; use it where starting them is what costs.

    It is compiled once for each batch size, in a fraction of a second.

    Args:
        *signature: `MATRIX` or `VECTOR` for each argument, of any size.
    """
    return tf.function(input_signature=signature, jit_compile=XLA, autograph=False)


def fused_rows(*signature: tf.TensorSpec, by: int) -> Callable[[Callable], Any]:
    """Compile a function that gives one number for each row, and its slope by one argument.

    The slope is one pass too: it computes again what it needs, instead of keeping it.

    Args:
        *signature: as for `fused`.
        by: the place of the argument that has a gradient; the others have none.
    """

    def compiled(function: Callable) -> Callable:
        forward = fused(*signature)(function)

        @fused(*signature, VECTOR)
        def slope(*arguments: Any) -> Any:
            *inputs, upstream = arguments
            with tf.GradientTape() as tape:
                tape.watch(inputs[by])
                rows = function(*inputs)
            return tape.gradient(rows, inputs[by], output_gradients=upstream)

        @tf.custom_gradient
        def rows(*inputs: Any) -> tuple[Any, Callable]:
            def gradient(upstream: Any) -> list:
                found = slope(*inputs, upstream)
                return [found if place == by else None for place in range(len(inputs))]

            return forward(*inputs), gradient

        return functools.wraps(function)(rows)

    return compiled
