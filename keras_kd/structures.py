"""Several outputs or layers of a model: what belongs to which, in lists and dicts."""

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


def leaves_like(student: Any, teacher: Any, who: str) -> list[Any]:
    """Return the teacher's outputs in the student's order, or refuse another structure."""
    leaves = keras.tree.flatten(teacher)
    renamed = (
        isinstance(teacher, dict) and isinstance(student, dict) and set(teacher) ^ set(student)
    )
    if renamed or len(leaves) != len(keras.tree.flatten(student)):
        raise checks.bad_value(
            f"{who} got different outputs from the two models.",
            given=f"teacher {outline(teacher)}, student {outline(student)}",
            expected="the same structure",
            fix="name one layer of each with teacher_layer_name= and student_layer_name=.",
        )
    return leaves


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


def layer_names(argument: str, names: Any) -> Any:
    """Return a layer's path, a list of them or `None`, or refuse what is none of these."""
    if names is None or isinstance(names, str):
        return names
    if isinstance(names, (list, tuple)) and names and all(isinstance(n, str) for n in names):
        return list(names)
    raise checks.bad_type(
        f"`{argument}` must be a layer's name or path.",
        given=f"{names!r} ({type(names).__name__})",
        expected='a string such as "backbone/block3/relu", a list of them, or None for the '
        "model's output",
        fix=f'pass the name, for example {argument}="dense_1".',
    )


def refuse_unpaired(teacher: Any, student: Any) -> None:
    """Refuse more layers of one model than of the other."""
    counts = [len(side) if isinstance(side, list) else 1 for side in (teacher, student)]
    if counts[0] != counts[1]:
        raise checks.bad_value(
            "The layers of teacher and student do not pair up.",
            given=f"teacher_layer_name={teacher!r}, student_layer_name={student!r}",
            expected="as many layers of the one as of the other",
            fix="name a student's layer for each of the teacher's.",
        )
