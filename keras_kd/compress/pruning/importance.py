"""What a channel is worth: by the loss, by the size of its filters, by its scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_kd import checks
from keras_kd.compress.pruning.channels import Channels, Slice
from keras_kd.compress.pruning.labelled import batches, loss_for


def magnitude(channels: Channels) -> np.ndarray:
    """Sum |w| over the filters that make each unit: (units,).

    The filters of a channel are the weights of a convolution, `Dense` or embedding that make it; a
    unit that several layers make has all of theirs (Li et al. 2017, section 3.1).
    """
    scores = np.zeros(channels.units)
    for part in _parts(channels, "makes"):
        scores += channels.sums(part.labels, _reduced(np.abs(_value(part)), part.axis))
    return scores


def batch_norm(channels: Channels) -> np.ndarray:
    """Sum |γ| over the batch normalisations of each unit: (units,) (Liu et al. 2017, section 3).

    Raises:
        ValueError: "… has no BatchNormalization".
    """
    scores, found = np.zeros(channels.units), np.zeros(channels.units)
    for part in _parts(channels, "scales"):
        scores += channels.sums(part.labels, np.abs(_value(part)))
        found += channels.sums(part.labels, np.ones(len(part.labels)))
    for group in channels.groups:
        if not found[group.units].all():
            raise checks.bad_value(
                f"The group {group.name!r} has no BatchNormalization with a scale.",
                given='importance="batchnorm"',
                expected="a BatchNormalization after each layer that may lose channels",
                fix='use importance="taylor" with data, or importance="magnitude".',
            )
    return scores


def taylor(
    network: keras.Model,
    channels: Channels,
    data: Any,
    loss: Any,
    batch_size: int,
    examples: int,
) -> np.ndarray:
    """Return the mean over batches of (∂E/∂z)², z a gate of 1 on each unit: (units,).

    Args:
        network: a copy that may be compiled.
        channels: what was found out about it.
        data: labelled batches, or arrays.
        loss: as `compile` takes it; `None` for the loss that the labels call for.
        batch_size: for arrays.
        examples: how many are looked at.
    """
    parts = list(_parts(channels, "reads"))
    step: Callable | None = None
    total, count = np.zeros(channels.units), 0
    for x, y, weight in batches(data, batch_size, examples):
        if step is None:
            chosen = loss if loss is not None else loss_for(network, x, y, weight)
            network.compile(loss=chosen)
            step = _gates(network, parts)
        gates = np.zeros(channels.units)
        for part, gate in zip(parts, step(x, y, weight), strict=True):
            gates += channels.sums(part.labels, gate.numpy().astype("float64"))
        total, count = total + gates**2, count + 1
    if not np.isfinite(total).all():
        raise checks.bad_value(
            "The gradients of the loss are not finite.",
            given=f"{int((~np.isfinite(total)).sum())} of {len(total)} channels",
            expected="finite numbers",
            fix="look for NaN in the data, and for a loss that takes logits for probabilities.",
        )
    return total / count


def _gates(network: keras.Model, parts: list[Slice]) -> Callable:
    """Make the function that sums gradient times weight over what reads each channel.

    The network is run as in inference: no dropout, and the statistics that it has.
    """
    weights = list({id(part.variable): part.variable for part in parts}.values())

    @tf.function(autograph=False, reduce_retracing=True)
    def gates(x: Any, y: Any, sample_weight: Any) -> list[Any]:
        values = [weight.value for weight in weights]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            predicted = network(x, training=False)
            loss = network.compute_loss(x, y, predicted, sample_weight, training=False)
            loss = ops.cast(loss, "float32") - sum(network.losses)  # regularisers say nothing
        gradients = tape.gradient(loss, values, unconnected_gradients="zero")
        products = {
            id(weight): ops.cast(value, "float32") * ops.cast(gradient, "float32")
            for weight, value, gradient in zip(weights, values, gradients, strict=True)
        }
        return [_summed(products[id(part.variable)], part.axis) for part in parts]

    return gates


def _summed(values: Any, axis: int) -> Any:
    return ops.sum(values, axis=[other for other in range(len(values.shape)) if other != axis])


def _parts(channels: Channels, role: str) -> Iterator[Slice]:
    for member in channels.members:
        yield from (part for part in member.slices if part.role == role)


def _value(part: Slice) -> np.ndarray:
    return ops.convert_to_numpy(part.variable).astype("float64")


def _reduced(values: np.ndarray, axis: int) -> np.ndarray:
    return values.sum(axis=tuple(other for other in range(values.ndim) if other != axis))
