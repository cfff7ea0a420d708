"""Many small operations as one: functions that XLA compiles on their own, inside any step."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import tensorflow as tf

XLA = platform.system() != "Darwin" or None  # TensorFlow has none on Apple's GPUs
NUMBER, VECTOR, MATRIX, CUBE = (tf.TensorSpec((None,) * axes) for axes in (0, 1, 2, 3))


def fused(*signature: tf.TensorSpec) -> Callable[[Callable], Any]:
    """Compile a function of float32 tensors to one pass; use it where starting them is what costs.

    It is compiled once for each batch size, in a fraction of a second.

    Args:
        *signature: `NUMBER`, `VECTOR`, `MATRIX` or `CUBE` for each argument, of any size.
    """
    return tf.function(input_signature=signature, jit_compile=XLA, autograph=False)
