"""One to four digits on a noisy canvas of 32x32, with a class and a box in 16 cells (generated).

The canvas is divided into 4x4 cells of 8x8 pixels. The cell that holds the middle of a digit is
matched with it; its box is encoded as in SSD (Liu et al. 2016): the middle's distance from the
cell's, in cells and divided by 0.1, and the logarithm of height and width in cells, divided by 0.2.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from keras_kd.data.canvases import CELLS, SIZE, Canvases, source
from keras_kd.data.splits import Source, Split

USAGE = "digit_detector[:DATA]"
EXAMPLE = "digit_detector:tfds:mnist"
USES_DATA_DIR = True

SIDE = SIZE / CELLS
MIDDLE_UNIT = 0.1
SIZE_UNIT = 0.2


def read(argument: str, data_dir: Path | None) -> Source:
    """Make the canvases; the weights of the boxes are 1 in the matched cells and 0 elsewhere.

    y["class"] is (16,): 0 for the background, digit + 1 for a matched cell. y["boxes"] is (16, 4),
    zeros in the cells that are not matched.
    """
    return source(_split, argument, data_dir, label_names=("background", *"0123456789"))


def encode(boxes: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Turn boxes into the numbers that a network learns.

    Args:
        boxes: top, left, height and width in pixels, (..., 4).
        cells: the number of each box's cell, row by row, (...).

    Returns:
        float32, (..., 4): the middle's place down and across, and height and width.
    """
    middle = (boxes[..., :2] + boxes[..., 2:] / 2) / SIDE - _middles(cells)
    extent = np.log(boxes[..., 2:] / SIDE)
    return np.concatenate([middle / MIDDLE_UNIT, extent / SIZE_UNIT], axis=-1).astype(np.float32)


def decode(encoded: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Turn a network's numbers back into boxes: top, left, height and width in pixels.

    Args:
        encoded: (..., 4), as `encode` gives them.
        cells: the number of each box's cell, (...).

    Returns:
        (..., 4) in pixels.
    """
    extent = np.exp(encoded[..., 2:] * SIZE_UNIT) * SIDE
    middle = (encoded[..., :2] * MIDDLE_UNIT + _middles(cells)) * SIDE
    return np.concatenate([middle - extent / 2, extent], axis=-1)


def _middles(cells: np.ndarray) -> np.ndarray:
    """Give the middles of the cells, in cells."""
    return np.stack([cells // CELLS, cells % CELLS], axis=-1) + 0.5


def _split(made: Canvases) -> Split:
    canvas, place = np.nonzero(made.digits >= 0)
    boxes = made.boxes[canvas, place]
    rows, columns = ((boxes[:, :2] + boxes[:, 2:] / 2) // SIDE).astype(int).T
    cell = rows * CELLS + columns
    classes = np.zeros((len(made.images), CELLS * CELLS), np.int64)
    classes[canvas, cell] = made.digits[canvas, place] + 1
    targets = np.zeros((*classes.shape, 4), np.float32)
    targets[canvas, cell] = encode(boxes, cell)
    weights = {"class": np.ones(classes.shape), "boxes": classes > 0}
    return Split(x=made.images, y={"class": classes, "boxes": targets}, weights=weights)
