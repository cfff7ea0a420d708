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


def weigh(
    shapes: Sequence[tuple[int, ...]], given: Any, masks: Sequence[Sequence[np.ndarray | None]]
) -> list[np.ndarray]:
    """Return the weight of each decision of each output: the sample's, and 0 where one masks it.

    Args:
        shapes: the shape of each output, `(…, classes)`.
        given: sample weights: none, one for all outputs, or one for each.
        masks: the masks of each model, one (or `None`) for each output.
    """
    samples = keras.tree.flatten(given)
    samples = samples * len(shapes) if len(samples) == 1 else samples
    weights = []
    for index, (sample, shape) in enumerate(zip(samples, shapes, strict=True)):
        weight = np.ones(shape[:-1], "float32")
        for part in (sample, *(of_model[index] for of_model in masks)):
            if part is not None:
                part = as_numbers(part)
                weight = weight * part.reshape(
                    part.shape[: weight.ndim] + (1,) * (weight.ndim - part.ndim)
                )
        weights.append(weight.reshape(-1))
    return weights


def find_tasks(
    labels: Sequence[np.ndarray],
    shapes: Sequence[tuple[int, ...]],
    kinds: Sequence[str],
    names: Sequence[str],
    weights: Sequence[np.ndarray],
) -> list[Task]:
    """Say for each output what its labels make it.

    Args:
        labels: the labels of each output: of all the data, or of a first batch.
        shapes: the shape of each output for as many examples, `(…, classes)`.
        kinds: what each output is: `"softmax"`, `"sigmoid"`, `"logits"` or `"values"`.
        names: the name of each output.
        weights: the weight of each decision of each output; what weighs nothing says nothing.

    Raises:
        ValueError: "The labels … do not fit".
    """
    tasks = []
    for label, shape, kind, name, weight in zip(labels, shapes, kinds, names, weights, strict=True):
        counted = weight > 0 if np.any(weight > 0) else np.ones_like(weight, bool)
        task = _kind(label, shape, kind, counted)
        if task is None:
            raise checks.bad_value(
                f"The labels of {name!r} do not fit what the teacher gives.",
                given=f"{_described(label)}; {kind} of shape {shape}",
                expected="a class number or a one-hot row for each decision, 0 or 1 for each "
                "label, or a number for each value",
                fix="check the labels, or say what the teacher gives: "
                'kd.Teacher(model, outputs="logits"), "probabilities" or "values".',
            )
        tasks.append(Task(name, task, "sigmoid" if task == "binary" else "softmax"))
    return tasks


def check_labels(
    tasks: Sequence[Task],
    labels: Sequence[np.ndarray],
    shapes: Sequence[tuple[int, ...]],
    weights: Sequence[np.ndarray],
) -> None:
    """Refuse a batch whose labels are no longer of the kind that the tasks were found by.

    Args:
        tasks: the task of each output.
        labels: the labels of each output.
        shapes: the shape of each output, `(…, classes)`.
        weights: the weight of each decision of each output; what weighs nothing may be anything.

    Raises:
        ValueError: "The labels of … changed their kind".
    """
    expected = {
        "classification": "a class number or a one-hot row for each decision",
        "binary": "0 or 1 for each label",
        "regression": "a number for each value",
    }
    for task, label, shape, weight in zip(tasks, labels, shapes, weights, strict=True):
        if task.kind not in _possible(label, shape, weight > 0):
            raise checks.bad_value(
                f"The labels of {task.name!r} changed their kind.",
                given=f"{_described(label)}, for outputs of shape {shape}",
                expected=f"{expected[task.kind]}, as in the first batch ({task.kind})",
                fix="shuffle the data, so that the first batch tells; give them as arrays, of "
                "which all the labels are looked at; or say of a regression that it is one: "
                'kd.Teacher(model, outputs="values").',
            )


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


def _kind(label: np.ndarray, shape: tuple[int, ...], kind: str, counted: np.ndarray) -> str | None:
    possible = _possible(label, shape, counted)
    if kind == "values":
        return "regression" if "regression" in possible else None
    if kind != "sigmoid" and "classification" in possible:
        return "classification"
    if kind == "softmax":
        return None
    return next((task for task in ("binary", "regression") if task in possible), None)


def _possible(label: np.ndarray, shape: tuple[int, ...], counted: np.ndarray) -> set[str]:
    """Say which tasks these labels could be of, by the decisions that count."""
    classes = shape[-1]
    one_each = label.shape in (shape[:-1], (*shape[:-1], 1))
    if not one_each and label.shape != shape:
        return set()
    if one_each and classes > 1:
        numbers = label.reshape(-1)[counted]
        return {"classification"} if np.all(numbers == np.floor(numbers)) else set()
    rows = label.reshape(-1, classes)[counted]
    found = {"regression"}
    if np.all((rows == 0) | (rows == 1)):
        found.add("binary")
    if classes > 1 and (not rows.size or is_distribution(rows)):
        found.add("classification")
    return found


def _described(label: np.ndarray) -> str:
    span = f" with values from {label.min():.4g} to {label.max():.4g}" if label.size else ""
    return f"labels of shape {label.shape}{span}"
