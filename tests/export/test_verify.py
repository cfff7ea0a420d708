"""The measures, against small cases worked out by hand."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd.export import base, verify

X = np.arange(12, dtype="float32").reshape(6, 2)


def _student(outputs=1):
    inputs = keras.Input((2,), name="x")
    made = [keras.layers.Identity(name=f"out{i}")(inputs) for i in range(outputs)]
    return base.Student(keras.Model(inputs, made[0] if outputs == 1 else made), X)


def _measure(ours, theirs, y=None, weight=None):
    """Run `compare` on answers that are given instead of computed."""
    ours, theirs = np.asarray(ours, "float32"), np.asarray(theirs, "float32")
    data = tuple(part for part in (np.zeros((len(ours), 2)), y, weight) if part is not None)
    report = verify.compare(
        lambda arrays: {"out0": ours}, lambda arrays: {"out0": theirs}, _student(),
        verify.Examples(data),
    )  # fmt: skip
    assert report["examples"] == len(ours)
    return report["outputs"]["out0"]


def test_difference_scale_and_agreement():
    theirs = [[1.0, 0.0, -4.0], [0.0, 2.0, 0.0], [3.0, 2.0, 1.0], [0.0, 0.0, 1.0]]
    ours = [[1.0, 0.5, -4.0], [0.0, 2.0, 0.0], [2.0, 2.5, 1.0], [0.0, 0.0, 1.0]]
    found = _measure(ours, theirs, np.array([0, 1, 0, 0]))
    assert found["max_difference"] == 1.0
    assert found["largest_output"] == 4.0
    assert found["relative_difference"] == 0.25
    assert found["agreement"] == 0.75
    assert found["ties"] == 0
    assert found["metric"] == {"name": "accuracy", "file": 0.5, "keras": 0.75}


def test_a_tie_in_the_student_may_fall_either_way():
    found = _measure([[1.0, 1.0000001], [0.0, 1.0]], [[1.0, 1.0], [0.0, 1.0]])
    assert found["agreement"] == 1.0
    assert found["ties"] == 1
    assert found["metric"] is None


@pytest.mark.parametrize(
    "labels",
    [
        np.array([0, 1]),
        np.array([[0], [1]]),
        np.array([0.0, 1.0], "float32"),
        np.array([[1, 0, 0], [0, 1, 0]]),
    ],
)
def test_labels_as_ids_and_as_one_hot_give_accuracy(labels):
    found = _measure([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0]], [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]], labels)
    assert found["metric"] == {"name": "accuracy", "file": 0.5, "keras": 1.0}


def test_binary_logits_are_cut_at_0_and_probabilities_at_one_half():
    y = np.array([0, 1, 1])
    found = _measure([[-3.0], [0.2], [-0.1]], [[-3.0], [0.2], [0.1]], y)
    assert found["metric"]["name"] == "binary_accuracy (threshold 0)"
    assert found["metric"]["file"] == pytest.approx(2 / 3)
    assert found["metric"]["keras"] == 1.0
    assert found["agreement"] == pytest.approx(2 / 3)
    found = _measure([[0.1], [0.7], [0.4]], [[0.1], [0.7], [0.6]], y)
    assert found["metric"]["name"] == "binary_accuracy (threshold 0.5)"
    assert found["metric"]["file"] == pytest.approx(2 / 3)


def test_several_labels_an_example_are_binary_and_other_targets_give_the_absolute_error():
    theirs = [[3.0, 2.0, -1.0], [1.0, -1.0, -2.0]]
    ours = [[3.0, -2.0, -1.0], [1.0, -1.0, -2.0]]
    found = _measure(ours, theirs, np.array([[1, 1, 0], [1, 0, 0]]))
    assert found["metric"]["file"] == pytest.approx(5 / 6)
    assert found["metric"]["keras"] == 1.0
    found = _measure(ours, theirs, np.array([[3.0, 1.5, -1.0], [1.0, -1.0, -2.0]]))
    assert found["metric"]["name"] == "mean_absolute_error"
    assert found["metric"]["file"] == pytest.approx(3.5 / 6)
    assert found["metric"]["keras"] == pytest.approx(0.5 / 6)
    assert found["agreement"] is None


def test_sample_weights_weigh_the_metric():
    theirs = [[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]]
    y = np.array([[0, 0], [1, 1]])
    weight = np.array([[1.0, 0.0], [1.0, 2.0]])
    assert _measure(theirs, theirs, y, weight)["metric"]["keras"] == pytest.approx(2 / 4)
    by_example = np.array([3.0, 1.0])
    assert _measure(theirs, theirs, y, by_example)["metric"]["keras"] == pytest.approx(0.5)


def test_labels_of_another_shape_or_type_give_no_metric():
    answers = [[1.0, 0.0], [0.0, 1.0]]
    assert _measure(answers, answers, np.zeros((2, 5)))["metric"] is None
    assert _measure(answers, answers, np.array(["a", "b"]))["metric"] is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused_and_the_example_is_named(bad):
    good = [[1.0, 0.0], [0.0, 1.0]]
    with pytest.raises(ValueError, match=r"(?s)The file answers NaN or infinity.*of example 1"):
        _measure([[1.0, 0.0], [0.0, bad]], good)
    with pytest.raises(ValueError, match=r"(?s)The student answers NaN or infinity.*of example 0"):
        _measure(good, [[bad, 0.0], [0.0, 1.0]])


def test_outputs_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="outputs of other names or shapes"):
        _measure([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def test_the_bound_follows_the_scale_of_the_outputs():
    tolerance = base.Tolerance(max_difference=0.01, agreement=0.5)
    for scale in (1e-3, 1.0, 1e3):
        theirs = np.array([[1.0, 0.0], [0.0, 0.5]]) * scale
        for part, refused in ((0.009, False), (0.011, True)):
            report = {"examples": 2, "outputs": {"out0": _measure(theirs + part * scale, theirs)}}
            if refused:
                with pytest.raises(ValueError, match="It does not answer as the student does"):
                    verify.judge(report, tolerance, what="It", fix="none")
            else:
                verify.judge(report, tolerance, what="It", fix="none")


def test_labels_of_several_outputs_go_by_place_and_by_name():
    student = _student(outputs=2)
    first, second = np.zeros(6), np.ones(6)
    assert student.part((first, second), "out1") is second
    assert student.part({"out1": second, "out0": first}, "out0") is first
    assert student.part({"out1": second}, "out0") is None
    assert student.part(first, "out0") is None
    assert student.part(first, "out1", shared=True) is first


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return X[2 * index : 2 * index + 2], np.arange(2 * index, 2 * index + 2)


Y = np.arange(6)


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        (tf.constant(X), tf.constant(Y)),
        tf.data.Dataset.from_tensor_slices((X, Y)).batch(4),
        tf.data.Dataset.from_tensor_slices((X, Y)).repeat().batch(4),
        Batches(),
    ],
    ids=["arrays", "tensors", "dataset", "endless", "pydataset"],
)
def test_examples_come_in_order_and_stop_at_the_limit(data):
    for limit in (1, 4, 5):
        batches = list(verify.Examples(data, limit))
        np.testing.assert_array_equal(np.concatenate([x for x, _, _ in batches]), X[:limit])
        np.testing.assert_array_equal(np.concatenate([y for _, y, _ in batches]), Y[:limit])


def test_examples_without_labels_and_with_several_inputs():
    (x, y, weight), = verify.Examples({"a": X, "b": X})  # fmt: skip
    assert sorted(x) == ["a", "b"]
    assert y is None
    assert weight is None
    (x, y, _), = verify.Examples([X, X])  # fmt: skip
    assert isinstance(x, list)
    assert y is None


def test_an_endless_pydataset_is_refused():
    class Endless(Batches):
        @property
        def num_batches(self):
            return None

    with pytest.raises(ValueError, match="never ends"):
        verify.Examples(Endless())
