"""What the ways of teaching read back from a saved config."""

from __future__ import annotations

from typing import Any

import keras

SERIALIZED = (
    "student",
    "students",
    "distillation_losses",
    "distillation_loss_weights",
    "student_loss_weight",
    "decay",
)


def restored(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config with its models, losses and schedules made again."""
    parts = {key: config[key] for key in SERIALIZED if key in config}
    return {**config, **keras.saving.deserialize_keras_object(parts)}
