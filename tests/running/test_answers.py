"""What a person's outputs and labels are taken for: by the labels and the last activation."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_kd.data import Split
from keras_kd.running import answers

THREE = np.zeros((2, 3), "float32")
ONE = np.zeros((2, 1), "float32")
NUMBERS = np.array([0, 2])
ONE_HOT = np.eye(3)[:2]
LABELS = np.array([[1, 1, 0], [0, 0, 0]])


def asked(outputs, labels):
    return answers.understand("teacher", {"": outputs}, labels)[""]


@pytest.mark.parametrize(
    ("outputs", "labels", "task"),
    [
        (THREE, NUMBERS, "classes"),
        (THREE[None], NUMBERS[None], "classes"),
        (THREE, NUMBERS[:, None], "classes"),
        (THREE, ONE_HOT, "one_hot"),
        (THREE, ONE_HOT * 0.9 + 0.1 / 3, "one_hot"),
        (THREE, LABELS, "binary"),
        (ONE, np.array([0, 1]), "binary"),
        (ONE, np.array([0, 1, 1, 0]), "binary"),  # the outputs are of the first examples only
        (ONE, np.array([0.3, 1.7, 0.1]), "values"),
        (THREE, np.array([[0.5, 1.5, 2.5], [3.5, 4.5, 5.5]]), "values"),
    ],
)
def test_the_labels_say_what_is_asked(outputs, labels, task):
    assert asked(outputs, labels) == task


def test_labels_that_the_outputs_cannot_answer_are_refused():
    with pytest.raises(ValueError, match="The labels reach further than the teacher's classes"):
        asked(THREE, np.array([0, 3]))
    with pytest.raises(ValueError, match="The teacher's output does not fit the labels"):
        asked(THREE, np.zeros((2, 5)))
    with pytest.raises(ValueError, match="The labels have other names than the student's outputs"):
        answers.understand("student", {"a": THREE}, {"b": np.array([0, 1])})


class Own(keras.Model):
    """A subclassed model, whose last activation cannot be read from its graph."""

    def __init__(self, units, activation=None, last=None, **kwargs):
        super().__init__()
        self.answer = keras.layers.Dense(units, activation=activation, **kwargs)
        self.last = last or (lambda z: z)

    def call(self, x):
        return self.last(self.answer(x))


def dense(units, activation=None, **kwargs):
    layers = [keras.layers.Dense(8), keras.layers.Dense(units, activation=activation, **kwargs)]
    return keras.Sequential([keras.Input((4,)), *layers])


def own_sigmoid(z):
    return 1.0 / (1.0 + keras.ops.exp(-z))


def own_softmax(z):
    return keras.ops.exp(z) / keras.ops.sum(keras.ops.exp(z), -1, keepdims=True)


ZEROS = {"kernel_initializer": "zeros"}
THIRDS = {**ZEROS, "bias_initializer": keras.initializers.Constant(1 / 3)}


def seen(make, labels, rng):
    x = rng.normal(size=(len(labels), 4)).astype("float32")
    found, _ = answers.look("student", make(), Split(x, labels))
    return found[""]


@pytest.mark.parametrize(
    ("make", "task", "logits"),
    [
        (lambda: dense(1, **ZEROS), "binary", True),
        (lambda: dense(1, "sigmoid", **ZEROS), "binary", False),
        (lambda: Own(1, **ZEROS), "binary", True),
        (lambda: Own(1, "sigmoid"), "binary", False),
        (lambda: dense(3, **ZEROS), "classes", True),
        (lambda: dense(3, **THIRDS), "classes", True),
        (lambda: dense(3, "softmax"), "classes", False),
        (lambda: Own(3), "classes", True),
        (lambda: Own(3, last=own_softmax), "classes", False),
        (lambda: dense(3), "one_hot", True),
        (lambda: dense(3, "softmax"), "one_hot", False),
        (lambda: dense(3), "labels", True),
        (lambda: dense(3, "sigmoid"), "labels", False),
        (lambda: dense(1), "values", True),
        (lambda: dense(1, "sigmoid"), "values", False),
        (lambda: Own(1, last=own_sigmoid), "values", True),  # nothing hangs on it for values
    ],
)
def test_the_last_activation_says_which_space(make, task, logits, rng):
    numbers = np.arange(24) % 3
    labels = {
        "binary": numbers % 2,
        "classes": numbers,
        "one_hot": np.eye(3)[numbers],
        "labels": np.ones((24, 3)),
        "values": rng.uniform(size=(24, 1)),
    }[task]
    assert seen(make, labels, rng) == answers.Output("binary" if task == "labels" else task, logits)


def test_sigmoids_of_one_hot_labels_are_labels_of_their_own(rng):
    assert seen(lambda: dense(3, "sigmoid"), np.eye(3), rng) == answers.Output("binary", False)


def test_what_is_ambiguous_or_contradicts_itself_is_refused(rng):
    numbers = np.arange(24) % 2
    with pytest.raises(ValueError, match=r"student 'own\S*' may be prob[\s\S]*fix: +end the stud"):
        seen(lambda: Own(1, last=own_sigmoid), numbers, rng)
    with pytest.raises(ValueError, match=r"The student ends in a sigmoid, and[\s\S]*fix"):
        seen(lambda: dense(3, "sigmoid"), numbers, rng)
    with pytest.raises(ValueError, match=r"The student ends in a softmax, and[\s\S]*fix"):
        seen(lambda: dense(3, "softmax"), np.ones((24, 3)), rng)


def test_each_of_several_outputs_is_read_by_itself(rng):
    inputs = keras.Input((4,))
    made = {
        "size": keras.layers.Dense(1, activation="sigmoid", name="size")(inputs),
        "kind": keras.layers.Dense(3, activation="softmax", name="kind")(inputs),
        "flag": keras.layers.Dense(1, name="flag", **ZEROS)(inputs),
    }
    x = rng.normal(size=(24, 4)).astype("float32")
    numbers = np.arange(24) % 3
    labels = {"flag": numbers % 2, "kind": numbers, "size": rng.uniform(size=(24, 1))}
    expected = {
        "flag": answers.Output("binary", True),
        "kind": answers.Output("classes", False),
        "size": answers.Output("values", False),
    }
    for outputs in (made, list(made.values())):
        found, structure = answers.look("student", keras.Model(inputs, outputs), Split(x, labels))
        assert found == expected
        nested = answers.nested({name: name for name in found}, structure)
        flat = ["size", "kind", "flag"] if isinstance(outputs, list) else {n: n for n in made}
        assert nested == flat
