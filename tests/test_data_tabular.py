"""scikit-learn's two tables as data sets: what is in them, and how they are split."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes

from keras_kd import data

COUNTS = {"breast_cancer": (569, 30), "diabetes": (442, 10)}


def all_rows(dataset: data.Dataset) -> np.ndarray:
    splits = (dataset.train, dataset.validation, dataset.test)
    return np.concatenate([np.column_stack([split.x, split.y]) for split in splits])


def in_order(rows: np.ndarray) -> np.ndarray:
    return rows[np.lexsort(rows.T)]


@pytest.mark.parametrize("name", COUNTS)
def test_every_row_of_scikit_learn_is_there_once(name: str) -> None:
    loaded = data.load(name)
    raw = load_breast_cancer() if name == "breast_cancer" else load_diabetes(scaled=False)
    assert raw.data.shape == COUNTS[name]
    theirs = np.column_stack([raw.data.astype("float32"), raw.target.astype("float32")])
    np.testing.assert_array_equal(in_order(all_rows(loaded)), in_order(theirs))
    assert loaded.train.x.dtype == np.float32


@pytest.mark.parametrize("name", COUNTS)
def test_a_fifth_is_the_test_split_for_every_seed(name: str) -> None:
    one, other = data.load(name, seed=0), data.load(name, seed=1, validation=0.3)
    assert len(one.test) == round(0.2 * COUNTS[name][0])
    np.testing.assert_array_equal(one.test.x, other.test.x)
    assert one.fingerprint != other.fingerprint
    tests = {row.tobytes() for row in one.test.x}
    assert not tests & {row.tobytes() for row in (*one.train.x, *one.validation.x)}


def test_a_tumour_is_malignant_or_benign() -> None:
    loaded = data.load("breast_cancer")
    assert (loaded.classes, loaded.label_names) == (2, ("malignant", "benign"))
    assert loaded.train.y.dtype == np.int64
    assert int((all_rows(loaded)[:, -1] == 0).sum()) == 212  # malignant: so UCI's page says


def test_diabetes_comes_in_its_own_units() -> None:
    loaded = data.load("diabetes")
    assert (loaded.classes, loaded.label_names) == (None, None)
    assert loaded.train.y.dtype == np.float32
    rows = all_rows(loaded)
    assert (rows[:, -1].min(), rows[:, -1].max()) == (25, 346)  # scikit-learn's user guide
    assert 18 < rows[:, 0].min() < rows[:, 0].max() < 80  # the ages


def table(train, test=((0.0, 0.0),)) -> data.Dataset:
    def split(rows):
        return data.Split(x=np.array(rows, "float64"), y=np.zeros(len(rows)))

    return data.Dataset("mine", train=split(train), validation=split(train), test=split(test))


def test_standardised_features_have_mean_0_and_spread_1_in_the_training_split() -> None:
    """By hand: 0 and 2000 have mean 1000 and σ 1000; what never changes is only moved to 0."""
    made = table([[0.0, 7.0], [2000.0, 7.0]], test=[[500.0, 8.0]]).standardised()
    np.testing.assert_array_equal(made.train.x, np.float32([[-1, 0], [1, 0]]))
    np.testing.assert_array_equal(made.test.x, np.float32([[-0.5, 1]]))
    assert made.train.x.dtype == "float32"
    assert made.scaling == ((0.001, 1.0), (-1.0, -7.0))
    assert made.map_inputs(lambda x: x).scaling is None, "who knows what the function did"


def test_standardising_twice_says_what_happened_to_the_raw_features() -> None:
    raw = table([[3.0, 50.0], [9.0, 20.0], [4.0, 10.0]], test=[[5.0, 30.0]])
    once = raw.standardised()
    moved = dataclasses.replace(once, train=once.train.select(slice(2))).standardised()
    scale, offset = map(np.array, moved.scaling)
    np.testing.assert_allclose(moved.test.x, raw.test.x * scale + offset, rtol=1e-5, atol=1e-6)


def test_several_inputs_are_not_standardised_at_once() -> None:
    both = {"a": np.ones((3, 2)), "b": np.ones((3, 2))}
    split = data.Split(x=both, y=np.zeros(3))
    with pytest.raises(TypeError, match="`standardised` takes one array of features"):
        data.Dataset("mine", train=split, validation=split, test=split).standardised()
