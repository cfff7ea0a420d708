"""Losses by name, as the command line writes them.

LogitsDistillation
LogitsDistillation(temperature=4, direction='reverse')
"""

from __future__ import annotations

import ast
import inspect
from typing import Any

from keras_kd import checks


def parse_loss(spec: str) -> tuple[str, dict[str, Any]]:
    """Read `NAME` or `NAME(key=value, ...)`, without loading Keras.

    Args:
        spec: for example `"LogitsDistillation(temperature=4, direction='reverse')"`.

    Returns:
        The name and the arguments; values are Python's own literals.

    Raises:
        ValueError: "The distillation loss ... cannot be read."
    """
    try:
        node = ast.parse(spec, mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
            values = {str(part.arg): ast.literal_eval(part.value) for part in node.keywords}
            return node.func.id, values
        reason = "it is no name with key=value arguments"
    except (SyntaxError, ValueError) as error:
        reason = str(error)
    raise checks.bad_value(
        f"The distillation loss {spec!r} cannot be read.",
        given=f"{spec} ({reason})",
        expected="NAME, or NAME(key=value, ...) with texts in quotes",
        fix="pass, for example, \"LogitsDistillation(temperature=4, direction='reverse')\".",
    )


def make_loss(spec: str, temperature: float) -> Any:
    """Make a distillation loss from its name and arguments.

    Args:
        spec: `NAME` or `NAME(key=value, ...)` of a class in `keras_kd.losses`.
        temperature: T, for a loss that takes one and was given none.

    Returns:
        The loss.

    Raises:
        ValueError: "There is no distillation loss ...", "There is no argument of ...".
    """
    from keras_kd import losses

    name, values = parse_loss(spec)
    kind = getattr(losses, name, None)
    if name not in losses.__all__ or not inspect.isclass(kind):
        known = [n for n in losses.__all__ if inspect.isclass(getattr(losses, n))]
        raise checks.unknown_name("distillation loss", name, known)
    accepted = set(inspect.signature(kind).parameters)
    for key in values:
        if key not in accepted:
            raise checks.unknown_name(f"argument of {name}:", key, accepted)
    if "temperature" in accepted:
        values.setdefault("temperature", temperature)
    return kind(**values)


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
