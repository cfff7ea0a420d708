"""The honest comparison: teacher, the student alone, the student distilled, on the same data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_kd import checks, metrics
from keras_kd.outputs import OutputReader, as_numbers
from keras_kd.taps import call_model
from keras_kd.teachers import as_teacher

TASKS = ("classification", "binary", "regression")
TASK_METRIC = {"classification": "accuracy", "binary": "binary_accuracy", "regression": "mse"}


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

    Args:
        teacher: a `keras.Model`, a list of them or a `kd.Teacher`.
        students: name -> model, for example `{"alone": alone, "distilled": student}`.
        data: a batched `tf.data.Dataset` of `(x, y)`, or arrays `(x, y)`. Integer labels or
            one-hot rows make it classification, labels 0 and 1 for single outputs binary,
            other numbers regression.
        batch_size: for arrays. Defaults to 256.

    Returns:
        A `Comparison`: `["distilled"]["accuracy"]`, `.to_dict()`, and it prints as a table.

    Raises:
        ValueError: "There is no data to compare on", "Labels are needed to compare", "Nobody to
            compare", and what `kd.Teacher` refuses.

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
    if not students:
        raise checks.bad_value(
            "Nobody to compare with the teacher.",
            given="students={}",
            expected="one student or more by name",
            fix='pass students={"alone": alone, "distilled": student}.',
        )
    attached = as_teacher(teacher).attach()
    readers = {name: _Row(model, f"student {name!r}") for name, model in students.items()}
    ask = tf.function(lambda x: _with_raw(attached(x)), autograph=False, reduce_retracing=True)
    measures: dict[str, _Measures] = {}
    for x, y in _batches(data, batch_size):
        logits, raw = ask(x)
        if not measures:
            attached.learn(raw)
            ask = tf.function(lambda x: _with_raw(attached(x)), autograph=False)
            logits, raw = ask(x)
            names = ["teacher", *students]
            tasks = _tasks(y, logits, attached.kinds)
            measures = {name: _Measures(tasks, teacher=name == "teacher") for name in names}
        measures["teacher"].update(y, logits, logits)
        for name, row in readers.items():
            measures[name].update(y, logits, row(x))
    if not measures:
        raise checks.bad_value(
            "There is no data to compare on.",
            given="a data set without a single batch",
            expected="one batch or more of (x, y)",
            fix="check the split; a data set that was read to its end must be made again.",
        )
    parameters = {"teacher": sum(model.count_params() for model in as_teacher(teacher).models)}
    parameters |= {name: model.count_params() for name, model in students.items()}
    rows = {
        name: {"parameters": parameters[name], **measure.results()}
        for name, measure in measures.items()
    }
    first = measures["teacher"]
    return Comparison(rows, first.metric, first.examples)


class _Row:
    """One student: its outputs in log space, batch by batch."""

    def __init__(self, model: keras.Model, who: str) -> None:
        if not isinstance(model, keras.Model):
            raise checks.bad_value(
                f"{who} is no model.",
                given=type(model).__name__,
                expected="a keras.Model",
                fix="load it first: keras.models.load_model(path).",
            )
        fix = "end it in a layer without activation, or in a keras.layers.Activation."
        self.reader = OutputReader(model, who, "auto", "softmax", fix)
        self.model = model
        self._function: Any = None

    def __call__(self, x: Any) -> Any:
        if self._function is None:
            raw = call_model(self.model, x, False)
            self.reader(raw)
            self.reader.learn(raw)
            self._function = tf.function(
                lambda x: self.reader(call_model(self.model, x, False)),
                autograph=False,
                reduce_retracing=True,
            )
        return self._function(x)


class _Measures:
    """The metrics of one row, for each output."""

    def __init__(self, tasks: dict[str, tuple[str, str]], teacher: bool) -> None:
        self.tasks = tasks
        self.examples = 0
        prefix = {name: f"{name}/" if len(tasks) > 1 else "" for name in tasks}
        self.columns = {
            name: {
                f"{prefix[name]}{key}": metric
                for key, metric in _metrics(task, activation, teacher).items()
            }
            for name, (task, activation) in tasks.items()
        }
        name, (task, _) = next(iter(tasks.items()))
        self.metric = prefix[name] + TASK_METRIC[task]

    def update(self, y: Any, teacher: Any, student: Any) -> None:
        """Count a batch in."""
        labels = _by_name(y, student)
        teachers, students = _by_name(teacher, student), _by_name(student, student)
        for name, (task, _) in self.tasks.items():
            label, logits = labels[name], students[name]
            mask = getattr(logits, "_keras_mask", None)
            if task == "classification":
                label = _integer_labels(label, logits)
            for key, metric in self.columns[name].items():
                versus_teacher = key.rsplit("/", 1)[-1] in ("agreement", "teacher_kl", "teacher_mse")
                target = teachers[name] if versus_teacher else label
                metric.update_state(target, logits, sample_weight=mask)
        self.examples += int(keras.tree.flatten(student)[0].shape[0])

    def results(self) -> dict[str, float]:
        """Return the numbers."""
        columns = [item for output in self.columns.values() for item in output.items()]
        return {key: float(metric.result()) for key, metric in columns}


def _metrics(task: str, activation: str, teacher: bool) -> dict[str, keras.metrics.Metric]:
    own: dict[str, keras.metrics.Metric]
    versus: dict[str, keras.metrics.Metric] = {
        "agreement": metrics.Agreement(activation),
        "teacher_kl": metrics.TeacherDivergence(activation),
    }
    if task == "classification":
        own = {"accuracy": keras.metrics.SparseCategoricalAccuracy()}
        last = {"calibration_error": metrics.ExpectedCalibrationError()}
        return own | ({} if teacher else versus) | last
    if task == "binary":
        own = {"binary_accuracy": keras.metrics.BinaryAccuracy(threshold=0.0)}
        return own | ({} if teacher else versus)
    own = {"mse": keras.metrics.MeanSquaredError()}
    return own | ({} if teacher else {"teacher_mse": keras.metrics.MeanSquaredError()})


def _tasks(y: Any, logits: Any, kinds: list[str]) -> dict[str, tuple[str, str]]:
    """Say for each output what its labels make it: (task, activation)."""
    labels, outputs = _by_name(y, logits), _by_name(logits, logits)
    tasks = {}
    for (name, output), kind in zip(outputs.items(), kinds, strict=True):
        label = as_numbers(labels[name])
        integer = np.issubdtype(np.asarray(labels[name]).dtype, np.integer)
        classes = output.shape[-1]
        one_hot = label.shape == tuple(output.shape) and classes > 1
        one_hot = one_hot and bool(np.all(label.sum(-1) == 1) and np.all((label == 0) | (label == 1)))
        zero_or_one = bool(np.all((label == 0) | (label == 1)))
        if classes > 1 and kind != "sigmoid" and (integer or one_hot):
            tasks[name] = ("classification", "softmax")
        elif zero_or_one:
            tasks[name] = ("binary", "sigmoid")
        else:
            tasks[name] = ("regression", "softmax")
    return tasks


def _integer_labels(label: Any, logits: Any) -> Any:
    label = ops.convert_to_tensor(label)
    if tuple(label.shape) == tuple(logits.shape):
        return ops.argmax(label, axis=-1)
    return ops.squeeze(label, -1) if len(label.shape) == len(logits.shape) else label


def _by_name(values: Any, outputs: Any) -> dict[str, Any]:
    """Name the parts of labels or outputs as the outputs are named."""
    if isinstance(outputs, dict):
        if isinstance(values, dict):
            return {key: values[key] for key in outputs}
        return dict(zip(outputs, keras.tree.flatten(values), strict=True))
    if isinstance(outputs, (list, tuple)):
        flat = list(values.values()) if isinstance(values, dict) else keras.tree.flatten(values)
        return {f"output_{index}": part for index, part in enumerate(flat)}
    return {"output": values}


def _batches(data: Any, batch_size: int) -> Iterator[tuple[Any, Any]]:
    dataset = data
    if isinstance(data, (tuple, list)):
        dataset = tf.data.Dataset.from_tensor_slices(tuple(data)).batch(batch_size)
    for batch in dataset:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
        if y is None:
            raise checks.bad_value(
                "Labels are needed to compare.",
                given="batches without labels",
                expected="batches (x, y)",
                fix="give the labelled test data.",
            )
        yield x, y


def _with_raw(answer: Any) -> tuple[Any, list]:
    return answer.outputs, answer.raw


def _cell(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
