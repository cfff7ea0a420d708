"""One student among its peers: a Distiller whose teachers are the other students."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import ops

from keras_kd import soft_batch
from keras_kd.attached import Answer
from keras_kd.connections import Connections
from keras_kd.distiller import Distiller
from keras_kd.first_look import nothing_to_train
from keras_kd.outputs import keep_mask
from keras_kd.taps import TappedModel, output_names
from keras_kd.teachers import AbsentTeacher, fingerprint


class Pupil(Distiller):
    """A student, and what it learns from its peers.

    Args:
        student: a `keras.Model`.
        losses: the distillation losses, compared with every peer.
        weights: one weight for each loss, or `None`.
        student_loss_weight: share of the labels' loss.
        peers: how many peers there are.
        name: what the student is called in the logs.
    """

    def __init__(
        self,
        student: keras.Model,
        losses: Any,
        weights: Any,
        student_loss_weight: Any,
        *,
        peers: int,
        name: str,
    ) -> None:
        self._peers = peers
        nobody = AbsentTeacher("its peers", "")
        super().__init__(nobody, student, losses, weights, student_loss_weight, name=name)
        taught, learned = self.connections.teacher_paths, self.connections.student_paths
        self._tapped = TappedModel(student, [*learned, *taught])

    def _connect(self, losses: Any, weights: Any) -> PeerConnections:
        """Join the student to each of its peers."""
        return PeerConnections(losses, weights, self._peers)

    def meet(self, peers: Sequence[Pupil]) -> None:
        """Learn from these peers from now on."""
        self._set_teacher(PeerTeacher(peers))

    def total(self, peers: Sequence[Answer], own: Answer, y: Any, sample_weight: Any) -> Any:
        """Return this student's total loss on one batch, given what its peers answered."""
        taught: Any = Peers(peers) if self.needs_teacher else None
        return self._total_loss(taught, own, y, sample_weight)

    def log(self, total: Any, x: Any, y: Any, own: Answer, sample_weight: Any) -> None:
        """Keep the total and the metrics of one batch for the logs."""
        self._track_total(total, x)
        self._results(x, y, own.own, sample_weight)

    @property
    def ready(self) -> bool:
        """Whether it has looked at a first batch."""
        return self._look.done

    @property
    def joined(self) -> bool:
        """Whether the trained parts of its losses are there."""
        return self.connections.shapes is not None or not self.needs_teacher

    def look(self, batch: Any, *, eagerly: bool) -> None:
        """Look at a first batch, and refuse what cannot be learned from."""
        if self.student.built and not self.student.trainable_variables:
            raise nothing_to_train(self.student.name)
        self._look.at_batch(
            batch,
            self._teaching if self.needs_teacher else None,
            self._reader,
            self.loss,
            output_names(self.student) or [],
            eagerly=eagerly,
        )
        self.built = True


class PeerTeacher:
    """The peers of one student, where a Distiller expects a teacher."""

    stated = ("auto",)
    kinds = None  # each pupil looks at its own outputs

    def __init__(self, pupils: Sequence[Pupil]) -> None:
        self.pupils = tuple(pupils)

    @property
    def models(self) -> list[keras.Model]:
        """The peers' models."""
        return [pupil.student for pupil in self.pupils]

    @property
    def name(self) -> str:
        """The peers' names, joined."""
        return "+".join(pupil.name for pupil in self.pupils)

    def fingerprint(self) -> str:
        """Return a hash of the peers' layers and weights."""
        return fingerprint(self.models)

    def attached(self, paths: Iterable[str] = ()) -> PeerTeacher:
        """Return itself: the pupils have their taps."""
        return self

    def __call__(self, inputs: Any) -> Peers:
        """Ask every peer, without training it."""
        soft_batch.refuse(inputs, self.name)
        return Peers([pupil.learn(inputs, training=False) for pupil in self.pupils])

    def batch_of(self, inputs: Any) -> Any:
        """Return what `fit` gets in the place of x for these inputs: the inputs."""
        return inputs

    def learn(self, raw: Any) -> None:
        """Leave the look at the values to each pupil's own."""


class Peers:
    """What the peers answered to one batch; no gradient goes back to them."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self.answers = [detached(answer) for answer in answers]
        self.raw: list = []
        self.features: dict = {}


class PeerConnections(Connections):
    """The distillation losses of one student to each of its peers.

    A loss's value is the mean over the peers. Its trained parts are made for each peer.

    Args:
        losses: as in `Connections`.
        factors: as in `Connections`.
        peers: how many peers there are.
    """

    def __init__(self, losses: Any, factors: Any, peers: int) -> None:
        super().__init__(losses, factors)
        self.each = [Connections(losses, factors) for _ in range(peers)]

    def join(self, teacher: Any, student: Answer) -> None:
        """Make the trained parts for each peer, once."""
        for one, answer in zip(self.each, teacher.answers, strict=True):
            one.join(answer, student)
        self.shapes = [one.shapes for one in self.each]

    def join_shapes(self, shapes: list) -> None:
        """Make the trained parts for each peer from the shapes that a config gives."""
        for one, of_peer in zip(self.each, shapes, strict=True):
            one.join_shapes(of_peer)
        self.shapes = [one.shapes for one in self.each]

    def check(self, teacher: Any, student: Answer) -> None:
        """Refuse peers that the losses cannot compare."""
        for one, answer in zip(self.each, teacher.answers, strict=True):
            one.check(answer, student)

    def values(self, teacher: Any, *args: Any, **kwargs: Any) -> list[tuple[Any, Any]]:
        """Compute the mean of each loss over the peers, and how many examples it averages over."""
        of_peers = [
            one.values(answer, *args, **kwargs)
            for one, answer in zip(self.each, teacher.answers, strict=True)
        ]
        means = []
        for pairs in zip(*of_peers, strict=True):
            values = [value for value, _ in pairs]
            means.append((sum(values[1:], start=values[0]) / len(values), pairs[0][1]))
        return means


def detached(answer: Answer) -> Answer:
    """Return an answer through which no gradient flows; masks stay."""

    def stop(tensors: Any) -> Any:
        return keras.tree.map_structure(lambda t: keep_mask(t, ops.stop_gradient(t)), tensors)

    outputs, own, features = stop(answer.outputs), stop(answer.own), stop(answer.features)
    return Answer(outputs, own, features, answer.raw, answer.names)
