"""The task metric of a file, of the Keras model and of its teacher, and how much of it is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_kd import checks
from keras_kd.export import base

Arrays = Mapping[str, np.ndarray]


class Metrics:
    """Metrics of the caller, fed with the answers of the file and of the Keras model.

    Args:
        given: `keras.metrics.Metric` objects. Each sees the labels and the answers as Keras would
            show them: in the structure of the model's outputs. All batches are kept until
            `results`, which resets the metrics before and after.
        student: Whose outputs they are.
        x: One batch of inputs, to see that structure.

    Raises:
        TypeError: "`metrics` must be a list of keras.metrics".
        ValueError: "Two metrics have the name".
    """

    def __init__(self, given: Sequence[keras.metrics.Metric] | None, student: Any, x: Any) -> None:
        """Look at the structure that the metrics will see."""
        self._metrics = _checked(given)
        self._names = student.output_names
        self._batches: list[tuple[Any, Any, Any, Any]] = []
        self._structure = None
        if self._metrics:
            first = {name: value[:1] for name, value in student.flatten(x).items()}
            self._structure = student.call(first)

    def add(self, inputs: Arrays, file: Arrays, keras: Arrays, y: Any, weight: Any) -> None:
        """Take in one batch."""
        if y is not None and self._metrics:
            ours, theirs = (
                _packed(self._structure, iter([answers[name] for name in self._names]))
                for answers in (file, keras)
            )
            self._batches.append((_labels(y, ours), ours, theirs, weight))

    def results(self) -> list[dict[str, Any]]:
        """Return {"name", "better", "file", "keras"} for each metric."""
        if not self._batches:
            return []
        return [
            {
                "name": metric.name,
                "better": _better(metric),
                "file": self._result(metric, 1),
                "keras": self._result(metric, 2),
            }
            for metric in self._metrics
        ]

    def _result(self, metric: keras.metrics.Metric, place: int) -> float:
        """Show a metric the answers that stand in one place of every batch."""
        metric.reset_state()
        for batch in self._batches:
            metric.update_state(batch[0], batch[place], sample_weight=batch[3])
        value = float(metric.result())
        metric.reset_state()
        return value


class TeacherView:
    """A teacher that answers in the place of the student, on the student's data.

    Args:
        teacher: The teacher's model, seen as named tensors.
        student: Names the outputs and finds their labels.

    Raises:
        ValueError: "has other outputs than the student".
    """

    def __init__(self, teacher: base.Student, student: base.Student) -> None:
        """Match the outputs: by name where all are the same, else by place."""
        ours, theirs = student.output_names, teacher.output_names
        if len(ours) != len(theirs):
            raise checks.bad_value(
                "The teacher has other outputs than the student.",
                given=f"{len(theirs)} of the teacher: {', '.join(theirs)}",
                expected=f"{len(ours)}: {', '.join(ours)}",
                fix='pass its measures instead, for example teacher={"accuracy": 0.93}.',
            )
        self._theirs = ours if set(ours) == set(theirs) else theirs
        self._teacher = teacher
        self._last: tuple[Arrays, Arrays] = {}, {}
        self.output_names, self.part, self.call = ours, student.part, teacher.call

    def flatten(self, x: Any) -> Arrays:
        """Name the inputs as the teacher takes them."""
        return self._teacher.flatten(x)

    def run(self, inputs: Arrays) -> Arrays:
        """Answer under the names of the student's outputs; the last batch is remembered."""
        if self._last[0] is not inputs:
            answers = self._teacher.run(inputs)
            pairs = zip(self.output_names, self._theirs, strict=True)
            self._last = inputs, {ours: answers[theirs] for ours, theirs in pairs}
        return self._last[1]


def metrics_of(report: Mapping[str, Any], given: Sequence[dict]) -> dict[str, dict[str, Any]]:
    """Return the task metrics of a comparison, the deciding ones first.

    Args:
        report: What `verify.compare` measured.
        given: The results of the caller's metrics. Where there are any, they alone count;
            else the metric of every output does.

    Returns:
        Label to {"better", "file", "keras"}. The label of an output's own metric has the output's
        name in front ("boxes/mean_absolute_error") where there are several outputs.
    """
    if given:
        return {found["name"]: _numbers(found) for found in given}
    outputs = report["outputs"]
    return {
        f"{name}/{found['metric']['name']}" if len(outputs) > 1 else found["metric"]["name"]:
        _numbers(found["metric"])
        for name, found in outputs.items()
        if found["metric"] is not None
    }  # fmt: skip


def with_teacher(
    metrics: Mapping[str, Mapping[str, Any]], teacher: Mapping[str, float] | None
) -> dict[str, dict[str, Any]]:
    """Put the teacher's values beside the file's, and say how much of both is kept.

    Retention is file / reference where higher is better, reference / file where lower is; `None`
    where that is no number, or where the metric does not say what is better.

    Args:
        metrics: Label to {"better", "file", "keras"}.
        teacher: Label to value. A label may lack its output, and what stands in brackets; those
            of other metrics are left out.
    """
    values = {label: _of_teacher(label, teacher) for label in metrics}
    made = {}
    for label, found in metrics.items():
        references = {"keras": found["keras"], "teacher": values[label]}
        retention = {
            name: _kept(found["better"], found["file"], value)
            for name, value in references.items()
            if value is not None
        }
        made[label] = {**found, "teacher": values[label], "retention": retention}
    return made


def check_teacher(teacher: Any) -> None:
    """Refuse what is neither a model nor measures.

    Raises:
        TypeError: "`teacher` must be a keras.Model or a dict".
    """
    if teacher is None or isinstance(teacher, keras.Model):
        return
    if isinstance(teacher, Mapping) and all(isinstance(key, str) for key in teacher):
        for name, value in teacher.items():
            checks.number(name, value)
        return
    raise checks.bad_type(
        "`teacher` must be a keras.Model or a dict of metric to value.",
        given=f"{teacher!r:.80} ({type(teacher).__name__})",
        expected='the teacher\'s model, or for example {"accuracy": 0.93}',
        fix="pass the model, or what you measured of it on the verification data.",
    )


def fingerprint(model: keras.Model) -> str:
    """Hash the shapes, types and values of a model's weights (SHA-256)."""
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(f"{weight.shape}{weight.dtype}".encode())
        digest.update(np.ascontiguousarray(weight).data.cast("B") if weight.size else b"")
    return digest.hexdigest()


def _checked(given: Sequence[keras.metrics.Metric] | None) -> list[keras.metrics.Metric]:
    metrics = [] if given is None else given
    if not isinstance(metrics, list | tuple) or not all(
        isinstance(metric, keras.metrics.Metric) for metric in metrics
    ):
        raise checks.bad_type(
            "`metrics` must be a list of keras.metrics objects.",
            given=f"{given!r:.80}",
            expected="objects, such as [keras.metrics.SparseCategoricalAccuracy()]",
            fix="leave it out for the accuracy (or the error) that the labels make possible.",
        )
    names = [metric.name for metric in metrics]
    double = [name for name in names if names.count(name) > 1]
    if double:
        raise checks.bad_value(
            f"Two metrics have the name {double[0]!r}.",
            given=", ".join(names),
            expected="a name of its own for each",
            fix='give them names: keras.metrics.Mean(name="...").',
        )
    return list(metrics)


def _better(metric: keras.metrics.Metric) -> str | None:
    """Say which way a metric improves; Keras keeps it in an attribute that has no public name."""
    return {"up": "higher", "down": "lower"}.get(getattr(metric, "_direction", None) or "")


def _packed(structure: Any, values: Iterator[Any]) -> Any:
    if isinstance(structure, Mapping):
        return {key: _packed(part, values) for key, part in structure.items()}
    if isinstance(structure, list | tuple):
        return [_packed(part, values) for part in structure]
    return next(values)


def _labels(y: Any, outputs: Any) -> Any:
    """Give labels of one number each the axis of an output of one unit, as `fit` does."""
    single = isinstance(outputs, np.ndarray) and outputs.ndim and outputs.shape[-1] == 1
    if single and np.ndim(y) == outputs.ndim - 1:
        return np.asarray(y)[..., None]
    return y


def _numbers(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in ("better", "file", "keras")}


def _of_teacher(label: str, teacher: Mapping[str, float] | None) -> float | None:
    """Look a metric up under its label, without its brackets, without its output."""
    for name in (label, label.split(" (")[0], label.rsplit("/", 1)[-1]):
        if teacher and name in teacher:
            return float(teacher[name])
    return None


def _kept(better: str | None, file: float, reference: float) -> float | None:
    part, whole = (file, reference) if better == "higher" else (reference, file)
    return part / whole if better and whole else None
