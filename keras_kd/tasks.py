"""What the labels make of a model's outputs: classification, binary decisions or regression."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_kd import checks
from keras_kd.outputs import as_numbers, is_distribution

METRIC = {"classification": "accuracy", "binary": "binary_accuracy", "regression": "mse"}


@dataclasses.dataclass(frozen=True)
class Task:
    """What one output is measured as.

    Attributes:
        name: name of the output.
        kind: `"classification"`, `"binary"` or `"regression"`.
        activation: `"softmax"` or `"sigmoid"`: what turns its logits into probabilities.
    """

    name: str
    kind: str
    activation: str


def name_labels(y: Any, names: Sequence[str]) -> list[np.ndarray]:
    """Line the labels of a batch up with the outputs.

    Args:
        y: labels, or a list or dict of them.
        names: the names of the outputs, in order.

    Raises:
        ValueError: "The labels are not one for each output".
    """
    parts = keras.tree.flatten(y)
    if isinstance(y, dict) and len(names) > 1:
        parts = [y[name] for name in names if name in y]
    if len(parts) != len(names):
        given = f"the names {sorted(y)}" if isinstance(y, dict) else f"{len(parts)} parts"
        raise checks.bad_value(
            "The labels are not one for each output.",
            given=given,
            expected=f"labels for {', '.join(names)}",
            fix="give the data a dict of labels by these names, or a list in this order.",
        )
    return [as_numbers(part) for part in parts]


def find_tasks(
    labels: Sequence[np.ndarray],
    outputs: Sequence[np.ndarray],
    kinds: Sequence[str],
    names: Sequence[str],
) -> list[Task]:
    """Say for each output what a batch of its labels makes it.

    Args:
        labels: the labels of each output.
        outputs: the outputs, each `(…, classes)`.
        kinds: what each output is: `"softmax"`, `"sigmoid"`, `"logits"` or `"values"`.
        names: the name of each output.

    Raises:
        ValueError: "The labels … do not fit".
    """
    tasks = []
    for label, output, kind, name in zip(labels, outputs, kinds, names, strict=True):
        task = _kind(label, output.shape, kind)
        if task is None:
            raise checks.bad_value(
                f"The labels of {name!r} do not fit what the teacher gives.",
                given=f"labels of shape {label.shape} with values from {label.min():.4g} to "
                f"{label.max():.4g}; {kind} of shape {output.shape}",
                expected="a class number or a one-hot row for each decision, 0 or 1 for each "
                "label, or a number for each value",
                fix="check the labels, or say what the teacher gives: "
                'kd.Teacher(model, outputs="logits"), "probabilities" or "values".',
            )
        tasks.append(Task(name, task, "sigmoid" if task == "binary" else "softmax"))
    return tasks


def class_numbers(label: np.ndarray, classes: int, weight: np.ndarray) -> np.ndarray:
    """Return the class number of each decision, from numbers or one-hot rows.

    Args:
        label: `(…)`, `(…, 1)` or `(…, classes)`.
        classes: number of classes.
        weight: weight of each decision; what weighs nothing may have any label.

    Raises:
        ValueError: "A label has no class".
    """
    if label.size == weight.size * classes and classes > 1:
        return label.reshape(-1, classes).argmax(-1)
    numbers = label.reshape(-1)
    counted = numbers[weight > 0]
    wrong = counted[(counted < 0) | (counted >= classes)]
    if wrong.size:
        raise checks.bad_value(
            "A label has no class in the outputs.",
            given=f"label {wrong[0]:g}, {classes} classes",
            expected=f"labels from 0 to {classes - 1}",
            fix="number the labels from 0; what is not to be counted takes a sample_weight of 0.",
        )
    return numbers


def _kind(label: np.ndarray, shape: tuple[int, ...], kind: str) -> str | None:
    classes = shape[-1]
    one_each = label.shape in (shape[:-1], (*shape[:-1], 1))
    same = label.shape == shape or (classes == 1 and one_each)
    whole = bool(np.all(label == np.floor(label)))
    if kind == "values":
        return "regression" if same else None
    exclusive = (one_each and whole) or (same and is_distribution(label))
    if kind != "sigmoid" and classes > 1 and exclusive:
        return "classification"
    if kind == "softmax" or not same:
        return None
    return "binary" if bool(np.all((label == 0) | (label == 1))) else "regression"
