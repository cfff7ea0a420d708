"""How each kind of layer passes channels on: one rule for each kind, in a table by class.

A rule looks at one call of a layer and says which channels come out, which axes of its weights run
along which channels, which entries of its config count them, and what the call costs. A rule that
cannot follow a call says why in words, and the channels that the call touches are kept. Classes are
looked up exactly: a subclass may do anything, and is not followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import layers

from keras_kd.compress.pruning.channels import Labels, Slice, Term
from keras_kd.compress.pruning.operations import (
    ELEMENTWISE,
    OPERATIONS,
    concatenates,
    merges,
    passes,
)
from keras_kd.compress.pruning.views import Followed, Rule, View, positions, product, whole


def activates(view: View) -> Followed | str:
    """`keras.layers.Activation` of a function that looks at each value alone."""
    if view.layer.activation not in ELEMENTWISE:
        return f"it is {_mixing(view.layer)}"
    return passes(view)


def rescales(view: View) -> Followed | str:
    """`Rescaling` with one number for all channels."""
    if np.ndim(view.layer.scale) or np.ndim(view.layer.offset):
        return "it scales each channel by a number in its config"
    return passes(view)


def flattens(view: View) -> Followed | str:
    """Each channel comes out once for each position, channels running fastest."""
    return Followed([np.tile(view.labels[0], positions(view.shapes[0]) or 1)])


def reshapes(view: View) -> Followed | str:
    """Follow each number to its new place; what shares a place of the new last axis is tied."""
    labels, before, after = view.labels[0], view.shapes[0], view.output
    known = [size for size in (*before[1:], *after[1:]) if size is not None]
    if len(known) == len(before[1:]) + len(after[1:]):
        rows = np.broadcast_to(labels, known[: len(before) - 1]).reshape(-1, known[-1])
        for row in np.unique(rows, axis=0):
            view.atoms.tie(rows[0], row)
        labels = rows[0]
    elif before[-1] != after[-1]:
        return "it reshapes open axes"
    return Followed([labels], sizes={"target_shape": labels})


def permutes(view: View) -> Followed | str:
    """Channels stay where they are where the last axis stays the last."""
    if view.layer.dims[-1] != len(view.output) - 1:
        return "it moves the channels to another axis"
    return Followed([view.labels[0]])


def connects(view: View) -> Followed | str:
    """`Dense`: a row of the kernel for each channel read, a column for each made."""
    layer, read, made = view.layer, view.labels[0], view.make(view.layer.units)
    slices = [Slice(layer.kernel, 0, read, "reads"), *_made(layer, layer.kernel, 1, made)]
    macs = [Term(positions(view.shapes[0]), (read, made))]
    return _made_by(view, Followed([made], slices, {"units": made}, macs))


def convolves(view: View) -> Followed | str:
    """`Conv1D`, `Conv2D`, `Conv3D` without groups: the kernel's last axes are (read, made)."""
    layer, read = view.layer, view.labels[0]
    if layer.groups != 1:
        return f"it convolves in {layer.groups} groups"
    made, rank = view.make(layer.filters), len(layer.kernel.shape)
    slices = [
        Slice(layer.kernel, rank - 2, read, "reads"),
        *_made(layer, layer.kernel, rank - 1, made),
    ]
    macs = [Term(product(view.places, *layer.kernel_size), (read, made))]
    return _made_by(view, Followed([made], slices, {"filters": made}, macs))


def convolves_transposed(view: View) -> Followed | str:
    """`Conv1DTranspose` and its like: the kernel's last axes are (made, read)."""
    layer, read, made = view.layer, view.labels[0], view.make(view.layer.filters)
    rank = len(layer.kernel.shape)
    slices = [
        Slice(layer.kernel, rank - 1, read, "reads"),
        *_made(layer, layer.kernel, rank - 2, made),
    ]
    macs = [Term(product(positions(view.shapes[0]), *layer.kernel_size), (read, made))]
    return _made_by(view, Followed([made], slices, {"filters": made}, macs))


def convolves_depthwise(view: View) -> Followed | str:
    """`DepthwiseConv1D`, `DepthwiseConv2D`: each channel read makes `depth_multiplier` of its own.

    These come one after the other, and go with the channel that they are made of.
    """
    layer, read = view.layer, view.labels[0]
    made = np.repeat(read, layer.depth_multiplier)
    slices = [Slice(layer.kernel, len(layer.kernel.shape) - 2, read)]
    slices += [] if layer.bias is None else [Slice(layer.bias, 0, made)]
    macs = [Term(product(view.places, *layer.kernel_size), (made,))]
    return _made_by(view, Followed([made], slices, {}, macs))


def convolves_separably(view: View) -> Followed | str:
    """`SeparableConv1D`, `SeparableConv2D`: a depthwise convolution, then one of size 1."""
    layer, read, made = view.layer, view.labels[0], view.make(view.layer.filters)
    inner, rank = np.repeat(read, layer.depth_multiplier), len(layer.depthwise_kernel.shape)
    slices = [
        Slice(layer.depthwise_kernel, rank - 2, read, "reads"),
        Slice(layer.pointwise_kernel, rank - 2, inner),
        *_made(layer, layer.pointwise_kernel, rank - 1, made),
    ]
    macs = [
        Term(product(view.places, *layer.kernel_size), (inner,)),
        Term(view.places, (inner, made)),
    ]
    return _made_by(view, Followed([made], slices, {"filters": made}, macs))


def embeds(view: View) -> Followed | str:
    """`Embedding`: a column for each channel made."""
    layer, made = view.layer, view.make(view.layer.output_dim)
    view.atoms.keep(view.labels[0], f"it holds the numbers that {layer.name!r} looks up")
    return Followed([made], _made(layer, layer.embeddings, 1, made), {"output_dim": made})


def normalises(view: View) -> Followed | str:
    """Normalisations along the channels have one of each weight for a channel."""
    layer, labels = view.layer, view.labels[0]
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    if [axis % len(view.output) for axis in axes] != [len(view.output) - 1]:
        return f"it normalises along axis {layer.axis}"
    gamma = layer.gamma if isinstance(layer, layers.BatchNormalization) else None
    return Followed(
        [labels],
        [Slice(w, 0, labels, "scales" if w is gamma else "follows") for w in layer.weights],
    )


def slopes(view: View) -> Followed | str:
    """`PReLU`: a slope for each channel, unless it is shared along them."""
    alpha = view.layer.alpha
    along = alpha.shape[-1] == len(view.labels[0])
    last = len(alpha.shape) - 1
    slices = [Slice(alpha, last, view.labels[0])] if along else []
    return Followed([view.labels[0]], slices)


def recurs(view: View) -> Followed | str:
    """`LSTM`, `GRU`, `SimpleRNN` read channels; their own units are kept."""
    return _recurrent(view, [view.layer])


def recurs_both_ways(view: View) -> Followed | str:
    """`Bidirectional` of such a layer."""
    inner = [view.layer.forward_layer, view.layer.backward_layer]
    if not all(type(layer) in RECURRENT for layer in inner):
        return "it wraps a layer that is not followed"
    return _recurrent(view, inner)


def _recurrent(view: View, inner: Sequence[Any]) -> Followed:
    for state in view.labels[1:]:
        view.atoms.keep(state, f"it is the first state of {view.layer.name!r}")
    labels, steps = view.labels[0], view.shapes[0][1]
    slices, macs = [], []
    for layer in inner:
        cell = layer.cell
        slices.append(Slice(cell.kernel, 0, labels, "reads"))
        macs.append(Term(product(steps, cell.kernel.shape[1]), (labels,)))
        macs.append(Term(product(steps, *cell.recurrent_kernel.shape)))
    why = f"{view.layer.name!r} is a recurrent layer, whose own units are kept"
    view.atoms.keep(view.make(inner[0].units), why)
    return Followed([whole(shape) for shape in view.outputs], slices, {}, macs)


def _made(layer: Any, kernel: Any, axis: int, made: Labels) -> list[Slice]:
    """Name what makes channels: the filters and their biases."""
    bias = getattr(layer, "bias", None)
    return [
        Slice(kernel, axis, made, "makes"),
        *([] if bias is None else [Slice(bias, 0, made)]),
    ]


def _made_by(view: View, found: Followed) -> Followed:
    """Check a layer with an activation of its own; one that mixes channels keeps them."""
    if view.layer.activation not in ELEMENTWISE:
        why = f"{view.layer.name!r} ends in {_mixing(view.layer)}"
        for labels in found.outputs:
            view.atoms.keep(labels, why)
    return found


def _mixing(layer: Any) -> str:
    activation = layer.activation
    return f"the activation {getattr(activation, '__name__', activation)!s:.40}, which may mix them"


def unfollowed_macs(view: View) -> list[Term]:
    """Count what a layer costs whose channels are kept."""
    layer = view.layer
    if isinstance(layer, layers.MultiHeadAttention):
        return _attention_macs(view)
    if isinstance(layer, (layers.Conv1D, layers.Conv2D, layers.Conv3D)):
        return [Term(product(view.places, *layer.kernel.shape))]
    if isinstance(layer, layers.Dense):
        return [Term(product(positions(view.shapes[0]), *layer.kernel.shape))]
    return []


def _attention_macs(view: View) -> list[Term]:
    """Count projections, scores and the weighted sum of attention over one axis of positions."""
    config, query, value = view.layer.get_config(), view.shapes[0], view.shapes[1]
    key = view.shapes[2] if len(view.shapes) > 2 else value
    heads, wide = config["num_heads"], config["key_dim"]
    deep = config["value_dim"] or wide
    asked, seen = positions(query), positions(key)
    return [
        Term(product(asked, query[-1], heads, wide)),
        Term(product(seen, key[-1], heads, wide)),
        Term(product(seen, value[-1], heads, deep)),
        Term(product(asked, seen, heads, wide + deep)),
        Term(product(asked, heads, deep, view.output[-1])),
    ]


_PASSING = (
    *(layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D),
    *(layers.GaussianNoise, layers.GaussianDropout, layers.AlphaDropout),
    *(layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Identity, layers.ActivityRegularization),
    *(layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D),
    *(layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D),
    *(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D),
    *(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D),
    *(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D),
    *(layers.Cropping1D, layers.Cropping2D, layers.Cropping3D),
    *(layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D),
    *(layers.RepeatVector, layers.Resizing),
)
_MERGING = (
    *(layers.Add, layers.Subtract, layers.Multiply),
    *(layers.Average, layers.Maximum, layers.Minimum),
)
RECURRENT = (layers.LSTM, layers.GRU, layers.SimpleRNN)
SEVERAL_INPUTS = (*_MERGING, layers.Concatenate, *RECURRENT, layers.Bidirectional)
OWN_WEIGHTS = (*RECURRENT, layers.Bidirectional, layers.PReLU)  # of which some are not cut

RULES: dict[type, Rule] = {
    **dict.fromkeys(_PASSING, passes),
    **dict.fromkeys(_MERGING, merges),
    **dict.fromkeys(RECURRENT, recurs),
    layers.Bidirectional: recurs_both_ways,
    layers.Activation: activates,
    layers.Rescaling: rescales,
    layers.Concatenate: concatenates,
    layers.Flatten: flattens,
    layers.Reshape: reshapes,
    layers.Permute: permutes,
    layers.Dense: connects,
    **dict.fromkeys((layers.Conv1D, layers.Conv2D, layers.Conv3D), convolves),
    **dict.fromkeys(
        (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose),
        convolves_transposed,
    ),
    **dict.fromkeys((layers.DepthwiseConv1D, layers.DepthwiseConv2D), convolves_depthwise),
    **dict.fromkeys((layers.SeparableConv1D, layers.SeparableConv2D), convolves_separably),
    layers.Embedding: embeds,
    layers.BatchNormalization: normalises,
    layers.LayerNormalization: normalises,
    layers.RMSNormalization: normalises,
    layers.UnitNormalization: normalises,
    layers.PReLU: slopes,
}


def rule_for(operation: Any, inputs: int) -> Rule | None:
    """Return the rule of a layer or operation; `None` where there is none."""
    single = isinstance(operation, layers.Layer) and type(operation) not in SEVERAL_INPUTS
    if single and inputs > 1:
        return None
    return RULES.get(type(operation)) or OPERATIONS.get(type(operation))
