"""One to four digits on a noisy canvas of 32x32, with the digits that are there (generated)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from keras_kd.data.canvases import Canvases, source
from keras_kd.data.splits import Source, Split

USAGE = "digit_tags[:DATA]"
EXAMPLE = "digit_tags:tfds:mnist"
USES_DATA_DIR = True


def read(argument: str, data_dir: Path | None) -> Source:
    """Make the canvases; y is ten numbers, 1 for each digit that is there at least once, else 0."""
    return source(_split, argument, data_dir, label_names=tuple("0123456789"))


def _split(made: Canvases) -> Split:
    there = (made.digits[:, :, None] == np.arange(10)).any(axis=1)
    return Split(x=made.images, y=there)
