"""What every distillation loss shares: spaces, shapes, weights, masks and the reduction.

A loss is arithmetic. It says what one example (or one position) is worth in `per_example`; the base
class casts to float32, checks the shapes, walks over nested outputs and reduces:

    value = Σᵢ wᵢ·mᵢ·ℓᵢ / Σᵢ mᵢ        (mᵢ: Keras mask, 1 without one; wᵢ: sample weight)
"""

from __future__ import annotations

import inspect
import numbers
import re
from collections.abc import Callable
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_kd import checks

Tensor = Any
Term = Callable[..., Tensor]
ACTIVATIONS = ("softmax", "sigmoid")


class DistillationLoss(keras.distillation.DistillationLoss):
    """Base class of the losses here; subclass it to add one from a paper.

    Override `per_example(teacher, student, y)`: both tensors are float32 and of one shape, and what
    it returns is one number for each example (or for each position of a sequence or a map).
    Weights, masks, nested outputs, mixed precision and replicas are taken care of.

    Args:
        teacher_layer_name: path of the teacher's layer to learn from; `None` is the model's output.
        student_layer_name: path of the student's layer that learns; `None` is the model's output.
        name: name in the logs; defaults to the class's name in snake case.

    Raises:
        ValueError: "The shapes of teacher and student differ" when they meet, "A sample_weight of
            shape … does not fit …" for a weight that matches no leading axes.

    Example:
    ```python
    import keras
    import keras_kd as kd

    class MeanAbsoluteLogits(kd.losses.DistillationLoss):
        def per_example(self, teacher, student, y=None):
            return keras.ops.mean(keras.ops.abs(teacher - student), axis=-1)

    loss = MeanAbsoluteLogits()
    print(loss.name, float(loss.compute_loss([[1.0, 2.0]], [[1.0, 4.0]])))  # … 1.0
    ```
    """

    space: ClassVar[str] = "logits"
    """`"logits"`: outputs arrive in log space, also probabilities. `"features"`: as they are."""

    activation: str | None = None
    """`"softmax"` or `"sigmoid"` where the loss takes the logits for one of these; else `None`."""

    def __init__(
        self,
        *,
        teacher_layer_name: str | None = None,
        student_layer_name: str | None = None,
        name: str | None = None,
    ) -> None:
        self.teacher_layer_name = _layer_name("teacher_layer_name", teacher_layer_name)
        self.student_layer_name = _layer_name("student_layer_name", student_layer_name)
        self.name = name or snake_case(type(self).__name__)

    def per_example(self, teacher: Tensor, student: Tensor, y: Tensor = None) -> Tensor:
        """Return the loss of each example or position; every subclass says how."""
        raise checks.bad_type(
            f"{type(self).__name__} does not say what an example's loss is.",
            given="no `per_example` method",
            expected="def per_example(self, teacher, student, y=None)",
            fix="define it, or define `compute_loss(teacher_outputs, student_outputs, **kwargs)`.",
        )

    def terms(self) -> Any:
        """Return the function of one output, or a nested structure of them (`None`: left out)."""
        if len(inspect.signature(self.per_example).parameters) > 2:
            return self.per_example
        return lambda teacher, student, y=None: self.per_example(teacher, student)

    def connector(self, teacher_shapes: Any, student_shapes: Any) -> keras.layers.Layer | None:
        """Return the layer with this loss's own trained parts, called on (teacher, student).

        The Distiller builds, tracks, trains and saves it, and leaves it out of the exported
        student, so one loss object may serve two Distillers. Most losses have none: `None`.
        """
        return None

    def compute_loss(
        self,
        teacher_outputs: Any,
        student_outputs: Any,
        y: Any = None,
        sample_weight: Any = None,
        step: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """Reduce the loss over the batch to a scalar.

        Args:
            teacher_outputs: tensor or array `(batch, …)`, or a list or dict of them (a list of
                numbers is an array).
            student_outputs: the same structure; a Keras mask on it is honoured.
            y: labels, for the losses that use them.
            sample_weight: `(batch,)` or any number of leading axes of the loss's values; one for
                all outputs, or a structure as the outputs have.
            step: number of optimizer steps taken, for what changes during training.
            **kwargs: what Keras's interface may add; unused.

        Returns:
            A float32 scalar: Σ weight · loss / number of examples (of real tokens under a mask).
        """
        outputs = as_arrays(student_outputs)
        students = keras.tree.flatten(outputs)
        teacher = self._teacher_leaves(as_arrays(teacher_outputs), outputs)
        terms = _per_leaf("loss", self.terms(), outputs)
        labels = _per_leaf("y", as_arrays(y), outputs, else_whole=True)
        weights = _per_leaf("sample_weight", as_arrays(sample_weight), outputs)
        values = [
            self._one_output(term, *leaf)
            for term, *leaf in zip(terms, teacher, students, labels, weights, strict=True)
            if term is not None
        ]
        return sum(values[1:], start=values[0])

    def check(self, teacher_outputs: Any, student_outputs: Any) -> None:
        """Refuse outputs that this loss cannot compare, by their shapes alone.

        Raises:
            ValueError: "The shapes of teacher and student differ", "… got different outputs".
        """
        outputs = as_arrays(student_outputs)
        teacher = self._teacher_leaves(as_arrays(teacher_outputs), outputs)
        terms = _per_leaf("loss", self.terms(), outputs)
        for term, t, s in zip(terms, teacher, keras.tree.flatten(outputs), strict=True):
            if term is not None:
                self.check_shapes(tuple(t.shape), tuple(s.shape))

    def _teacher_leaves(self, teacher: Any, student: Any) -> list[Tensor]:
        """Return the teacher's outputs in the student's order, or refuse another structure."""
        leaves = keras.tree.flatten(teacher)
        renamed = (
            isinstance(teacher, dict) and isinstance(student, dict) and set(teacher) ^ set(student)
        )
        if renamed or len(leaves) != len(keras.tree.flatten(student)):
            raise checks.bad_value(
                f"{type(self).__name__} got different outputs from the two models.",
                given=f"teacher {_outline(teacher)}, student {_outline(student)}",
                expected="the same structure",
                fix="name one layer of each with teacher_layer_name= and student_layer_name=.",
            )
        return leaves

    def _one_output(self, term: Term, teacher: Any, student: Any, y: Any, weight: Any) -> Tensor:
        mask = mask_of(student)
        teacher, student = as_float32(teacher), as_float32(student)
        self.check_shapes(tuple(teacher.shape), tuple(student.shape))
        if mask is not None:  # what stands at a padded position has no gradient, NaN or not
            teacher, student = _blank(teacher, mask), _blank(student, mask)
        return weighted_mean(term(teacher, student, y), weight, mask)

    def check_shapes(self, teacher: tuple, student: tuple) -> None:
        """Refuse shapes that this loss cannot compare, before arithmetic could broadcast them."""
        alike = len(teacher) == len(student) and all(
            None in pair or pair[0] == pair[1] for pair in zip(teacher, student, strict=True)
        )
        if not alike:
            raise checks.bad_value(
                f"{self.name}: the shapes of teacher and student differ.",
                given=f"teacher {teacher}, student {student}",
                expected="the same shape",
                fix=self._fix_for_shapes(),
            )

    def _fix_for_shapes(self) -> str:
        return "give both models the same number of classes, in the same order."

    def validate_outputs(self, teacher_outputs: Any, student_outputs: Any) -> None:
        """Answer Keras's Distiller, which asks first; `compute_loss` checks for itself."""

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {
            "teacher_layer_name": self.teacher_layer_name,
            "student_layer_name": self.student_layer_name,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DistillationLoss:
        """Make the loss again from `get_config()`."""
        return cls(**config)


def log_probabilities(logits: Tensor, activation: str) -> tuple[Tensor, ...]:
    """Return log softmax, or for sigmoid the pair log σ(z), log(1 − σ(z)) of every label."""
    if activation == "softmax":
        return (ops.log_softmax(logits, axis=-1),)
    return ops.log_sigmoid(logits), ops.log_sigmoid(-logits)


def refuse_flat(loss: DistillationLoss, shape: tuple) -> None:
    """Refuse outputs of shape `(batch,)`: the sum would run over the examples."""
    if len(shape) < 2:
        raise checks.bad_value(
            f"{loss.name}: The outputs have no axis but the batch's.",
            given=f"outputs of shape {shape}",
            expected="(batch, classes) or (batch, …, channels)",
            fix="let the model keep its last axis, of length 1 for one value each.",
        )


def refuse_single_class(loss: DistillationLoss, shape: tuple) -> None:
    """Refuse a softmax over one class: it is 1 whatever the logit, and teaches nothing."""
    refuse_flat(loss, shape)
    if loss.activation == "softmax" and shape[-1] == 1:
        raise checks.bad_value(
            f"{loss.name}: A softmax over one class is constant and teaches nothing.",
            given=f"outputs of shape {shape}",
            expected="two or more classes, or a sigmoid over one",
            fix=f'use {type(loss).__name__}(activation="sigmoid") for a binary output.',
        )


def option(argument: str, given: Any, options: tuple[str, ...]) -> str:
    """Return one of a few words, or refuse it with the closest one."""
    if given not in options:
        raise checks.unknown_name(argument, given, options)
    return given


def snake_case(name: str) -> str:
    """Turn `LogitsDistillation` into `logits_distillation`, as Keras names losses."""
    words = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", words).lower()


def as_arrays(given: Any) -> Any:
    """Turn nested lists of numbers into arrays; other lists and dicts stay structures."""
    if isinstance(given, dict):
        return {key: as_arrays(value) for key, value in given.items()}
    if not isinstance(given, (list, tuple)):
        return given
    if given and all(isinstance(leaf, numbers.Number) for leaf in keras.tree.flatten(given)):
        return np.asarray(given)
    return [as_arrays(part) for part in given]


def as_float32(values: Any) -> Tensor:
    """Convert arrays and tensors of any float type to a float32 tensor."""
    return ops.cast(ops.convert_to_tensor(values), "float32")


def mask_of(tensor: Any) -> Tensor | None:
    """Return the Keras mask that travels with a tensor, or `None`."""
    return getattr(tensor, "_keras_mask", None)


def with_mask(tensor: Any, mask: Tensor | None) -> Any:
    """Attach a Keras mask to a tensor that a layer has made anew."""
    if mask is not None and mask_of(tensor) is None:
        tensor._keras_mask = mask
    return tensor


def weighted_mean(values: Tensor, sample_weight: Any = None, mask: Any = None) -> Tensor:
    """Reduce per-example values to Σ w·m·ℓ / Σ m, as Keras does.

    Args:
        values: `(batch, …)` losses, or a scalar that is passed through.
        sample_weight: leading axes of `values` (a trailing axis of 1 is dropped), or `None`.
        mask: boolean, leading axes of `values`, or `None`.
    """
    if len(values.shape) == 0:
        if sample_weight is None:
            return values
        raise checks.bad_value(
            "A loss that returns one number for the batch cannot honour a sample_weight.",
            given="a scalar and a sample_weight",
            expected="one value for each example",
            fix="return per-example values, or leave out sample_weight and class_weight.",
        )
    if mask is None:
        count = ops.cast(ops.size(values), "float32")
    else:
        real = _broadcast("mask", ops.cast(mask, "bool"), values)
        values = ops.where(real, values, ops.zeros_like(values))
        count = ops.sum(ops.cast(real, "float32"))
    if sample_weight is not None:
        values = values * _broadcast("sample_weight", as_float32(sample_weight), values)
    return ops.divide_no_nan(ops.sum(values), count)


def _broadcast(what: str, weight: Tensor, values: Tensor) -> Tensor:
    shape, target = tuple(weight.shape), tuple(values.shape)
    trailing = len(shape) > len(target) or target[len(shape) - 1 :][:1] != (1,)
    if len(shape) > 1 and shape[-1] == 1 and trailing:
        weight, shape = ops.squeeze(weight, -1), shape[:-1]
    fits = len(shape) <= len(target) and all(
        None in pair or pair[0] == pair[1] for pair in zip(shape, target, strict=False)
    )
    if not fits:
        raise checks.bad_value(
            f"A {what} of shape {shape} does not fit losses of shape {target}.",
            given=f"{what} {shape}",
            expected=f"{target[:1]}, or more of the leading axes of {target}",
            fix="pass one weight for each example, or one for each position.",
        )
    for _ in range(len(target) - len(shape)):
        weight = ops.expand_dims(weight, -1)
    return ops.broadcast_to(weight, ops.shape(values))


def _blank(tensor: Tensor, mask: Any) -> Tensor:
    real = _broadcast("mask", ops.cast(mask, "bool"), tensor)
    return ops.where(real, tensor, ops.zeros_like(tensor))


def _per_leaf(what: str, given: Any, outputs: Any, else_whole: bool = False) -> list[Any]:
    """Line up a single thing, or a structure of things, with the flat outputs."""
    structure = (list, tuple, dict)
    keys, parts = _keys(outputs), None
    if not isinstance(outputs, structure):
        if len(flat := keras.tree.flatten(given)) == 1:
            return flat
    elif not isinstance(given, structure):
        parts = dict.fromkeys(keys, given)
    elif isinstance(given, dict) and isinstance(outputs, dict):
        parts = given if set(given) <= set(keys) else None
    elif len(given) == len(keys) and not isinstance(given, dict):
        parts = dict(zip(keys, given, strict=True))
    if parts is not None:
        pairs = [(parts.get(key), outputs[key]) for key in keys]
        return [leaf for pair in pairs for leaf in _per_leaf(what, *pair, else_whole)]
    if else_whole:
        return [given] * len(keras.tree.flatten(outputs))
    raise checks.bad_value(
        f"`{what}` does not have the structure of the outputs.",
        given=f"{what} {_outline(given)} for outputs {_outline(outputs)}",
        expected="one for all outputs, or a list or dict as the model's outputs are",
        fix=f"give `{what}` one entry for each output (None leaves one out).",
    )


def _keys(outputs: Any) -> list:
    """Return the keys or positions in the order in which `keras.tree` flattens them."""
    if isinstance(outputs, dict):
        return keras.tree.flatten({key: key for key in outputs})
    return list(range(len(outputs))) if isinstance(outputs, (list, tuple)) else []


def _outline(structure: Any) -> str:
    """Name the parts of a structure, for an error."""
    if isinstance(structure, (list, tuple, dict)):
        return f"{type(structure).__name__} ({', '.join(map(str, _keys(structure)))})"
    return "one tensor"


def _layer_name(argument: str, name: Any) -> str | None:
    if name is None or isinstance(name, str):
        return name
    raise checks.bad_type(
        f"`{argument}` must be a layer's name or path.",
        given=f"{name!r} ({type(name).__name__})",
        expected='a string such as "backbone/block3/relu", or None for the model\'s output',
        fix=f'pass the name, for example {argument}="dense_1".',
    )
