"""Weights and masks that meet losses: what fits, what counts, and the mean."""

from __future__ import annotations

import numpy as np
import pytest

from keras_kd import reductions

VALUES = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], "float32")


@pytest.mark.parametrize(
    "weight", [[1.0, 3.0], [[1.0], [3.0]], [[1.0] * 3, [3.0] * 3]], ids=["(2,)", "(2, 1)", "(2, 3)"]
)
def test_weights_of_the_leading_axes_spread_over_the_others(weight):
    expected = [[1.0] * 3, [3.0] * 3]
    spread = reductions.broadcast("sample_weight", np.array(weight, "float32"), VALUES)
    np.testing.assert_array_equal(spread, expected)
    mean = np.sum(VALUES * np.array(expected)) / 6
    assert float(reductions.weighted_mean(VALUES, weight)) == pytest.approx(mean)


def test_an_axis_of_one_stays_beside_an_axis_of_one():
    weight = np.array([[[2.0]], [[4.0]]], "float32")
    spread = reductions.broadcast("sample_weight", weight, VALUES[:, None, :])
    np.testing.assert_array_equal(spread, [[[2.0] * 3], [[4.0] * 3]])


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1)], ids=str)
def test_weights_of_positions_spread_over_what_a_position_has(shape):
    weight = np.arange(6, dtype="float32").reshape(shape)
    spread = reductions.broadcast("sample_weight", weight, np.zeros((2, 3, 4), "float32"))
    np.testing.assert_array_equal(spread, np.repeat(weight.reshape(2, 3, 1), 4, axis=2))


def test_weights_that_do_not_fit_say_what_would():
    words = r"A mask of shape \(4,\)[\s\S]*\(2,\), or more of the leading axes of \(2, 3\)"
    with pytest.raises(ValueError, match=words):
        reductions.broadcast("mask", np.ones(4, "float32"), VALUES)


def test_any_weight_but_zero_counts():
    values = np.zeros(4, "float32")
    weight = np.array([0.1, 0.0, -1.0, 1e-30], "float32")
    np.testing.assert_array_equal(reductions.present(values, weight), [True, False, True, True])


def test_a_mask_leaves_its_places_out_of_the_mean():
    mask = np.array([[True, True, False], [True, False, False]])
    assert float(reductions.weighted_mean(VALUES, None, mask)) == pytest.approx((1 + 2 + 4) / 3)
    assert float(reductions.weighted_mean(VALUES, None, mask & False)) == 0.0


def test_one_number_cannot_be_weighted():
    assert float(reductions.weighted_mean(np.float32(2.0))) == 2.0
    with pytest.raises(ValueError, match="one number for the batch cannot honour a sample_weight"):
        reductions.weighted_mean(np.float32(2.0), [1.0])


def test_folding_a_boolean_asks_for_any():
    real = np.array([[[True, False], [False, False]], [[False, False], [False, False]]])
    np.testing.assert_array_equal(reductions.fold(real, 2), [[True, False], [False, False]])
    np.testing.assert_array_equal(reductions.fold(real, 1), [True, False])
    np.testing.assert_array_equal(reductions.fold(real, 3), real)
