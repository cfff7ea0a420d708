"""scikit-learn's two tables as data sets: what is in them, and how they are split."""

from __future__ import annotations

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
