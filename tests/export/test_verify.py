"""The measures, against small cases worked out by hand."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd.export import base, verify
from keras_kd.export.examples import Examples

X = np.arange(12, dtype="float32").reshape(6, 2)


def _student(outputs=1):
    inputs = keras.Input((2,), name="x")
    made = [keras.layers.Identity(name=f"out{i}")(inputs) for i in range(outputs)]
    return base.Student(keras.Model(inputs, made[0] if outputs == 1 else made), X)


def _measure(ours, theirs, y=None, weight=None, span=None):
    """Run `compare` on answers that are given instead of computed."""
    ours, theirs = np.asarray(ours, "float32"), np.asarray(theirs, "float32")
    data = tuple(part for part in (np.zeros((len(ours), 2)), y, weight) if part is not None)
    report = verify.compare(
        lambda arrays: {"out0": ours}, lambda arrays: {"out0": theirs}, _student(),
        Examples(data), spans={"out0": span or {}},
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
    assert found["metric"] == {
        "name": "accuracy", "better": "higher", "file": 0.5, "keras": 0.75,
    }  # fmt: skip


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
    assert found["metric"] == {
        "name": "accuracy", "better": "higher", "file": 0.5, "keras": 1.0,
    }  # fmt: skip


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
    assert found["metric"]["better"] == "lower"
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


# int8, steps of 0.5 around 10: from (−128 − 10) · 0.5 = −69 to (127 − 10) · 0.5 = 58.5
INT8 = {"dtype": "int8", "scale": 0.5, "zero_point": 10}


def test_differences_are_counted_in_steps_and_told_from_saturation():
    theirs = [[0.0, 58.7], [60.0, -69.2], [-80.0, 1.0]]
    ours = [[0.5, 58.5], [58.5, -69.0], [-69.0, 1.25]]
    found = _measure(ours, theirs, span=INT8)
    # 58.7 and −69.2 round to the ends; 60 and −80 lie beyond them
    assert found["saturation"] == {"share": pytest.approx(2 / 6), "max_difference": 11.0}
    assert found["rounding"]["max"] == 0.5
    assert found["rounding"]["mean"] == pytest.approx((0.5 + 0.2 + 0.2 + 0.25) / 4, abs=1e-6)
    assert found["steps"]["max"] == 1.0
    assert found["steps"]["mean"] == pytest.approx(found["rounding"]["mean"] / 0.5)
    assert found["max_difference"] == 11.0


def test_a_value_half_a_step_beyond_the_end_is_not_yet_out_of_range():
    for value, share in ((58.75, 0.0), (58.76, 0.5), (-69.25, 0.0), (-69.26, 0.5)):
        theirs = [[value], [0.0]]
        found = _measure([[min(max(value, -69), 58.5)], [0.0]], theirs, span=INT8)
        assert found["saturation"]["share"] == share, value


def test_unsigned_and_16_bit_outputs_have_ranges_of_their_own():
    uint8 = {"dtype": "uint8", "scale": 1.0, "zero_point": 0}
    found = _measure([[0.0, 255.0]], [[-1.0, 254.0]], span=uint8)
    assert found["saturation"]["share"] == 0.5
    int16 = {"dtype": "int16", "scale": 0.001, "zero_point": 0}
    found = _measure([[32.767, 0.01]], [[40.0, 0.0]], span=int16)
    assert found["saturation"]["share"] == 0.5
    assert found["steps"]["max"] == pytest.approx(10)


def test_float_outputs_have_no_steps_and_only_round():
    found = _measure([[1.0, 0.5]], [[1.0, 0.0]])
    assert found["steps"] is None
    assert found["saturation"] is None
    assert found["rounding"] == {"max": 0.5, "mean": 0.25}


def test_all_values_out_of_range_leave_no_rounding():
    found = _measure([[58.5]], [[100.0]], span=INT8)
    assert found["saturation"]["share"] == 1.0
    assert found["steps"] == {"max": 0.0, "mean": 0.0}


def test_observers_see_every_batch_with_both_answers():
    class Sees:
        batches = ()

        def add(self, inputs, file, keras, y, weight):
            self.batches += ((inputs["x"].shape, file["out0"], keras["out0"], y, weight),)

    sees, ours, theirs = Sees(), np.ones((2, 3)), np.zeros((2, 3))
    verify.compare(
        lambda arrays: {"out0": ours}, lambda arrays: {"out0": theirs}, _student(),
        [(np.zeros((2, 2)), "labels", Y[:2])], observers=[sees],
    )  # fmt: skip
    ((shape, file, reference, y, weight),) = sees.batches
    assert (shape, y) == ((2, 2), "labels")
    assert file is ours
    assert reference is theirs
    np.testing.assert_array_equal(weight, Y[:2])


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
        batches = list(Examples(data, limit))
        np.testing.assert_array_equal(np.concatenate([x for x, _, _ in batches]), X[:limit])
        np.testing.assert_array_equal(np.concatenate([y for _, y, _ in batches]), Y[:limit])


def test_examples_without_labels_and_with_several_inputs():
    (x, y, weight), = Examples({"a": X, "b": X})  # fmt: skip
    assert sorted(x) == ["a", "b"]
    assert y is None
    assert weight is None
    (x, y, _), = Examples([X, X])  # fmt: skip
    assert isinstance(x, list)
    assert y is None


def test_an_endless_pydataset_is_refused():
    class Endless(Batches):
        @property
        def num_batches(self):
            return None

    with pytest.raises(ValueError, match="never ends"):
        Examples(Endless())
