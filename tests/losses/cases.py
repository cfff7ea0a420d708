"""Every loss of `keras_kd.losses`, found there by name, and what a Distiller calls it on."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd import losses
from keras_kd.attached import Answer
from keras_kd.connections import Connections

BATCH, CLASSES = 8, 5
FOUND = [getattr(losses, name) for name in losses.__all__]
KINDS = [kind for kind in FOUND if inspect.isclass(kind) and kind is not losses.DistillationLoss]
WRAPPERS = {"LogitStandardization": losses.LogitsDistillation}  # their argument is a loss


class Case:
    """One loss with its options, and tensors of the kind that it compares."""

    def __init__(self, kind: type, **options: Any) -> None:
        self.kind, self.options = kind, options
        self.space, self.layers = kind.space, kind.layers

    @property
    def needs_labels(self) -> bool:
        """Whether this loss, or the one inside it, needs labels."""
        return bool(self.make().needs_labels)

    @property
    def relates(self) -> bool:
        """Whether an example's value depends on the other examples."""
        inner = self.options.get("loss")
        kinds = [self.kind, type(inner)] if isinstance(inner, losses.DistillationLoss) else []
        return any("present" in _parameters(kind) for kind in kinds or [self.kind])

    def make(self, **more: Any) -> losses.DistillationLoss:
        """Make the loss; one that takes layers names them."""
        options = {**self.options, **more}
        if self.kind.__name__ in WRAPPERS and "loss" not in options:
            options["loss"] = WRAPPERS[self.kind.__name__]()
        if "teacher_layer_name" in inspect.signature(self.kind).parameters:
            names = [f"layer{i}" for i in range(self.layers)]
            chosen = names if self.layers > 1 else names[0]
            options = {"teacher_layer_name": chosen, "student_layer_name": chosen, **options}
        return self.kind(**options)

    def pair(self, rng, batch: int = BATCH, widths=(6, 5), size=(4, 4)) -> tuple:
        """Outputs or features of a teacher and a student, float32."""
        if self.space == "features":
            shapes = [(batch, *size, width) for width in widths]
        else:
            shapes = [(batch, CLASSES)] * 2
        return tuple(rng.normal(scale=2.0, size=shape).astype("float32") for shape in shapes)

    def labels(self, rng, batch: int = BATCH) -> np.ndarray | None:
        """Labels for the losses that need them: class numbers, or values."""
        if not self.needs_labels:
            return None
        if self.space == "values":
            return rng.normal(size=(batch, CLASSES)).astype("float32")
        return rng.integers(0, CLASSES, batch)

    def answer(self, values: Any) -> Answer:
        """What a model of a Distiller answers: these values, as outputs or as layers."""
        layers = {f"layer{i}": values for i in range(self.layers)}
        return Answer(values, values, layers, [values])

    def join(self, teacher: Any, student: Any, **more: Any) -> Connections:
        """Join the loss to a pair, with the same trained parts each time."""
        keras.utils.set_random_seed(3)
        connections = Connections(self.make(**more), None)
        connections.join(self.answer(teacher), self.answer(student))
        return connections

    def __repr__(self) -> str:
        """Name the case in a test's id."""
        values = [getattr(v, "name", v) for v in self.options.values()]
        return "_".join([self.kind.__name__, *map(str, values)])


def value(
    case: Case, connections: Connections, teacher, student, y=None, weight=None, step=0, **how
):
    """Compute the loss as a train step does, unreduced by anything of the test's own."""
    answers = case.answer(teacher), case.answer(student)
    connections.check(*answers)
    return connections.values(*answers, y, weight, step, **how)[0][0]


def value_and_gradient(case, connections, teacher, student, y=None, weight=None):
    """Return the value as a float and its gradient by the student's side."""
    variable = tf.Variable(tf.cast(student, "float32"))
    with tf.GradientTape() as tape:
        result = value(case, connections, tf.convert_to_tensor(teacher), variable * 1.0, y, weight)
    return float(result), tf.convert_to_tensor(tape.gradient(result, variable)).numpy()


def _parameters(kind: type) -> Any:
    return inspect.signature(kind.per_example).parameters


MODES = [
    Case(losses.LogitsDistillation, direction="reverse", temperature=4.0),
    Case(losses.LogitsDistillation, direction="jensen_shannon", beta=0.2),
    Case(losses.LogitsDistillation, activation="sigmoid"),
    Case(losses.LogitsDistillation, loss="categorical_crossentropy"),
    Case(losses.LogitsDistillation, loss="mse"),
    Case(losses.FeatureDistillation, loss="cosine_similarity"),
]
CASES = [*(Case(kind) for kind in KINDS), *MODES]


def of(condition=lambda case: True) -> pytest.MarkDecorator:
    """Parametrise a test over the cases for which a condition holds."""
    return pytest.mark.parametrize("case", [c for c in CASES if condition(c)], ids=repr)
