"""Task metrics: fed with the file's answers, beside the teacher's, and what is kept of them."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_kd.export import base, scoring, verify

X = np.arange(8, dtype="float32").reshape(4, 2)
L = keras.layers


def _student(outputs=None):
    inputs = keras.Input((2,), name="x")
    made = outputs(inputs) if outputs else L.Identity(name="out")(inputs)
    return base.Student(keras.Model(inputs, made), X)


class Seen(keras.metrics.Metric):
    """Keeps what it was shown."""

    shown: tuple = ()

    def update_state(self, y, outputs, sample_weight=None):
        Seen.shown += ((y, outputs, sample_weight),)

    def result(self):
        return 1.0


def test_metrics_count_file_and_keras_apart_and_are_left_reset():
    mine = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    counted = scoring.Metrics([mine, keras.metrics.SparseCategoricalCrossentropy()], _student(), X)
    y = np.array([1, 1, 0, 0])
    keras_answers = np.eye(2)[[1, 1, 0, 0]]
    file = np.eye(2)[[1, 0, 1, 1]]
    mine.update_state(y, file)
    counted.add({}, {"out": file}, {"out": keras_answers}, y, None)
    accuracy, error = counted.results()
    assert accuracy == {"name": "accuracy", "better": "higher", "file": 0.25, "keras": 1.0}
    assert (error["name"], error["better"]) == ("sparse_categorical_crossentropy", "lower")
    assert error["keras"] < 1e-5 < 10 < error["file"]  # −log 1, and −log of Keras's 1e-7
    assert float(mine.result()) == 0.0


def test_metrics_see_labels_and_outputs_in_the_structure_of_the_model():
    Seen.shown = ()
    student = _student(lambda x: {"b": L.Identity(name="one")(x), "a": L.Identity(name="two")(x)})
    counted = scoring.Metrics([seen := Seen(name="seen")], student, X)
    answers = {"b": np.ones((4, 2)), "a": np.zeros((4, 2))}
    labels = {"a": np.zeros(4), "b": np.ones(4)}
    counted.add({}, answers, answers, labels, "weights")
    (told,) = counted.results()
    assert (told["name"], told["better"]) == (seen.name, None)
    y, outputs, weight = Seen.shown[0]
    assert list(outputs) == ["b", "a"]
    assert outputs["b"] is answers["b"]
    assert (y, weight) == (labels, "weights")


def test_lists_of_outputs_and_single_units_are_shown_as_in_fit():
    Seen.shown = ()
    listed = _student(lambda x: [L.Identity(name="one")(x), L.Identity(name="two")(x)])
    answers = {name: np.ones((4, 2)) for name in listed.output_names}
    counted = scoring.Metrics([Seen(name="seen")], listed, X)
    counted.add({}, answers, answers, [1, 2], None)
    counted.results()
    assert isinstance(Seen.shown[0][1], list)
    unit = _student(lambda x: L.Dense(1, name="unit")(x))
    one = {"unit": np.ones((4, 1))}
    counted = scoring.Metrics([Seen(name="seen")], unit, X)
    counted.add({}, one, one, np.zeros(4), None)
    counted.results()
    assert Seen.shown[-1][0].shape == (4, 1)


def test_without_labels_or_metrics_nothing_is_counted():
    Seen.shown = ()
    counted = scoring.Metrics([Seen(name="seen")], _student(), X)
    counted.add({}, {"out": X}, {"out": X}, None, None)
    assert counted.results() == []
    assert Seen.shown == ()
    assert scoring.Metrics(None, _student(), X).results() == []


@pytest.mark.parametrize(
    ("metrics", "error", "words"),
    [
        ("accuracy", TypeError, "`metrics` must be a list of keras.metrics objects"),
        (["accuracy"], TypeError, "`metrics` must be a list of keras.metrics objects"),
        ([Seen(name="a"), Seen(name="a")], ValueError, "Two metrics have the name 'a'"),
    ],
    ids=["string", "strings", "names"],
)
def test_what_is_no_metric_is_refused(metrics, error, words):
    with pytest.raises(error, match=words):
        scoring.Metrics(metrics, _student(), X)


def test_the_caller_s_metrics_count_in_the_place_of_the_outputs_own():
    own = {"name": "accuracy", "better": "higher", "file": 0.5, "keras": 0.75}
    report = {"outputs": {"a": {"metric": own}, "b": {"metric": None}}}
    numbers = {"better": "higher", "file": 0.5, "keras": 0.75}
    assert scoring.metrics_of(report, []) == {"a/accuracy": numbers}
    assert scoring.metrics_of({"outputs": {"a": {"metric": own}}}, []) == {"accuracy": numbers}
    given = {"name": "f1", "better": "lower", "file": 1.0, "keras": 2.0}
    assert list(scoring.metrics_of(report, [given])) == ["f1"]


def test_retention_against_student_and_teacher():
    metrics = {
        "accuracy": {"better": "higher", "file": 0.5, "keras": 0.625},
        "boxes/mean_absolute_error": {"better": "lower", "file": 4.0, "keras": 2.0},
        "binary_accuracy (threshold 0)": {"better": "higher", "file": 0.5, "keras": 0.0},
        "odd": {"better": None, "file": 1.0, "keras": 2.0},
    }
    teacher = {"accuracy": 1.0, "mean_absolute_error": 1.0, "binary_accuracy": 0.75, "other": 3}
    found = scoring.with_teacher(metrics, teacher)
    assert found["accuracy"]["retention"] == {"keras": 0.8, "teacher": 0.5}
    assert found["accuracy"]["teacher"] == 1.0
    assert found["boxes/mean_absolute_error"]["retention"] == {"keras": 0.5, "teacher": 0.25}
    binary = found["binary_accuracy (threshold 0)"]
    assert binary["retention"] == {"keras": None, "teacher": pytest.approx(2 / 3)}
    assert found["odd"]["retention"] == {"keras": None}
    assert found["odd"]["teacher"] is None
    assert scoring.with_teacher(metrics, None)["accuracy"]["retention"] == {"keras": 0.8}


def _asked(teacher, student, y):
    view = scoring.TeacherView(base.Student(teacher, X), student)
    report = verify.compare(view.run, view.run, view, [(X, y, None)], who="The teacher")
    return report["outputs"]


def test_a_teacher_answers_on_the_students_data_under_the_students_names():
    student = _student()
    teacher = keras.Sequential([keras.Input((2,)), L.Rescaling(-1.0)])
    found = _asked(teacher, student, np.array([1, 1, 0, 1]))
    assert found["out"]["metric"]["file"] == 0.25  # x rises, so −x is largest at 0


def test_outputs_of_a_teacher_go_by_name_else_by_place():
    names = {"one": 1.0, "two": -1.0}

    def heads(order):
        return lambda x: {name: L.Rescaling(names[name], name=name)(x) for name in order}

    student = _student(heads(["one", "two"]))
    y = {"one": np.ones(4, int), "two": np.ones(4, int)}
    teacher = keras.Model(inputs := keras.Input((2,)), heads(["two", "one"])(inputs))
    found = _asked(teacher, student, y)
    assert (found["one"]["metric"]["file"], found["two"]["metric"]["file"]) == (1.0, 0.0)
    listed = [L.Rescaling(1.0)(inputs), L.Rescaling(-1.0)(inputs)]
    found = _asked(keras.Model(inputs, listed), student, y)
    assert (found["one"]["metric"]["file"], found["two"]["metric"]["file"]) == (1.0, 0.0)


def test_a_teacher_of_other_outputs_is_refused():
    inputs = keras.Input((2,))
    teacher = keras.Model(inputs, [L.Dense(2, name="a")(inputs), L.Dense(2, name="b")(inputs)])
    with pytest.raises(ValueError, match=r"(?s)has other outputs than the student.*a, b.*out"):
        scoring.TeacherView(base.Student(teacher, X), _student())


@pytest.mark.parametrize("teacher", ["teacher.keras", 0.93, {1: 0.5}], ids=["file", "value", "key"])
def test_what_is_no_teacher_is_refused(teacher):
    with pytest.raises(TypeError, match=r"`teacher` must be a keras.Model or a dict"):
        scoring.check_teacher(teacher)


def test_measures_of_a_teacher_are_numbers():
    scoring.check_teacher({"accuracy": 0.5, "parameters": 10})
    with pytest.raises(TypeError, match="`accuracy` must be a number"):
        scoring.check_teacher({"accuracy": "high"})


def test_a_fingerprint_is_of_the_weights():
    first, second = (keras.Sequential([keras.Input((2,)), L.Dense(2)]) for _ in range(2))
    assert scoring.fingerprint(first) != scoring.fingerprint(second)
    second.set_weights(first.get_weights())
    assert scoring.fingerprint(first) == scoring.fingerprint(second)
