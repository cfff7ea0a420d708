"""Mean average precision, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from keras_kd import detection
from keras_kd.detection import MeanAveragePrecision


def same(boxes):
    return boxes


def test_average_precision_is_that_of_scikit_learn_where_every_box_is_found() -> None:
    right = np.random.default_rng(0).random(40) < 0.6
    expected = average_precision_score(right, -np.arange(40))
    assert detection.average_precision(right, int(right.sum())) == pytest.approx(expected)
    assert detection.average_precision(right, 2 * int(right.sum())) == pytest.approx(expected / 2)
    assert detection.average_precision(np.zeros(0, bool), 3) == 0.0


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ([0, 0, 4, 6], 1.0),
        ([2, 3, 4, 6], 6 / (24 + 24 - 6)),
        ([4, 0, 4, 6], 0.0),
        ([0, 6, 4, 6], 0.0),
        ([9, 9, 1, 1], 0.0),
        ([1, 1, 2, 2], 4 / 24),
    ],
)
def test_intersection_over_union(other: list, expected: float) -> None:
    one = np.array([0.0, 0.0, 4.0, 6.0])
    assert detection.intersection_over_union(one, np.array(other, float)) == pytest.approx(expected)
    assert detection.intersection_over_union(np.array(other, float), one) == pytest.approx(expected)


def logits(rows: list[tuple[int, float]], classes: int = 3) -> np.ndarray:
    """Make a canvas's logits of which each cell's named class has the given probability."""
    shares = np.zeros((len(rows), classes))
    for row, (best, share) in enumerate(rows):
        shares[row] = (1 - share) / (classes - 1)
        shares[row, best] = share
    return np.log(shares)[None]


def measured(truth: list[int], rows: list, boxes: np.ndarray, guesses: np.ndarray) -> float:
    metric = MeanAveragePrecision(same)
    y = {"class": np.array([truth]), "boxes": boxes[None]}
    metric.update_state(y, {"class": logits(rows), "boxes": guesses[None]}, {"boxes": None})
    return metric.result()


BOXES = np.array([[0.0, 0, 8, 8], [0, 8, 8, 8], [8, 0, 8, 8], [8, 8, 8, 8]])


def test_boxes_that_are_all_found_first_give_one() -> None:
    rows = [(1, 0.9), (2, 0.8), (0, 0.99), (0, 0.99)]
    assert measured([1, 2, 0, 0], rows, BOXES, BOXES) == pytest.approx(1.0)


def test_a_wrong_class_a_box_found_twice_and_a_box_beside_count_against_it() -> None:
    rows = [(1, 0.9), (1, 0.8), (0, 0.99), (0, 0.99)]
    assert measured([1, 2, 0, 0], rows, BOXES, BOXES) == pytest.approx((1 + 0) / 2)
    twice = BOXES.copy()
    twice[1] = BOXES[0]
    first_right = measured([1, 0, 1, 0], [(1, 0.9), (1, 0.8), (1, 0.7), (0, 0.99)], BOXES, twice)
    assert first_right == pytest.approx((1 + 2 / 3) / 2)
    half = BOXES.copy()
    half[0, 0] += 8 / 3 - 0.01  # the boxes share two thirds of each: half of their union
    assert measured([1, 0, 0, 0], [(1, 0.9)] + [(0, 0.99)] * 3, BOXES, half) == 1.0
    half[0, 0] += 0.02
    assert measured([1, 0, 0, 0], [(1, 0.9)] + [(0, 0.99)] * 3, BOXES, half) == 0.0


def test_unsure_detections_are_not_counted_and_canvases_stay_apart() -> None:
    metric = MeanAveragePrecision(same)
    for truth in ([1, 0, 0, 0], [0, 0, 0, 0]):
        y = {"class": np.array([truth]), "boxes": BOXES[None]}
        rows = [(1, 0.8), (0, 0.92), (0, 0.92), (0, 0.92)]
        metric.update_state(y, {"class": logits(rows), "boxes": BOXES[None]})
    assert metric.result() == pytest.approx(1.0)
    y = {"class": np.array([[1, 0, 0, 0]]), "boxes": BOXES[None]}
    rows = [(1, 0.7), (0, 0.88), (0, 0.92), (0, 0.92)]
    metric.update_state(y, {"class": logits(rows), "boxes": BOXES[None]})
    assert metric.result() == pytest.approx((1 + 2 / 3) / 2)
    metric.reset_state()
    assert metric.result() == 0.0


def test_classes_that_no_canvas_has_are_left_out() -> None:
    rows = [(2, 0.9), (0, 0.99), (0, 0.99), (0, 0.99)]
    assert measured([2, 0, 0, 0], rows, BOXES, BOXES) == pytest.approx(1.0)


def test_defaults() -> None:
    metric = MeanAveragePrecision(same)
    assert (metric.overlap, metric.name) == (0.5, "mean_average_precision")
    assert detection.LEAST_SCORE == 0.05
