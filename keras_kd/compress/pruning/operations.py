"""Operations and functions that look at each channel alone, and those that bring channels together.

`x + y` and `keras.ops.relu(x)` on symbolic tensors are operations; their classes are private names
of Keras.
"""

from __future__ import annotations

import keras
import numpy as np
from keras.src.ops import nn, numpy

from keras_kd.compress.pruning.views import Followed, Rule, View

ELEMENTWISE = tuple(
    getattr(keras.activations, name)
    for name in (
        *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu"),
        *("sigmoid", "hard_sigmoid", "hard_silu", "hard_tanh", "log_sigmoid", "tanh"),
        *("softplus", "softsign", "exponential", "mish", "squareplus", "sparse_plus"),
        *("tanh_shrink", "soft_shrink", "hard_shrink", "threshold"),
    )
)
"""Activations that look at each value alone."""


def merges(view: View) -> Followed | str:
    """Channels that are added, multiplied or compared place by place are tied.

    An input of one channel serves all of them, and is kept.
    """
    if any(np.ndim(number) for number in view.numbers):
        return "it takes numbers that stand in the graph"
    wide = max(map(len, view.labels))
    full = [labels for labels in view.labels if len(labels) == wide]
    for labels in view.labels:
        if len(labels) == wide:
            view.atoms.tie(full[0], labels)
        else:
            view.atoms.keep(labels, f"{view.layer.name!r} spreads it over all channels")
    return Followed([full[0]])


def concatenates(view: View) -> Followed | str:
    """Channels stand side by side; joined along another axis, they are tied."""
    rank = len(view.output)
    if view.layer.axis % rank == rank - 1:
        return Followed([np.concatenate(list(view.labels))])
    return merges(view)


def passes(view: View) -> Followed | str:
    """Channels go through one by one."""
    return Followed([view.labels[0]])


_BINARY = (
    *(numpy.Add, numpy.Subtract, numpy.Multiply, numpy.Divide, numpy.TrueDivide),
    *(numpy.Maximum, numpy.Minimum),
)
_UNARY = (
    *(numpy.Absolute, numpy.Negative, numpy.Square, numpy.Sqrt, numpy.Exp, numpy.Tanh, numpy.Clip),
    *(nn.Relu, nn.Relu6, nn.LeakyRelu, nn.Elu, nn.Selu, nn.Gelu, nn.Silu, nn.Softplus),
    *(nn.Sigmoid, nn.HardSigmoid, nn.HardSilu),
)
OPERATIONS: dict[type, Rule] = {
    **dict.fromkeys(_BINARY, merges),
    **dict.fromkeys(_UNARY, passes),
    numpy.Concatenate: concatenates,
}
