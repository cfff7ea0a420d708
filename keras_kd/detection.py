"""How good the detections of a network with a class head and a box head are, over a whole split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_kd.outputs import as_numbers

LEAST_SCORE = 0.05
"""Detections that are less sure than this are not counted."""


class MeanAveragePrecision(keras.metrics.Metric):
    """Mean over the classes of average precision: the detector's usual number.

    In each cell the network's best class other than the background is a detection, with that
    class's probability for its score. From the surest on, a detection is right where it overlaps
    the canvas's nearest box of its class enough, and no detection before it took that box. With
    precision(k) the share of right ones among the first k detections of a class:

        average precision = Σ over right detections k of precision(k) / number of boxes

    Boxes found twice count against the network: nothing suppresses them. Call it eagerly, once for
    each batch of a split; it keeps every detection until `result`, and is none for `compile`.

    Args:
        decode: function of the box head's numbers, (n, cells, 4), that gives top, left, height and
            width in pixels, of the same shape.
        overlap: intersection over union from which a box is found, 0 to 1. Defaults to 0.5.
        name: name in the table. Defaults to `"mean_average_precision"`.

    Reference:
        Everingham et al. 2010, "The PASCAL Visual Object Classes Challenge", section 4.2; the area
        is the plain sum, not interpolated.

    Example:
    ```python
    import numpy as np
    from keras_kd.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(decode=lambda boxes: boxes)
    boxes = np.array([[[0.0, 0.0, 8.0, 8.0], [8.0, 0.0, 8.0, 8.0]]])
    logits = np.array([[[0.0, 9.0, 0.0], [9.0, 0.0, 0.0]]])
    metric.update_state({"class": np.array([[1, 0]]), "boxes": boxes},
                        {"class": logits, "boxes": boxes})
    print(metric.result())  # 1.0
    ```
    """

    def __init__(
        self,
        decode: Callable[[np.ndarray], np.ndarray],
        overlap: float = 0.5,
        name: str = "mean_average_precision",
    ) -> None:
        super().__init__(name=name)
        self.decode = decode
        self.overlap = overlap
        self._direction = "up"
        self.reset_state()

    def reset_state(self) -> None:
        """Forget every detection."""
        self._canvases = 0
        self._truths: dict[tuple[int, int], list[np.ndarray]] = {}
        self._found: dict[int, list[tuple[float, int, np.ndarray]]] = {}

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Take a batch in.

        Args:
            y_true: "class" (n, cells), 0 for the background; "boxes" (n, cells, 4).
            y_pred: "class" logits (n, cells, classes); "boxes" (n, cells, 4).
            sample_weight: not used: which cells have boxes is in the classes.
        """
        classes = as_numbers(y_true["class"]).astype(int)
        boxes = self.decode(as_numbers(y_true["boxes"]))
        shares = as_numbers(keras.ops.softmax(as_numbers(y_pred["class"]), axis=-1))[..., 1:]
        guesses = self.decode(as_numbers(y_pred["boxes"]))
        for canvas, cell in zip(*np.nonzero(classes), strict=True):
            key = int(classes[canvas, cell]), self._canvases + int(canvas)
            self._truths.setdefault(key, []).append(boxes[canvas, cell])
        for canvas, cell in zip(*np.nonzero(shares.max(-1) >= LEAST_SCORE), strict=True):
            best = int(shares[canvas, cell].argmax())
            found = float(shares[canvas, cell, best]), self._canvases + int(canvas)
            self._found.setdefault(best + 1, []).append((*found, guesses[canvas, cell]))
        self._canvases += len(classes)

    def result(self) -> float:
        """Return the mean over the classes that have a box."""
        classes = sorted({kind for kind, _ in self._truths})
        return float(np.mean([self._average_precision(kind) for kind in classes] or [0.0]))

    def _average_precision(self, kind: int) -> float:
        truths = {canvas: boxes for (k, canvas), boxes in self._truths.items() if k == kind}
        taken: set[tuple[int, int]] = set()
        right = []
        for _, canvas, box in sorted(self._found.get(kind, []), key=lambda one: -one[0]):
            shared = [intersection_over_union(box, truth) for truth in truths.get(canvas, [])]
            nearest = int(np.argmax(shared)) if shared else -1
            hit = bool(shared) and shared[nearest] >= self.overlap
            right.append(hit and (canvas, nearest) not in taken)
            taken |= {(canvas, nearest)} if hit else set()
        return average_precision(np.array(right, bool), sum(map(len, truths.values())))


def average_precision(right: np.ndarray, boxes: int) -> float:
    """Sum the precision at each right detection, over the number of boxes.

    Args:
        right: whether each detection is right, the surest first, (detections,).
        boxes: how many boxes there are to find.

    Returns:
        From 0 (none is found) to 1 (all are, before any wrong detection).
    """
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    return float((precision * right).sum() / boxes)


def intersection_over_union(one: np.ndarray, other: np.ndarray) -> float:
    """Return the area that two boxes share, over the area that they cover together.

    Args:
        one: top, left, height, width.
        other: likewise.

    Returns:
        From 0 (apart) to 1 (equal).
    """
    low = np.maximum(one[:2], other[:2])
    high = np.minimum(one[:2] + one[2:], other[:2] + other[2:])
    shared = float(np.prod(np.maximum(0.0, high - low)))
    return shared / float(np.prod(one[2:]) + np.prod(other[2:]) - shared)
