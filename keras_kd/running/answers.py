"""What the outputs of a person's model answer: classes, labels of their own, or values.

The labels say what an output is asked, the last activation in which space it answers. Values of
the first examples are looked at only where the last activation cannot be read: a student that
starts at zero gives the same numbers as a sure one.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from keras_kd import checks
from keras_kd.running import user_models

if TYPE_CHECKING:
    import keras
    import numpy as np

    from keras_kd.data import Split


@dataclass(frozen=True)
class Output:
    """What one output of a model answers.

    Args:
        task: "classes" (labels are class numbers), "one_hot" (a distribution for each decision),
            "binary" (one unit or several independent labels) or "values" (regression).
        logits: False where the output is a probability already.
    """

    task: str
    logits: bool = True

    def loss(self, name: str | None = None) -> keras.losses.Loss:
        """Make the loss that fits, or the named Keras loss with `from_logits` where it has it."""
        import keras

        default = {
            "classes": "SparseCategoricalCrossentropy",
            "one_hot": "CategoricalCrossentropy",
            "binary": "BinaryCrossentropy",
            "values": "MeanSquaredError",
        }[self.task]
        kind = getattr(keras.losses, name or default)
        takes_logits = "from_logits" in inspect.signature(kind).parameters
        return kind(from_logits=self.logits) if takes_logits else kind()

    def metric(self) -> keras.metrics.Metric:
        """Make the metric that a person would ask for."""
        import keras

        if self.task == "classes":
            return keras.metrics.SparseCategoricalAccuracy(name="accuracy")
        if self.task == "one_hot":
            return keras.metrics.CategoricalAccuracy(name="accuracy")
        if self.task == "binary":
            threshold = 0.0 if self.logits else 0.5
            return keras.metrics.BinaryAccuracy(name="accuracy", threshold=threshold)
        return keras.metrics.MeanAbsoluteError(name="mean_absolute_error")


def look(role: str, model: keras.Model, split: Split) -> tuple[dict[str, Output], Any]:
    """Find out what each output of a model answers, and in which space.

    Args:
        role: "teacher" or "student", for the words.
        model: the model; it is built by this, if it was not.
        split: the data, with labels.

    Returns:
        name -> what it answers, and the outputs as the model nests them.

    Raises:
        ValueError: what `understand` refuses; "Output ... may be probabilities or logits" where
            nothing tells; "The ... ends in a sigmoid, and the labels are class numbers.", "The ...
            ends in a softmax, and the labels are no choice of one class."
    """
    import keras

    structure = user_models.first_outputs(role, model, split)
    tasks = understand(role, user_models.named(model, structure), split.y)
    kinds, activations = (
        user_models.named(model, keras.tree.pack_sequence_as(structure, flat))
        for flat in _read(role, model, structure, tasks)
    )
    outputs = {
        name: _settle(role, name, task, kinds[name], activations[name])
        for name, task in tasks.items()
    }
    return outputs, structure


def understand(role: str, outputs: Mapping[str, Any], labels: Any) -> dict[str, str]:
    """Find out what the labels ask of each output.

    Args:
        role: "teacher" or "student", for the words.
        outputs: name -> what the model answers for the first examples, (examples, ...).
        labels: their labels: an array for a single output, else name -> array.

    Returns:
        name -> its task, as in `Output`.

    Raises:
        ValueError: "The labels have other names than the ...'s outputs.", "The ...'s output does
            not fit the labels.", "The labels reach further than the ...'s classes."
    """
    by_name = dict(labels) if isinstance(labels, Mapping) else {"": labels}
    if by_name.keys() != outputs.keys():
        raise checks.bad_value(
            f"The labels have other names than the {role}'s outputs.",
            given=f"labels {_names(by_name)}; outputs {_names(outputs)}",
            expected="one array of labels for each output, under its name",
            fix="name the labels in the data set as the model names its outputs.",
        )
    return {name: _task(role, name, tuple(outputs[name].shape), by_name[name]) for name in outputs}


def nested(by_name: Mapping[str, Any], structure: Any) -> Any:
    """Nest what there is for each output as the outputs are.

    Args:
        by_name: name of an output -> anything.
        structure: the outputs, or anything nested like them.
    """
    if isinstance(structure, Mapping):
        return dict(by_name)
    return list(by_name.values()) if isinstance(structure, list | tuple) else by_name[""]


def _task(role: str, name: str, shape: tuple[int, ...], labels: np.ndarray) -> str:
    """Find out what the labels ask of one output."""
    from keras_kd.outputs import is_distribution

    units = shape[-1] if len(shape) > 1 else 1
    whole = labels.dtype.kind in "iub"
    numbers = labels.reshape(labels.shape[:-1]) if labels.shape[-1:] == (1,) else labels
    if whole and units > 1 and numbers.shape[1:] == shape[1:-1]:
        if numbers.size and (numbers.max() >= units or numbers.min() < 0):
            raise checks.bad_value(
                f"The labels reach further than the {role}'s classes.",
                given=f"{_of(name)}labels from {numbers.min()} to {numbers.max()}, {units} classes",
                expected=f"class numbers from 0 to {units - 1}",
                fix="use a model with one unit a class, or data with these classes.",
            )
        return "classes"
    alike = labels.shape[1:] == shape[1:] or (units == 1 and numbers.shape[1:] == shape[1:-1])
    if not alike:
        raise checks.bad_value(
            f"The {role}'s output does not fit the labels.",
            given=f"{_of(name)}output {shape[1:]}, labels {labels.shape[1:]} {labels.dtype}",
            expected="class numbers without the last axis, or labels shaped as the output",
            fix="use a model whose last layer has one unit a class (or a value).",
        )
    if units > 1 and is_distribution(labels):
        return "one_hot"
    return "binary" if bool(((labels == 0) | (labels == 1)).all()) else "values"


def _read(
    role: str, model: keras.Model, structure: Any, tasks: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Read what each flat output is, as the Distiller will, and its last activation ("" unknown).

    What is certain is stated to the reader: values stay values, and a layer without activation
    gives logits, whatever its numbers look like.
    """
    import keras

    from keras_kd.outputs import OutputReader, last_activations

    leaves = keras.tree.flatten(structure)
    last = last_activations(model)
    last = last if len(last) == len(leaves) else [None] * len(leaves)
    certain = {"values": "values", "linear": "logits"}
    asked = keras.tree.flatten(nested(tasks, structure))
    words = [
        certain.get(task) or certain.get(str(activation), "auto")
        for task, activation in zip(asked, last, strict=True)
    ]
    reader = OutputReader(
        model,
        who=f"the {role} {model.name!r}",
        stated=words,
        activation="softmax",
        fix=f"end the {role} in a layer without activation (logits), or in a "
        "keras.layers.Activation that says what it is.",
    )
    reader(structure)
    reader.learn(structure)
    return list(reader.kinds or []), [activation or "" for activation in last]


def _settle(role: str, name: str, task: str, kind: str, activation: str) -> Output:
    """Bring together what the labels ask of an output and what it gives."""
    if task == "values":
        return Output(task, logits=activation not in ("softmax", "sigmoid"))
    if task == "classes" and kind == "sigmoid":
        raise checks.bad_value(
            f"The {role} ends in a sigmoid, and the labels are class numbers.",
            given=f"{_of(name)}sigmoids, of which each is a label of its own",
            expected="a choice of one class: logits, or a softmax",
            fix=f"end the {role} in a softmax or without activation, or store 0 or 1 for each "
            "label.",
        )
    if task == "binary" and kind == "softmax":
        raise checks.bad_value(
            f"The {role} ends in a softmax, and the labels are no choice of one class.",
            given=f"{_of(name)}a softmax; labels of 0 or 1 that do not sum to 1",
            expected="a label of its own for each unit: logits, or sigmoids",
            fix=f"end the {role} in a sigmoid or without activation, or store class numbers.",
        )
    if task == "one_hot" and kind == "sigmoid":
        return Output("binary", logits=False)
    return Output(task, logits=kind == "logits")


def _names(outputs: Mapping[str, Any]) -> str:
    """Write the names of outputs; a single one has none."""
    return ", ".join(name or "(one without a name)" for name in outputs)


def _of(name: str) -> str:
    """Open a sentence about a named output."""
    return f"{name}: " if name else ""
