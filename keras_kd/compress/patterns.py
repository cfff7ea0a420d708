"""What each kind of layer is in an integer file, and which layers become one operation there.

A network is laid out flat: nested models are replaced by their layers. Of each layer the rules say
what it does to the grid of its input:

- weighted: a convolution or `Dense`; a BatchNormalization behind it is folded in, and a ReLU too.
- scaling, sum: a grid of its own; a ReLU behind it is part of the operation.
- table: an activation with an operation of its own; the input is on a grid, the output too.
- kept: values stay on the grid of the input (maxima, reshapes, padding with the exact zero).
- again: the output has the grid of the input and is rounded to it (averages of neighbours).
- joined: all inputs and the output have one grid (`Concatenate`).
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import keras

from keras_kd import checks, graphs
from keras_kd.compress import networks
from keras_kd.compress.quantized_layers import QUANTIZED

KL = keras.layers
WEIGHTED, SCALING, SUM, TABLE = "weighted", "scaling", "sum", "table"
KEPT, AGAIN, JOINED = "kept", "again", "joined"
RULES: dict[type, str] = {
    **dict.fromkeys(QUANTIZED, WEIGHTED),
    **dict.fromkeys((KL.BatchNormalization, KL.Rescaling, KL.Normalization), SCALING),
    **dict.fromkeys((KL.Add, KL.Subtract, KL.Multiply), SUM),
    **dict.fromkeys((KL.GlobalAveragePooling1D, KL.GlobalAveragePooling2D), TABLE),
    **dict.fromkeys((KL.ReLU, KL.LeakyReLU, KL.Softmax, KL.Activation), TABLE),
    **dict.fromkeys((KL.AveragePooling1D, KL.AveragePooling2D), AGAIN),
    **dict.fromkeys((KL.MaxPooling1D, KL.MaxPooling2D), KEPT),
    **dict.fromkeys((KL.GlobalMaxPooling1D, KL.GlobalMaxPooling2D), KEPT),
    **dict.fromkeys((KL.Flatten, KL.Reshape, KL.Permute, KL.RepeatVector, KL.Identity), KEPT),
    **dict.fromkeys((KL.ZeroPadding1D, KL.ZeroPadding2D, KL.Cropping1D, KL.Cropping2D), KEPT),
    **dict.fromkeys((KL.UpSampling1D, KL.UpSampling2D), KEPT),
    **dict.fromkeys((KL.Dropout, KL.SpatialDropout1D, KL.SpatialDropout2D), KEPT),
    **dict.fromkeys((KL.GaussianNoise, KL.GaussianDropout, KL.ActivityRegularization), KEPT),
    KL.Concatenate: JOINED,
}
PART_OF_KERNEL = ("linear", "relu", "relu6")
ACTIVATIONS = (
    *PART_OF_KERNEL,
    "leaky_relu",
    "hard_silu",
    "silu",
    "gelu",
    "sigmoid",
    "tanh",
    "softmax",
)
OPERATIONS: dict[str, Callable[[str], Any]] = {
    "Add": lambda name: KL.Add(name=name),
    "Subtract": lambda name: KL.Subtract(name=name),
    "Multiply": lambda name: KL.Multiply(name=name),
    "Relu": lambda name: KL.ReLU(name=name),
    "Relu6": lambda name: KL.ReLU(6, name=name),
}
"""Operations of `keras.ops` on tensors, and the layers that do the same."""
FIXED = {
    "sigmoid": (0.0, 255 / 256),
    "softmax": (0.0, 255 / 256),
    "tanh": (-1.0, 127 / 128),
}
"""The ends that LiteRT's kernels prescribe for their outputs."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One call of a layer in the flat network.

    Attributes:
        layer: the student's layer.
        name: its name, or "model_layer" where two nested layers have the same.
        inputs: the numbers of the values that it takes.
        output: the number of the value that it gives.
        as_list: whether it takes a list, as `Add` does.
        training: `False` where its call was given that, `None` for the model's.
    """

    layer: Any
    name: str
    inputs: list[int]
    output: int
    as_list: bool
    training: bool | None

    @property
    def rule(self) -> str:
        """What it does to grids: a name from the head of this file."""
        if type(self.layer) is KL.UpSampling2D and self.layer.interpolation != "nearest":
            return AGAIN
        return RULES[type(self.layer)]

    @property
    def activation(self) -> str:
        """The activation that it is, or ends with."""
        return activation_of(self.layer)


@dataclasses.dataclass
class Network:
    """A student laid out flat: values are numbers, each made by one step or an input."""

    model: keras.Model
    inputs: list[int]
    outputs: Any
    steps: list[Step]

    def __post_init__(self) -> None:
        """Count who takes each value."""
        self.maker = {step.output: step for step in self.steps}
        self.takers: dict[int, list[Step]] = collections.defaultdict(list)
        for step in self.steps:
            for value in step.inputs:
                self.takers[value].append(step)
        self.given = set(keras.tree.flatten(self.outputs))
        joins = [step for step in self.steps if step.rule == JOINED]
        self.joined = {self.source(value) for step in joins for value in step.inputs}

    def only_taker(self, value: int) -> Step | None:
        """Return the one step that takes a value, `None` where others see it too."""
        takers = self.takers[value]
        return takers[0] if len(takers) == 1 and value not in self.given else None

    def folded(self, step: Step) -> Step | None:
        """Return the BatchNormalization that is folded into a weighted step."""
        taker = self.only_taker(step.output)
        if taker is None or type(taker.layer) is not KL.BatchNormalization:
            return None
        return taker if step.rule == WEIGHTED and step.activation == "linear" else None

    def is_folded(self, step: Step) -> bool:
        """Say whether a step is a BatchNormalization that is folded into the step before it."""
        before = self.maker.get(step.inputs[0])
        return before is not None and self.folded(before) is step

    def stays_open(self, value: int) -> bool:
        """Say whether a value is inside an operation of the file, and so never rounded."""
        maker, taker = self.maker.get(value), self.only_taker(value)
        if maker is None or taker is None:
            return False
        if self.is_folded(taker):
            return True
        is_relu = taker.rule == TABLE and taker.activation in ("relu", "relu6")
        ends_plainly = maker.rule in (WEIGHTED, SCALING, SUM) and maker.activation == "linear"
        return is_relu and ends_plainly

    def source(self, value: int) -> int:
        """Return the value whose grid this one has: an earlier one behind what keeps grids."""
        maker = self.maker.get(value)
        while maker is not None and maker.rule in (KEPT, AGAIN):
            value = maker.inputs[0]
            maker = self.maker.get(value)
        return value

    def is_fixed(self, value: int) -> bool:
        """Say whether a value stays on the grid that the kernel which makes it prescribes.

        What is concatenated goes to the grid of the others; the file does that behind the kernel.
        """
        maker = self.maker.get(value)
        fixed = maker is not None and maker.rule != JOINED and maker.activation in FIXED
        return fixed and value not in self.joined


def activation_of(layer: Any) -> str:
    """Name the activation that a layer is or ends with, "linear" for none."""
    if type(layer) is KL.ReLU:
        return _relu(layer.max_value, layer.negative_slope, layer.threshold)
    if type(layer) is KL.LeakyReLU:
        return "leaky_relu"
    if type(layer) is KL.Softmax:
        return "softmax"
    activation = getattr(layer, "activation", None)
    if activation is None:
        return "linear"
    name = keras.activations.serialize(activation)
    return name if isinstance(name, str) else type(activation).__name__


def _relu(top: float | None, slope: float, threshold: float) -> str:
    if threshold == 0 and slope == 0 and top in (None, 6):
        return "relu" if top is None else "relu6"
    if threshold == 0 and top is None and slope > 0:
        return "leaky_relu"
    return f"ReLU(max_value={top}, negative_slope={slope}, threshold={threshold})"


def laid_out(model: keras.Model) -> Network:
    """Lay a Functional or Sequential student out flat, and refuse what no integer file can hold.

    Raises:
        ValueError: "cannot be made quantisation-aware", naming the layers; what
            `networks.check` refuses.
    """
    networks.check(model)
    graph = graphs.graph_of(model)
    layout = _Layout(model)
    numbers = {id(tensor): layout.number() for tensor in graph.inputs}
    layout.troubles += [
        f"{tensor.name!r} (an input of type {tensor.dtype})"
        for tensor in graph.inputs
        if not str(tensor.dtype).startswith(("float", "bfloat"))
    ]
    layout.follow(model, numbers, "", None)
    counts = collections.Counter(id(step.layer) for step in layout.steps)
    layout.troubles += dict.fromkeys(
        f"{step.name!r} (called {counts[id(step.layer)]} times)"
        for step in layout.steps
        if counts[id(step.layer)] > 1 and getattr(step.layer, "weights", None)
    )
    if layout.troubles:
        raise _refusal(model, layout.troubles)
    outputs = keras.tree.map_structure(lambda tensor: numbers[id(tensor)], graph._outputs_struct)
    return Network(model, [numbers[id(tensor)] for tensor in graph.inputs], outputs, layout.steps)


class _Layout:
    """The flat network while it is written down."""

    def __init__(self, model: keras.Model) -> None:
        self.steps: list[Step] = []
        self.troubles: list[str] = []
        self._count = itertools.count()
        self._names = {call.operation.name for call in graphs.calls(model)}
        self._own: dict[int, str] = {}

    def number(self) -> int:
        """Return the number of a new value."""
        return next(self._count)

    def follow(
        self, model: keras.Model, numbers: dict[int, int], prefix: str, training: bool | None
    ) -> None:
        """Append the steps of a graph; `numbers` maps its tensors to values, outputs included."""
        for call in graphs.calls(model):
            layer, inputs = _as_layer(call), [numbers[id(tensor)] for tensor in call.inputs]
            args, kwargs = call.fill_in({id(tensor): tensor for tensor in call.inputs})
            said = kwargs.pop("training", None)
            said = training if said is None else said
            if graphs.is_network(layer):
                inner = graphs.graph_of(layer)
                known = dict(zip(map(id, inner.inputs), inputs, strict=True))
                self.follow(layer, known, f"{prefix}{layer.name}_", said)
                given = [known[id(tensor)] for tensor in inner.outputs]
                numbers.update(zip(map(id, call.outputs), given, strict=True))
                continue
            if trouble := _trouble(call, layer, args, kwargs, said):
                self.troubles.append(f"{layer.name!r} ({type(layer).__name__}: {trouble})")
            as_list = len(args) > 1 or (bool(args) and isinstance(args[0], (list, tuple)))
            step = Step(layer, self._named(layer, prefix), inputs, self.number(), as_list, said)
            self.steps.append(step)
            numbers.update(dict.fromkeys(map(id, call.outputs), step.output))

    def _named(self, layer: Any, prefix: str) -> str:
        """Keep the name of a layer; nested ones of a name that is taken get their model's too."""
        if id(layer) not in self._own:
            name = layer.name
            if prefix and name in self._names:
                name = f"{prefix}{name}"
            self._own[id(layer)] = name
            self._names.add(name)
        return self._own[id(layer)]


def _as_layer(call: graphs.Call) -> Any:
    """Return the layer that is called; for `x + y` and its like the layer that does the same."""
    made = OPERATIONS.get(type(call.operation).__name__)
    if made is None or isinstance(call.operation, KL.Layer) or call.numbers:
        return call.operation
    if len({len(tensor.shape) for tensor in call.inputs}) > 1:
        return call.operation
    return made(call.operation.name)


def _trouble(
    call: graphs.Call, layer: Any, args: tuple, kwargs: dict[str, Any], training: bool | None
) -> str | None:
    """Say why a layer cannot be computed in integers, `None` where it can."""
    rank = len(call.inputs[0].shape)
    if type(layer) not in RULES:
        return "no integer kernel for it is known here"
    if (layer is call.operation and len(args) != 1) or any(
        value is not None for value in kwargs.values()
    ):
        return "called with further arguments"
    if training:
        return "called with training=True, which an exported file cannot be"
    if getattr(layer, "data_format", "channels_last") == "channels_first":
        return "data_format='channels_first'"
    if (activation := activation_of(layer)) not in ACTIVATIONS:
        return f"activation {activation!r}"
    if type(layer) in (KL.BatchNormalization, KL.Normalization, KL.Softmax):
        axis = keras.tree.flatten(layer.axis)
        if any(number not in (-1, rank - 1) for number in axis):
            return f"axis={layer.axis}, which is not the last"
    if RULES[type(layer)] == SCALING and rank > 4:
        return f"an input of {rank} axes"
    return None


def _refusal(model: keras.Model, troubles: list[str]) -> ValueError:
    known = sorted({kind.__name__ for kind in RULES} - {"Identity"})
    return checks.bad_value(
        f"The student {model.name!r} cannot be made quantisation-aware.",
        given=", ".join(troubles),
        expected=f"layers that LiteRT computes in integers, each with weights called once: "
        f"{', '.join(known)}; activations {', '.join(ACTIVATIONS[1:])}; float inputs, channels "
        "last",
        fix="replace these layers (ReLU for another activation, BatchNormalization for another "
        "normalisation, layers for operations), or export the student with tflite_dynamic.",
    )
