"""The honest comparison: teacher, the student alone, the student distilled, on the same data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kd import checks, metrics
from keras_kd.attached import Answer
from keras_kd.outputs import OutputReader, as_numbers
from keras_kd.taps import call_model
from keras_kd.tasks import (
    METRIC,
    Task,
    check_labels,
    class_numbers,
    find_tasks,
    name_labels,
    weigh,
)
from keras_kd.teachers import as_teacher, no_model


class Comparison:
    """Rows of measurements by name, teacher first; prints as a table.

    Attributes:
        rows: name -> {measurement: value}; a measurement that has no meaning for a row is absent.
        metric: name of the task's metric, such as `"accuracy"`.
        examples: how many examples were compared.
    """

    def __init__(self, rows: dict[str, dict[str, float]], metric: str, examples: int) -> None:
        self.rows = rows
        self.metric = metric
        self.examples = examples

    def __getitem__(self, name: str) -> dict[str, float]:
        if name not in self.rows:
            raise checks.unknown_name("row", name, self.rows)
        return self.rows[name]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain Python, ready for JSON."""
        rows = {name: dict(row) for name, row in self.rows.items()}
        return {"metric": self.metric, "examples": self.examples, "rows": rows}

    def __str__(self) -> str:
        """Return the table."""
        columns = list(dict.fromkeys(key for row in self.rows.values() for key in row))
        cells = [["", *columns]]
        for name, row in self.rows.items():
            cells.append([name, *(_cell(row.get(column)) for column in columns)])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if place == 0 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in cells
        ]
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__


def compare(
    *, teacher: Any, students: Mapping[str, keras.Model], data: Any, batch_size: int = 256
) -> Comparison:
    """Measure a teacher and some students on the same data, in one pass over it.

    A distilled student is only worth what it gains over the same student trained alone, so give
    both. Measured are the task's metric (accuracy; binary accuracy; mean squared error), the number
    of parameters, and for classifiers the agreement with the teacher, KL(teacher ‖ student) in nats
    and the expected calibration error. Several outputs are measured each, under `output/…`.

    Every number is a mean over examples, or over the tokens of sequences. A token that any of the
    models masks counts for none of them, so that all rows speak of the same tokens; sample weights
    weigh every number.

    Args:
        teacher: a `keras.Model`, a list of them or a `kd.Teacher`.
        students: name -> model, for example `{"alone": alone, "distilled": student}`.
        data: a batched `tf.data.Dataset` (or `PyDataset`) of `(x, y)` or `(x, y, sample_weight)`,
            or such arrays. Labels say what the task is: one class number or one-hot row for each
            decision is classification; 0 or 1 for each output is binary (several: multi-label);
            other numbers, and any for a teacher with `outputs="values"`, are regression. Looked at
            are all the labels of arrays, and the first batch of a stream (or of masked sequences).
        batch_size: for arrays. Defaults to 256.

    Returns:
        A `Comparison`: `["distilled"]["accuracy"]`, `.to_dict()`, and it prints as a table.

    Raises:
        ValueError: "Nobody to compare with the teacher", "… is no model", "There is no data to
            compare on", "The data never ends", "Labels are needed to compare", "The labels … do not
            fit", "The labels … changed their kind" after the first batch, "… answers in other
            shapes than the teacher", and what `kd.Teacher` refuses.

    Example:
    ```python
    import keras, numpy as np
    import keras_kd as kd

    teacher, alone, student = [
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in range(3)
    ]
    data = np.random.rand(20, 4), np.random.randint(0, 3, 20)
    comparison = kd.compare(
        teacher=teacher, students={"alone": alone, "distilled": student}, data=data
    )
    print(comparison)
    ```
    """
    _check_students(students)
    teaching = as_teacher(teacher)
    taught = _Asked(teaching.attached())
    pupils: dict[str, _Asked] = {}
    measures: dict[str, _Measures] = {}
    for x, y, weight in _batches(data, batch_size):
        said = {"teacher": taught(x)}
        if not pupils:
            kinds = taught.who.kinds
            names = _names(said["teacher"], teaching.models[0], y)
            pupils = {name: _Asked(_Pupil(name, students[name], kinds)) for name in students}
        said |= {name: pupil(x) for name, pupil in pupils.items()}
        _check_shapes(said)
        shapes, labels = said["teacher"].shapes, name_labels(y, names)
        masks = [row.masks for row in said.values()]
        weights = weigh(shapes, weight, masks)
        if not measures:
            masked = any(mask is not None for mask in keras.tree.flatten(masks))
            seen = None if masked else _of_arrays(data, shapes, names)
            seen = seen or (labels, shapes, weights)
            tasks = find_tasks(seen[0], seen[1], kinds, names, seen[2])
            measures = {
                name: _Measures(tasks, name == "teacher") for name in ("teacher", *students)
            }
        check_labels(tasks, labels, shapes, weights)
        _count(measures, said, labels, weights)
    if not measures:
        raise checks.bad_value(
            "There is no data to compare on.",
            given="a data set without a single batch",
            expected="one batch or more of (x, y)",
            fix="check the split; a data set that was read to its end must be made again.",
        )
    models = {"teacher": teaching.models, **{name: [model] for name, model in students.items()}}
    rows = {
        name: {"parameters": sum(m.count_params() for m in models[name]), **measure.results()}
        for name, measure in measures.items()
    }
    return Comparison(rows, measures["teacher"].metric, measures["teacher"].examples)


class _Pupil:
    """One student, asked as a teacher is."""

    def __init__(self, name: str, model: keras.Model, taught: Sequence[str]) -> None:
        fix = "end it in a layer without activation, or in a keras.layers.Activation."
        stated = ["values" if kind == "values" else "auto" for kind in taught]
        one_or_each = stated if len(set(stated)) > 1 else stated[0]
        self.reader = OutputReader(model, f"student {name!r}", one_or_each, "softmax", fix)
        self.model = model

    def __call__(self, x: Any) -> Answer:
        own = call_model(self.model, x, False)
        return Answer(self.reader(own), own, {}, [own])

    def learn(self, raw: list) -> None:
        self.reader.learn(raw[0])


@dataclasses.dataclass(frozen=True)
class _Said:
    """What a model said to one batch: its outputs in order, each `(…, classes)`."""

    names: list[str] | None
    logits: list[np.ndarray]
    own: list[np.ndarray]
    masks: list[np.ndarray | None]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        return [output.shape for output in self.logits]


class _Asked:
    """A model that is asked batch by batch; its first batch says what its outputs are."""

    def __init__(self, who: Any) -> None:
        self.who = who
        self._traced: dict[str, Any] = {}

    def __call__(self, x: Any) -> _Said:
        x = keras.tree.map_structure(tf.convert_to_tensor, x)
        if not self._traced:
            self.who.learn(self.who(x).raw)
        outputs, own, masks = self._function(x)(x)
        return _Said(
            names=sorted(outputs) if isinstance(outputs, dict) else None,
            logits=[_with_classes(as_numbers(leaf)) for leaf in keras.tree.flatten(outputs)],
            own=[_with_classes(as_numbers(leaf)) for leaf in keras.tree.flatten(own)],
            masks=[None if mask is None else np.asarray(mask) for mask in masks],
        )

    def _function(self, x: Any) -> Any:
        """Return the graph for inputs of this shape, traced once for batches of any size."""
        spec = keras.tree.map_structure(lambda t: tf.TensorSpec((None, *t.shape[1:]), t.dtype), x)
        key = str(spec)
        if key not in self._traced:
            function = tf.function(self._parts, autograph=False)
            self._traced[key] = function.get_concrete_function(spec)
        return self._traced[key]

    def _parts(self, x: Any) -> tuple[Any, Any, list]:
        answer = self.who(x)
        leaves = keras.tree.flatten(answer.outputs)
        return answer.outputs, answer.own, [getattr(z, "_keras_mask", None) for z in leaves]


class _Measures:
    """The metrics of one row, for each output."""

    def __init__(self, tasks: Sequence[Task], teacher: bool) -> None:
        self.tasks = tasks
        self.examples = 0
        self.metrics = [_metrics(task, teacher) for task in tasks]
        self.prefixes = [f"{task.name}/" if len(tasks) > 1 else "" for task in tasks]
        self.metric = self.prefixes[0] + METRIC[tasks[0].kind]

    def update(self, index: int, label: Any, teacher: _Said, row: _Said, weight: Any) -> None:
        """Count one output of a batch in, decision by decision."""
        task = self.tasks[index]
        if task.kind == "regression":
            z, t = _flat(row.own[index]), _flat(teacher.own[index])
        else:
            z, t = _flat(row.logits[index]), _flat(teacher.logits[index])
        classes = z.shape[-1]
        if task.kind == "classification":
            label = class_numbers(label, classes, weight)
        else:
            label = label.reshape(-1, classes)
        for key, metric in self.metrics[index].items():
            if key in ("agreement", "teacher_kl", "teacher_mse"):
                metric.update_state(t, z, sample_weight=weight)
            elif key == "binary_accuracy":
                metric.update_state(2 * label - 1, z, sample_weight=weight)
            elif key == "calibration_error" and task.kind == "binary":
                both = np.stack([np.zeros_like(z), z], axis=-1).reshape(-1, 2)
                metric.update_state(label.reshape(-1), both, np.repeat(weight, classes))
            else:
                metric.update_state(label, z, sample_weight=weight)

    def results(self) -> dict[str, float]:
        """Return the numbers."""
        return {
            f"{prefix}{key}": float(metric.result())
            for prefix, own in zip(self.prefixes, self.metrics, strict=True)
            for key, metric in own.items()
        }


def _metrics(task: Task, teacher: bool) -> dict[str, keras.metrics.Metric]:
    if task.kind == "regression":
        names = ("mse",) if teacher else ("mse", "teacher_mse")
        return {name: keras.metrics.MeanSquaredError(name) for name in names}
    own: dict[str, keras.metrics.Metric]
    own = {"accuracy": keras.metrics.SparseCategoricalAccuracy()}
    if task.kind == "binary":
        own = {"binary_accuracy": metrics.Agreement("sigmoid")}  # with labels of -1 and 1
    if not teacher:
        own["agreement"] = metrics.Agreement(task.activation)
        own["teacher_kl"] = metrics.TeacherDivergence(task.activation)
    return {**own, "calibration_error": metrics.ExpectedCalibrationError()}


def _count(
    measures: Mapping[str, _Measures],
    said: Mapping[str, _Said],
    labels: Sequence[np.ndarray],
    weights: Sequence[np.ndarray],
) -> None:
    """Count a batch into every row."""
    for name, measure in measures.items():
        for index, (label, weight) in enumerate(zip(labels, weights, strict=True)):
            measure.update(index, label, said["teacher"], said[name], weight)
        measure.examples += len(said["teacher"].logits[0])


def _of_arrays(data: Any, shapes: Sequence[tuple[int, ...]], names: Sequence[str]) -> Any:
    """Return all labels, the outputs' shapes and the weights of arrays; `None` for a stream."""
    if not isinstance(data, (tuple, list)):
        return None
    y, *weight = tf.data.Dataset.from_tensors(tuple(data[1:])).get_single_element()
    labels = name_labels(y, names)
    all_shapes = [(len(labels[0]), *shape[1:]) for shape in shapes]
    return labels, all_shapes, weigh(all_shapes, weight[0] if weight else None, [])


def _names(teacher: _Said, model: keras.Model, y: Any) -> list[str]:
    """Name the outputs: by their dict, by the model where the labels go by it, or by number."""
    count = len(teacher.logits)
    if teacher.names is not None:
        return teacher.names
    if count == 1:
        return ["output"]
    own = getattr(model, "output_names", None)
    return list(own) if own and isinstance(y, dict) else [f"output_{k}" for k in range(count)]


def _check_students(students: Any) -> None:
    if not isinstance(students, Mapping):
        raise checks.bad_type(
            "`students` must be models by name.",
            given=f"{students!r:.80} ({type(students).__name__})",
            expected="a dict: name -> keras.Model",
            fix='pass students={"alone": alone, "distilled": student}.',
        )
    if not students:
        raise checks.bad_value(
            "Nobody to compare with the teacher.",
            given="students={}",
            expected="one student or more by name",
            fix='pass students={"alone": alone, "distilled": student}.',
        )
    if "teacher" in students:
        raise checks.bad_value(
            "A student cannot be called 'teacher', which is the teacher's row.",
            given=f"students named {list(students)}",
            expected="other names",
            fix='pass students={"alone": alone, "distilled": student}.',
        )
    for name, model in students.items():
        if not isinstance(model, keras.Model):
            raise no_model(f"student {name!r}", model)


def _check_shapes(said: Mapping[str, _Said]) -> None:
    teacher = said["teacher"]
    for name, row in said.items():
        if row.shapes != teacher.shapes or row.names != teacher.names:
            raise checks.bad_value(
                f"Student {name!r} answers in other shapes than the teacher.",
                given=f"{name!r} {row.names or ''}{row.shapes}",
                expected=f"{teacher.names or ''}{teacher.shapes}",
                fix="compare models of the same outputs: the same classes, in the same order.",
            )


def _batches(data: Any, batch_size: int) -> Iterator[tuple[Any, Any, Any]]:
    dataset = data
    if isinstance(data, (tuple, list)):
        dataset = tf.data.Dataset.from_tensor_slices(tuple(data)).batch(batch_size)
    if _never_ends(data):
        raise checks.bad_value(
            "The data never ends.",
            given=f"a {type(data).__name__} that is repeated forever",
            expected="each example once",
            fix="leave out .repeat(), or .take() the batches to compare on.",
        )
    if isinstance(data, keras.utils.PyDataset):
        dataset = (data[index] for index in range(data.num_batches))
    for batch in dataset:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
        if y is None:
            raise checks.bad_value(
                "Labels are needed to compare.",
                given="batches without labels",
                expected="batches (x, y)",
                fix="give the labelled test data.",
            )
        yield x, y, weight


def _never_ends(data: Any) -> bool:
    if isinstance(data, keras.utils.PyDataset):
        return data.num_batches is None
    return isinstance(data, tf.data.Dataset) and data.cardinality() == tf.data.INFINITE_CARDINALITY


def _with_classes(output: np.ndarray) -> np.ndarray:
    """Give outputs of one number per example their axis of classes."""
    return output[:, None] if output.ndim == 1 else output


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, values.shape[-1])


def _cell(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
