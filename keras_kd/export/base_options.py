"""What may differ between a model and its file: names, raw inputs, the reading of outputs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from keras_kd import checks

if TYPE_CHECKING:
    import numpy as np

KINDS = ("logits", "probabilities", "sigmoid")


def renamed(
    names: Mapping[str, str] | None, inputs: list[str], outputs: list[str]
) -> dict[str, str]:
    """Check {old: new} names of inputs and outputs, and return them.

    Raises:
        ValueError: "There is no input or output", "is no name for a tensor", "would be there
            twice".
    """
    given = _mapping("names", names, '{"dense_3": "logits"}')
    for old, new in given.items():
        if old not in [*inputs, *outputs]:
            raise checks.unknown_name("input or output", old, [*inputs, *outputs])
        if not isinstance(new, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", new):
            raise checks.bad_value(
                f"{new!r} is no name for a tensor.",
                given=f"names={given!r}",
                expected="letters, digits and underscores, a letter first",
                fix=f'write names={{{old!r}: "image"}}.',
            )
    for group in (inputs, outputs):
        new_names = [given.get(name, name) for name in group]
        double = [name for name in new_names if new_names.count(name) > 1]
        if double:
            raise checks.bad_value(
                f"The name {double[0]!r} would be there twice.",
                given=f"names={given!r} for {', '.join(group)}",
                expected="another name for each input, and for each output",
                fix="choose names that are not taken yet.",
            )
    return given


def scalings(scaling: Any, inputs: Iterable[Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return the (scale, offset) of every input that takes raw values.

    Args:
        scaling: (scale, offset) for the one input, or a dict of input name to such a pair. Each is
            a number, or one number a channel (the last axis).
        inputs: The inputs, as `base.Tensor`.

    Raises:
        ValueError: "`scaling` must say which input", "There is no input", "`scaling` is for inputs
            of floating-point numbers", "`scaling` must be (scale, offset)".
    """
    if scaling is None:
        return {}
    tensors = {tensor.name: tensor for tensor in inputs}
    if not isinstance(scaling, Mapping):
        if len(tensors) > 1:
            raise checks.bad_value(
                "`scaling` must say which input it is for.",
                given=f"scaling={scaling!r} for the inputs {', '.join(tensors)}",
                expected="a dict of input name to (scale, offset)",
                fix=f"write scaling={{{next(iter(tensors))!r}: {scaling!r}}}.",
            )
        scaling = dict.fromkeys(tensors, scaling)
    found = {}
    for name, pair in scaling.items():
        if name not in tensors:
            raise checks.unknown_name("input", name, tensors)
        if "float" not in tensors[name].dtype:
            raise checks.bad_value(
                "`scaling` is for inputs of floating-point numbers.",
                given=f"input {name!r} of type {tensors[name].dtype}",
                expected="a float input",
                fix="leave this input out: whole numbers go in as they are.",
            )
        found[name] = _pair(name, pair, tensors[name].shape)
    return found


def _pair(name: str, pair: Any, shape: tuple) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    try:
        scale, offset = (np.asarray(part, "float32") for part in pair)
        good = all(
            np.isfinite(part).all() and (part.ndim == 0 or part.shape == shape[-1:])
            for part in (scale, offset)
        )
        good = good and bool((scale != 0).all())
    except (TypeError, ValueError):
        good = False
    if not good:
        raise checks.bad_value(
            "`scaling` must be (scale, offset).",
            given=f"{pair!r} for the input {name!r} of shape {shape}",
            expected="two finite numbers (or lists of one number a channel), the scale not 0",
            fix="write scaling=(1 / 255, 0.0): the student sees raw * scale + offset.",
        )
    return scale, offset


def kinds(outputs: Any, names: list[str]) -> dict[str, str]:
    """Return what each output is to be given as; outputs that stay as they are, are left out.

    Args:
        outputs: "logits", "probabilities" (softmax; sigmoid where the output is one value),
            "sigmoid" (probabilities of several yes-or-no labels), `None`, or a dict of output name
            to one of them.
        names: The outputs.

    Raises:
        ValueError: "There is no output", "There is no kind of output".
    """
    given = outputs if isinstance(outputs, Mapping) else dict.fromkeys(names, outputs)
    for name, kind in given.items():
        if name not in names:
            raise checks.unknown_name("output", name, names)
        if kind is not None and kind not in KINDS:
            raise checks.unknown_name("kind of output", kind, KINDS)
    return {name: kind for name, kind in given.items() if kind is not None}


def read(name: str, value: Any, kind: str | None, sums_to_one: bool) -> Any:
    """Give an output of a traced graph as logits or as probabilities.

    Logits are found before the softmax or sigmoid that ends the graph, which the converter then
    leaves out: log(softmax) of whole numbers would lose what makes logits worth having.

    Args:
        name: What an error calls the output.
        value: A symbolic tensor.
        kind: One of `KINDS`, or `None` for as it is.
        sums_to_one: Whether the values were seen to sum to 1, where no activation shows.

    Raises:
        ValueError: "gives probabilities, and its logits are not to be found", "is a softmax".
    """
    import tensorflow as tf

    if kind is None:
        return value
    end = value.op
    while end.type in ("Identity", "StopGradient"):
        end = end.inputs[0].op
    activation = {"Softmax": "softmax", "Sigmoid": "sigmoid"}.get(end.type)
    if kind == "logits":
        if activation is None and sums_to_one:
            raise checks.bad_value(
                f"The output {name!r} gives probabilities, and its logits are not to be found.",
                given="values that sum to 1, which no softmax at the end of the graph made",
                expected="an output of logits, or of a softmax or sigmoid right behind them",
                fix="build the student without its last activation, or leave `outputs` out.",
            )
        return value if activation is None else end.inputs[0]
    if activation == "softmax" and kind == "sigmoid":
        raise checks.bad_value(
            f"The output {name!r} is a softmax.",
            given='outputs="sigmoid"',
            expected='outputs="probabilities" for one of several classes',
            fix='write outputs="probabilities", or leave it out.',
        )
    if activation is not None or sums_to_one:
        return value
    return (
        tf.nn.sigmoid(value) if kind == "sigmoid" or value.shape[-1] == 1 else tf.nn.softmax(value)
    )


def class_names(labels: Any, shapes: Mapping[str, tuple]) -> dict[str, list[str]]:
    """Return the class names of every output that has them.

    Args:
        labels: A list of names for the one output (of one value: the two names of no and yes), or
            a dict of output name to such a list.
        shapes: The outputs and their shapes.

    Raises:
        ValueError: "`labels` must say which output", "There is no output", "`labels` must be a list
            of different names", "`labels` does not fit the output".
    """
    if labels is None:
        return {}
    if not isinstance(labels, Mapping):
        if len(shapes) > 1:
            raise checks.bad_value(
                "`labels` must say which output it is for.",
                given=f"one list for the outputs {', '.join(shapes)}",
                expected="a dict of output name to a list of names",
                fix=f"write labels={{{next(iter(shapes))!r}: [...]}}.",
            )
        labels = dict.fromkeys(shapes, labels)
    return {name: _labels(name, given, shapes) for name, given in labels.items()}


def _labels(name: str, given: Any, shapes: Mapping[str, tuple]) -> list[str]:
    if name not in shapes:
        raise checks.unknown_name("output", name, shapes)
    names = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else []
    if not names or len(set(map(str, names))) != len(names):
        raise checks.bad_value(
            "`labels` must be a list of different names.",
            given=f"{given!r} for the output {name!r}",
            expected='for example ["cat", "dog"]',
            fix="give each class a name of its own, in the order of the output's values.",
        )
    last = shapes[name][-1] if len(shapes[name]) > 1 else 1
    if len(names) != last and not (last == 1 and len(names) == 2):
        raise checks.bad_value(
            f"`labels` does not fit the output {name!r}.",
            given=f"{len(names)} names for {last} values",
            expected=f"{last} names, in the order of the output's values",
            fix="give one name for each value of the output's last axis.",
        )
    return [str(label) for label in names]


def _mapping(what: str, given: Any, example: str) -> dict:
    if given is not None and not isinstance(given, Mapping):
        raise checks.bad_type(
            f"`{what}` must be a dict.",
            given=repr(given),
            expected=f"for example {example}",
            fix=f"write {what}={example}.",
        )
    return dict(given or {})
