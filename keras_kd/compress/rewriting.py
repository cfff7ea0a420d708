"""A flat network built again with rounding in it, and back."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_kd import graphs
from keras_kd.compress import networks
from keras_kd.compress.folding import FoldedInto, FoldedNormalization
from keras_kd.compress.patterns import (
    AGAIN,
    FIXED,
    JOINED,
    KEPT,
    PART_OF_KERNEL,
    SCALING,
    SUM,
    WEIGHTED,
    Network,
    Step,
)
from keras_kd.compress.quantized_layers import (
    QUANTIZED,
    Quantized,
    QuantizedScaling,
    QuantizedSeparableConv2D,
)
from keras_kd.compress.quantizers import ActivationRange, FixedRange, Rounded


def quantized(
    network: Network, bits: dict[str, int], settings: dict[str, Any], norm_freeze: int | None
) -> keras.Model:
    """Build the quantisation-aware model of a network, with its weights.

    Args:
        network: the student, laid out flat.
        bits: bits of the weights, by the names of the layers that have some.
        settings: arguments of every `ActivationRange`.
        norm_freeze: `freeze_after` of every `FoldedNormalization`.
    """
    with _float32():
        return _Rewriting(network, bits, settings, norm_freeze).model()


class _Rewriting:
    """A network while it is built again, step by step.

    `raw` holds the symbolic tensor of each value as its operation gives it, `on_grid` the rounded
    one, `steps` the step of the grid of each source. What is never asked for rounded (inside a
    fused operation) is never rounded.
    """

    def __init__(
        self,
        network: Network,
        bits: dict[str, int],
        settings: dict[str, Any],
        norm_freeze: int | None,
    ) -> None:
        self.network = network
        self.bits = bits
        self.settings = settings
        self.norm_freeze = norm_freeze
        self.raw: dict[int, Any] = {}
        self.on_grid: dict[int, Any] = {}
        self.steps: dict[int, Any] = {}
        self.outputs: dict[int, Any] = {}
        self.layers: dict[int, Any] = {}
        self.copies: list[Callable[[], None]] = []
        self.names = {step.name for step in network.steps}
        self.groups, self.watched = _groups(network)
        self.ranges: dict[Any, Any] = {}
        self.sites: collections.Counter = collections.Counter()

    def model(self) -> keras.Model:
        """Build the model and give it the student's weights."""
        network, student = self.network, self.network.model
        graph = graphs.graph_of(student)
        inputs = keras.tree.map_structure(_new_input, graph._inputs_struct)
        flat = keras.tree.flatten(inputs)
        self.names |= {tensor.name for tensor in flat}
        self.raw.update(zip(network.inputs, flat, strict=True))
        for step in network.steps:
            self._take(step)
        outputs = keras.tree.map_structure(self._output, network.outputs)
        model = keras.Model(inputs, outputs, name=student.name)
        for copy in self.copies:
            copy()
        return model

    # --- values ---------------------------------------------------------------------------------

    def rounded(self, value: int) -> Any:
        """Return the tensor of a value on its grid."""
        if value not in self.on_grid:
            maker = self.network.maker.get(value)
            rule = maker.rule if maker is not None else None
            raw = self.raw[value]
            if rule in (KEPT, JOINED):
                self.on_grid[value] = raw
            elif rule == AGAIN:
                self.on_grid[value], _ = self.range_of(value)(raw, site=None)
            else:
                group = self.groups.get(value)
                site = self.sites[group]
                self.on_grid[value], self.steps[value] = self.range_of(value)(raw, site=site)
                self.sites[group] += 1
        return self.on_grid[value]

    def range_of(self, value: int) -> Any:
        """Return the layer that rounds to the grid of a value."""
        source = self.network.source(value)
        key = self.groups.get(source, ("fixed", source))
        if key not in self.ranges:
            maker = self.network.maker.get(source)
            name = self._name(self.raw[source].name if maker is None else maker.name, "range")
            if maker is not None and self.network.is_fixed(source):
                self.ranges[key] = FixedRange(*FIXED[maker.activation], name=name)
            else:
                scaled = (
                    maker is not None
                    and maker.rule == SCALING
                    and not self.network.is_folded(maker)
                )
                self.ranges[key] = ActivationRange(
                    **self.settings,
                    sites=self.watched[key],
                    headroom=128 / 127 if scaled else 1.0,
                    name=name,
                )
        return self.ranges[key]

    def _output(self, value: int) -> Any:
        """Return an output of the model, under the name of the student's layer."""
        rounded, maker = self.rounded(value), self.network.maker.get(value)
        if maker is None or not self._is_renamed(maker):
            return rounded
        if value not in self.outputs:
            self.outputs[value] = Rounded(name=maker.name)(rounded)
        return self.outputs[value]

    def _is_renamed(self, step: Step) -> bool:
        """Say whether a layer leaves its name to the rounding behind it, as outputs have names."""
        rounds = step.rule not in (KEPT, JOINED)
        return rounds and any(
            taken.output in self.network.given
            for taken in self.network.steps
            if taken.layer is step.layer
        )

    def _name(self, *parts: str) -> str:
        name = "_".join(parts)
        while name in self.names:
            name += "_"
        self.names.add(name)
        return name

    # --- steps ----------------------------------------------------------------------------------

    def _take(self, step: Step) -> None:
        tensors = [
            self.raw[value] if self.network.stays_open(value) else self.rounded(value)
            for value in step.inputs
        ]
        if step.rule == SUM and len(tensors) > 2:
            tensors = [self._partial_sum(step, tensors[:-1]), tensors[-1]]
        layer = self._made(step)
        more = {}
        if isinstance(layer, (Quantized, QuantizedScaling)):
            more["step"] = self._step_of(step.inputs[0])
        self.raw[step.output] = layer(tensors if step.as_list else tensors[0], **more)

    def _step_of(self, value: int) -> Any:
        """Return the step of the grid that a value is on."""
        source = self.network.source(value)
        maker = self.network.maker.get(source)
        if maker is not None and maker.rule == JOINED:
            return self._step_of(maker.inputs[0])
        return self.steps[source]

    def _partial_sum(self, step: Step, tensors: list[Any]) -> Any:
        """Add (or multiply) all but the last of many, two at a time, each sum on a grid."""
        total = tensors[0]
        for tensor in tensors[1:]:
            layer = type(step.layer)(name=self._name(step.name, "part"), dtype="float32")
            name = self._name(layer.name, "range")
            total, _ = ActivationRange(**self.settings, name=name)(layer([total, tensor]))
        return total

    def _made(self, step: Step) -> Any:
        """Return the layer that stands for the student's, made once."""
        key = id(step.layer)
        if key not in self.layers:
            name = self._name(step.name, "raw") if self._is_renamed(step) else step.name
            if self.network.is_folded(step):
                self.layers[key] = FoldedInto(name=name)
            elif step.rule == WEIGHTED:
                self.layers[key] = self._weighted(step, name)
            elif step.rule == SCALING:
                self.layers[key] = self._scaling(step, name)
            else:
                self.layers[key] = layer = _copied(step.layer, name)
                self.copies.append(lambda: networks.copy_state(step.layer, layer))
        return self.layers[key]

    def _weighted(self, step: Step, name: str) -> Any:
        folded = self.network.folded(step)
        norm = None if folded is None else self._norm(folded)
        kind = QUANTIZED[type(step.layer)]
        more = {"between": self.settings} if kind is QuantizedSeparableConv2D else {}
        layer = kind(
            **_in_float32({**step.layer.get_config(), "name": name}),
            weight_bits=self.bits[step.name],
            norm=norm,
            ranges=None if step.activation in PART_OF_KERNEL else self.settings,
            **more,
        )
        self.copies.append(lambda: _assign(layer.float_parts()[1], step.layer.variables))
        return layer

    def _scaling(self, step: Step, name: str) -> Any:
        if type(step.layer) is keras.layers.BatchNormalization:
            return QuantizedScaling(self._norm(step), name=name)
        inside = _copied(step.layer, step.layer.name)
        self.copies.append(lambda: networks.copy_state(step.layer, inside))
        return QuantizedScaling(inside, name=name)

    def _norm(self, step: Step) -> FoldedNormalization:
        config = _in_float32(step.layer.get_config())
        if step.training is False:
            config["trainable"] = False
        norm = FoldedNormalization(**config, freeze_after=self.norm_freeze)
        self.copies.append(lambda: _assign(norm.float_parts()[1], step.layer.variables))
        return norm


def _groups(network: Network) -> tuple[dict[int, int], collections.Counter]:
    """Say which values share a range, by the number of their group, and how many are watched.

    What is concatenated shares one. A value on the grid that its kernel prescribes has no group.
    """
    sources = {network.source(value) for value in [*network.inputs, *network.maker]}
    parent = {value: value for value in sources if not network.is_fixed(value)}

    def root(value: int) -> int:
        while parent[value] != value:
            value = parent[value]
        return value

    joins = [step for step in network.steps if step.rule == JOINED]
    for step in joins:
        for value in step.inputs:
            parent[root(network.source(value))] = root(step.output)
    groups = {value: root(value) for value in parent}
    joined = {step.output for step in joins}
    return groups, collections.Counter(groups[value] for value in groups if value not in joined)


def plain(model: keras.Model) -> keras.Model:
    """Build the float model of a quantisation-aware one: plain layers with its weights."""
    with _float32():
        return _built_plain(model)


@contextlib.contextmanager
def _float32() -> Iterator[None]:
    """Make layers that compute in float32, those that Keras makes by itself too."""
    keep = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(keep)


def _built_plain(model: keras.Model) -> keras.Model:
    graph = graphs.graph_of(model)
    inputs = keras.tree.map_structure(_new_input, graph._inputs_struct)
    known = dict(zip(map(id, graph.inputs), keras.tree.flatten(inputs), strict=True))
    layers: dict[int, Any] = {}
    copies: list[Callable[[], None]] = []
    names = _renamed(model)
    for call in graphs.calls(model):
        layer = call.operation
        args, kwargs = call.fill_in(known)
        if isinstance(layer, (ActivationRange, FixedRange, Rounded)):
            known[id(call.outputs[0])] = args[0]
            continue
        if id(layer) not in layers:
            name = names.get(id(layer), layer.name)
            layers[id(layer)] = _plain_layer(layer, name, _before(call.inputs[0]), copies)
        kwargs.pop("step", None)
        known[id(call.outputs[0])] = layers[id(layer)](*args, **kwargs)
    outputs = keras.tree.map_structure(lambda tensor: known[id(tensor)], graph._outputs_struct)
    new = keras.Model(inputs, outputs, name=model.name)
    for copy in copies:
        copy()
    return new


def _before(tensor: Any) -> Any:
    """Return the layer that gives a symbolic tensor."""
    return tensor._keras_history.operation


def _renamed(model: keras.Model) -> dict[int, str]:
    """Return the names of the layers that left theirs to the rounding of an output."""
    ends = [call for call in graphs.calls(model) if isinstance(call.operation, Rounded)]
    ranges = {id(call.outputs[0]): call for call in graphs.calls(model)}
    return {id(_before(ranges[id(end.inputs[0])].inputs[0])): end.operation.name for end in ends}


def _plain_layer(layer: Any, name: str, before: Any, copies: list[Callable[[], None]]) -> Any:
    """Make the Keras layer that a quantised one stands for; its weights are copied later."""
    if isinstance(layer, QuantizedScaling) and not isinstance(layer.layer, FoldedNormalization):
        new = _copied(layer.layer, name)
        copies.append(lambda: networks.copy_state(layer.layer, new))
        return new
    if isinstance(layer, (FoldedInto, QuantizedScaling)):
        parts = before.norm if isinstance(layer, FoldedInto) else layer.layer
    elif isinstance(layer, Quantized):
        parts = layer
    else:
        new = _copied(layer, name)
        copies.append(lambda: networks.copy_state(layer, new))
        return new
    config, variables = parts.float_parts()
    new = parts.plain.from_config({**config, "name": name})
    copies.append(lambda: _assign(new.variables, variables))
    return new


def _new_input(tensor: Any) -> Any:
    layer = tensor._keras_history.operation
    config = layer.get_config()
    return type(layer).from_config({**config, "dtype": "float32"}).output


def _copied(layer: Any, name: str) -> Any:
    return networks.from_config(layer, _in_float32({**networks.config_of(layer), "name": name}))


def _in_float32(config: Any, key: str = "") -> Any:
    """Copy a config with its floating-point policies replaced."""
    if key == "dtype" and "float" in str(config):
        return "float32"
    if isinstance(config, dict):
        return {name: _in_float32(value, name) for name, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_in_float32(value) for value in config)
    return config


def _assign(targets: list[Any], sources: list[Any]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.assign(source)
