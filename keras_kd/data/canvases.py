"""Pictures of several digits on a noisy canvas, made of pictures of single digits.

What is asked of them (a class for each pixel, which digits there are, a box for each) the sources
`multi_digit`, `digit_tags` and `digit_detector` say; the pictures are the same. Every number comes
from raw bits of PCG64, whose stream NumPy keeps for good.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_kd import checks
from keras_kd.data.arrays import whole
from keras_kd.data.splits import Source, Split, draw

SIZE = 32
"""Height and width of a canvas, in pixels."""

CELLS = 4
"""A canvas has 4 x 4 cells of 8 x 8 pixels; the middles of two digits are never in one cell."""

MOST = 4
"""A canvas has one to four digits."""

HEIGHTS = (10, 16)
"""The least and the greatest height of a digit, in pixels."""

INTENSITY = (0.5, 1.0)
"""The least and the greatest share of white that a digit's darkest ink has."""

NOISE = 0.4
"""Each pixel is raised by a number between 0 and this share of white."""

INK = 0.3
"""A pixel belongs to a digit where its ink is more than this share of the digit's darkest."""

COUNTS = {"train": 3000, "validation": 500, "test": 1000}
"""Canvases in each split."""

SEEDS = {"train": 0, "validation": 1, "test": 2}
VALIDATION_SHARE = 0.1
TRIES = 20


@dataclass(frozen=True, eq=False)
class Canvases:
    """Canvases and what is on them; a place that is empty has digit -1 and a box of zeros.

    Args:
        images: uint8, (n, 32, 32).
        maps: int64, (n, 32, 32): 0 for the background, digit + 1 for a pixel of a digit.
        digits: int64, (n, 4): the class of each digit, or -1.
        boxes: int64, (n, 4, 4): top, left, height and width of each digit, in pixels.
    """

    images: np.ndarray
    maps: np.ndarray
    digits: np.ndarray
    boxes: np.ndarray


@dataclass(frozen=True)
class Placed:
    """A digit on a canvas: its number among the pictures, and its box in pixels."""

    picture: int
    top: int
    left: int
    height: int
    width: int

    @property
    def cell(self) -> tuple[int, int]:
        """Give the row and the column of the cell that holds the digit's middle."""
        side = SIZE // CELLS
        return int((self.top + self.height / 2) // side), int((self.left + self.width / 2) // side)

    def is_apart_from(self, other: Placed) -> bool:
        """Say whether the two boxes share no pixel and the two middles no cell."""
        rows = self.top < other.top + other.height and other.top < self.top + self.height
        columns = self.left < other.left + other.width and other.left < self.left + self.width
        return not (rows and columns) and self.cell != other.cell


class Chance:
    """Numbers by chance that depend on nothing but the seeds."""

    def __init__(self, *seeds: int) -> None:
        self._bits = np.random.PCG64(list(seeds))

    def uniform(self, *shape: int) -> np.ndarray:
        """Draw numbers from 0 to 1, without 1."""
        raw = self._bits.random_raw(int(np.prod(shape)))
        return (np.asarray(raw) >> np.uint64(11)).astype(np.float64).reshape(shape) / 2**53

    def integer(self, least: int, most: int) -> int:
        """Draw a whole number from `least` to `most`."""
        return least + int(self.uniform(1)[0] * (most - least + 1))


def source(
    to_split: Callable[[Canvases], Split],
    data: str,
    data_dir: Path | None,
    *,
    label_names: tuple[str, ...],
    classes: int | None = None,
) -> Source:
    """Make canvases, and a source of what is asked of them.

    Args:
        to_split: from canvases to inputs and targets.
        data: name of the data set of single digits; "" for scikit-learn's.
        data_dir: for data named `tfds:...`.
        label_names: names of the classes.
        classes: how many there are, where the targets are class numbers.

    Returns:
        A source with the three splits.
    """
    made = split_canvases(data, data_dir)
    return Source(
        train=to_split(made["train"]),
        validation=to_split(made["validation"]),
        test=to_split(made["test"]),
        classes=classes,
        label_names=label_names,
    )


def split_canvases(data: str, data_dir: Path | None) -> dict[str, Canvases]:
    """Make the canvases of the three splits, of which no two share a picture of a digit.

    Args:
        data: name of the data set of single digits; "" for scikit-learn's.
        data_dir: for data named `tfds:...`.

    Returns:
        "train", "validation" and "test", the same for the same data.

    Raises:
        ValueError: "... holds no pictures of single digits."
    """
    from keras_kd.data.loading import read

    found = read(data or "digits", data_dir=data_dir)
    kept, train = found.validation, found.train
    if kept is None:
        kept, train = draw(train, VALIDATION_SHARE, seed=0, purpose=b"canvases")
    splits = {"train": train, "validation": kept, "test": found.test}
    return {
        name: make(*_pictures(data or "digits", split), COUNTS[name], seed=SEEDS[name])
        for name, split in splits.items()
    }


def make(pictures: np.ndarray, labels: np.ndarray, count: int, *, seed: int) -> Canvases:
    """Make canvases with one to four digits each, which do not overlap, and noise over all.

    Each digit is cut out at its ink, brought to a height of 10 to 16 pixels and an intensity of
    its own, and put where there is room. Canvas number i depends on the seed and i only.

    Args:
        pictures: (n, height, width), bright ink on a dark ground.
        labels: (n,) class numbers from 0 to 9.
        count: how many canvases.
        seed: a whole number >= 0.

    Returns:
        The canvases.

    Raises:
        ValueError: "A picture of a digit is blank."

    Example:
        ```python
        from keras_kd import data
        from keras_kd.data import canvases

        digits = data.load("digits").test
        made = canvases.make(digits.x, digits.y, 5, seed=0)
        assert made.images.shape == made.maps.shape == (5, 32, 32)
        assert (made.digits >= 0).sum(axis=1).min() >= 1
        ```
    """
    whole("count", count, at_least=1)
    whole("seed", seed, at_least=0)
    images = np.zeros((count, SIZE, SIZE), np.uint8)
    maps = np.zeros((count, SIZE, SIZE), np.int64)
    digits = np.full((count, MOST), -1, np.int64)
    boxes = np.zeros((count, MOST, 4), np.int64)
    for index in range(count):
        chance = Chance(seed, index)
        canvas = np.zeros((SIZE, SIZE))
        for place, one in enumerate(_layout(pictures, chance)):
            ink = resize(cut_out(pictures[one.picture]), one.height, one.width)
            where = np.s_[one.top : one.top + one.height, one.left : one.left + one.width]
            low, high = INTENSITY
            canvas[where] = ink * (low + (high - low) * chance.uniform(1)[0])
            maps[index][where][ink > INK] = labels[one.picture] + 1
            digits[index, place] = labels[one.picture]
            boxes[index, place] = one.top, one.left, one.height, one.width
        canvas += NOISE * chance.uniform(SIZE, SIZE)
        images[index] = np.round(255 * np.minimum(canvas, 1.0))
    return Canvases(images, maps, digits, boxes)


def cut_out(picture: np.ndarray) -> np.ndarray:
    """Cut a digit out of its picture, and scale its ink to 1 at its darkest.

    Args:
        picture: (height, width), bright ink on a dark ground.

    Returns:
        The rows and columns that have ink.

    Raises:
        ValueError: "A picture of a digit is blank."
    """
    ink = picture.astype(np.float64) - picture.min()
    if not ink.any():
        raise checks.bad_value(
            "A picture of a digit is blank.",
            given=f"a picture whose pixels are all {picture.flat[0]}",
            expected="bright ink on a dark ground",
            fix="take the blank pictures out of the data set.",
        )
    ink /= ink.max()
    rows, columns = (np.flatnonzero((ink > INK).any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def resize(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a picture linearly in both directions; what shrinks is averaged.

    Args:
        picture: (rows, columns).
        height: the new number of rows.
        width: the new number of columns.

    Returns:
        float64, (height, width).
    """
    rows, columns = picture.shape
    return _interpolation(rows, height) @ picture @ _interpolation(columns, width).T


@functools.cache
def _interpolation(old: int, new: int) -> np.ndarray:
    """Weigh the old pixels for each new one by a triangle around its middle; rows sum to 1."""
    middles = (np.arange(new) + 0.5) * old / new - 0.5
    distance = np.abs(middles[:, None] - np.arange(old)[None, :])
    weights = np.maximum(0.0, 1.0 - distance / max(1.0, old / new))
    return weights / weights.sum(axis=1, keepdims=True)


def _layout(pictures: np.ndarray, chance: Chance) -> list[Placed]:
    """Choose digits, sizes and places; one that finds no room is left out, the first never."""
    placed: list[Placed] = []
    for _ in range(chance.integer(1, MOST)):
        for _ in range(TRIES):
            picture = chance.integer(0, len(pictures) - 1)
            rows, columns = cut_out(pictures[picture]).shape
            height = chance.integer(*HEIGHTS)
            width = min(max(round(height * columns / rows), 3), SIZE // 2)
            top, left = chance.integer(0, SIZE - height), chance.integer(0, SIZE - width)
            one = Placed(picture, top, left, height, width)
            if all(one.is_apart_from(other) for other in placed):
                placed.append(one)
                break
    return placed


def _pictures(name: str, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return the pictures and their classes, or refuse what is not one class from 0 to 9 each."""
    x, y = split.x, split.y
    single = not isinstance(x, dict) and not isinstance(y, dict) and (x.ndim, y.ndim) == (3, 1)
    if not single or not set(np.unique(np.asarray(y))) <= set(range(10)):
        raise checks.bad_value(
            f"{name!r} holds no pictures of single digits.",
            given=repr(split),
            expected="x of shape (n, height, width), y of shape (n,) with classes from 0 to 9",
            fix="name digits, tfds:mnist, npz:FILE or idx:FOLDER with such pictures.",
        )
    return np.asarray(x), np.asarray(y)
