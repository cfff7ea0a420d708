"""What an object is saved as: its constructor's arguments, kept as attributes of their names."""

from __future__ import annotations

import inspect
import numbers
from typing import Any

import keras

from keras_kd import checks

_MISSING = object()
RESTORED = (
    "student",
    "students",
    "distillation_losses",
    "distillation_loss_weights",
    "student_loss_weight",
    "decay",
)
"""The parts of a saved Distiller (or another way of teaching) that Keras makes again."""


def arguments_of(kept: Any) -> dict[str, Any]:
    """Return the constructor's arguments of an object, fit for a config.

    Raises:
        TypeError: "… does not keep its argument …".
    """
    return {name: serialize(_argument(kept, name)) for name in _names(type(kept))}


def restored(config: dict[str, Any]) -> dict[str, Any]:
    """Return a Distiller's config with its models, losses and schedules made again."""
    parts = {key: config[key] for key in RESTORED if key in config}
    return {**config, **keras.saving.deserialize_keras_object(parts)}


def _names(cls: type) -> list[str]:
    """Name the arguments of a constructor, and of those that its `**kwargs` go to."""
    names: list[str] = []
    for owner in cls.__mro__:
        if "__init__" not in vars(owner):
            continue
        parameters = list(inspect.signature(vars(owner)["__init__"]).parameters.values())[1:]
        names += [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return list(dict.fromkeys(names))


def _argument(kept: Any, name: str) -> Any:
    value = getattr(kept, name, _MISSING)
    if value is _MISSING:
        raise checks.bad_type(
            f"{type(kept).__name__} does not keep its argument `{name}`.",
            given=f"a constructor with `{name}`, and no attribute of that name",
            expected=f"self.{name} = {name}",
            fix="keep it in the constructor, or define get_config and from_config.",
        )
    return value


def serialize(value: Any) -> Any:
    """Make plain values of an argument; what belongs to Keras is written in its way."""
    if value is None or isinstance(value, (str, bool, numbers.Number)):
        return value
    if isinstance(value, (list, tuple)):
        return [serialize(part) for part in value]
    if isinstance(value, dict):
        return {key: serialize(part) for key, part in value.items()}
    return keras.saving.serialize_keras_object(value)


def deserialize(config: Any) -> Any:
    """Make the argument again from what `serialize` wrote."""
    if isinstance(config, dict) and {"class_name", "config"} <= set(config):
        return keras.saving.deserialize_keras_object(config)
    if isinstance(config, dict):
        return {key: deserialize(part) for key, part in config.items()}
    if isinstance(config, (list, tuple)):
        return [deserialize(part) for part in config]
    return config
