"""Shapes that a loss refuses, in the same words whichever loss it is.

`loss` is the loss that asks: its `name` stands in the error.
"""

from __future__ import annotations

import math
from typing import Any

from keras_kd import checks
from keras_kd.structures import alike, outline


def refuse_unlike_maps(loss: Any, teacher: tuple, student: tuple, single: str) -> None:
    """Refuse features that cannot be resized to each other, and those of one position.

    Args:
        loss: the loss that asks.
        teacher: `(batch, positions…, channels)`; sizes and channels may differ.
        student: the same number of axes.
        single: why a feature of one position says nothing.
    """
    refuse_flat(loss, student)
    sizes = teacher[1:-1], student[1:-1]
    same = all(t == s and t is not None for t, s in zip(*sizes, strict=False))
    resizable = alike(teacher[:1], student[:1]) and (same or len(teacher) < 5)
    if len(teacher) != len(student) or not resizable:
        raise checks.bad_value(
            f"{loss.name}: the shapes of teacher and student differ.",
            given=f"teacher {teacher}, student {student}",
            expected="the same examples and number of axes; heights, widths, lengths and "
            "channels may differ, the sizes of volumes may not",
            fix="name layers of the same kind with teacher_layer_name= and student_layer_name=.",
        )
    if any(None not in size and math.prod(size) == 1 for size in sizes):
        raise checks.bad_value(
            f"{loss.name}: a feature of one position {single}.",
            given=f"teacher {teacher}, student {student}",
            expected="(batch, height, width, channels) or (batch, length, channels)",
            fix="name layers before the pooling and the dense layers.",
        )


def refuse_flat(loss: Any, shape: tuple) -> None:
    """Refuse outputs of shape `(batch,)`: the sum would run over the examples."""
    if len(shape) < 2:
        raise checks.bad_value(
            f"{loss.name}: The outputs have no axis but the batch's.",
            given=f"outputs of shape {shape}",
            expected="(batch, classes) or (batch, …, channels)",
            fix="let the model keep its last axis, of length 1 for one value each.",
        )


def refuse_single_class(loss: Any, shape: tuple) -> None:
    """Refuse a softmax over one class: it is 1 whatever the logit, and teaches nothing."""
    refuse_flat(loss, shape)
    if loss.activation == "softmax" and shape[-1] == 1:
        raise checks.bad_value(
            f"{loss.name}: A softmax over one class is constant and teaches nothing.",
            given=f"outputs of shape {shape}",
            expected="two or more classes, or a sigmoid over one",
            fix=f'use {type(loss).__name__}(activation="sigmoid") for a binary output.',
        )


def refuse_few_layers(loss: Any, teacher: Any, student: Any) -> None:
    """Refuse fewer layers of the two models than the loss compares."""
    for who, given in (("teacher", teacher), ("student", student)):
        count = len(given) if isinstance(given, list) else 1
        if count < loss.layers:
            raise checks.bad_value(
                f"{type(loss).__name__} compares {loss.layers} layers or more of each model.",
                given=f"{count} of the {who}",
                expected=f"lists of at least {loss.layers} layers, in the models' order",
                fix='name them: teacher_layer_name=["block1", "block2"], '
                'student_layer_name=["block1", "block2"].',
            )


def no_labels(loss: Any) -> ValueError:
    """Make the error for a loss that needs labels and gets none."""
    return checks.bad_value(
        f"{type(loss).__name__} needs labels.",
        given="outputs without labels",
        expected="batches (x, y) in kd.Distiller",
        fix="give the labels; keras.distillation.Distiller does not pass them on to its losses, so "
        "use kd.Distiller.",
    )


def layers_besides(loss: Any, output: str | int) -> ValueError:
    """Make the error for a loss that takes layers and is asked for one output."""
    return checks.bad_value(
        f"{type(loss).__name__} takes layers, and not an output besides.",
        given=f"on({output!r}), teacher_layer_name={loss.teacher_layer_name!r}, "
        f"student_layer_name={loss.student_layer_name!r}",
        expected="one of the two",
        fix="name the layer that makes the output instead.",
    )


def no_output(place: int, outputs: Any) -> ValueError:
    """Make the error for a place at which there is no output."""
    return checks.bad_value(
        f"There is no output {place}.",
        given=f"on({place}) for outputs {outline(outputs)}",
        expected="the place of one of several outputs in a list, from 0",
        fix="name the output, or leave out on() for a model with a single one.",
    )


def padded(loss: Any, mask: tuple) -> ValueError:
    """Make the error for padding that a value for a whole example would count."""
    return checks.bad_value(
        f"{loss.name}: the padding of these sequences would change the loss.",
        given=f"a mask of shape {mask}, and one value for each example",
        expected="layers without a mask, or a loss of each position",
        fix="name layers without a mask (after a pooling), or use kd.FeatureDistillation.",
    )
