"""What Keras knows of a model's layers and does not offer: its private names stand here."""

from __future__ import annotations

from collections.abc import Iterable

import keras
from keras.src.models.functional import Functional as Functional


def layers_of(model: keras.Model) -> list[keras.layers.Layer]:
    """Return the model and every layer inside it, nested ones too."""
    return [model, *model._flatten_layers(include_self=False)]


def computes_in_float16(model: keras.Model) -> bool:
    """Say whether any layer computes in float16, so that the loss must be scaled."""
    return any(layer.compute_dtype == "float16" for layer in layers_of(model))


def supports_jit(models: Iterable[keras.Model]) -> bool:
    """Say whether XLA can compile every layer of these models."""
    return all(layer.supports_jit for model in models for layer in layers_of(model))
