"""The structure of a model's inputs and outputs, as named tensors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from keras_kd import checks

if TYPE_CHECKING:
    import keras
    import numpy as np


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One input: its clean name, the key it has in the caller's data, its shape and type."""

    name: str
    key: str
    shape: tuple[int | None, ...]
    dtype: str


def leaves(structure: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple, Any]]:
    """Yield (path, leaf) of nested dicts, lists and tuples, in the order they were made in."""
    if isinstance(structure, Mapping):
        for key, value in structure.items():
            yield from leaves(value, (*path, str(key)))
    elif isinstance(structure, list | tuple):
        for index, value in enumerate(structure):
            yield from leaves(value, (*path, index))
    else:
        yield path, structure


def is_functional(model: keras.Model) -> bool:
    """Say whether the model's inputs and outputs are known from its graph of layers."""
    from keras.src.models.functional import Functional  # Keras has no public name for it

    return isinstance(model, Functional)


def input_template(model: keras.Model, x: Any) -> Any:
    """Lay out the inputs in the structure that the model is called with, a `Tensor` a leaf."""
    import keras

    if isinstance(model, keras.Sequential):
        structure = model.inputs[0]
    else:
        structure = model.input if is_functional(model) else x
    found = list(leaves(structure))
    chosen = [_chosen_input(getattr(leaf, "name", "")) for _, leaf in found]
    names = _names([path for path, _ in found], chosen, "input")
    made = iter(zip(names, found, strict=True))

    def build(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {key: build(value) for key, value in part.items()}
        if isinstance(part, list | tuple):
            return [build(value) for value in part]
        name, (path, leaf) = next(made)
        key = str(path[-1]) if path and isinstance(path[-1], str) else getattr(leaf, "name", name)
        dtype = keras.backend.standardize_dtype(leaf.dtype)
        dtype = "float32" if "float" in dtype else dtype
        return Tensor(name, key, (None, *leaf.shape[1:]), dtype)

    return build(structure)


def output_keys(model: keras.Model, outputs: Any) -> dict[str, str]:
    """Map the clean name of every output to the key that labels have in the caller's data."""
    import keras

    paths = [path for path, _ in leaves(outputs)]
    chosen: list[str | None] = [None] * len(paths)
    own: list[str] = []
    if isinstance(model, keras.Sequential):
        chosen = [_chosen_output(model.layers[-1].name, type(model.layers[-1]).__name__)]
    elif is_functional(model):
        classes = {operation.name: type(operation).__name__ for operation in model.operations}
        own = list(model.output_names)
        chosen = [_chosen_output(name, classes.get(name, "")) for name in own]
    names = _names(paths, chosen, "output")
    keys = ["_".join(map(str, path)) for path in paths]
    if own and not isinstance(outputs, Mapping):
        keys = own
    return dict(zip(names, keys, strict=True))


def _chosen_input(name: str) -> str | None:
    return None if re.fullmatch(r"(input_layer|keras_tensor)?(_\d+)?", name) else name


def _chosen_output(name: str, class_name: str) -> str | None:
    snake = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", class_name)
    snake = re.sub(r"([a-z])([A-Z])", r"\1_\2", snake).lower()
    return None if re.sub(r"_\d+$", "", name) == snake else name


def _names(paths: list[tuple], chosen: list[str | None], fallback: str) -> list[str]:
    names: list[str] = []
    for index, (path, own) in enumerate(zip(paths, chosen, strict=True)):
        if any(isinstance(part, str) for part in path):
            name = "_".join(str(part) for part in path)
        else:
            name = own or (fallback if len(paths) == 1 else f"{fallback}_{index}")
        name = re.sub(r"\W", "_", name, flags=re.ASCII)
        name = name if name[:1].isalpha() else f"{fallback}_{name}"
        while name in names:
            name = f"{name}_{index}"
        names.append(name)
    return names


def match(template: Any, x: Any) -> list[tuple[Tensor, Any]] | None:
    """Pair every input with its values, or return `None` where the structures differ."""
    if isinstance(template, Tensor):
        if isinstance(x, Mapping):
            return [(template, x[template.key])] if template.key in x else None
        if isinstance(x, list | tuple):
            return [(template, x[0])] if len(x) == 1 else None
        return [(template, x)]
    if isinstance(x, Mapping):
        flat = not isinstance(template, Mapping)
        parts = [(t.key, t) for _, t in leaves(template)] if flat else list(template.items())
        pairs = [(part, x[key]) for key, part in parts if key in x]
        if len(pairs) != len(parts):
            return None
    elif isinstance(x, list | tuple) and not isinstance(template, Mapping):
        if len(x) != len(template):
            return None
        pairs = list(zip(template, x, strict=True))
    else:
        return None
    found = [match(part, value) for part, value in pairs]
    return (
        None if any(part is None for part in found) else [p for part in found for p in part or ()]
    )


def fitted(tensor: Tensor, value: Any, whose: str) -> np.ndarray:
    """Give an array the input's type, and its rank where Keras would too (a last axis of 1)."""
    import numpy as np

    array = np.asarray(value)
    shape = array.shape
    if array.ndim == len(tensor.shape) - 1 and tensor.shape[-1] == 1:
        array = array[..., None]
    elif array.ndim == len(tensor.shape) + 1 and array.shape[-1] == 1:
        array = array[..., 0]
    fits = array.ndim == len(tensor.shape) and all(
        want in (None, have) for want, have in zip(tensor.shape, array.shape, strict=True)
    )
    if not fits:
        raise checks.bad_value(
            f"The {whose} does not fit the input {tensor.key!r}.",
            given=f"shape {shape}",
            expected=f"shape {tensor.shape}, the batch first",
            fix="batch the data (`dataset.batch(32)`) and prepare it as for `student.predict`.",
        )
    return array.astype(tensor.dtype)


def sums_to_one(values: Any) -> bool:
    """Say whether the last axis of an output holds probabilities, by its values."""
    import numpy as np

    array = np.asarray(values)
    if array.ndim < 2 or array.shape[-1] < 2 or array.dtype.kind != "f" or not array.size:
        return False
    return bool((array >= 0).all() and (np.abs(array.sum(-1, dtype="float64") - 1) < 1e-3).all())


def describe(x: Any) -> str:
    """Name the parts of a structure and their shapes, for an error."""
    parts = ((path, getattr(leaf, "shape", type(leaf).__name__)) for path, leaf in leaves(x))
    return ", ".join(
        f"{'/'.join(map(str, path)) or 'one tensor'}: {shape}" for path, shape in parts
    )
