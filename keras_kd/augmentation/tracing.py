"""A look at a function before it is used: what it returns, and whether it draws from its seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_kd import checks, structures

# Operations that draw from a state of TensorFlow's, or keep one of their own.
_STATEFUL = """
RandomUniform RandomUniformInt RandomStandardNormal RandomGamma RandomPoisson RandomPoissonV2
RandomShuffle RandomCrop TruncatedNormal ParameterizedTruncatedNormal Multinomial
SampleDistortedBoundingBox SampleDistortedBoundingBoxV2 StatefulUniform StatefulUniformInt
StatefulUniformFullInt StatefulStandardNormal StatefulStandardNormalV2 StatefulTruncatedNormal
StatefulRandomBinomial RngReadAndSkip RngSkip UniformCandidateSampler LogUniformCandidateSampler
LearnedUnigramCandidateSampler AssignVariableOp AssignAddVariableOp AssignSubVariableOp
"""
STATEFUL = frozenset(_STATEFUL.split())
PYTHON = frozenset(["PyFunc", "PyFuncStateless", "EagerPyFunc"])


def check(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    inputs: Any,
    name: str,
    first_arguments: Callable[[], tuple[Any, ...] | None],
) -> None:
    """Refuse a function that returns another structure, or draws from more than its seed.

    It is traced twice. An operation that keeps a state, or a constant that is another one the
    second time, tells of randomness that cannot come again. Only a function that calls Python from
    the graph is called, twice with one seed, on the first example.

    Args:
        function: `(example, seed)` or `(x, y, seed)`.
        arguments: the specs of its arguments, the seed's last.
        inputs: the specs of x, or of (x, y), to return in the same structure.
        name: what the function is called.
        first_arguments: reads the arguments without the seed of the first example, or None.
    """
    first, second = (tf.function(function).get_concrete_function(*arguments) for _ in range(2))
    _check_structure(first.structured_outputs, inputs, name)
    nodes = [_nodes(traced.graph.as_graph_def()) for traced in (first, second)]
    operations = {node.op for node in nodes[0]}
    if found := sorted(operations & STATEFUL):
        raise _not_from_the_seed(name, f"the operation {found[0]}")
    constants = [
        sorted(node.attr["value"].tensor.SerializeToString() for node in some if node.op == "Const")
        for some in nodes
    ]
    if constants[0] != constants[1]:
        raise _not_from_the_seed(name, "random numbers of Python or NumPy")
    if operations & PYTHON and tf.executing_eagerly():
        _check_twice(function, first_arguments(), name)


def _nodes(graph: Any) -> list[Any]:
    return [*graph.node, *(node for part in graph.library.function for node in part.node_def)]


def _check_structure(result: Any, inputs: Any, name: str) -> None:
    try:
        tf.nest.assert_same_structure(inputs, result)
    except (TypeError, ValueError):
        raise checks.bad_value(
            f"`{name}` returns another structure than it was given.",
            given=f"inputs {structures.outline(inputs)}, returned {structures.outline(result)}",
            expected="the same structure: (example, seed) -> example, or (x, y, seed) -> (x, y)",
            fix="return all parts of what the function was given, changed or not.",
        ) from None


def _check_twice(function: Callable[..., Any], first: tuple[Any, ...] | None, name: str) -> None:
    if first is None:
        return
    compiled, seed = tf.function(function), tf.constant([1, 2])
    results = [tf.nest.flatten(compiled(*first, seed)) for _ in range(2)]
    for one, two in zip(*results, strict=True):
        if one is not None and one.numpy().tobytes() != two.numpy().tobytes():
            raise _not_from_the_seed(name, "Python code that answers differently each time")


def _not_from_the_seed(name: str, what: str) -> ValueError:
    return checks.bad_value(
        f"`{name}` gives another result for the same seed.",
        given=f"{what} in the function",
        expected="random numbers that come from the function's `seed` alone",
        fix="use tf.random.stateless_*, such as tf.random.stateless_uniform(shape, seed=seed).",
    )
