"""Teachers: a batch goes in, outputs in log space come out.

They are never trained, changed or saved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_kd import checks
from keras_kd.attached import AttachedEnsemble, AttachedTeacher
from keras_kd.keras_models import layers_of
from keras_kd.outputs import ACTIVATIONS, KINDS


class Teacher:
    """A trained model, with what must be known to learn from it.

    `kd.Distiller(teacher=model, …)` makes one by itself; make it yourself to say what the model's
    outputs are, or to give it its own scaling or resolution. The model stays as it is: it is called
    with `training=False`, and neither trained nor saved.

    Args:
        model: a `keras.Model`.
        outputs: `"logits"`, `"probabilities"` (turned back to log space), `"values"` (regression)
            or `"auto"`, which looks at the last activation and at the first batch's values, once
            for each attached teacher. A list or dict of these for several outputs.
        activation: `"softmax"` or `"sigmoid"`: what belongs between the logits and probabilities.
        preprocess: function `x -> x` from the student's input to the teacher's, or `None`.
        jit_compile: whether XLA compiles the teacher's pass where the step as a whole is not
            compiled; `"auto"` does so on a CPU, where it is faster, for models of 65,536 weights
            and more without convolutions and loops, once for each shape of batch. It is left out
            for inputs of changing lengths, under a `tf.distribute` strategy, and with `"auto"`
            where XLA lacks an operation.

    Raises:
        ValueError: "The teacher is no model", "There is no kind of outputs …", "`jit_compile` must
            be"; on the first batch "XLA cannot compile teacher …".

    Example:
    ```python
    import keras
    import keras_kd as kd

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    teacher = kd.Teacher(model, preprocess=lambda x: x / 255.0)
    print(teacher(keras.ops.ones((2, 4))).shape)  # log-probabilities, (2, 3)
    ```
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        outputs: Any = "auto",
        activation: str = "softmax",
        preprocess: Callable[[Any], Any] | None = None,
        jit_compile: bool | str = "auto",
    ) -> None:
        if not isinstance(model, keras.Model):
            raise no_model("teacher", model)
        for kind in keras.tree.flatten(outputs):
            if kind not in KINDS:
                raise checks.unknown_name("kind of outputs", kind, KINDS)
        _check_activation(activation)
        if preprocess is not None and not callable(preprocess):
            raise checks.bad_type(
                "`preprocess` must be a function.",
                given=f"{preprocess!r} ({type(preprocess).__name__})",
                expected="a function x -> x, or None",
                fix="pass a function, for example preprocess=lambda x: x / 255.0.",
            )
        if not (isinstance(jit_compile, bool) or jit_compile == "auto"):
            raise checks.bad_value(
                '`jit_compile` must be True, False or "auto".',
                given=f"{jit_compile!r} ({type(jit_compile).__name__})",
                expected='True, False or "auto"',
                fix='leave it out, for "auto".',
            )
        self.model = model
        self.outputs = outputs
        self.activation = activation
        self.preprocess = preprocess
        self.jit_compile = jit_compile

    @property
    def models(self) -> list[keras.Model]:
        """The Keras models inside: one."""
        return [self.model]

    @property
    def stated(self) -> list[str]:
        """What the outputs were stated to be: one word for all, or one for each output."""
        return keras.tree.flatten(self.outputs)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name

    def attached(self, paths: Iterable[str] = ()) -> AttachedTeacher | AttachedEnsemble:
        """Make the form that a Distiller calls: with taps, and one look at the first batch."""
        return AttachedTeacher(self, paths)

    def __call__(self, inputs: Any) -> Any:
        """Return outputs in log space for one batch, having looked at its values."""
        attached = self.attached()
        attached.learn(attached(inputs).raw)
        return attached(inputs).outputs

    def fingerprint(self) -> str:
        """Return a hash of the layers and weights, the same in every process."""
        return fingerprint(self.models)


class EnsembleTeacher(Teacher):
    """Several teachers as one: the mean of what they think, in probability space.

    `kd.Distiller(teacher=[a, b], …)` makes one with equal weights. The temperature is applied to
    the combined distribution, afterwards:

        log Σ wₖ·softmax(zₖ), or the logit of Σ wₖ·sigmoid(zₖ), or Σ wₖ·valuesₖ

    Each output goes by what its members are: sigmoids, a softmax, or `outputs="values"`.

    Args:
        members: `keras.Model`s or `kd.Teacher`s (ensembles too) of the same outputs.
        weights: one weight ≥ 0 for each, normalised to sum 1. Defaults to equal weights.
        activation: `"softmax"` or `"sigmoid"`: what belongs to members that give logits, and to
            stated probabilities.

    Raises:
        ValueError: "An ensemble needs members", "… weights for … teachers"; on a batch "The
            teachers of an ensemble do not agree", "The teachers of an ensemble answer in other
            shapes", "The mean of softmaxes over one class".

    Reference:
        Hinton et al. 2015, section 3 (distilling an ensemble).

    Example:
    ```python
    import keras
    import keras_kd as kd

    models = [keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in range(2)]
    teacher = kd.EnsembleTeacher(models, weights=[0.7, 0.3])
    print(teacher(keras.ops.ones((2, 4))).shape)  # (2, 3)
    ```
    """

    def __init__(
        self,
        members: Sequence[keras.Model | Teacher],
        *,
        weights: Sequence[float] | None = None,
        activation: str = "softmax",
    ) -> None:
        if isinstance(members, (keras.Model, Teacher)) or not members:
            raise checks.bad_value(
                "An ensemble needs members.",
                given=f"{members!r:.80} ({type(members).__name__})",
                expected="one keras.Model or more",
                fix="pass a list of trained models.",
            )
        self.members = [
            member if isinstance(member, Teacher) else Teacher(member, activation=activation)
            for member in members
        ]
        equal = [1.0] * len(self.members)
        given = [checks.number("weights", w) for w in (equal if weights is None else weights)]
        if len(given) != len(self.members) or min(given) < 0 or sum(given) <= 0:
            raise checks.bad_value(
                f"{len(given)} weights for {len(self.members)} teachers do not fit.",
                given=given,
                expected="one weight >= 0 for each teacher, not all 0",
                fix=f"pass {len(self.members)} weights.",
            )
        self.weights = [weight / sum(given) for weight in given]
        _check_activation(activation)
        self.activation = activation

    @property
    def stated(self) -> list[str]:
        """What the first member's outputs were stated to be; the members agree."""
        return self.members[0].stated

    @property
    def models(self) -> list[keras.Model]:
        """The Keras models inside, in order."""
        return [model for member in self.members for model in member.models]

    @property
    def name(self) -> str:
        """The members' names, joined."""
        return "+".join(member.name for member in self.members)

    def fingerprint(self) -> str:
        """Return a hash of the members' layers and weights, and of their shares."""
        return fingerprint(self.models, np.round(self.weights, 6).tolist())

    def attached(self, paths: Iterable[str] = ()) -> AttachedEnsemble:
        """Make the form that a Distiller calls; an ensemble has no intermediates of its own."""
        paths = list(paths)
        if paths:
            raise checks.bad_value(
                "An ensemble has no layer to learn features from.",
                given=f"teacher_layer_name={paths[0]!r} and {len(self.members)} teachers",
                expected="a single teacher for feature losses",
                fix="use one keras.Model as the teacher, or losses on the logits only.",
            )
        return AttachedEnsemble(self)


class AbsentTeacher:
    """The memory of a teacher: what a saved Distiller keeps of it."""

    def __init__(self, name: str, fingerprint: str) -> None:
        self.name = name
        self._fingerprint = fingerprint

    models: tuple[keras.Model, ...] = ()
    stated: tuple[str, ...] = ("auto",)

    def fingerprint(self) -> str:
        """Return the fingerprint of the teacher that was."""
        return self._fingerprint

    def attached(self, paths: Iterable[str] = ()) -> AttachedTeacher:
        """Say that the teacher must be attached again."""
        raise checks.bad_value(
            "This Distiller was loaded without its teacher.",
            given=f"a memory of {self.name!r}, fingerprint {self._fingerprint[:12]}",
            expected="the teacher itself, to train on",
            fix="call distiller.attach_teacher(model), or kd.load_distiller(path, teacher=model).",
        )


def as_teacher(teacher: Any) -> Any:
    """Take what `kd.Distiller(teacher=…)` takes, and return a teacher.

    Raises:
        ValueError: "The teacher is no model".
    """
    if isinstance(teacher, (Teacher, AbsentTeacher)):
        return teacher
    if isinstance(teacher, keras.Model):
        return Teacher(teacher)
    if isinstance(teacher, (list, tuple)):
        return EnsembleTeacher(teacher)
    raise no_model("teacher", teacher)


def no_model(role: str, given: Any) -> ValueError:
    """Make the error for a teacher or student that is no model."""
    also = ", a list of them or a kd.Teacher" if role == "teacher" else ""
    return checks.bad_value(
        f"The {role} is no model.",
        given=f"{given!r:.80} ({type(given).__name__})",
        expected=f"a keras.Model{also}",
        fix="load it first: keras.models.load_model(path).",
    )


def refuse_shared_weights(models: Iterable[keras.Model], student: keras.Model) -> None:
    """Refuse a teacher that training the student would change.

    Raises:
        ValueError: "The teacher shares weights with the student".
    """
    taught = {id(weight) for weight in student.trainable_weights}
    shared = [weight for model in models for weight in model.weights if id(weight) in taught]
    if shared:
        raise checks.bad_value(
            "The teacher shares weights with the student, and would be trained with it.",
            given=f"{len(shared)} shared weights, {shared[0].path!r} the first",
            expected="a teacher of its own weights",
            fix="copy it: teacher = keras.models.clone_model(model); "
            "teacher.set_weights(model.get_weights()).",
        )


def fingerprint(models: Iterable[keras.Model], shares: Sequence[float] = ()) -> str:
    """Hash the kinds of layers and every weight of some models, the same in every process.

    Names are left out, since Keras numbers them by the process. Unbuilt models have no weights
    yet, and are told apart by their layers only.
    """
    digest = hashlib.blake2b(repr(shares).encode(), digest_size=16)
    for model in models:
        kinds = (type(layer).__name__ for layer in layers_of(model))
        digest.update("/".join(kinds).encode())
        for variable in model.weights:
            digest.update(f"{tuple(variable.shape)}{variable.dtype}".encode())
            digest.update(ops.convert_to_numpy(variable).tobytes())
    return digest.hexdigest()


def _check_activation(activation: Any) -> None:
    if activation not in ACTIVATIONS:
        raise checks.unknown_name("activation", activation, ACTIVATIONS)
