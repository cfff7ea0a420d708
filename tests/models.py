"""Tiny models that many tests use."""

from __future__ import annotations

import keras
import numpy as np

LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def mlp(width: int = 8, classes: int = 3, activation: str | None = None) -> keras.Model:
    """A Sequential model on 6 numbers with a layer `hidden`."""
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(width, activation="relu", name="hidden"),
            keras.layers.Dense(classes, activation=activation, name="head"),
        ]
    )


def data(count: int = 24, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Random inputs and labels, the same each time."""
    rng = np.random.default_rng(1)
    return rng.normal(size=(count, 6)).astype("float32"), rng.integers(0, classes, count)


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """A subclassed model that counts its calls and keeps its layers inside a nested one."""

    def __init__(self, width: int = 8, classes: int = 3, **kwargs) -> None:
        super().__init__(**kwargs)
        self.width, self.classes = width, classes
        self.backbone = keras.Sequential(
            [keras.layers.Dense(width, activation="relu", name="hidden")], name="backbone"
        )
        self.head = keras.layers.Dense(classes, name="head")
        self.calls = 0

    def call(self, inputs):
        """Count, then answer."""
        self.calls += 1
        return self.head(self.backbone(inputs))

    def get_config(self) -> dict:
        """Return the constructor's arguments."""
        return {"width": self.width, "classes": self.classes, "name": self.name}
