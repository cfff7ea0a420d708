"""A model's pass that XLA compiles by itself, where that is faster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_kd.fusing import XLA
from keras_kd.keras_models import layers_of, supports_jit

LARGE = 1 << 16  # weights of a model from which the time to compile it comes back
SLOWER = tuple(  # layers for which TensorFlow has kernels of its own that are as fast, or faster
    getattr(keras.layers, name)
    for name in (
        *("Conv1D", "Conv2D", "Conv3D", "DepthwiseConv1D", "DepthwiseConv2D", "RNN"),
        *("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"),
        *("SeparableConv1D", "SeparableConv2D"),
    )
)


def pays(model: keras.Model) -> bool:
    """Say whether XLA makes this model's pass faster: by its size and its layers, on a CPU.

    On an accelerator Keras lets XLA compile the whole step.
    """
    if not compiles() or not model.built or model.count_params() < LARGE:
        return False
    return supports_jit([model]) and not any(map(is_slow, layers_of(model)))


def compiles() -> bool:
    """Say whether it is for us to call XLA here."""
    return XLA is not None and not tf.config.list_physical_devices("GPU")


def is_slow(layer: keras.layers.Layer) -> bool:
    """Say whether TensorFlow runs this layer as fast as XLA would, or faster."""
    return isinstance(layer, SLOWER)


def is_fixed(part: Any) -> bool:
    """Say whether a tensor or its spec has one shape but for the batch, and a type XLA takes."""
    dense = isinstance(part, (tf.Tensor, tf.TensorSpec)) and part.dtype != tf.string
    return dense and bool(part.shape.rank) and part.shape[1:].is_fully_defined()


class CompiledPass:
    """A function of a batch that XLA compiles, inside whatever graph it is called in.

    It is compiled once for each shape of batch; the last, shorter one of an epoch is another one.
    Keras's masks go through.

    Args:
        function: batch -> structure of tensors; it is traced.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        def with_masks(inputs: Any) -> tuple[Any, list]:
            given = function(inputs)
            return given, [_mask(leaf) for leaf in keras.tree.flatten(given)]

        self._function = tf.function(with_masks, jit_compile=True, autograph=False)

    def takes(self, inputs: Any) -> bool:
        """Say whether it can be called on these inputs, in what is traced now.

        It cannot where shapes are known only batch by batch: XLA would compile anew for each. A
        mask would be lost.
        """
        if tf.executing_eagerly() or tf.distribute.has_strategy():
            return False
        return all(is_fixed(leaf) and _mask(leaf) is None for leaf in keras.tree.flatten(inputs))

    def __call__(self, inputs: Any) -> Any:
        """Return what the function gives."""
        given, masks = self._function(inputs)
        for leaf, mask in zip(keras.tree.flatten(given), masks, strict=True):
            if mask is not None:
                leaf._keras_mask = mask
        return given


def _mask(leaf: Any) -> Any:
    return getattr(leaf, "_keras_mask", None)
