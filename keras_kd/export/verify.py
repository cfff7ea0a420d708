"""Run a file and the Keras model on the same examples, measure the distance, and judge it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kd import checks
from keras_kd.export import base

BATCH = 256
TIE = 1e-6  # as a share of the largest output: below it, float32 does not order two values


class Examples:
    """The verification data, as batches of NumPy arrays that can be gone through again.

    Args:
        data: A `tf.data.Dataset` or `keras.utils.PyDataset` of batches, or arrays: `x`, `(x, y)`
            or `(x, y, sample_weight)`, where x may be a dict or a list of several inputs.
        limit: Use only so many examples, the first ones. `None` for all.
    """

    def __init__(self, data: Any, limit: int | None = None) -> None:
        """Refuse what cannot be gone through."""
        if isinstance(data, tf.data.Dataset):
            endless = int(data.cardinality()) == tf.data.INFINITE_CARDINALITY
        elif isinstance(data, keras.utils.PyDataset):
            endless = data.num_batches is None
        elif isinstance(data, np.ndarray | tf.Tensor | Mapping | list | tuple):
            endless = False
            _same_length(data)
        else:
            raise checks.bad_type(
                "`verification_data` is of a type that cannot be read.",
                given=type(data).__name__,
                expected="a tf.data.Dataset or PyDataset of batches, or arrays x, (x, y)",
                fix="pass the data that the student is evaluated on, for example (x_test, y_test).",
            )
        if limit is not None and (isinstance(limit, bool) or int(limit) != limit or limit < 1):
            raise checks.bad_value(
                "`verification_examples` must be a positive whole number or None.",
                given=repr(limit),
                expected="a number of examples, 1 or more",
                fix="leave it out to verify on all of the verification data.",
            )
        if endless and limit is None:
            raise checks.bad_value(
                "`verification_data` never ends.",
                given="a data set that repeats for ever",
                expected="data with an end",
                fix="leave out `.repeat()`, or say how many: verification_examples=1000.",
            )
        self._data, self._limit = data, limit

    def __iter__(self) -> Iterator[tuple[Any, Any, Any]]:
        """Yield (x, y, sample_weight), with `None` for what is not there."""
        left = self._limit
        for batch in self._batches():
            count = len(keras.tree.flatten(batch)[0])
            if left is not None and count > left:
                batch = keras.tree.map_structure(lambda array, end=left: array[:end], batch)
                count = left
            yield keras.utils.unpack_x_y_sample_weight(batch)
            if left is not None:
                left -= count
                if left <= 0:
                    return

    def first(self) -> Any:
        """Return the inputs of the first batch.

        Raises:
            ValueError: "`verification_data` holds no example."
        """
        for x, _, _ in self:
            if len(keras.tree.flatten(x)[0]):
                return x
        raise checks.bad_value(
            "`verification_data` holds no example.",
            given="0 examples",
            expected="at least one batch",
            fix="pass the data that the student is evaluated on, for example (x_test, y_test).",
        )

    def _batches(self) -> Iterator[Any]:
        if isinstance(self._data, tf.data.Dataset):
            yield from self._data.as_numpy_iterator()
        elif isinstance(self._data, keras.utils.PyDataset):
            for index in range(self._data.num_batches or self._limit or 0):
                yield self._data[index]
        else:
            arrays = self._data if isinstance(self._data, tuple) else (self._data,)
            arrays = keras.tree.map_structure(np.asarray, arrays)
            for start in range(0, len(keras.tree.flatten(arrays)[0]), BATCH):
                yield keras.tree.map_structure(lambda a, s=start: a[s : s + BATCH], arrays)


def compare(run: Callable, reference: Callable, student: base.Student, examples: Examples) -> dict:
    """Run both functions over the examples and measure every output.

    Args:
        run: The file: named arrays to named arrays, batch first.
        reference: The Keras model, likewise.
        student: Names the inputs and outputs.
        examples: What to run on.

    Returns:
        `{"examples": n, "outputs": {name: measures}}`.

    Raises:
        ValueError: "answers NaN or infinity", "one answer an example", "outputs of other names or
            shapes".
    """
    tallies = {name: _Tally() for name in student.output_names}
    seen = 0
    for x, y, weight in examples:
        inputs = student.flatten(x)
        count = len(next(iter(inputs.values())))
        theirs = reference(inputs)
        _refuse_no_batch_axis(theirs, count)
        _refuse_not_finite(theirs, "The student", seen)
        ours = run(inputs)
        _refuse_other_shapes(ours, theirs)
        _refuse_not_finite(ours, "The file", seen)
        for name, tally in tallies.items():
            labels, weights = student.part(y, name), student.part(weight, name, shared=True)
            tally.add(ours[name], theirs[name], labels, weights)
        seen += count
    return {"examples": seen, "outputs": {n: tally.measures() for n, tally in tallies.items()}}


def judge(report: dict, tolerance: base.Tolerance, *, what: str, fix: str) -> None:
    """Refuse a report that is out of tolerance, with the bound and both numbers.

    Raises:
        ValueError: "does not answer as the student does" or "does not decide as the student does".
    """
    for name, found in report["outputs"].items():
        bound = tolerance.max_difference * found["largest_output"]
        if not found["max_difference"] <= bound:
            raise checks.bad_value(
                f"{what} does not answer as the student does, so it was not kept.",
                given=f"output {name!r} differs by {found['max_difference']:.6g} at most, over "
                f"{report['examples']} examples",
                expected=f"max_difference <= {bound:.6g} ({tolerance.max_difference:g} of the "
                f"student's largest output, {found['largest_output']:.6g})",
                fix=fix,
            )
        if found["agreement"] is not None and found["agreement"] < tolerance.agreement:
            raise checks.bad_value(
                f"{what} does not decide as the student does, so it was not kept.",
                given=f"output {name!r}: agreement {found['agreement']:.6g} over "
                f"{report['examples']} examples",
                expected=f"agreement >= {tolerance.agreement:g}",
                fix=fix,
            )


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

    def __init__(self) -> None:
        self.difference = self.largest = 0.0
        self.decisions: dict[str, _Decisions] = {}
        self.kinds = {"classes", "binary", "values"}
        self.labelled = False
        self.as_probabilities = True
        self.error_file = self.error_keras = self.weight = 0.0

    def add(self, file: np.ndarray, keras: np.ndarray, labels: Any, weights: Any) -> None:
        """Take in one batch of the file's and of the Keras model's answers."""
        file, keras = file.astype("float64"), keras.astype("float64")
        self.difference = max(self.difference, float(np.abs(file - keras).max(initial=0.0)))
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
            metric = _metric(name, decisions.right_file / total, decisions.right_keras / total)
        elif kind == "values" and self.weight:
            errors = self.error_file / self.weight, self.error_keras / self.weight
            metric = _metric("mean_absolute_error", *errors)
        return {
            "max_difference": self.difference,
            "largest_output": self.largest,
            "relative_difference": self.difference / self.largest if self.largest else 0.0,
            "agreement": decisions.equal / decisions.count if decisions else None,
            "ties": decisions.ties if decisions else None,
            "metric": metric,
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


def _metric(name: str, file: float, keras: float) -> dict[str, Any]:
    return {"name": name, "file": file, "keras": keras}


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


def _refuse_no_batch_axis(answers: Mapping[str, Any], count: int) -> None:
    for name, values in answers.items():
        if values.shape[:1] != (count,):
            raise checks.bad_value(
                "The student does not give one answer an example.",
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
                fix="look at the student's weights and at that example's values.",
            )


def _same_length(data: Any) -> None:
    leaves = keras.tree.flatten(data)
    lengths = sorted({len(leaf) for leaf in leaves if np.ndim(leaf)})
    if len(lengths) != 1 or not all(np.ndim(leaf) for leaf in leaves):
        raise checks.bad_value(
            "The arrays of `verification_data` do not have the same number of examples.",
            given=f"lengths {lengths}",
            expected="arrays whose first axis is the example",
            fix="pass x, (x, y) or (x, y, sample_weight) of the same length.",
        )


def versions() -> dict[str, str]:
    """Return the versions of what wrote and ran the file."""
    found = {name: importlib.metadata.version(name) for name in ("ai-edge-litert", "numpy")}
    return (
        {"python": platform.python_version(), "keras": keras.__version__}
        | found
        | {"tensorflow": tf.__version__}
    )
