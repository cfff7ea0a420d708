"""Copies of a Functional or Sequential model: of its graph, its layers and their state.

What Keras knows of a layer's state and does not offer stands here: its private names are used in
no other file of this room.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_kd import checks
from keras_kd.graphs import calls, graph_of, is_network
from keras_kd.teachers import no_model


def check(model: Any) -> None:
    """Refuse what has no graph to follow.

    Raises:
        ValueError: "The student is no model", "… is not built", "… is a subclassed model".
    """
    if not isinstance(model, keras.Model):
        raise no_model("student", model)
    if is_network(model):
        return
    if isinstance(model, keras.Sequential) and type(model).call is keras.Sequential.call:
        raise checks.bad_value(
            f"The model {model.name!r} is not built: its channels are not known yet.",
            given="a keras.Sequential without an input shape",
            expected="a built model",
            fix="begin it with keras.Input(shape), or call model.build((None, …)) first.",
        )
    raise checks.bad_value(
        f"The model {model.name!r} is a subclassed model: its layers cannot be followed.",
        given=f"a {type(model).__name__} with a call() of its own",
        expected="a Functional or Sequential keras.Model",
        fix="build it of layers called on keras.Input, and keras.Model(inputs, outputs); such "
        "models may be nested.",
    )


def rebuilt(
    model: keras.Model, copy: Callable[[Any], Any], size: Callable[[Any], int | None]
) -> keras.Model:
    """Build a Functional model of the same graph and names from copies of its operations.

    Args:
        model: a model that `is_network`.
        copy: layer or operation -> its copy; asked once for each, in nested models too.
        size: symbolic input -> how many channels its copy has; `None` leaves it as it is.

    Returns:
        A new Functional model, not compiled. Its names and its structure of inputs and outputs
        are the model's.
    """
    return _rebuilt(model, copy, size, {})


def _rebuilt(
    model: keras.Model,
    copy: Callable[[Any], Any],
    size: Callable[[Any], int | None],
    copies: dict[int, Any],
) -> keras.Model:
    graph = graph_of(model)
    inputs = keras.tree.map_structure(lambda t: _new_input(t, size(t)), graph._inputs_struct)
    known = dict(zip(map(id, graph.inputs), keras.tree.flatten(inputs), strict=True))
    for call in calls(model):
        operation = call.operation
        if id(operation) not in copies:
            nested = is_network(operation)
            copies[id(operation)] = (
                _rebuilt(operation, copy, size, copies) if nested else copy(operation)
            )
        args, kwargs = call.fill_in(known)
        outputs = copies[id(operation)](*args, **kwargs)
        known.update(zip(map(id, call.outputs), keras.tree.flatten(outputs), strict=True))
    outputs = keras.tree.map_structure(lambda tensor: known[id(tensor)], graph._outputs_struct)
    new = keras.Model(inputs, outputs, name=model.name)
    new._trainable = model.trainable  # the layers have their own flags, which a setter would change
    return new


def _new_input(tensor: Any, channels: int | None) -> Any:
    layer = tensor._keras_history.operation
    config = layer.get_config()
    if channels is not None:
        config["batch_shape"] = (*config["batch_shape"][:-1], channels)
    return type(layer).from_config(config).output


def from_config(operation: Any, config: dict[str, Any]) -> Any:
    """Make an operation of the same class from a config.

    Raises:
        ValueError: "The layer … cannot be copied".
    """
    kind = type(operation)
    try:
        if isinstance(operation, keras.layers.Lambda):
            return kind.from_config(config, safe_mode=False)  # the caller's own function
        return kind.from_config(config)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise not_copied(operation, error) from error


def config_of(operation: Any) -> dict[str, Any]:
    """Return the config of a layer or operation.

    Raises:
        ValueError: "The layer … cannot be copied".
    """
    try:
        return operation.get_config()
    except NotImplementedError as error:
        raise not_copied(operation, error) from error


def not_copied(operation: Any, error: Exception) -> ValueError:
    """Make the error for a layer that Keras cannot make again."""
    return checks.bad_value(
        f"The layer {operation.name!r} cannot be copied.",
        given=f"a {type(operation).__name__}: {str(error).splitlines()[0]:.120}",
        expected="a layer that its class can make again from its config",
        fix=f"define get_config() in {type(operation).__name__}, with every argument of its "
        "constructor.",
    )


def copy_state(old: Any, new: Any) -> None:
    """Copy the weights, seeds and further state of a layer to its copy of the same shapes."""
    for source, target in zip(old.variables, new.variables, strict=True):
        target.assign(source)
    for source, target in zip(old._flatten_layers(), new._flatten_layers(), strict=True):
        if type(source).load_own_variables is not keras.layers.Layer.load_own_variables:
            store: dict[str, Any] = {}
            source.save_own_variables(store)
            target.load_own_variables(store)
