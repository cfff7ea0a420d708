"""What the tests of soft targets share: small data, stores as bytes, rows as values."""

from __future__ import annotations

import pathlib
from typing import Any

import keras
import numpy as np

from keras_kd.soft_targets import SoftTargets


def inputs(count: int = 50, width: int = 4) -> np.ndarray:
    """Numbers of which no two rows are the same, from -1 to 1."""
    numbers = np.arange(count * width, dtype="float32").reshape(count, width)
    return np.sin(numbers * 1.7)


def model(width: int = 4, classes: int = 3, activation: str | None = None) -> keras.Model:
    layers = [
        keras.Input((width,)),
        keras.layers.Dense(5, activation="tanh", name="hidden"),
        keras.layers.Dense(classes, activation=activation, name="top"),
    ]
    return keras.Sequential(layers)


def build(teacher: Any, data: Any, directory: pathlib.Path, **kwargs: Any) -> SoftTargets:
    """Build with small batches, in silence, in float32."""
    settings = {"batch_size": 8, "verbose": 0, "dtype": "float32"} | kwargs
    return SoftTargets.build(teacher, data, directory, **settings)


def values(soft: SoftTargets) -> dict[str, Any]:
    """All the rows as the arrays they hold."""
    return soft.store.layout.teacher_of(soft.store.rows(np.arange(len(soft))))


def contents(directory: pathlib.Path) -> dict[str, bytes]:
    """Every file of a folder, by its name."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}
