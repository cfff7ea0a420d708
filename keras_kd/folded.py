"""BatchNormalization inside the weights of the layer before it, for a pass that only answers.

With moving statistics a BatchNormalization is a number and an offset for each channel, so that

    BN(conv(x, w) + b) = conv(x, w·γ/σ) + β + (b − μ)·γ/σ,    σ = √(variance + ε),

and the passes over the maps that it takes are spared. The weights are scaled in every pass, so a
teacher whose weights change is followed, and nothing in the model is changed.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Collection
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_kd import graphs

KL = keras.layers


def _convolution(layer: Any, inputs: Any, factor: Any) -> Any:
    return layer.convolution_op(inputs, layer.kernel * factor)


def _depthwise(layer: Any, inputs: Any, factor: Any) -> Any:
    return ops.depthwise_conv(
        inputs,
        layer.kernel * ops.reshape(factor, layer.kernel.shape[-2:]),
        strides=layer.strides,
        padding=layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )


def _dense(layer: Any, inputs: Any, factor: Any) -> Any:
    return ops.matmul(inputs, layer.kernel * factor)


SCALED: dict[type, Callable[[Any, Any, Any], Any]] = {
    **dict.fromkeys((KL.Conv1D, KL.Conv2D, KL.Conv3D), _convolution),
    **dict.fromkeys((KL.DepthwiseConv1D, KL.DepthwiseConv2D), _depthwise),
    KL.Dense: _dense,
}
"""Layers into which a BatchNormalization folds: what they give, by scaled weights, without bias."""


def folds(model: keras.Model, seen: Collection[Any] = ()) -> dict[Any, Callable]:
    """Find the layers that one pass without training can do in fewer operations.

    A layer of `SCALED` is folded where nothing but one BatchNormalization sees what it gives.
    Graphs are followed into nested models; inside subclassed ones nothing is folded.

    Args:
        model: a `keras.Model`, built or not.
        seen: layers whose outputs are looked at, and so stay as they are.

    Returns:
        layer -> what its `call` is in such a pass, for both layers of each pair; empty where
        nothing can be folded.
    """
    networks: dict[int, keras.Model] = {}
    trained: set[int] = set()
    _visit(model, False, networks, trained)
    calls = [call for network in networks.values() for call in graphs.calls(network)]
    counts = collections.Counter(id(call.operation) for call in calls)
    watched = {id(layer) for layer in seen}
    found: dict[Any, Callable] = {}
    for network in networks.values():
        for layer, norm in [] if id(network) in trained else _pairs(network):
            if counts[id(layer)] == counts[id(norm)] == 1 and id(layer) not in watched:
                found[layer] = _folded(layer, norm)
                found[norm] = _unchanged
    return found


def _visit(model: Any, trains: bool, networks: dict[int, keras.Model], trained: set[int]) -> None:
    """Collect the graphs inside a model, and which of them are called as if they were trained."""
    known = id(model) in (trained if trains else networks)
    if known or not graphs.is_network(model):
        return
    networks[id(model)] = model
    if trains:
        trained.add(id(model))
    for call in graphs.calls(model):
        _visit(call.operation, trains or _says_more(call), networks, trained)


def _says_more(call: graphs.Call) -> bool:
    """Say whether a call has other arguments than its tensors, such as training=True."""
    return any(number is not False for number in call.numbers)


def _pairs(network: keras.Model) -> list[tuple[Any, Any]]:
    """Return each layer of a graph, with the BatchNormalization that alone sees its output."""
    calls = list(graphs.calls(network))
    takers = collections.defaultdict(list)
    for call in calls:
        for tensor in call.inputs:
            takers[id(tensor)].append(call)
    given = {id(tensor) for tensor in keras.tree.flatten(graphs.graph_of(network).outputs)}
    pairs = []
    for call in calls:
        if type(call.operation) not in SCALED or id(call.outputs[0]) in given:
            continue
        after = takers[id(call.outputs[0])]
        if len(after) == 1 and _fits(call.operation, after[0]):
            pairs.append((call.operation, after[0].operation))
    return pairs


def _fits(layer: Any, after: graphs.Call) -> bool:
    """Say whether the layer that comes after is a BatchNormalization that folds into this one."""
    norm = after.operation
    if type(norm) is not KL.BatchNormalization or _says_more(after):
        return False
    plain = layer.activation is keras.activations.linear
    plain = plain and getattr(layer, "quantization_mode", None) is None
    plain = plain and getattr(layer, "padding", "valid") != "causal"
    last = len(after.inputs[0].shape) - 1
    channels_last = getattr(layer, "data_format", "channels_last") == "channels_last"
    float32 = all(
        "float32" == policy.compute_dtype == policy.variable_dtype
        for policy in (layer.dtype_policy, norm.dtype_policy)
    )
    return plain and channels_last and norm.axis in (-1, last) and float32


def _folded(layer: Any, norm: Any) -> Callable[[Any], Any]:
    def call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        factor = ops.rsqrt(norm.moving_variance + norm.epsilon)
        if norm.scale:
            factor = factor * norm.gamma
        offset = -norm.moving_mean if layer.bias is None else layer.bias - norm.moving_mean
        offset = offset * factor
        if norm.center:
            offset = offset + norm.beta
        return tf.nn.bias_add(SCALED[type(layer)](layer, inputs, factor), offset)

    return call


def _unchanged(inputs: Any, *args: Any, **kwargs: Any) -> Any:
    return inputs
