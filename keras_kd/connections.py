"""What joins a teacher to a student: the named losses, their weights, taps and trained parts."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import ops
from keras.distillation import DistillationLoss as KerasLoss

from keras_kd import checks, reductions, replicas, schedules, top_k
from keras_kd.attached import Answer
from keras_kd.losses import base


class Connections(keras.layers.Layer):
    """The distillation losses of one Distiller, with the layers that are trained for them.

    It is a Keras layer so that those layers (projectors, for example) are tracked, trained and
    checkpointed with the Distiller. It is no part of the student.

    Args:
        losses: one distillation loss or several.
        factors: one weight for each (a number or a schedule), or `None` for 1.0 each.
    """

    def __init__(self, losses: Any, factors: Any) -> None:
        super().__init__(name="connections", dtype="float32")
        self.terms = _checked_losses(losses)
        self.factors = _checked_factors(factors, len(self.terms))
        self.names = _unique_names(self.terms)
        self.shapes: list | None = None
        self.connectors: list[keras.layers.Layer] = []
        self._places: dict[int, int] = {}
        self.built = True  # its parts come when the shapes are known

    @property
    def teacher_paths(self) -> list[str]:
        """Paths of the teacher's layers that the losses name."""
        return [path for loss in self.terms for path in _paths(loss, "teacher_layer_name")]

    @property
    def student_paths(self) -> list[str]:
        """Paths of the student's layers that the losses name."""
        return [path for loss in self.terms for path in _paths(loss, "student_layer_name")]

    def join(self, teacher: Answer, student: Answer) -> None:
        """Make the trained parts, once, for the shapes of one pass of both models."""
        if self.shapes is None:
            pairs = [_pair(loss, teacher, student) for loss in self.terms]
            self.join_shapes([(_shapes(t), _shapes(s)) for t, s in pairs])

    def join_shapes(self, shapes: list) -> None:
        """Make the trained parts from the shapes that a config or a pass gives."""
        self.shapes = [tuple(_as_shapes(side) for side in pair) for pair in shapes]
        for index, (loss, pair) in enumerate(zip(self.terms, self.shapes, strict=True)):
            if not isinstance(loss, base.DistillationLoss):
                continue
            loss.check_layers(*pair)
            compared = [_compared_part(loss, side) for side in pair]
            connector = None if None in compared else loss.connector(*compared)
            if connector is not None:
                connector(*[_symbols(side) for side in compared])  # builds it
                self._places[index] = len(self.connectors)
                self.connectors.append(connector)

    def check_activations(
        self,
        teacher_kinds: list[str] | None,
        student_kinds: list[str] | None,
        outputs: Sequence[str] = (),
    ) -> None:
        """Refuse a softmax loss on sigmoid outputs, and the reverse.

        Args:
            teacher_kinds: what each output of the teacher is, or `None`.
            student_kinds: the same of the student.
            outputs: the names of the outputs, where they have names.

        Raises:
            ValueError: "… is a softmax loss, and the teacher …".
        """
        for loss, name in zip(self.terms, self.names, strict=True):
            wanted = getattr(loss, "activation", None)
            other = {"softmax": "sigmoid", "sigmoid": "softmax"}.get(str(wanted))
            for who, kinds in (("teacher", teacher_kinds), ("student", student_kinds)):
                if other is None or other not in _compared(loss, kinds or [], outputs):
                    continue
                raise checks.bad_value(
                    f"{name} is a {wanted} loss, and the {who} ends in a {other}.",
                    given=f"activation={wanted!r} on {other} probabilities",
                    expected="the activation that the models end in",
                    fix=f"use {type(loss).__name__}(activation={other!r}).",
                )

    def refuse_names(self, metrics: Any) -> None:
        """Refuse metrics that would be logged under a loss's name.

        Raises:
            ValueError: "A metric cannot be logged as …".
        """
        for metric in keras.tree.flatten(metrics):
            name = metric if isinstance(metric, str) else getattr(metric, "name", None)
            if name in (*self.names, "loss", "student_loss"):
                raise checks.bad_value(
                    f"A metric cannot be logged as {name!r}, the name of a loss.",
                    given=f"metrics=[… {name!r} …]",
                    expected="a name of its own",
                    fix="give the metric another name=.",
                )

    def check(self, teacher: Answer, student: Answer) -> None:
        """Refuse what the losses cannot compare, by shapes alone, before there are labels."""
        for loss, t, s, _ in self._pairs(teacher, student):
            if not isinstance(loss, base.DistillationLoss):
                loss.validate_outputs(t, s)
            elif type(loss).compute_loss is base.DistillationLoss.compute_loss:
                loss.check(t, s)

    def values(
        self,
        teacher: Answer,
        student: Answer,
        y: Any,
        sample_weight: Any,
        step: Any,
        training: bool = False,
    ) -> list[tuple[Any, Any]]:
        """Compute each loss, unweighted, with the number of examples that it averages over.

        Args:
            teacher: what the teacher answers.
            student: what the student answers.
            y: labels, or `None`.
            sample_weight: weights of the examples, or `None`.
            step: number of optimizer steps taken.
            training: whether the connectors may move their state, as a train step does.
        """
        return [
            (
                _value(
                    loss,
                    t,
                    s,
                    _by_output(loss, y, student),
                    _by_output(loss, sample_weight, student),
                    step,
                ),
                count,
            )
            for loss, t, s, count in self._pairs(teacher, student, training)
        ]

    def factors_at(self, step: Any) -> list[Any]:
        """Return the weight of each loss at a step."""
        return [schedules.at(factor, step) for factor in self.factors]

    def schedules(self) -> dict[str, Any]:
        """Return the weights and arguments that change with the step, by name in the logs."""
        found: dict[str, Any] = {}
        for loss, name, factor in zip(self.terms, self.names, self.factors, strict=True):
            own = loss.schedules() if isinstance(loss, base.DistillationLoss) else {}
            found |= {f"{name}_{argument}": value for argument, value in own.items()}
            if schedules.is_schedule(factor):
                found[f"{name}_weight"] = factor
        return found

    def _pairs(
        self, teacher: Answer, student: Answer, training: bool = False
    ) -> Iterator[tuple[KerasLoss, Any, Any, Any]]:
        """Give each loss what it compares, behind its connector, and how many examples that is."""
        for index, loss in enumerate(self.terms):
            t, s = _pair(loss, teacher, student)
            count = replicas.examples(s)
            if index in self._places:
                connector = self.connectors[self._places[index]]
                one, other = (_compared_part(loss, side) for side in (t, s))
                one, other = _connected(connector, one, other, training)
                t, s = _with_part(loss, t, one), _with_part(loss, s, other)
            yield loss, t, s, count

    def get_config(self) -> dict[str, Any]:
        """Return the losses, weights and shapes, from which a Distiller is made again."""
        return {
            "distillation_losses": [keras.saving.serialize_keras_object(t) for t in self.terms],
            "distillation_loss_weights": [schedules.serialize(factor) for factor in self.factors],
            "shapes": self.shapes,
        }


def _compared_part(loss: KerasLoss, side: Any) -> Any:
    """Return the one output that `on` says of several (or of their shapes); `None`: not there."""
    output = getattr(loss, "output", None)
    if output is None:
        return side
    if isinstance(side, tuple) and any(ops.is_tensor(leaf) for leaf in side):
        side = list(side)  # outputs; a shape is a tuple too
    places = side if isinstance(side, dict) else range(len(side) if isinstance(side, list) else 0)
    return side[output] if output in places else None


def _with_part(loss: KerasLoss, side: Any, part: Any) -> Any:
    """Put an output back among the others."""
    output = getattr(loss, "output", None)
    if output is None:
        return part
    if isinstance(side, dict):
        return {**side, output: part}
    return [part if place == output else other for place, other in enumerate(side)]


def _connected(connector: keras.layers.Layer, t: Any, s: Any, training: bool) -> tuple[Any, Any]:
    """Pass both sides through a connector; the student's masks go on beside what it returns."""
    t = keras.tree.map_structure(ops.stop_gradient, t)
    masks = [reductions.mask_of(leaf) for leaf in keras.tree.flatten(s)]
    takes_training = "training" in inspect.signature(connector.call).parameters
    t, s = connector(t, s, training=training) if takes_training else connector(t, s)
    for leaf, mask in zip(keras.tree.flatten(s), masks, strict=False):
        reductions.with_mask(leaf, mask)
    return t, s


def _value(loss: KerasLoss, t: Any, s: Any, y: Any, sample_weight: Any, step: Any) -> Any:
    if isinstance(loss, base.DistillationLoss):
        value = loss.compute_loss(t, s, y=y, sample_weight=sample_weight, step=step)
    else:
        if sample_weight is not None:
            raise checks.bad_value(
                f"{type(loss).__name__} of keras.distillation cannot honour a sample_weight.",
                given="a sample_weight or class_weight in fit, and a loss that takes none",
                expected="a loss of keras_kd",
                fix=f"use kd.{type(loss).__name__}, or subclass kd.losses.DistillationLoss.",
            )
        loss.validate_outputs(t, s)
        value = loss.compute_loss(t, s)
    value = reductions.as_float32(value)
    if len(value.shape) == 0:
        return value
    return reductions.weighted_mean(
        value, sample_weight, reductions.mask_of(keras.tree.flatten(s)[0])
    )


def _compared(loss: KerasLoss, kinds: list[str], outputs: Sequence[str]) -> set[str]:
    """Return the kinds of the outputs that a loss compares; `None` leaves an output out."""
    if getattr(loss, "student_layer_name", None) is not None:
        return set()
    chosen = getattr(loss, "output", None)
    if chosen is not None:
        places = range(len(kinds)) if isinstance(chosen, int) else outputs
        return {kind for place, kind in zip(places, kinds, strict=False) if place == chosen}
    terms = keras.tree.flatten(loss.terms()) if isinstance(loss, base.DistillationLoss) else []
    if len(terms) != len(kinds):
        return set(kinds)
    return {kind for kind, term in zip(kinds, terms, strict=True) if term is not None}


def _pair(loss: KerasLoss, teacher: Answer, student: Answer) -> tuple[Any, Any]:
    t, cls = _pick(loss, teacher, "teacher_layer_name"), type(loss)
    if (
        cls.compute_loss is not base.DistillationLoss.compute_loss
        or cls.connector is not base.DistillationLoss.connector
    ):
        top_k.refuse(loss, _compared_part(loss, t))  # the base class does it for the others
    return t, _pick(loss, student, "student_layer_name")


def _pick(loss: KerasLoss, answer: Answer, argument: str) -> Any:
    name = getattr(loss, argument, None)
    if isinstance(name, (list, tuple)):
        return [answer.features[path] for path in name]
    if name is not None:
        return answer.features[name]
    features = isinstance(loss, keras.distillation.FeatureDistillation)
    as_given = features or getattr(loss, "space", None) in ("features", "values")
    outputs = answer.own if as_given else answer.outputs
    if _named(loss) and isinstance(outputs, (list, tuple)) and answer.names:
        return dict(zip(answer.names, outputs, strict=True))
    return outputs


def _named(loss: KerasLoss) -> bool:
    """Say whether a loss knows the outputs by their names."""
    return isinstance(loss, base.DistillationLoss) and (
        isinstance(loss.output, str) or isinstance(loss.terms(), dict)
    )


def _by_output(loss: KerasLoss, given: Any, student: Answer) -> Any:
    """Give labels (or weights) of a list of outputs the structure in which a loss gets these.

    Keras takes them as a list in the order of the outputs, or as a dict by their names.
    """
    names, outputs = student.names, student.outputs
    tapped = getattr(loss, "student_layer_name", None) is not None
    if tapped or not names or not isinstance(outputs, (list, tuple)):
        return given
    if isinstance(given, (list, tuple)) and _named(loss) and len(given) == len(names):
        return dict(zip(names, given, strict=True))
    if isinstance(given, dict) and not _named(loss) and set(given) <= set(names):
        return [given.get(name) for name in names]
    return given


def _paths(loss: KerasLoss, argument: str) -> list[str]:
    name = getattr(loss, argument, None)
    return [] if name is None else [name] if isinstance(name, str) else list(name)


def _shapes(tensors: Any) -> Any:
    return keras.tree.map_structure(lambda t: (None, *tuple(t.shape)[1:]), tensors)


def _as_shapes(given: Any) -> Any:
    """Turn the lists of a JSON config into shapes again."""
    if isinstance(given, dict):
        return {key: _as_shapes(value) for key, value in given.items()}
    if all(size is None or isinstance(size, int) for size in given):
        return tuple(given)
    return [_as_shapes(part) for part in given]


def _symbols(shapes: Any) -> Any:
    if isinstance(shapes, dict):
        return {key: _symbols(value) for key, value in shapes.items()}
    if isinstance(shapes, list):
        return [_symbols(part) for part in shapes]
    return keras.KerasTensor(shapes, dtype="float32")


def _checked_losses(losses: Any) -> tuple[KerasLoss, ...]:
    given = tuple(losses) if isinstance(losses, (list, tuple)) else (losses,)
    if not given:
        raise checks.bad_value(
            "A Distiller needs a distillation loss.",
            given="distillation_losses=[]",
            expected="one loss or more",
            fix="pass kd.LogitsDistillation(temperature=4.0).",
        )
    for loss in given:
        if not isinstance(loss, KerasLoss):
            raise checks.bad_value(
                "`distillation_losses` holds something that is no distillation loss.",
                given=f"{loss!r:.80} ({type(loss).__name__})",
                expected="a kd.losses.DistillationLoss (or one of keras.distillation)",
                fix="pass an object, for example kd.LogitsDistillation(temperature=4.0).",
            )
    return given


def _checked_factors(factors: Any, count: int) -> list[Any]:
    if factors is None:
        return [1.0] * count
    given = list(factors) if isinstance(factors, (list, tuple)) else [factors]
    if len(given) != count:
        raise checks.bad_value(
            f"{len(given)} weights for {count} losses do not fit.",
            given=f"distillation_loss_weights={factors!r}",
            expected=f"{count} numbers, one for each loss",
            fix="give each loss its weight, or leave distillation_loss_weights out.",
        )
    return [schedules.number("distillation_loss_weights", factor) for factor in given]


def _unique_names(losses: Sequence[KerasLoss]) -> list[str]:
    names: list[str] = []
    for loss in losses:
        name = getattr(loss, "name", None) or base.snake_case(type(loss).__name__)
        if name in ("loss", "student_loss"):
            raise checks.bad_value(
                f"A distillation loss cannot be logged as {name!r}.",
                given=f"name={name!r}",
                expected='a name other than "loss" and "student_loss"',
                fix="give it another name=.",
            )
        free = itertools.chain([name], (f"{name}_{count}" for count in itertools.count(1)))
        names.append(next(candidate for candidate in free if candidate not in names))
    return names
