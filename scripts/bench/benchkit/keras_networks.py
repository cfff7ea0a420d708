"""The networks of `networks.PAIRS` in Keras."""

from __future__ import annotations

import keras
from keras import layers, ops

from benchkit import networks


def build(kind: str, numbers: tuple[int, ...], name: str) -> keras.Model:
    """Build a network; its last layer gives logits."""
    return {"mlp": _mlp, "cnn": _cnn, "transformer": _transformer}[kind](numbers, name)


def parameters(model: keras.Model) -> int:
    """Count the numbers that a network holds, BatchNorm's statistics among them."""
    return sum(int(ops.size(weight)) for weight in model.weights if weight.dtype == "float32")


def _mlp(widths: tuple[int, ...], name: str) -> keras.Model:
    inputs = keras.Input((networks.PIXELS,))
    x = inputs
    for number, width in enumerate(widths, start=1):
        x = layers.Dense(width, activation="relu", name=f"hidden{number}")(x)
    return keras.Model(inputs, layers.Dense(networks.CLASSES, name="logits")(x), name=name)


def _cnn(channels: tuple[int, ...], name: str) -> keras.Model:
    """Stack 3×3 convolutions with BatchNorm; `blockN` is what a block gives."""
    inputs = keras.Input((networks.SIDE, networks.SIDE, 1))
    x = inputs
    for number, width in enumerate(channels, start=1):
        block = f"block{number}"
        pooled = block in networks.POOLED
        x = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"{block}_conv")(x)
        x = layers.BatchNormalization(name=f"{block}_norm")(x)
        x = layers.ReLU(name=f"{block}_relu" if pooled else block)(x)
        x = layers.MaxPooling2D(name=block)(x) if pooled else x
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(networks.CLASSES, name="logits")(x), name=name)


def _transformer(numbers: tuple[int, ...], name: str) -> keras.Model:
    """Encode sequences of numbers with blocks that normalise first, and take the mean."""
    width, blocks, neck = numbers
    inputs = keras.Input((networks.LENGTH,), dtype="int32")
    x = layers.Embedding(networks.VOCABULARY, width, name="tokens")(inputs)
    x = Positions(name="positions")(x)
    for number in range(1, blocks + 1):
        block = f"block{number}"
        inner = layers.LayerNormalization(epsilon=1e-5, name=f"{block}_norm1")(x)
        attention = layers.MultiHeadAttention(
            networks.HEADS, width // networks.HEADS, name=f"{block}_attention"
        )
        x = layers.Add(name=f"{block}_attended")([x, attention(inner, inner)])
        inner = layers.LayerNormalization(epsilon=1e-5, name=f"{block}_norm2")(x)
        inner = layers.Dense(4 * width, activation="relu", name=f"{block}_wide")(inner)
        inner = layers.Dense(width, name=f"{block}_narrow")(inner)
        x = layers.Add(name=block)([x, inner])
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    x = layers.Dense(neck, activation="relu", name="neck")(x)
    return keras.Model(inputs, layers.Dense(networks.CLASSES, name="logits")(x), name=name)


@keras.saving.register_keras_serializable(package="keras_kd_bench")
class Positions(layers.Layer):
    """Add a learned vector for each place of the sequence."""

    def build(self, input_shape: tuple) -> None:
        """Make the vectors."""
        self.places = self.add_weight(shape=tuple(input_shape[1:]), name="places")

    def call(self, inputs):
        """Add them."""
        return inputs + self.places
