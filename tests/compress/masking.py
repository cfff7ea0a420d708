"""How tests see what pruning removed: by the values of filters, and weights set to zero by hand."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from keras_kd.compress.pruning.pruning import prune_channels

READS = {  # the weight by which a layer reads, and its axis
    "Dense": ("kernel", 0),
    "Conv1D": ("kernel", -2),
    "Conv2D": ("kernel", -2),
    "Conv3D": ("kernel", -2),
    "Conv2DTranspose": ("kernel", -1),
    "Conv1DTranspose": ("kernel", -1),
    "SeparableConv2D": ("depthwise_kernel", -2),
    "SeparableConv1D": ("depthwise_kernel", -2),
    "GRU": ("cell.kernel", 0),
    "LSTM": ("cell.kernel", 0),
}
MAKES = {  # the weight by which a layer makes its channels, and its axis
    **dict.fromkeys(("Dense", "Conv1D", "Conv2D", "Conv3D"), ("kernel", -1)),
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose"), ("kernel", -2)),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), ("pointwise_kernel", -1)),
    "Embedding": ("embeddings", -1),
}


def find(model: keras.Model, path: str) -> keras.layers.Layer:
    for name in path.split("/"):
        wrapped = isinstance(model, keras.layers.Bidirectional)
        model = getattr(model, name) if wrapped else model.get_layer(name)
    return model


def weight(layer, attribute: str):
    for part in attribute.split("."):
        layer = getattr(layer, part)
    return layer


def randomise(model: keras.Model, seed: int = 3) -> keras.Model:
    """Give every weight values of its own, so that no channel is like another, or idle."""
    rng = np.random.default_rng(seed)
    scaling = [part for part in model.layers if isinstance(part, keras.layers.Normalization)]
    fixed = {id(variable) for part in scaling for variable in part.weights}  # as adapted
    for variable in model.weights:
        shape = tuple(variable.shape)
        if id(variable) in fixed:
            continue
        value = rng.normal(size=shape) / np.sqrt(max(1, np.prod(shape[:-1]) / 2))
        if len(shape) <= 1:
            value = rng.uniform(0.3, 1.0, size=shape)
        variable.assign(value.astype("float32"))
    return model


def filters(model: keras.Model, path: str) -> np.ndarray:
    """Return the filters of a layer, one a row."""
    layer = find(model, path)
    name, axis = MAKES[type(layer).__name__]
    kernel = np.moveaxis(np.asarray(weight(layer, name)), axis, 0)
    return kernel.reshape(len(kernel), -1)


def left(before: keras.Model, after: keras.Model, path: str) -> np.ndarray:
    """Find the filters that are left again: all of their numbers stand in one of the original."""
    old, new = filters(before, path), filters(after, path)
    rows: dict[float, list[int]] = {}
    for row, numbers in enumerate(old.tolist()):
        for number in numbers:
            rows.setdefault(number, []).append(row)
    found = []
    for numbers in new:
        matches = [row for row in rows[float(numbers[0])] if np.isin(numbers[:64], old[row]).all()]
        assert len(matches) == 1, f"{path}: a filter of nobody"
        found += matches
    return np.array(found)


def places(before: keras.Model, after: keras.Model, parts: Sequence) -> np.ndarray:
    """Say for each channel that a layer reads whether it is left.

    A part is a layer that makes channels, (layer, n) where each of its channels comes n times, or
    a number of channels that nobody may remove.
    """
    flags = []
    for part in parts:
        path, times = part if isinstance(part, tuple) else (part, 1)
        if isinstance(path, int):
            flags.append(np.ones(path, bool))
            continue
        kept = np.zeros(len(filters(before, path)), bool)
        kept[left(before, after, path)] = True
        assert 0 < kept.sum() < len(kept), f"{path}: nothing was removed, or all"
        flags.append(np.repeat(kept, times))
    return np.concatenate(flags)


def masked(before: keras.Model, after: keras.Model, original: keras.Model, reads: dict) -> None:
    """Set to zero in the original what reads the channels that are gone."""
    for path, given in reads.items():
        parts, positions = given if isinstance(given, tuple) else (given, 1)
        layer = find(original, path)
        name, axis = READS[type(layer).__name__]
        variable = weight(layer, name)
        kept = np.tile(places(before, after, parts), positions)
        assert len(kept) == variable.shape[axis], f"{path}: the table of this test is wrong"
        value = np.moveaxis(np.array(variable), axis, 0)
        value[~kept] = 0
        variable.assign(np.moveaxis(value, 0, axis))


def batch(model: keras.Model, count: int = 3) -> object:
    rng = np.random.default_rng(5)

    def one(tensor):
        shape = (count, *(size or 6 for size in tensor.shape[1:]))
        if "int" in tensor.dtype:
            return rng.integers(0, 5, shape)
        return rng.normal(size=shape).astype("float32")

    return keras.tree.map_structure(one, getattr(model, "_functional", model)._inputs_struct)


def check(build, reads: dict, **how) -> tuple[keras.Model, keras.Model]:
    """Prune, and compare with the masked original; return both."""
    before, original = build(), build()
    randomise(before)
    original.set_weights(before.get_weights())
    how = how or {"keep": 0.5}
    after = prune_channels(before, importance="magnitude", **how)
    assert isinstance(after, keras.Model) and after.count_params() < before.count_params()
    masked(before, after, original, reads)
    x = batch(before)
    wanted, given, whole = (m(x, training=False) for m in (original, after, before))
    keras.tree.assert_same_structure(given, whole)
    for left_out, one, all_of_it in zip(
        *map(keras.tree.flatten, (wanted, given, whole)), strict=True
    ):
        largest = float(np.abs(left_out).max())
        np.testing.assert_allclose(one, left_out, rtol=0, atol=1e-5 * largest)
        assert np.abs(np.asarray(all_of_it) - one).max() > 1e-3 * largest, "nothing has changed"
    return before, after
