"""Teachers as a Distiller uses them: asked batch by batch, with taps and one look at the values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_kd import checks, soft_batch
from keras_kd.compiled_pass import CompiledPass, pays
from keras_kd.outputs import OutputReader, keep_mask
from keras_kd.taps import TappedModel, check_inputs, output_names


class Answer:
    """What a teacher answers to one batch.

    Attributes:
        outputs: the outputs in log space, float32: what losses on logits learn from.
        own: the outputs as the model gives them: what losses on features learn from.
        features: the tapped intermediates by path.
        raw: the outputs of each model inside (nested as ensembles are), for a look at their values.
        names: the names of the outputs in order, where the model has them.
    """

    def __init__(
        self,
        outputs: Any,
        own: Any,
        features: dict[str, Any],
        raw: list,
        names: Sequence[str] | None = None,
    ) -> None:
        self.outputs = outputs
        self.own = own
        self.features = features
        self.raw = raw
        self.names = names


class AttachedTeacher:
    """One teacher as one Distiller uses it: its taps, and what its outputs turned out to be."""

    def __init__(self, teacher: Any, paths: Iterable[str] = ()) -> None:
        self.name = teacher.name
        self.model = teacher.model
        self.preprocess = teacher.preprocess
        self.jit_compile = teacher.jit_compile
        self.tapped = TappedModel(teacher.model, paths)
        self._compiled: CompiledPass | None = None
        self.reader = OutputReader(
            teacher.model,
            who=f"teacher {teacher.name!r}",
            stated=teacher.outputs,
            activation=teacher.activation,
            fix='say what it is: kd.Teacher(model, outputs="logits"), "probabilities" (with '
            'activation="softmax" or "sigmoid") or "values".',
        )

    def __call__(self, inputs: Any) -> Answer:
        """Ask the teacher; it may be traced."""
        soft_batch.refuse(inputs, self.name)
        if self.preprocess is not None:
            inputs = self.preprocess(inputs)
        fix = (
            "bring them to that shape: kd.Teacher(model, preprocess=lambda x: …), for example with "
            "keras.ops.image.resize."
        )
        check_inputs(self.model, inputs, f"Teacher {self.name!r}", fix)
        if self._compiled is not None and self._compiled.takes(inputs):
            outputs, own, features = self._compiled(inputs)
        else:
            outputs, own, features = self._pass(inputs)
        return Answer(outputs, own, features, [own], output_names(self.model))

    def _pass(self, inputs: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Run the model: as it is where a person may step through it, else folded."""
        own, features = (self.tapped if tf.executing_eagerly() else self.tapped.folded)(inputs)
        return self.reader(own), own, features

    def compile(self, inputs: Any, spec: Any) -> None:
        """Let XLA compile the pass from now on where that is faster, having tried it on a batch.

        Args:
            inputs: a first batch, which has been looked at.
            spec: its `tf.TensorSpec`s, as later batches have them.
        """
        wanted = pays(self.model) if self.jit_compile == "auto" else self.jit_compile
        if not wanted or self._compiled is not None:
            return
        self._compiled = CompiledPass(self._pass)
        asked = tf.function(lambda x: self(x).own, autograph=False).get_concrete_function(spec)
        try:
            asked(inputs)
        except tf.errors.OpError as error:
            self._compiled = None
            if self.jit_compile != "auto":
                raise checks.bad_value(
                    f"XLA cannot compile teacher {self.name!r}.",
                    given=f"jit_compile=True; XLA says {error.message.splitlines()[0]:.200}",
                    expected="a model of operations that XLA knows",
                    fix='leave it to the library: kd.Teacher(model, jit_compile="auto").',
                ) from error

    def batch_of(self, inputs: Any) -> Any:
        """Return what `fit` gets in the place of x for these inputs: the inputs."""
        return inputs

    def learn(self, raw: list) -> None:
        """Look at a first batch's raw outputs, once: refuse NaN, find out what they are."""
        self.reader.learn(raw[0])

    @property
    def kinds(self) -> list[str] | None:
        """What each output turned out to be, once a batch has been seen."""
        return self.reader.kinds

    def presumed(self, count: int) -> list[str]:
        """What each of `count` outputs is, as far as is known by now."""
        return self.reader.presumed(count)


class AttachedEnsemble:
    """Several attached teachers as one."""

    def __init__(self, ensemble: Any) -> None:
        self.members = [member.attached() for member in ensemble.members]
        self.name = ensemble.name
        self.weights = ensemble.weights
        self.activation = ensemble.activation

    def __call__(self, inputs: Any) -> Answer:
        """Ask every member and combine what they answer."""
        soft_batch.refuse(inputs, self.name)
        answers = [member(inputs) for member in self.members]
        outputs = [keras.tree.flatten(answer.outputs) for answer in answers]
        self._refuse_other_shapes(outputs)
        kinds = self.presumed(len(outputs[0]))
        combined = [
            keep_mask(logits[0], self._combine(logits, kind))
            for logits, kind in zip(zip(*outputs, strict=True), kinds, strict=True)
        ]
        own = [as_given(z, kind) for z, kind in zip(combined, kinds, strict=True)]
        pack = keras.tree.pack_sequence_as
        raw = [answer.raw for answer in answers]
        first = answers[0]
        return Answer(pack(first.outputs, combined), pack(first.outputs, own), {}, raw, first.names)

    def batch_of(self, inputs: Any) -> Any:
        """Return what `fit` gets in the place of x for these inputs: the inputs."""
        return inputs

    def compile(self, inputs: Any, spec: Any) -> None:
        """Let XLA compile each member's pass where that is faster, having tried it on a batch."""
        for member in self.members:
            member.compile(inputs, spec)

    def learn(self, raw: list) -> None:
        """Look at a first batch's raw outputs of each member."""
        for member, own in zip(self.members, raw, strict=True):
            member.learn(own)

    @property
    def kinds(self) -> list[str] | None:
        """What each output turned out to be, once a batch has been seen."""
        first = self.members[0].kinds
        return first and self.presumed(len(first))

    def presumed(self, count: int) -> list[str]:
        """What each of `count` outputs is, as far as is known by now."""
        members = [member.presumed(count) for member in self.members]
        outputs = enumerate(zip(*members, strict=True))
        return [self._agreed(index, set(kinds)) for index, kinds in outputs]

    def _agreed(self, index: int, kinds: set[str]) -> str:
        """Logits join the members that say what they are; nothing else can be mixed."""
        certain = kinds - {"logits"}
        if len(certain) > 1 or ("values" in certain and len(kinds) > 1):
            raise checks.bad_value(
                "The teachers of an ensemble do not agree on what they give.",
                given=f"output {index} of {self.name!r}: {', '.join(sorted(kinds))}",
                expected="one kind of outputs, of which a mean can be taken",
                fix="use teachers of the same kind, or say what each of them is: "
                'kd.EnsembleTeacher([kd.Teacher(model, outputs="values"), …]).',
            )
        return next(iter(certain), "logits")

    def _combine(self, logits: Sequence[Any], kind: str) -> Any:
        if kind == "values":
            return sum(w * z for w, z in zip(self.weights, logits, strict=True) if w > 0)
        if kind == "softmax" or (kind == "logits" and self.activation == "softmax"):
            if self.kinds is not None:  # a subclassed model says what it is with its first batch
                _refuse_single_class(tuple(logits[0].shape))
            return _log_mean([ops.log_softmax(z, axis=-1) for z in logits], self.weights)
        log_p = _log_mean([ops.log_sigmoid(z) for z in logits], self.weights)
        log_q = _log_mean([ops.log_sigmoid(-z) for z in logits], self.weights)
        return log_p - log_q

    def _refuse_other_shapes(self, outputs: list[list[Any]]) -> None:
        shapes = [[tuple(leaf.shape) for leaf in leaves] for leaves in outputs]
        for member, other in zip(self.members, shapes, strict=True):
            if other != shapes[0]:
                raise checks.bad_value(
                    "The teachers of an ensemble answer in other shapes.",
                    given=f"{self.members[0].name!r} {shapes[0]}, {member.name!r} {other}",
                    expected="outputs of the same shapes from every teacher",
                    fix="use teachers of the same classes, in the same order.",
                )


def as_given(logits: Any, kind: str) -> Any:
    """Turn an output in log space back into what a model of this kind gives."""
    activations = {"softmax": ops.softmax, "sigmoid": ops.sigmoid}
    return activations[kind](logits) if kind in activations else logits


def _log_mean(logs: Sequence[Any], weights: Sequence[float]) -> Any:
    """Return log Σ wₖ·exp(logₖ) without leaving log space."""
    weighted = [z + float(np.log(w)) for z, w in zip(logs, weights, strict=True) if w > 0]
    return ops.logsumexp(ops.stack(weighted), axis=0)


def _refuse_single_class(shape: tuple) -> None:
    if shape[-1] == 1:
        raise checks.bad_value(
            "The mean of softmaxes over one class is constant and teaches nothing.",
            given=f"teachers with an output of shape {shape}",
            expected="two or more classes, a sigmoid, or values",
            fix='use kd.EnsembleTeacher(models, activation="sigmoid"), or members that are '
            'kd.Teacher(model, outputs="values").',
        )
