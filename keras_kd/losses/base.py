"""What every distillation loss shares: spaces, shapes, weights, masks and the reduction.

A loss is arithmetic. It says what one example (or one position) is worth in `per_example`; the base
class casts to float32, checks the shapes, walks over nested outputs and reduces:

    value = Σᵢ wᵢ·mᵢ·ℓᵢ / Σᵢ mᵢ        (mᵢ: Keras mask, 1 without one; wᵢ: sample weight)
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import keras
from keras import ops

from keras_kd import checks, configs, reductions, refusals, schedules, top_k
from keras_kd.distributions import ACTIVATIONS as ACTIVATIONS
from keras_kd.distributions import Tensor as Tensor
from keras_kd.features import flat
from keras_kd.refusals import refuse_flat as refuse_flat
from keras_kd.refusals import refuse_single_class as refuse_single_class
from keras_kd.refusals import refuse_unlike_maps as refuse_unlike_maps
from keras_kd.structures import (
    alike,
    as_arrays,
    layer_names,
    leaves_like,
    per_leaf,
    refuse_unpaired,
    shapes_of,
)

Term = Callable[..., Tensor]
LayerNames = str | Sequence[str] | None
"""One layer, several of them, or the model's output (`None`)."""


class DistillationLoss(keras.distillation.DistillationLoss):
    """Base class of the losses here; subclass it to add one from a paper.

    Override `per_example(teacher, student)`: both tensors are float32 and of one shape, and what it
    returns is one number for each example (or for each position of a sequence or a map). Take
    `y` for the labels, and `present` (boolean: not masked, weight not 0) where examples are related
    to each other. Weights, masks, nested outputs, schedules, mixed precision and replicas are taken
    care of, and the config is read from the constructor's arguments, so keep each as an attribute
    of its name.

    Args:
        teacher_layer_name: path of the teacher's layer to learn from, or a list of paths; `None` is
            the model's output.
        student_layer_name: path of the student's layer that learns, or a list of as many paths;
            `None` is the model's output.
        name: name in the logs; defaults to the class's name in snake case.

    Raises:
        ValueError: "The shapes of teacher and student differ" when they meet, "A sample_weight of
            shape … does not fit …" for a weight that matches no leading axes, "… needs labels",
            "… compares … layers", "There is no output …".

    Example:
    ```python
    import keras
    import keras_kd as kd

    class MeanAbsoluteLogits(kd.losses.DistillationLoss):
        def per_example(self, teacher, student):
            return keras.ops.mean(keras.ops.abs(teacher - student), axis=-1)

    loss = MeanAbsoluteLogits()
    print(loss.name, float(loss.compute_loss([[1.0, 2.0]], [[1.0, 4.0]])))  # … 1.0
    ```
    """

    paper: ClassVar[str] = ""
    """Who published it and when, for `keras-kd list losses`."""

    space: ClassVar[str] = "logits"
    """`"logits"`: outputs in log space, also probabilities. `"values"`: outputs as they are.
    `"features"`: layers, or outputs as they are."""

    needs_labels: bool = False
    """Whether `per_example` needs `y`."""

    trained_parts: ClassVar[str] = ""
    """What `connector` makes, in words."""

    layers: ClassVar[int] = 1
    """How many layers (or outputs) of each model it compares, at least."""

    takes_all: ClassVar[bool] = False
    """Whether `per_example` gets all layers at once; else it gets them pair by pair."""

    ignores_padding: ClassVar[bool] = False
    """Whether zeros at padded positions change nothing in a value for a whole example."""

    output: str | int | None = None
    """The output that it is for, where `on` said so."""

    activation: str | None = None
    """`"softmax"` or `"sigmoid"` where the loss takes the logits for one of these; else `None`."""

    def __init__(
        self,
        *,
        teacher_layer_name: LayerNames = None,
        student_layer_name: LayerNames = None,
        name: str | None = None,
    ) -> None:
        self.teacher_layer_name = layer_names("teacher_layer_name", teacher_layer_name)
        self.student_layer_name = layer_names("student_layer_name", student_layer_name)
        refuse_unpaired(self.teacher_layer_name, self.student_layer_name)
        self.name = name or snake_case(type(self).__name__)

    def per_example(self, *tensors: Any, **named: Any) -> Tensor:
        """Return the loss of each example or position; `(teacher, student[, y][, present])`."""
        raise checks.bad_type(
            f"{type(self).__name__} does not say what an example's loss is.",
            given="no `per_example` method",
            expected="def per_example(self, teacher, student)",
            fix="define it, or define `compute_loss(teacher_outputs, student_outputs, **kwargs)`.",
        )

    def terms(self) -> Any:
        """Return the function of one output, or a nested structure of them (`None`: left out)."""
        return self.per_example

    def on(self, output: str | int) -> DistillationLoss:
        """Return this loss for one of several outputs, by its name or its place.

        Args:
            output: the name of the output, or its index in the model's list of outputs.

        Raises:
            ValueError: "… takes layers", for a loss that names layers.

        Example:
        ```python
        import keras_kd as kd

        loss = kd.LogitsDistillation(temperature=2.0).on("digit")
        outputs = {"digit": [[2.0, 0.0]], "box": [[0.5]]}
        print(float(loss.compute_loss(outputs, outputs)))  # 0.0
        ```
        """
        if self.teacher_layer_name or self.student_layer_name or self.takes_all:
            raise refusals.layers_besides(self, output)
        one = copy.copy(self)
        one.output = output
        return one

    def terms_for(self, outputs: Any) -> Any:
        """Return the functions of these outputs: `terms()`, at the one output of `on`."""
        if isinstance(self.output, int):
            count = len(outputs) if isinstance(outputs, (list, tuple)) else 0
            if not 0 <= self.output < count:
                raise refusals.no_output(self.output, outputs)
            return [self.terms() if i == self.output else None for i in range(len(outputs))]
        return self.terms() if self.output is None else {self.output: self.terms()}

    def connector(self, teacher_shapes: Any, student_shapes: Any) -> keras.layers.Layer | None:
        """Return the layer with this loss's own trained parts, called on (teacher, student).

        The Distiller builds, tracks, trains and saves it, and leaves it out of the exported
        student, so one loss object may serve two Distillers. A `training` argument of its `call` is
        given. Most losses have none: `None`.
        """
        return None

    def schedules(self) -> dict[str, Any]:
        """Return the arguments that change with the step, by name; those of a loss inside too."""
        found: dict[str, Any] = {}
        for key, value in vars(self).items():
            if isinstance(value, DistillationLoss):
                found |= value.schedules()
            elif schedules.is_schedule(value):
                found[key] = value
            elif isinstance(value, list):
                numbered = enumerate(value)
                found |= {f"{key}_{i}": v for i, v in numbered if schedules.is_schedule(v)}
        return found

    def at(self, step: Any) -> DistillationLoss:
        """Return this loss as it is at a step: each schedule is the number that it gives."""
        if not self.schedules():
            return self
        now = copy.copy(self)
        for key, value in vars(self).items():
            if isinstance(value, DistillationLoss):
                setattr(now, key, value.at(step))
            elif isinstance(value, list):
                setattr(now, key, [schedules.at(part, step) for part in value])
            else:
                setattr(now, key, schedules.at(value, step))
        return now

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
        if self.needs_labels and y is None:
            raise refusals.no_labels(self)
        outputs, teacher = as_arrays(student_outputs), as_arrays(teacher_outputs)
        loss = self.at(step)
        if self.takes_all:
            top_k.refuse(self, teacher)
            masks = map(reductions.mask_of, keras.tree.flatten(outputs))
            mask = next((mask for mask in masks if mask is not None), None)
            teacher, outputs = (
                keras.tree.map_structure(reductions.as_float32, side) for side in (teacher, outputs)
            )
            self.check_shapes(shapes_of(teacher), shapes_of(outputs))
            (weight,) = per_leaf("sample_weight", as_arrays(sample_weight), None)
            return loss._reduced(loss.per_example, teacher, outputs, as_arrays(y), weight, mask)
        values = [
            loss._one_output(term, *leaf)
            for term, *leaf in zip(
                per_leaf("loss", loss.terms_for(outputs), outputs),
                leaves_like(outputs, teacher, type(self).__name__),
                keras.tree.flatten(outputs),
                per_leaf("y", as_arrays(y), outputs, else_whole=True),
                per_leaf("sample_weight", as_arrays(sample_weight), outputs),
                strict=True,
            )
            if term is not None
        ]
        return sum(values[1:], start=values[0])

    def _one_output(self, term: Term, teacher: Any, student: Any, y: Any, weight: Any) -> Tensor:
        mask, student = reductions.mask_of(student), reductions.as_float32(student)
        if not isinstance(teacher, top_k.TopKLogits):
            teacher = reductions.as_float32(teacher)
        temperature = self._check_one(term, teacher, student)
        if mask is not None:  # what stands at a padded position has no gradient, NaN or not
            student, y = reductions.blank(student, mask), reductions.blank_labels(y, mask)
        if temperature is not None:
            teacher, student = top_k.coarsen(teacher, student, temperature)
        if mask is not None:
            if alike(tuple(teacher.shape[: len(mask.shape)]), tuple(mask.shape)):
                teacher = reductions.blank(teacher, mask)
            elif self.ignores_padding:  # the mask says nothing of the teacher's positions
                raise refusals.padded(self, tuple(mask.shape))
        return self._reduced(term, teacher, student, y, weight, mask)

    def _reduced(
        self, term: Term, teacher: Any, student: Any, y: Any, weight: Any, mask: Any
    ) -> Tensor:
        """Call what an example's loss is with what it takes, and average."""
        if not self.trained_parts:
            teacher = keras.tree.map_structure(ops.stop_gradient, teacher)
        takes = inspect.signature(term).parameters
        given = {"y": y} if "y" in takes else {}
        if "present" in takes:
            first = keras.tree.flatten(student)[0]
            first = flat(first) if self.space == "features" else first
            given["present"] = reductions.present(first[..., 0], weight, mask)
        values = term(teacher, student, **given)
        if mask is not None and len(mask.shape) > len(values.shape):
            if not self.ignores_padding:
                raise refusals.padded(self, tuple(mask.shape))
            mask = reductions.fold(ops.cast(mask, "bool"), len(values.shape))
        return reductions.weighted_mean(values, weight, mask)

    def check(self, teacher_outputs: Any, student_outputs: Any) -> None:
        """Refuse outputs that this loss cannot compare, by their shapes alone.

        Raises:
            ValueError: "The shapes of teacher and student differ", "… got different outputs".
        """
        teacher, outputs = as_arrays(teacher_outputs), as_arrays(student_outputs)
        if self.takes_all:
            top_k.refuse(self, teacher)
            self.check_shapes(shapes_of(teacher), shapes_of(outputs))
            return
        leaves = zip(
            per_leaf("loss", self.terms_for(outputs), outputs),
            leaves_like(outputs, teacher, type(self).__name__),
            keras.tree.flatten(outputs),
            strict=True,
        )
        for term, t, s in leaves:
            if term is not None:
                self._check_one(term, t, s)

    def _check_one(self, term: Term, teacher: Any, student: Any) -> float | None:
        """Refuse what cannot be compared; return the temperature at which kept classes can."""
        kept = isinstance(teacher, top_k.TopKLogits)
        temperature = self.kept(teacher, term) if kept else None
        self.check_shapes(tuple(teacher.shape), tuple(student.shape))
        return temperature

    def kept(self, teacher: top_k.TopKLogits, term: Term) -> float:
        """Return the temperature at which a term compares kept classes and one for the rest.

        A softmax loss of the KL family overrides it; `top_k.coarsen` then makes the logits of both
        sides for that temperature. Every other loss needs all classes.

        Args:
            teacher: the logits that the teacher's soft targets hold.
            term: one of `terms()`: what will get the coarsened logits.

        Raises:
            ValueError: "… needs all classes, and the teacher's soft targets hold the top …".
        """
        raise top_k.needs_all(self, teacher)

    def check_layers(self, teacher: Any, student: Any) -> None:
        """Refuse fewer layers of the two models than this loss compares.

        Raises:
            ValueError: "… compares … layers or more of each model".
        """
        refusals.refuse_few_layers(self, teacher, student)

    def check_shapes(self, teacher: Any, student: Any) -> None:
        """Refuse shapes that this loss cannot compare, before arithmetic could broadcast them."""
        if not alike(teacher, student):
            raise checks.bad_value(
                f"{self.name}: the shapes of teacher and student differ.",
                given=f"teacher {teacher}, student {student}",
                expected="the same shape",
                fix=self._fix_for_shapes(),
            )

    def _fix_for_shapes(self) -> str:
        return "give both models the same number of classes, in the same order."

    def validate_outputs(self, teacher_outputs: Any, student_outputs: Any) -> None:
        """Tell users of Keras's own Distiller, which asks this first, what only ours can do.

        Raises:
            ValueError: "… needs labels", "… has trained parts", "… compares … layers or more".
        """
        if self.needs_labels:
            raise refusals.no_labels(self)
        sides = [shapes_of(as_arrays(side)) for side in (teacher_outputs, student_outputs)]
        self.check_layers(*sides)
        if self.connector(*sides) is not None:
            raise checks.bad_value(
                f"{type(self).__name__} has trained parts, which keras.distillation.Distiller does "
                "not train.",
                given=f"teacher {sides[0]}, student {sides[1]}",
                expected=f"kd.Distiller, which trains {self.trained_parts or 'them'}",
                fix="use kd.Distiller: it takes the same arguments.",
            )

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor, read from the attributes of their names.

        Raises:
            TypeError: "… does not keep its argument …".
        """
        config = configs.arguments_of(self)
        return config if self.output is None else {**config, "output": self.output}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> DistillationLoss:
        """Make the loss again from `get_config()`."""
        arguments = configs.deserialize(config)
        output = arguments.pop("output", None)
        return cls(**arguments) if output is None else cls(**arguments).on(output)


class FeatureLoss(DistillationLoss):
    """A loss on layers; a subclass without arguments of its own needs no constructor.

    Args:
        teacher_layer_name: path of the teacher's layer, or a list of paths; `None` is the model's
            output.
        student_layer_name: path of the student's layer, or a list of as many.
        name: name in the logs; defaults to the class's name in snake case.
    """

    space = "features"

    def __init__(
        self,
        teacher_layer_name: LayerNames = None,
        student_layer_name: LayerNames = None,
        name: str | None = None,
    ) -> None:
        super().__init__(
            teacher_layer_name=teacher_layer_name, student_layer_name=student_layer_name, name=name
        )


class RelationLoss(FeatureLoss):
    """A loss on how examples relate to each other: the two features may be of any shape."""

    def check_shapes(self, teacher: tuple, student: tuple) -> None:
        """Refuse batches of different size, and features without an axis of their own."""
        for shape in (teacher, student):
            refuse_flat(self, shape)
        super().check_shapes(teacher[:1], student[:1])

    def _fix_for_shapes(self) -> str:
        return "compare features of the same examples."


def option(argument: str, given: Any, options: tuple[str, ...]) -> str:
    """Return one of a few words, or refuse it with the closest one."""
    if given not in options:
        raise checks.unknown_name(argument, given, options)
    return given


def snake_case(name: str) -> str:
    """Turn `LogitsDistillation` into `logits_distillation`, as Keras names losses."""
    words = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", words).lower()
