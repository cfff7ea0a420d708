"""Mixed-precision students in float32: the form that every target is written from."""

from __future__ import annotations

from typing import Any

import keras

from keras_kd import checks
from keras_kd.export import base

ROUNDING = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


def types(model: keras.Model) -> set[str]:
    """Return the types that the layers of a model compute in."""
    # Keras has no public walk that reaches the layers inside layers.
    return {layer.compute_dtype for layer in model._flatten_layers(include_self=True)}


def bounds(model: keras.Model) -> base.Bounds:
    """Return how far the float32 form may be from a student as trained.

    The bound is 32 roundings of the least precise type in it: 0.031 of the largest output for
    float16, 0.25 for bfloat16. Decisions are reported and not bound.
    """
    coarse = max(ROUNDING.get(dtype, 0.0) for dtype in types(model))
    return base.Bounds(max_difference=max(1e-4, 32 * coarse))


def clone_of(model: keras.Model, x: Any) -> keras.Model | None:
    """Rebuild a mixed-precision model in float32, or return `None` where it is float32 already.

    The clone is made from the model's config with every reduced policy replaced, under the
    float32 policy (layers that a layer makes for itself take that one), and given the weights.
    The model itself stays as it is.

    Raises:
        ValueError: "computes in reduced precision and cannot be rebuilt in float32".
    """
    reduced = {dtype for dtype in types(model) if _reduced(dtype)}
    if not reduced:
        return None
    keep = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        if isinstance(model, keras.Sequential) or base.is_functional(model):
            clone = keras.models.clone_model(model, clone_function=_remade)
        else:
            clone = _remade(model)
        base.Student(clone, x)  # calls it once, which builds a subclassed model
        clone.set_weights(model.get_weights())
    except (NotImplementedError, TypeError, ValueError) as error:
        raise checks.bad_value(
            "The student computes in reduced precision and cannot be rebuilt in float32.",
            given=f"{type(model).__name__} {model.name!r} in {', '.join(sorted(reduced))}: {error}",
            expected="a model that `from_config(get_config())` makes again",
            fix="define `get_config`, or load the weights into the student built in float32.",
        ) from error
    finally:
        keras.config.set_dtype_policy(keep)
    for layer in clone._flatten_layers(include_self=True):
        if _reduced(layer.compute_dtype):  # a policy that stands in the code of a model
            layer.dtype_policy = "float32"
    return clone


def _remade(layer: keras.Layer) -> keras.Layer:
    return type(layer).from_config(_in_float32(layer.get_config()))


def _reduced(dtype: str) -> bool:
    return "float" in dtype and dtype != "float32"


def _in_float32(config: Any, key: str = "") -> Any:
    """Copy a config with its floating-point policies replaced; integer types stay."""
    if key == "dtype" and "float" in str(config):
        return "float32"
    if isinstance(config, dict):
        return {name: _in_float32(value, name) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return type(config)(_in_float32(value) for value in config)
    return config
