"""A smaller network from the channels that are kept, with the weights of the larger one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_kd.compress import networks
from keras_kd.compress.pruning.channels import Channels, Member


def copied(model: keras.Model) -> keras.Model:
    """Copy a network with its weights, as a Functional model that is not compiled."""
    copies: list[tuple[Any, Any]] = []

    def copy(operation: Any) -> Any:
        new = networks.from_config(operation, networks.config_of(operation))
        copies.append((operation, new))
        return new

    network = networks.rebuilt(model, copy, lambda tensor: None)
    for old, new in copies:
        if isinstance(old, keras.layers.Layer):
            networks.copy_state(old, new)
    return network


def cut(model: keras.Model, channels: Channels, kept: np.ndarray) -> keras.Model:
    """Build the network anew with the channels that are kept.

    Args:
        model: the network.
        channels: what was found out about it.
        kept: whether each unit is kept.

    Returns:
        A Functional model with the same names, not compiled.
    """
    members = {id(member.layer): member for member in channels.members}
    copies: list[tuple[Member, Any]] = []

    def copy(operation: Any) -> Any:
        member = members[id(operation)]
        config = networks.config_of(operation)
        if member.slices:
            config = unbuilt(config)
        for key, labels in member.sizes.items():
            size = len(channels.left(labels, kept))
            config[key] = (*config[key][:-1], size) if key == "target_shape" else size
        new = networks.from_config(operation, config)
        copies.append((member, new))
        return new

    def size(tensor: Any) -> int | None:
        labels = channels.inputs.get(id(tensor))
        return None if labels is None else len(channels.left(labels, kept))

    network = networks.rebuilt(model, copy, size)
    for member, new in copies:
        if member.slices:
            for target, value in zip(new.variables, values(member, channels, kept), strict=True):
                target.assign(value)
        elif isinstance(new, keras.layers.Layer):
            networks.copy_state(member.layer, new)
    return network


def unbuilt(config: Any) -> Any:
    """Leave out the shapes that the layers inside a wrapper were built with."""
    if isinstance(config, dict):
        return {key: unbuilt(value) for key, value in config.items() if key != "build_config"}
    return [unbuilt(part) for part in config] if isinstance(config, list) else config


def values(member: Member, channels: Channels, kept: np.ndarray) -> Iterator[np.ndarray]:
    """Give each variable of a layer without the channels that go."""
    for variable in member.layer.variables:
        value = ops.convert_to_numpy(variable)
        for part in member.slices:
            if part.variable is variable:
                value = np.take(value, channels.left(part.labels, kept), axis=part.axis)
        yield value
