"""The graph of a Functional or Sequential model, call by call.

What Keras knows of a graph and does not offer stands here under public names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras.src.models.functional import Functional


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a layer or operation in a graph.

    Attributes:
        operation: the layer, the nested model, or the operation (`x + y` is one).
        inputs: the symbolic tensors that it takes, in the order of its arguments.
        outputs: the symbolic tensors that it gives.
        fill_in: replaces the tensors of its arguments: `{id: tensor} -> (args, kwargs)`.
    """

    operation: Any
    inputs: list[Any]
    outputs: list[Any]
    fill_in: Callable[[dict[int, Any]], tuple[tuple, dict]]

    @property
    def numbers(self) -> list[Any]:
        """The arguments that are no symbolic tensors."""
        args, kwargs = self.fill_in({id(tensor): None for tensor in self.inputs})
        return [leaf for leaf in keras.tree.flatten((args, kwargs)) if leaf is not None]


def is_network(layer: Any) -> bool:
    """Say whether a layer is a model whose graph is known: built, Functional or Sequential."""
    if isinstance(layer, keras.Sequential):
        return type(layer).call is keras.Sequential.call and layer._functional is not None
    return isinstance(layer, Functional) and type(layer).call is Functional.call


def graph_of(model: keras.Model) -> Any:
    """Return the Functional model that holds the graph; a Sequential keeps one inside."""
    return model._functional if isinstance(model, keras.Sequential) else model


def calls(model: keras.Model) -> Iterator[Call]:
    """Go through the calls of a graph, each after those that it takes its inputs from."""
    nodes = graph_of(model)._nodes_by_depth
    for depth in sorted(nodes, reverse=True):
        for node in nodes[depth]:
            if node.operation is not None and not node.is_input:
                arguments = node.arguments
                yield Call(node.operation, node.input_tensors, node.outputs, arguments.fill_in)
