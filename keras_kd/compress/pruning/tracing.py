"""Follow the channels through a whole network, nested models included."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras

from keras_kd import graphs
from keras_kd.compress.pruning import rules
from keras_kd.compress.pruning.channels import Atoms, Channels, Labels, Member
from keras_kd.compress.pruning.views import Followed, View, whole


def trace(model: keras.Model) -> Channels:
    """Find out which channels of a network may go, and what hangs on each.

    The channels of its inputs and outputs are kept, and those that a layer takes which cannot be
    followed.

    Args:
        model: a built Functional or Sequential model.
    """
    tracer = Tracer()
    graph = graphs.graph_of(model)
    inputs = [whole(tensor.shape) for tensor in graph.inputs]
    for labels in tracer.network(model, "", inputs):
        tracer.atoms.keep(labels, "it makes an output of the model")
    return Channels(tracer.atoms, tracer.members, tracer.inputs)


class Tracer:
    """The channels of the tensors on the way, and the layers that were met."""

    def __init__(self) -> None:
        self.atoms = Atoms()
        self.members: list[Member] = []
        self.inputs: dict[int, Labels] = {}  # of nested models, by the id of the symbolic tensor
        self._numbers: dict[int, int] = {}
        self._made: dict[int, Labels] = {}

    def network(
        self, model: keras.Model, prefix: str, inputs: Sequence[Labels | None]
    ) -> list[Labels | None]:
        """Follow one call of a network; one that is called again ties what its layers take."""
        graph = graphs.graph_of(model)
        known = dict(zip(map(id, graph.inputs), inputs, strict=True))
        for call in graphs.calls(model):
            labels = [known[id(tensor)] for tensor in call.inputs]
            path = f"{prefix}{call.operation.name}"
            if graphs.is_network(call.operation):
                outputs = self._nested(call.operation, path, labels)
            else:
                outputs = self._call(call, path, labels)
            known.update(zip(map(id, call.outputs), outputs, strict=True))
        return [known[id(tensor)] for tensor in graph.outputs]

    def _nested(
        self, model: keras.Model, path: str, labels: Sequence[Labels | None]
    ) -> list[Labels | None]:
        count = len(graphs.graph_of(model).inputs)
        for more in labels[count:]:  # a mask, for example
            self.atoms.keep(more, f"it is taken by {path!r} beside its inputs")
        for tensor, given in zip(graphs.graph_of(model).inputs, labels, strict=False):
            if given is not None and tensor.shape[-1] is not None:
                self.atoms.tie(self.inputs.setdefault(id(tensor), given), given)
        return self.network(model, f"{path}/", labels[:count])

    def _call(
        self, call: graphs.Call, path: str, labels: Sequence[Labels | None]
    ) -> list[Labels | None]:
        number = self._number(call.operation, path)
        member = self.members[number]
        given = [one for one in labels if one is not None]
        view = View(
            layer=call.operation,
            labels=given,
            shapes=[tuple(tensor.shape) for tensor in call.inputs],
            outputs=[tuple(tensor.shape) for tensor in call.outputs],
            numbers=call.numbers,
            atoms=self.atoms,
            make=functools.partial(self._make, number),
        )
        found = self._follow(view, member, len(given) == len(labels))
        if isinstance(found, str):
            why = f"{path!r} ({type(call.operation).__name__}) is not followed: {found}"
            return self._keep(number, view, why)
        self._remember(member, found)
        return list(found.outputs)

    def _follow(self, view: View, member: Member, labelled: bool) -> Followed | str:
        """Apply the rule of the layer; return why not where there is none that fits."""
        rule = rules.rule_for(view.layer, len(view.shapes))
        if member.whole:
            return "another call of it is not"
        if rule is None:
            return "there is no rule for this layer"
        if not labelled or view.output[-1] is None:
            return "its channels are not on a last axis of known size"
        if getattr(view.layer, "data_format", None) == "channels_first":
            return "it has data_format='channels_first'"
        found = rule(view)
        if isinstance(found, str):
            return found
        known = {id(cut.variable) for cut in found.slices}
        others = [w.path for w in member.weights if id(w) not in known]
        if others and type(view.layer) not in rules.OWN_WEIGHTS:
            return f"its weight {others[0]!r} is not known"
        return found

    def _remember(self, member: Member, found: Followed) -> None:
        """Note what hangs on the channels; the calls of a shared layer read the same ones."""
        if member.calls:
            for old, new in zip(member.slices, found.slices, strict=True):
                self.atoms.tie(old.labels, new.labels)
            for key, new_size in found.sizes.items():
                self.atoms.tie(member.sizes[key], new_size)
        else:
            member.slices, member.sizes = found.slices, found.sizes
        member.calls += 1
        member.macs += found.macs

    def _keep(self, number: int, view: View, why: str) -> list[Labels | None]:
        """Keep all that the calls of a layer touch."""
        member = self.members[number]
        for labels in (*view.labels, *(cut.labels for cut in member.slices)):
            self.atoms.keep(labels, why)
        if number in self._made:
            self.atoms.keep(self._made[number], why)
        member.macs += rules.unfollowed_macs(view)
        member.whole = True
        return [whole(shape) for shape in view.outputs]

    def _number(self, operation: Any, path: str) -> int:
        """Number the layers in the order in which they are met; a shared one has one number."""
        if id(operation) not in self._numbers:
            self._numbers[id(operation)] = len(self.members)
            self.members.append(Member(path, operation))
        return self._numbers[id(operation)]

    def _make(self, number: int, count: int) -> Labels:
        if number not in self._made:
            self._made[number] = self.atoms.new(count, number)
        return self._made[number]
