"""One to four digits on a noisy canvas of 32x32, with a class for each pixel (generated)."""

from __future__ import annotations

from pathlib import Path

from keras_kd.data.canvases import Canvases, source
from keras_kd.data.splits import Source, Split

USAGE = "multi_digit[:DATA]"
EXAMPLE = "multi_digit:tfds:mnist"
USES_DATA_DIR = True

NAMES = ("background", *"0123456789")


def read(argument: str, data_dir: Path | None) -> Source:
    """Make the canvases; y is a map (32, 32) of 0 for the background and digit + 1."""
    return source(_split, argument, data_dir, label_names=NAMES, classes=len(NAMES))


def _split(made: Canvases) -> Split:
    return Split(x=made.images, y=made.maps)
