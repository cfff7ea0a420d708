"""Losses by name, as the command line writes them.

LogitsDistillation
LogitsDistillation(temperature=4, direction='reverse')
LogitStandardization(loss=LogitsDistillation(temperature=2))
"""

from __future__ import annotations

import ast
import inspect
from typing import Any, NamedTuple

from keras_kd import checks

TEMPERED = ("LogitsDistillation", "SoftCrossEntropy")
"""The losses that `--temperature` is for; each other one has its paper's."""


class Spec(NamedTuple):
    """A loss as it is written: its name, and its arguments (of which one may be a loss)."""

    name: str
    arguments: dict[str, Any]


def parse_loss(spec: str) -> Spec:
    """Read `NAME` or `NAME(key=value, ...)`, without loading Keras.

    Args:
        spec: for example `"LogitsDistillation(temperature=4, direction='reverse')"`.

    Returns:
        The name and the arguments; values are Python's own literals, or a loss again.

    Raises:
        ValueError: "The distillation loss ... cannot be read."
    """
    try:
        return _parse(ast.parse(spec, mode="eval").body)
    except (SyntaxError, ValueError) as error:
        raise checks.bad_value(
            f"The distillation loss {spec!r} cannot be read.",
            given=f"{spec} ({error})",
            expected="NAME, or NAME(key=value, ...) with texts in quotes",
            fix="pass, for example, \"LogitsDistillation(temperature=4, direction='reverse')\".",
        ) from None


def _parse(node: ast.expr) -> Spec:
    if isinstance(node, ast.Name):
        return Spec(node.id, {})
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
        return Spec(node.func.id, {str(part.arg): _literal(part.value) for part in node.keywords})
    raise ValueError("it is no name with key=value arguments")


def _literal(node: ast.expr) -> Any:
    return _parse(node) if isinstance(node, (ast.Call, ast.Name)) else ast.literal_eval(node)


def make_loss(spec: str | Spec, temperature: float) -> Any:
    """Make a distillation loss from its name and arguments.

    Args:
        spec: `NAME` or `NAME(key=value, ...)` of a class in `keras_kd.losses`.
        temperature: T for `LogitsDistillation` and `SoftCrossEntropy`, where none is given.

    Returns:
        The loss.

    Raises:
        ValueError: "There is no distillation loss ...", "There is no argument of ...".
    """
    from keras_kd import losses

    name, values = parse_loss(spec) if isinstance(spec, str) else spec
    kind = getattr(losses, name, None)
    if name not in losses.__all__ or not inspect.isclass(kind):
        known = [n for n in losses.__all__ if inspect.isclass(getattr(losses, n))]
        raise checks.unknown_name("distillation loss", name, known)
    accepted = set(inspect.signature(kind).parameters)
    for key in values:
        if key not in accepted:
            raise checks.unknown_name(f"argument of {name}:", key, accepted)
    made = {
        key: make_loss(value, temperature) if isinstance(value, Spec) else value
        for key, value in values.items()
    }
    if name in TEMPERED:
        made.setdefault("temperature", temperature)
    return kind(**made)


def check_keras_loss(name: str) -> str:
    """Return the name of a class in `keras.losses` for a class's or a function's name.

    Args:
        name: for example "MeanSquaredError" or "mean_squared_error".

    Returns:
        The class's name.

    Raises:
        ValueError: "There is no Keras loss ..."
    """
    import keras

    known = {
        kind.lower(): kind
        for kind, value in vars(keras.losses).items()
        if inspect.isclass(value) and issubclass(value, keras.losses.Loss) and kind != "Loss"
    }
    found = known.get(name.replace("_", "").lower())
    if found is None:
        raise checks.unknown_name("Keras loss", name, known.values())
    return found
