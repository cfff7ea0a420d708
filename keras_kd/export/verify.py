"""Run a file and the Keras model on the same examples, and measure the distance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from keras_kd import checks

Arrays = Mapping[str, np.ndarray]

TIE = 1e-6  # as a share of the largest output: below it, float32 does not order two values


class Observer(Protocol):
    """Whoever wants to see every batch of a comparison."""

    def add(self, inputs: Arrays, file: Arrays, keras: Arrays, y: Any, weight: Any) -> None:
        """Take in one batch: named inputs, both answers, labels and weights as they come."""


def compare(
    run: Callable,
    reference: Callable,
    student: Any,
    examples: Iterable[tuple[Any, Any, Any]],
    *,
    spans: Mapping[str, Mapping[str, Any]] | None = None,
    observers: Sequence[Observer] = (),
    who: str = "The student",
) -> dict:
    """Run both functions over the examples and measure every output.

    Where an output holds whole numbers, differences are counted in its steps, and told apart:
    Keras answers beyond its range cannot be expressed (saturation); all others can (rounding).

    Args:
        run: The file: named arrays to named arrays, batch first.
        reference: The Keras model, likewise.
        student: Names the inputs and outputs, as `base.Student` does.
        examples: What to run on: batches of (x, y, sample_weight).
        spans: Output name to {"dtype", "scale", "zero_point"}; without a scale, it is float.
        observers: See every batch too.
        who: What an error calls the Keras model.

    Returns:
        `{"examples": n, "outputs": {name: measures}}`.

    Raises:
        ValueError: "answers NaN or infinity", "one answer an example", "outputs of other names or
            shapes".
    """
    spans = spans or {}
    tallies = {name: _Tally(spans.get(name, {})) for name in student.output_names}
    seen = 0
    for x, y, weight in examples:
        inputs = student.flatten(x)
        count = len(next(iter(inputs.values())))
        theirs = reference(inputs)
        _refuse_no_batch_axis(theirs, count, who)
        _refuse_not_finite(theirs, who, seen)
        ours = run(inputs)
        _refuse_other_shapes(ours, theirs)
        _refuse_not_finite(ours, "The file", seen)
        for name, tally in tallies.items():
            labels, weights = student.part(y, name), student.part(weight, name, shared=True)
            tally.add(ours[name], theirs[name], labels, weights)
        for observer in observers:
            observer.add(inputs, ours, theirs, y, weight)
        seen += count
    return {"examples": seen, "outputs": {n: tally.measures() for n, tally in tallies.items()}}


@dataclasses.dataclass
class _Decisions:
    """Decisions of one kind, counted: how often both are equal, and how often each is right."""

    count: int = 0
    equal: int = 0
    ties: int = 0
    weight: float = 0.0
    right_file: float = 0.0
    right_keras: float = 0.0

    def add(self, file: tuple, keras: tuple, labels: Any, weights: Any, tie: float) -> None:
        """Count one batch; `file` and `keras` are (decisions, margins)."""
        ties = (keras[1] <= tie) & (file[0] != keras[0])
        self.count += keras[0].size
        self.ties += int(ties.sum())
        self.equal += int(((file[0] == keras[0]) | ties).sum())
        if labels is not None:
            self.weight += float(weights.sum())
            self.right_file += float(((file[0] == labels) * weights).sum())
            self.right_keras += float(((keras[0] == labels) * weights).sum())


class _Tally:
    """What is seen of one output, batch after batch; what it means is settled at the end."""

    def __init__(self, span: Mapping[str, Any]) -> None:
        self.step, self.low, self.high = _range(span)
        self.difference = self.largest = self.clipped = self.rounded = self.rounded_sum = 0.0
        self.count = self.outside = 0
        self.decisions: dict[str, _Decisions] = {}
        self.kinds = {"classes", "binary", "values"}
        self.labelled = False
        self.as_probabilities = True
        self.error_file = self.error_keras = self.weight = 0.0

    def add(self, file: np.ndarray, keras: np.ndarray, labels: Any, weights: Any) -> None:
        """Take in one batch of the file's and of the Keras model's answers."""
        file, keras = file.astype("float64"), keras.astype("float64")
        self._measure(np.abs(file - keras), (keras < self.low) | (keras > self.high))
        scale = float(np.abs(keras).max(initial=0.0))
        self.largest = max(self.largest, scale)
        self.as_probabilities &= bool(((keras >= 0) & (keras <= 1)).all())
        classes, targets = _labels(labels, keras.shape)
        if labels is not None:
            self.labelled = True
            self._narrow(classes, targets)
        if keras.ndim > 1 and keras.shape[-1] > 1:
            shape = keras.shape[:-1]
            self._count("classes", _argmax, file, keras, classes, _spread(weights, shape), scale)
        for kind, middle in (("0.5", 0.5), ("0", 0.0)):
            right = None if targets is None else targets > 0.5
            spread = _spread(weights, keras.shape)
            self._count(kind, lambda v, m=middle: _sides(v, m), file, keras, right, spread, scale)
        if targets is not None:
            spread = _spread(weights, keras.shape)
            self.weight += float(spread.sum())
            self.error_file += float((np.abs(file - targets) * spread).sum())
            self.error_keras += float((np.abs(keras - targets) * spread).sum())

    def _measure(self, differences: np.ndarray, outside: np.ndarray) -> None:
        """Tell what cannot be expressed apart from what can."""
        clipped, rounded = differences[outside], differences[~outside]
        self.count += differences.size
        self.outside += clipped.size
        self.clipped = max(self.clipped, float(clipped.max(initial=0.0)))
        self.rounded = max(self.rounded, float(rounded.max(initial=0.0)))
        self.rounded_sum += float(rounded.sum())
        self.difference = max(self.clipped, self.rounded)

    def measures(self) -> dict[str, Any]:
        """Return the numbers for the certificate."""
        threshold = "0.5" if self.as_probabilities else "0"
        if not self.labelled:
            kind = "classes" if "classes" in self.decisions else None
        else:
            kind = next((k for k in ("classes", "binary", "values") if k in self.kinds), None)
        decisions = self.decisions.get(threshold if kind == "binary" else str(kind))
        metric = None
        if self.labelled and decisions is not None and decisions.weight:
            name = "accuracy" if kind == "classes" else f"binary_accuracy (threshold {threshold})"
            total = decisions.weight
            right = decisions.right_file / total, decisions.right_keras / total
            metric = _metric(name, "higher", *right)
        elif kind == "values" and self.weight:
            errors = self.error_file / self.weight, self.error_keras / self.weight
            metric = _metric("mean_absolute_error", "lower", *errors)
        return {
            "max_difference": self.difference,
            "largest_output": self.largest,
            "relative_difference": self.difference / self.largest if self.largest else 0.0,
            "agreement": decisions.equal / decisions.count if decisions else None,
            "ties": decisions.ties if decisions else None,
            "metric": metric,
            **self._parts(),
        }

    def _parts(self) -> dict[str, Any]:
        """Return the difference split into what is rounded and what lies out of range."""
        mean = self.rounded_sum / max(1, self.count - self.outside)
        parts: dict[str, Any] = {"rounding": {"max": self.rounded, "mean": mean}}
        if self.step is None:
            return parts | {"steps": None, "saturation": None}
        return parts | {
            "steps": {"max": self.rounded / self.step, "mean": mean / self.step},
            "saturation": {
                "share": self.outside / max(1, self.count),
                "max_difference": self.clipped,
            },
        }

    def _narrow(self, classes: Any, targets: Any) -> None:
        """Strike out what these labels cannot be."""
        if classes is None:
            self.kinds.discard("classes")
        if targets is None:
            self.kinds -= {"binary", "values"}
        elif not np.isin(targets, (0, 1)).all():
            self.kinds.discard("binary")

    def _count(
        self,
        kind: str,
        decide: Callable,
        file: Any,
        keras: Any,
        labels: Any,
        weights: Any,
        scale: float,
    ) -> None:
        found = self.decisions.setdefault(kind, _Decisions())
        found.add(decide(file), decide(keras), labels, weights, TIE * scale)


def _argmax(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    top = np.partition(values, -2, axis=-1)
    return values.argmax(-1), top[..., -1] - top[..., -2]


def _sides(values: np.ndarray, middle: float) -> tuple[np.ndarray, np.ndarray]:
    return values > middle, np.abs(values - middle)


def _metric(name: str, better: str, file: float, keras: float) -> dict[str, Any]:
    return {"name": name, "better": better, "file": file, "keras": keras}


def _range(span: Mapping[str, Any]) -> tuple[float | None, float, float]:
    """Return the step of an output, and from where to where values round to something in it."""
    if "scale" not in span:
        return None, -np.inf, np.inf
    kind, step = np.iinfo(span["dtype"]), span["scale"]
    low, high = ((end - span["zero_point"]) * step for end in (kind.min, kind.max))
    return step, low - step / 2, high + step / 2


def _labels(labels: Any, shape: tuple[int, ...]) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Read labels as classes (ids or one-hot) and as target values, where they can be either."""
    if labels is None:
        return None, None
    labels = np.asarray(labels)
    if labels.dtype.kind not in "biuf":
        return None, None
    if len(shape) > 1 and shape[-1] > 1:
        ids = labels[..., 0] if labels.shape == (*shape[:-1], 1) else labels
        if ids.shape == shape[:-1]:
            return (ids if (ids == np.floor(ids)).all() else None), None
    elif labels.shape == shape[:-1]:
        labels = labels[..., None]
    elif labels.shape == (*shape, 1):
        labels = labels[..., 0]
    if labels.shape != shape:
        return None, None
    labels = labels.astype("float64")
    one_hot = shape[-1] > 1 and np.isin(labels, (0, 1)).all() and (labels.sum(-1) == 1).all()
    return (labels.argmax(-1) if one_hot else None), labels


def _spread(weights: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Give every decision its sample weight; 1 where there is none."""
    if weights is None:
        return np.ones(shape)
    weights = np.asarray(weights, dtype="float64")
    if weights.ndim > len(shape):
        weights = weights[..., 0]
    return np.broadcast_to(
        weights.reshape(weights.shape + (1,) * (len(shape) - weights.ndim)), shape
    )


def _refuse_other_shapes(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    def shapes(answers: Mapping[str, Any]) -> str:
        return ", ".join(f"{name}: {answers[name].shape}" for name in sorted(answers))

    if shapes(ours) != shapes(theirs):
        raise checks.bad_value(
            "The file gives outputs of other names or shapes than the student.",
            given=shapes(ours),
            expected=shapes(theirs),
            fix="look for layers whose shapes depend on the size of the batch.",
        )


def _refuse_no_batch_axis(answers: Mapping[str, Any], count: int, who: str) -> None:
    for name, values in answers.items():
        if values.shape[:1] != (count,):
            raise checks.bad_value(
                f"{who} does not give one answer an example.",
                given=f"output {name!r} of shape {values.shape} for {count} examples",
                expected=f"shape ({count}, ...)",
                fix="keep the batch as the first axis of every output.",
            )


def _refuse_not_finite(answers: Mapping[str, Any], who: str, seen: int) -> None:
    for name, values in answers.items():
        good = np.isfinite(values.astype("float64")).reshape(len(values), -1).all(axis=1)
        if not good.all():
            raise checks.bad_value(
                f"{who} answers NaN or infinity, so no file was kept.",
                given=f"output {name!r} of example {seen + int(np.argmin(good))}",
                expected="finite numbers for every example",
                fix="look at the weights and at that example's values.",
            )
