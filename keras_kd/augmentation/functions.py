"""What an augmentation does: to one example, or to a batch of them; and several as one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_kd import checks
from keras_kd.augmentation import draws


class ExampleFunction:
    """A function (example, seed) -> example that is done to a whole batch at once.

    Args:
        name: what it is called, with its numbers.
        rule: function (x, seeds) -> x of a batch of examples and their seeds, (batch, 2). What
            becomes of an example must not depend on the others.
        known: whether it draws from the seed alone and keeps the structure, as ours do.
    """

    def __init__(self, name: str, rule: Callable[[Any, Any], Any], known: bool = True) -> None:
        self.name = name
        self.batch = rule
        self.known = known

    def __call__(self, example: Any, seed: Any) -> Any:
        """Change one example, as a batch of one."""
        one = tf.nest.map_structure(lambda leaf: tf.convert_to_tensor(leaf)[None], example)
        changed = self.batch(one, tf.convert_to_tensor(seed)[None])
        return tf.nest.map_structure(lambda leaf: leaf[0], changed)

    def __repr__(self) -> str:
        """Give the name."""
        return self.name


class BatchFunction:
    """A function (x, y, seed) -> (x, y) of a batch.

    Args:
        name: what it is called, with its numbers.
        rule: the function.
        mixes: whether examples are mixed, so that a weight would no longer belong to one.
        known: whether it draws from the seed alone and keeps the structure, as ours do.
    """

    def __init__(
        self, name: str, rule: Callable[[Any, Any, Any], Any], mixes: bool, known: bool = True
    ) -> None:
        self.name = name
        self.rule = rule
        self.mixes = mixes
        self.known = known

    def __call__(self, x: Any, y: Any, seed: Any) -> tuple[Any, Any]:
        """Change one batch."""
        x, y = tf.nest.map_structure(
            lambda leaf: None if leaf is None else tf.convert_to_tensor(leaf), (x, y)
        )
        return self.rule(x, y, tf.convert_to_tensor(seed))

    def __repr__(self) -> str:
        """Give the name."""
        return self.name


def over_batch(function: Callable[..., Any], x: Any, seeds: Any) -> Any:
    """Do a function (example, seed) -> example to each example of a batch.

    Ours are done at once; any other is done example by example in a loop of the graph.
    """
    if isinstance(function, ExampleFunction):
        return function.batch(x, seeds)
    compiled = tf.function(function)
    example = tf.nest.map_structure(lambda leaf: tf.TensorSpec(leaf.shape[1:], leaf.dtype), x)
    seed = tf.TensorSpec((2,), seeds.dtype)
    result = compiled.get_concrete_function(example, seed).structured_outputs
    specs = tf.nest.map_structure(lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype), result)
    return tf.map_fn(lambda pair: compiled(*pair), (x, seeds), fn_output_signature=specs)


def chain(*functions: Callable[..., Any]) -> ExampleFunction | BatchFunction:
    """Make one function of several, done in their order, each with a seed of its own.

    All are functions of one example, `(example, seed) -> example`, or all are functions of a batch,
    `(x, y, seed) -> (x, y)`. To do both, apply two augmentations, that of the examples first:
    `data.apply(of_examples).apply(of_batches)`.

    Args:
        *functions: one or more, of this module or your own.

    Returns:
        A function of the same kind, for `kd.ReplayableAugmentation`.

    Raises:
        ValueError: "A chain needs a function", "functions of an example and of a batch".
        TypeError: "A function of the chain cannot be called".

    Example:
    ```python
    import tensorflow as tf
    from keras_kd import augmentation

    both = augmentation.chain(augmentation.flips(), augmentation.shifts(2))
    print(both(tf.ones((8, 8, 1)), seed=(1, 2)).shape)  # (8, 8, 1)
    ```
    """
    batch = _are_of_batches(functions)
    name = f"chain({', '.join(map(name_of, functions))})"
    known = all(
        isinstance(one, (ExampleFunction, BatchFunction)) and one.known for one in functions
    )
    if batch:
        mixes = any(isinstance(one, BatchFunction) and one.mixes for one in functions)
        return BatchFunction(name, _one_batch_after_the_other(functions), mixes, known)
    return ExampleFunction(name, _one_after_the_other(functions), known)


def name_of(function: Any) -> str:
    """Name a function for an error or a `repr`."""
    if isinstance(function, (ExampleFunction, BatchFunction)):
        return function.name
    return getattr(function, "__name__", type(function).__name__)


def takes(function: Callable[..., Any], count: int) -> bool:
    """Say whether a function can be called with `count` arguments, as far as it can be seen."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # built-in functions that do not tell
        return True
    return True


def _one_after_the_other(functions: Sequence[Callable[..., Any]]) -> Callable[[Any, Any], Any]:
    def rule(x: Any, seeds: Any) -> Any:
        for number, function in enumerate(functions):
            x = over_batch(function, x, draws.derived(seeds, number))
        return x

    return rule


def _one_batch_after_the_other(
    functions: Sequence[Callable[..., Any]],
) -> Callable[[Any, Any, Any], Any]:
    def rule(x: Any, y: Any, seed: Any) -> tuple[Any, Any]:
        for number, function in enumerate(functions):
            x, y = function(x, y, draws.derived(seed[None], number)[0])
        return x, y

    return rule


def _are_of_batches(functions: Sequence[Any]) -> bool:
    """Say whether the functions of a chain are of batches, or refuse what is no chain."""
    if not functions:
        raise checks.bad_value(
            "A chain needs a function.",
            given="chain()",
            expected="one function or more",
            fix="pass some, for example chain(flips(), shifts(2)).",
        )
    for function in functions:
        if not callable(function):
            raise checks.bad_type(
                "A function of the chain cannot be called.",
                given=f"{function!r} ({type(function).__name__})",
                expected="functions (example, seed) -> example, or (x, y, seed) -> (x, y)",
                fix="pass them one by one: chain(first, second).",
            )
    kinds = [
        isinstance(one, BatchFunction)
        or (not isinstance(one, ExampleFunction) and not takes(one, 2))
        for one in functions
    ]
    if len(set(kinds)) > 1:
        raise checks.bad_value(
            "The chain has functions of an example and of a batch.",
            given=", ".join(map(name_of, functions)),
            expected="all (example, seed) -> example, or all (x, y, seed) -> (x, y)",
            fix="apply two augmentations: data.apply(of_examples).apply(of_batches).",
        )
    return kinds[0]
