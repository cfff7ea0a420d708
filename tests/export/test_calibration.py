"""Which examples ranges are taken from, how many there must be, and what they cover."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd.export import base

L = keras.layers
X = np.arange(1000, dtype="float32")[:, None] * np.ones(3, "float32")


@pytest.fixture(scope="module")
def student():
    inputs = keras.Input((3,), name="x")
    return base.Student(keras.Model(inputs, {"twice": inputs * 2.0, "first": inputs[:, :1]}), X)


class Batches(keras.utils.PyDataset):
    end = 100

    def __len__(self):
        return self.end

    def __getitem__(self, index):
        return X[10 * index : 10 * index + 10], np.zeros(10)


class Endless(Batches):
    @property
    def num_batches(self):
        return None

    def __getitem__(self, index):
        return super().__getitem__(index % 100)


def _firsts(calibration):
    return [float(example["x"][0, 0]) for example in calibration.examples]


@pytest.mark.parametrize(
    "data",
    [X, (X, np.zeros(1000)), tf.constant(X), {"x": X}],
    ids=["x", "x and y", "tensor", "dict"],
)
def test_of_arrays_every_nth_example_is_taken(student, data):
    found = base.Calibration(student, data, 300)
    assert _firsts(found) == [float(i * 1000 // 300) for i in range(300)]
    assert (found.count, found.out_of, found.warning) == (300, 1000, None)
    assert {example["x"].shape for example in found.examples} == {(1, 3)}


@pytest.mark.parametrize("data", [tf.data.Dataset.from_tensor_slices(X).batch(7), Batches()])
def test_of_batches_examples_lie_all_over_the_data(student, data):
    values = np.array(_firsts(base.Calibration(student, data, 120)))
    assert len(values) == 120
    assert values[0] == 0
    assert values[-1] > 980
    gaps = np.diff(values)
    assert (gaps > 0).all()
    assert gaps.max() <= 2 * gaps.min()


def test_an_endless_stream_is_looked_at_for_a_while(student, monkeypatch):
    from keras_kd.export import base_calibration

    monkeypatch.setattr(base_calibration, "LOOK", 500)
    found = base.Calibration(student, Endless(1), 100)
    assert (found.count, found.out_of) == (100, 500)


def test_all_are_taken_where_there_are_fewer(student):
    found = base.Calibration(student, X[:150])
    assert _firsts(found) == list(range(150))
    assert "calibrated with 150 examples; in a trial 1, 10, 100 and 300" in found.warning


def test_too_few_are_refused_unless_so_few_were_asked_for(student):
    words = r"(?s)too few to calibrate with.*given:    3 examples.*100 or more.*_examples=3\."
    with pytest.raises(ValueError, match=words):
        base.Calibration(student, X[:3])
    with pytest.raises(ValueError, match=r"(?s)given:    99 examples.*expected: 100 or more"):
        base.Calibration(student, X[:99], 150)
    with pytest.raises(ValueError, match=r"(?s)given:    0 examples.*expected: 3 or more"):
        base.Calibration(student, X[:0], 3)
    asked = base.Calibration(student, X[:3], 3)
    assert asked.count == 3
    assert "calibrated with 3 examples; in a trial" in asked.warning
    assert base.Calibration(student, X[:100], 300).count == 100


@pytest.mark.parametrize(
    ("data", "examples", "error", "words"),
    [
        ("mnist", 300, TypeError, "`representative_data` is of a type that cannot be read"),
        (X[:, :2], 300, ValueError, "representative data does not fit the input 'x'"),
        ({"y": X}, 300, ValueError, "representative data does not have the inputs of the student"),
        (X, 0, ValueError, "`calibration_examples` must be a whole number of 1 or more"),
        (X, 2.5, ValueError, "`calibration_examples` must be a whole number of 1 or more"),
    ],
)
def test_refused_in_three_parts(student, data, examples, error, words):
    with pytest.raises(error, match=words) as refused:
        base.Calibration(student, data, examples)
    assert "fix:" in str(refused.value)


def test_coverage_tells_ranges_and_how_they_grew(student):
    data = np.zeros((200, 3), "float32")
    data[::2] = np.linspace(-1, 1, 100)[:, None]
    data[1] = 3.0  # every other example, counted from the first, never sees it
    told = base.Calibration(student, data, 200).coverage()
    assert (told["examples"], told["out_of"]) == (200, 200)
    assert told["inputs"]["x"] == {"min": -1.0, "max": 3.0, "grew": 0.5}
    assert told["outputs"]["twice"] == {"min": -2.0, "max": 6.0, "grew": 0.5}
    assert told["outputs"]["first"] == told["inputs"]["x"]
    assert "calibrated with 200 examples" in told["warning"]
    assert "warning" not in base.Calibration(student, X).coverage()


def test_an_input_that_never_varies_has_grown_nothing(student):
    told = base.Calibration(student, np.ones((300, 3))).coverage()
    assert told["inputs"]["x"] == {"min": 1.0, "max": 1.0, "grew": 0.0}


def test_features_that_one_scale_loses_are_counted(student):
    rng = np.random.default_rng(0)
    wide = rng.uniform(0, 255, size=(300, 1))
    data = np.concatenate([wide, wide / 255 * 7.9, np.full((300, 1), 5.0)], axis=1)
    data[:2, 0], data[:2, 1] = (0, 255), (0, 7.9)
    found = base.Calibration(student, data)  # 7.9 of 255 steps; what is constant is not lost
    assert found.narrow("x") == (1, 3)
    assert "1 of 3 features of the input 'x' span less than 8 of 255 steps" in found.warning
    data[1, 1] = 8.1
    assert base.Calibration(student, data).narrow("x") == (0, 3)


def test_token_ids_are_never_lost():
    inputs = keras.Input((4,), dtype="int32", name="ids")
    student = base.Student(keras.Model(inputs, L.Embedding(900, 2)(inputs)), np.zeros((1, 4)))
    ids = np.ones((300, 4)) * [0, 0, 0, 800] * np.arange(300)[:, None] / 300
    assert base.Calibration(student, ids).warning is None


def test_examples_keep_sizes_of_their_own():
    inputs = keras.Input((None, 2), name="steps")
    student = base.Student(keras.Model(inputs, inputs * 1.0), np.zeros((1, 3, 2)))
    batches = [np.full((4, size, 2), size) for size in (3, 5, 9)] * 10
    data = tf.data.Dataset.from_generator(
        lambda: iter(batches), output_signature=tf.TensorSpec((None, None, 2))
    )
    found = base.Calibration(student, data, 120)
    assert {example["steps"].shape for example in found.examples} == {
        (1, 3, 2), (1, 5, 2), (1, 9, 2)
    }  # fmt: skip
    assert found.narrow("steps") == (0, 2)
    assert found.coverage()["outputs"]["output"] == {"min": 3.0, "max": 9.0, "grew": 0.0}
