"""Models with several outputs: what belongs to which output, in lists and dicts."""

from __future__ import annotations

import numbers
from typing import Any

import keras
import numpy as np

from keras_kd import checks


def as_arrays(given: Any) -> Any:
    """Turn nested lists of numbers into arrays; other lists and dicts stay structures."""
    if isinstance(given, dict):
        return {key: as_arrays(value) for key, value in given.items()}
    if not isinstance(given, (list, tuple)):
        return given
    if given and all(isinstance(leaf, numbers.Number) for leaf in keras.tree.flatten(given)):
        return np.asarray(given)
    return [as_arrays(part) for part in given]


def per_leaf(what: str, given: Any, outputs: Any, else_whole: bool = False) -> list[Any]:
    """Line up a single thing, or a structure of things, with the flat outputs."""
    structure = (list, tuple, dict)
    keys, parts = keys_of(outputs), None
    if not isinstance(outputs, structure):
        if len(flat := keras.tree.flatten(given)) == 1:
            return flat
    elif not isinstance(given, structure):
        parts = dict.fromkeys(keys, given)
    elif isinstance(given, dict) and isinstance(outputs, dict):
        parts = given if set(given) <= set(keys) else None
    elif len(given) == len(keys) and not isinstance(given, dict):
        parts = dict(zip(keys, given, strict=True))
    if parts is not None:
        pairs = [(parts.get(key), outputs[key]) for key in keys]
        return [leaf for pair in pairs for leaf in per_leaf(what, *pair, else_whole)]
    if else_whole:
        return [given] * len(keras.tree.flatten(outputs))
    raise checks.bad_value(
        f"`{what}` does not have the structure of the outputs.",
        given=f"{what} {outline(given)} for outputs {outline(outputs)}",
        expected="one for all outputs, or a list or dict as the model's outputs are",
        fix=f"give `{what}` one entry for each output (None leaves one out).",
    )


def keys_of(outputs: Any) -> list:
    """Return the keys or positions in the order in which `keras.tree` flattens them."""
    if isinstance(outputs, dict):
        return keras.tree.flatten({key: key for key in outputs})
    return list(range(len(outputs))) if isinstance(outputs, (list, tuple)) else []


def outline(structure: Any) -> str:
    """Name the parts of a structure, for an error."""
    if isinstance(structure, (list, tuple, dict)):
        return f"{type(structure).__name__} ({', '.join(map(str, keys_of(structure)))})"
    return "one tensor"


def shapes_of(outputs: Any) -> Any:
    """Return the shape of each part of a structure."""
    return keras.tree.map_structure(lambda leaf: tuple(leaf.shape), outputs)


def alike(teacher: Any, student: Any) -> bool:
    """Say whether two shapes (or structures of shapes) agree, where sizes are known."""
    if isinstance(teacher, dict) and isinstance(student, dict):
        return set(teacher) == set(student) and all(alike(teacher[k], student[k]) for k in teacher)
    if not isinstance(teacher, (list, tuple)) or not isinstance(student, (list, tuple)):
        return teacher is None or student is None or teacher == student
    return len(teacher) == len(student) and all(map(alike, teacher, student))
