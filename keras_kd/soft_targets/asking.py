"""Ask a teacher, batch by batch, and keep what is to be stored of its answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_kd import checks
from keras_kd.outputs import ACTIVATIONS, KINDS, OutputReader
from keras_kd.soft_targets import files
from keras_kd.soft_targets.layout import Dense, Layout, Leaf, TopK, other_shape
from keras_kd.structures import as_arrays
from keras_kd.teachers import AbsentTeacher, EnsembleTeacher, Teacher, as_teacher
from keras_kd.top_k import keep

LARGEST = {"float16": 65504.0, "float32": float(np.finfo("float32").max)}
NOT_FINITE, TOO_LARGE = 1, 2


class Keeping(NamedTuple):
    """What is kept of an answer.

    Attributes:
        layers: the paths of the layers that are kept beside the outputs.
        top_k: how many logits of each output are kept; None: all.
        temperatures: each T at which the log-sum-exp of all logits is kept, with `top_k`.
        dtype: `"float16"` or `"float32"`.
    """

    layers: tuple[str, ...]
    top_k: int | None
    temperatures: tuple[float, ...]
    dtype: str


class Kept(NamedTuple):
    """What is kept of the answers to one batch.

    Attributes:
        teacher: `{"outputs": …, "layers": …}` as `Layout` takes it, of NumPy arrays.
        faults: `(outputs and layers, batch)`: 0, or `NOT_FINITE`, or `TOO_LARGE` for the dtype.
    """

    teacher: dict[str, Any]
    faults: np.ndarray


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
        _refuse_misfits(keras.tree.flatten(answer.own), layers, inputs)
        _refuse_first_not_finite(answer.raw)
        self._attached.learn(answer.raw)
        self.names = _names(answer.own, answer.names)
        self.structure = _structure(answer.own)
        layout = _layout(keras.tree.flatten(answer.outputs), layers, self)
        self._ask = _compiled(self._kept, signature)
        return layout, self(inputs)

    def __call__(self, inputs: Any) -> Kept:
        """Answer one batch."""
        return Kept(*keras.tree.map_structure(lambda part: part.numpy(), self._ask(inputs)))

    def _kept(self, inputs: Any) -> tuple[dict[str, Any], tf.Tensor]:
        answer = self._attached(inputs)
        return _kept(keras.tree.flatten(answer.outputs), answer.features, self.keeping)


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
        _refuse_first_not_finite(raw)
        self._reader.learn(raw)
        self.names = _names(raw, None)
        self.structure = _structure(raw)
        if self._fingerprint is None:
            self._fingerprint = _by_answers(keras.tree.flatten([raw, layers]))
        dense = keras.tree.flatten(self._reader(raw)), layers
        layout = _layout(*dense, self)
        self._shapes = [tuple(leaf.shape)[1:] for leaf in keras.tree.flatten(dense)]
        specs = keras.tree.map_structure(
            lambda leaf: tf.TensorSpec((None, *leaf.shape[1:]), leaf.dtype), dense
        )
        self._keep = _compiled(lambda outputs, layers: _kept(outputs, layers, self.keeping), *specs)
        return layout, self._arrays(raw, layers)

    def __call__(self, inputs: Any) -> Kept:
        """Answer one batch."""
        return self._arrays(*self._answer(inputs))

    def _arrays(self, raw: Any, layers: dict[str, Any]) -> Kept:
        dense = keras.tree.flatten(self._reader(raw)), layers
        for leaf, shape in zip(keras.tree.flatten(dense), self._shapes, strict=True):
            if tuple(leaf.shape)[1:] != shape:
                raise other_shape(f"teacher {self.name!r}", tuple(leaf.shape)[1:], shape)
        kept = self._keep(*keras.tree.map_structure(tf.convert_to_tensor, dense))
        return Kept(*keras.tree.map_structure(lambda part: part.numpy(), kept))

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
        _refuse_misfits(keras.tree.flatten(raw), layers, inputs)
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


def refuse_faults(kept: Kept, layout: Layout, dtype: str, number_of: Callable[[int], int]) -> None:
    """Refuse answers that are not finite or do not fit the dtype, naming the example.

    Args:
        kept: the answers.
        layout: what they are.
        dtype: what they are stored in.
        number_of: the row of the batch -> the number of the example in the data.

    Raises:
        ValueError: "… is not finite", "… does not fit float16".
    """
    if not kept.faults.any():
        return
    leaf, row = (int(part[0]) for part in np.nonzero(kept.faults))
    places = [f"Output {number}" for number in range(len(layout.outputs))]
    place = [*places, *(f"Layer {path!r}" for path in layout.layers)][leaf]
    where = f"{place} of the teacher for example {number_of(row):,}"
    if kept.faults[leaf, row] == NOT_FINITE:
        raise _not_finite(where)
    raise checks.bad_value(
        f"{where} does not fit {dtype}.",
        given=f"a number beyond ±{LARGEST[dtype]:,.0f}",
        expected=f"numbers that {dtype} holds",
        fix='keep them as float32: build(…, dtype="float32").',
    )


def _compiled(function: Callable[..., Any], *signature: Any) -> Callable[..., Any]:
    """Trace a function once, for batches of any size."""
    return tf.function(function, autograph=False).get_concrete_function(*signature)


def _kept(
    outputs: list[Any], layers: dict[str, Any], keeping: Keeping
) -> tuple[dict[str, Any], tf.Tensor]:
    """Round answers to what is stored, and note which cannot be: TensorFlow operations."""
    leaves: list[Any] = []
    faults = []
    for output in outputs:
        logits = tf.cast(output, tf.float32)
        if keeping.top_k is None:
            leaves.append(tf.cast(logits, keeping.dtype))
            faults.append(_faults(logits, logits, keeping.dtype))
            continue
        parts = keep(logits, keeping.top_k, keeping.temperatures, keeping.dtype)
        leaves.append(dict(zip(("logits", "classes", "log_sum_exp"), parts, strict=True)))
        faults.append(_faults(logits, tf.gather(logits, parts[1], batch_dims=-1), keeping.dtype))
    features = {path: tf.cast(layers[path], tf.float32) for path in keeping.layers}
    faults += [_faults(values, values, keeping.dtype) for values in features.values()]
    stored = {path: tf.cast(values, keeping.dtype) for path, values in features.items()}
    several = leaves if len(leaves) > 1 else leaves[0]
    return {"outputs": several, "layers": stored}, tf.stack(faults)


def _faults(values: tf.Tensor, stored: tf.Tensor, dtype: str) -> tf.Tensor:
    """Note for each example whether all is finite and what is stored fits: `(batch,)` int32."""
    finite = tf.reduce_all(tf.math.is_finite(values), list(range(1, values.shape.rank)))
    fits = tf.reduce_all(tf.abs(stored) <= LARGEST[dtype], list(range(1, stored.shape.rank)))
    return tf.where(finite, tf.where(fits, 0, TOO_LARGE), NOT_FINITE)


def _layout(
    outputs: list[Any], layers: dict[str, Any], teacher: AskedModel | AskedFunction
) -> Layout:
    keeping = teacher.keeping
    leaves: list[Leaf] = []
    for number, (output, kind) in enumerate(zip(outputs, teacher.kinds, strict=True)):
        shape = tuple(output.shape)[1:]
        if keeping.top_k is None:
            leaves.append(Dense(shape, keeping.dtype))
            continue
        _refuse_no_classes(number, shape, kind, teacher)
        leaves.append(TopK(shape, keeping.dtype, keeping.top_k, keeping.temperatures))
    dense = {path: Dense(tuple(values.shape)[1:], keeping.dtype) for path, values in layers.items()}
    return Layout(tuple(leaves), dense)


def _refuse_no_classes(
    number: int, shape: tuple[int, ...], kind: str, teacher: AskedModel | AskedFunction
) -> None:
    """Refuse top-k where there is no softmax, or nothing to leave out."""
    top_k = teacher.keeping.top_k or 0
    if kind in ("sigmoid", "values") or (kind == "logits" and teacher.activation == "sigmoid"):
        raise checks.bad_value(
            "`top_k` keeps the largest logits of a softmax, and there is none.",
            given=f"output {number} of {teacher.name!r}: {kind}, activation {teacher.activation!r}",
            expected="logits or probabilities of a softmax",
            fix="keep all of it: top_k=None.",
        )
    if not shape or shape[-1] <= top_k:
        raise checks.bad_value(
            "`top_k` would keep all the classes there are.",
            given=f"top_k={top_k} and output {number} of shape {shape}",
            expected="fewer than there are classes",
            fix="pass a smaller top_k, or top_k=None to keep them all.",
        )


def _refuse_misfits(outputs: list[Any], layers: dict[str, Any], inputs: Any) -> None:
    """Refuse answers that are not one for each example."""
    count = len(keras.tree.flatten(inputs)[0])
    named = {f"output {number}": leaf for number, leaf in enumerate(outputs)}
    named |= {f"layer {path!r}": leaf for path, leaf in layers.items()}
    for where, leaf in named.items():
        shape = None if keras.tree.is_nested(leaf) else tuple(leaf.shape)
        if not shape or shape[0] != count:
            raise checks.bad_value(
                f"The teacher does not answer each example: {where}.",
                given="several tensors" if shape is None else f"shape {shape} for {count} examples",
                expected=f"one tensor of {count} rows",
                fix="let the teacher answer with one row for each example of the batch.",
            )


def _refuse_first_not_finite(raw: Any) -> None:
    for leaf in keras.tree.flatten(raw):
        values = np.asarray(tf.cast(leaf, tf.float32))
        bad = np.nonzero(~np.isfinite(values).reshape(len(values), -1).all(1))[0]
        if bad.size:
            raise _not_finite(f"The teacher's answer to example {bad[0]} of the first batch")


def _not_finite(where: str) -> ValueError:
    return checks.bad_value(
        f"{where} is not finite.",
        given="NaN or infinity",
        expected="finite numbers",
        fix="check the teacher's weights and the scaling of its input, and that example.",
    )


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
