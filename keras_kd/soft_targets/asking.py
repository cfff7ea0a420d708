"""Ask a teacher, batch by batch, and keep what is to be stored of its answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kd import checks
from keras_kd.outputs import ACTIVATIONS, KINDS, OutputReader
from keras_kd.soft_targets import files
from keras_kd.soft_targets.keeping import (
    Keeping,
    Kept,
    kept,
    layout_of,
    refuse_first_not_finite,
    refuse_misfits,
)
from keras_kd.soft_targets.layout import Layout, other_shape
from keras_kd.structures import as_arrays
from keras_kd.teachers import AbsentTeacher, EnsembleTeacher, Teacher, as_teacher


class AskedModel:
    """A teacher of Keras models, asked in one compiled pass a batch.

    Args:
        teacher: the `kd.Teacher`.
        keeping: what is kept of its answers.
    """

    is_function = False

    def __init__(self, teacher: Teacher, keeping: Keeping) -> None:
        self.teacher = teacher
        self.name = teacher.name
        self.activation = teacher.activation
        self.keeping = keeping
        self.takes = _takes(teacher)
        self.names: list[str] | None = None
        self.structure: Any = 0
        self._attached = teacher.attached(keeping.layers)

    @property
    def kinds(self) -> list[str]:
        """What each output is: `"logits"`, `"softmax"`, `"sigmoid"` or `"values"`."""
        return list(self._attached.kinds or ())

    def fingerprint(self) -> str:
        """Name the teacher by its layers and weights."""
        return self.teacher.fingerprint()

    def begin(self, inputs: Any, signature: Any) -> tuple[Layout, Kept]:
        """Look at the first batch and at what comes out; then answer it."""
        answer = self._attached(inputs)
        layers = {path: answer.features[path] for path in self.keeping.layers}
        refuse_misfits(keras.tree.flatten(answer.own), layers, inputs)
        refuse_first_not_finite(answer.raw)
        self._attached.learn(answer.raw)
        self.names = _names(answer.own, answer.names)
        self.structure = _structure(answer.own)
        outputs = keras.tree.flatten(answer.outputs)
        layout = layout_of(outputs, layers, self.kinds, self.activation, self.keeping)
        self._attached.compile(inputs, signature)
        self._ask = _compiled(self._kept, signature)
        return layout, self(inputs)

    def __call__(self, inputs: Any) -> Kept:
        """Answer one batch."""
        return Kept(*keras.tree.map_structure(lambda part: part.numpy(), self._ask(inputs)))

    def _kept(self, inputs: Any) -> tuple[dict[str, Any], tf.Tensor]:
        answer = self._attached(inputs)
        return kept(keras.tree.flatten(answer.outputs), answer.features, self.keeping)


class AskedFunction:
    """Any function of NumPy arrays as a teacher: another framework's model, a remote service.

    Args:
        function: batch -> array (or a list or dict of arrays); with layers, batch ->
            (array, {name: array}).
        keeping: what is kept of its answers.
        outputs: what they are, as in `kd.Teacher`.
        activation: what belongs between logits and probabilities.
        fingerprint: its name by content; None: made of its answers to the first batch.
    """

    is_function = True
    takes = None

    def __init__(
        self,
        function: Callable[[Any], Any],
        keeping: Keeping,
        outputs: Any,
        activation: str,
        fingerprint: str | None,
    ) -> None:
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)
        self.keeping = keeping
        self.activation = activation
        self.names: list[str] | None = None
        self.structure: Any = 0
        self._fingerprint = fingerprint
        self._shapes: list[tuple[int, ...]] = []
        nothing: Any = None  # no model to look into
        self._reader = OutputReader(
            nothing,
            who=f"teacher {self.name!r}",
            stated=outputs,
            activation=activation,
            fix='say what it is: SoftTargets.build(…, outputs="logits"), "probabilities" (with '
            'activation="softmax" or "sigmoid") or "values".',
        )

    @property
    def kinds(self) -> list[str]:
        """What each output is: `"logits"`, `"softmax"`, `"sigmoid"` or `"values"`."""
        return list(self._reader.kinds or ())

    def fingerprint(self) -> str:
        """Name the teacher by what was said, or by its answers to the first batch."""
        return str(self._fingerprint)

    def begin(self, inputs: Any, signature: Any) -> tuple[Layout, Kept]:
        """Look at the first batch and at what comes out; then answer it, without asking again."""
        raw, layers = self._answer(inputs)
        refuse_first_not_finite(raw)
        self._reader.learn(raw)
        self.names = _names(raw, None)
        self.structure = _structure(raw)
        if self._fingerprint is None:
            self._fingerprint = _by_answers(keras.tree.flatten([raw, layers]))
        dense = keras.tree.flatten(self._reader(raw)), layers
        layout = layout_of(*dense, self.kinds, self.activation, self.keeping)
        self._shapes = [tuple(leaf.shape)[1:] for leaf in keras.tree.flatten(dense)]
        specs = keras.tree.map_structure(
            lambda leaf: tf.TensorSpec((None, *leaf.shape[1:]), leaf.dtype), dense
        )
        self._keep = _compiled(lambda outputs, layers: kept(outputs, layers, self.keeping), *specs)
        return layout, self._arrays(raw, layers)

    def __call__(self, inputs: Any) -> Kept:
        """Answer one batch."""
        return self._arrays(*self._answer(inputs))

    def _arrays(self, raw: Any, layers: dict[str, Any]) -> Kept:
        dense = keras.tree.flatten(self._reader(raw)), layers
        for leaf, shape in zip(keras.tree.flatten(dense), self._shapes, strict=True):
            if tuple(leaf.shape)[1:] != shape:
                raise other_shape(f"teacher {self.name!r}", tuple(leaf.shape)[1:], shape)
        parts = self._keep(*keras.tree.map_structure(tf.convert_to_tensor, dense))
        return Kept(*keras.tree.map_structure(lambda part: part.numpy(), parts))

    def _answer(self, inputs: Any) -> tuple[Any, dict[str, Any]]:
        """Ask, and bring what comes back to float32 arrays."""
        answer = self.function(keras.tree.map_structure(lambda part: part.numpy(), inputs))
        layers: dict[str, Any] = {}
        if self.keeping.layers:
            pair = isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], dict)
            if not pair or not set(self.keeping.layers) <= set(answer[1]):
                raise checks.bad_value(
                    f"Teacher {self.name!r} does not answer with the layers.",
                    given=f"layers={list(self.keeping.layers)}, and an answer of type "
                    f"{type(answer).__name__}",
                    expected="a pair (outputs, {name: array}) with an array for each layer",
                    fix='end the function with: return outputs, {"name": features}.',
                )
            answer, found = answer
            layers = {path: _numbers(found[path]) for path in self.keeping.layers}
        raw = keras.tree.map_structure(_numbers, as_arrays(answer))
        refuse_misfits(keras.tree.flatten(raw), layers, inputs)
        return raw, layers


def asked(
    teacher: Any, keeping: Keeping, outputs: Any, activation: str, fingerprint: str | None
) -> AskedModel | AskedFunction:
    """Take any teacher that `build` takes, and make it one that is asked.

    Raises:
        ValueError: "… is no teacher", "There is no kind of outputs …", "The teacher says itself",
            "`fingerprint` is for a function".
    """
    for kind in keras.tree.flatten(outputs):
        if kind not in KINDS:
            raise checks.unknown_name("kind of outputs", kind, KINDS)
    if activation not in ACTIVATIONS:
        raise checks.unknown_name("activation", activation, ACTIVATIONS)
    is_keras = isinstance(teacher, (keras.Model, Teacher, AbsentTeacher, list, tuple))
    if not is_keras and callable(teacher):
        return AskedFunction(teacher, keeping, outputs, activation, fingerprint)
    if not is_keras or isinstance(teacher, AbsentTeacher) or not as_teacher(teacher).models:
        raise checks.bad_value(
            f"{teacher!r:.80} is no teacher that can be asked.",
            given=type(teacher).__name__,
            expected="a keras.Model, a list of them, a kd.Teacher, or a function batch -> array",
            fix="pass the model itself, or wrap it: lambda batch: run(batch).",
        )
    if fingerprint is not None:
        raise checks.bad_value(
            "`fingerprint` is for a function, and a Keras model has one of its own.",
            given=f"fingerprint={fingerprint!r} and {type(teacher).__name__}",
            expected="no fingerprint",
            fix="leave it out.",
        )
    return AskedModel(_stated(teacher, outputs, activation), keeping)


def _compiled(function: Callable[..., Any], *signature: Any) -> Callable[..., Any]:
    """Trace a function once, for batches of any size."""
    return tf.function(function, autograph=False).get_concrete_function(*signature)


def _numbers(leaf: Any) -> np.ndarray:
    try:
        return np.asarray(leaf).astype(np.float32, copy=False)
    except (TypeError, ValueError) as error:
        raise checks.bad_type(
            "The teacher's answer is no array of numbers.",
            given=f"{leaf!r:.80} ({type(leaf).__name__})",
            expected="an array, or what numpy.asarray takes",
            fix="turn it into one in the function, for example tensor.detach().cpu().numpy().",
        ) from error


def _names(outputs: Any, known: Any) -> list[str] | None:
    """Name the outputs in their flat order, where they have names."""
    if isinstance(outputs, dict) and not any(map(keras.tree.is_nested, outputs.values())):
        return [str(name) for name in keras.tree.flatten({name: name for name in outputs})]
    return list(known) if known and len(known) == len(keras.tree.flatten(outputs)) else None


def _structure(outputs: Any) -> Any:
    """Put the flat place of each output in its stead: 0, [0, 1] or {"name": 0, …}."""
    places = range(len(keras.tree.flatten(outputs)))
    return keras.tree.pack_sequence_as(outputs, list(places))


def _by_answers(arrays: list[np.ndarray]) -> str:
    digest = files.checksum(b"answers")
    for array in arrays:
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _stated(teacher: Any, outputs: Any, activation: str) -> Teacher:
    """Make a `kd.Teacher` that says what its outputs are."""
    members = teacher if isinstance(teacher, (list, tuple)) else [teacher]
    plain = outputs == "auto" and activation == "softmax"
    if not plain and any(isinstance(member, Teacher) for member in members):
        raise checks.bad_value(
            "The teacher says itself what its outputs are.",
            given=f"outputs={outputs!r}, activation={activation!r} beside a kd.Teacher",
            expected="the arguments in one place",
            fix='give them to it: kd.Teacher(model, outputs="logits").',
        )
    if plain:
        return as_teacher(teacher)
    made = [Teacher(model, outputs=outputs, activation=activation) for model in members]
    if isinstance(teacher, (list, tuple)):
        return EnsembleTeacher(made, activation=activation)
    return made[0]


def _takes(teacher: Any) -> list[tuple] | None:
    """Return the shapes that a teacher says it takes, unless it changes its input first."""
    if isinstance(teacher, EnsembleTeacher):
        known = [takes for member in teacher.members if (takes := _takes(member)) is not None]
        return known[0] if known else None
    inputs = getattr(teacher.model, "inputs", None)
    if teacher.preprocess is not None or not inputs:
        return None
    return [tuple(tensor.shape) for tensor in inputs]
