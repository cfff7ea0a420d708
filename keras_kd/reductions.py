"""From the values of examples to one number: sample weights, Keras masks, the mean."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_kd import checks

Tensor = Any


def as_float32(values: Any) -> Tensor:
    """Convert arrays and tensors of any float type to a float32 tensor."""
    return ops.cast(ops.convert_to_tensor(values), "float32")


def mask_of(tensor: Any) -> Tensor | None:
    """Return the Keras mask that travels with a tensor, or `None`."""
    return getattr(tensor, "_keras_mask", None)


def with_mask(tensor: Any, mask: Tensor | None) -> Any:
    """Attach a Keras mask to a tensor that a layer has made anew."""
    if mask is not None and mask_of(tensor) is None:
        tensor._keras_mask = mask
    return tensor


def weighted_mean(values: Tensor, sample_weight: Any = None, mask: Any = None) -> Tensor:
    """Reduce per-example values to Σ w·m·ℓ / Σ m, as Keras does.

    Args:
        values: `(batch, …)` losses, or a scalar that is passed through.
        sample_weight: leading axes of `values` (a trailing axis of 1 is dropped), or `None`.
        mask: boolean, leading axes of `values`, or `None`.
    """
    if len(values.shape) == 0:
        if sample_weight is None:
            return values
        raise checks.bad_value(
            "A loss that returns one number for the batch cannot honour a sample_weight.",
            given="a scalar and a sample_weight",
            expected="one value for each example",
            fix="return per-example values, or leave out sample_weight and class_weight.",
        )
    if mask is None:
        count = ops.cast(ops.size(values), "float32")
    else:
        real = broadcast("mask", ops.cast(mask, "bool"), values)
        values = ops.where(real, values, ops.zeros_like(values))
        count = ops.sum(ops.cast(real, "float32"))
    if sample_weight is not None:
        values = values * broadcast("sample_weight", as_float32(sample_weight), values)
    return ops.sum(values) * ops.divide_no_nan(1.0, count)  # no slope by the count is computed


def broadcast(what: str, weight: Tensor, values: Tensor) -> Tensor:
    """Spread weights or a mask of the leading axes over all of the values, or refuse them."""
    shape, target = tuple(weight.shape), tuple(values.shape)
    if len(shape) > 1 and shape[-1] == 1:
        weight, shape = ops.squeeze(weight, -1), shape[:-1]
    fits = len(shape) <= len(target) and all(
        None in pair or pair[0] == pair[1] for pair in zip(shape, target, strict=False)
    )
    if not fits:
        raise checks.bad_value(
            f"A {what} of shape {shape} does not fit losses of shape {target}.",
            given=f"{what} {shape}",
            expected=f"{target[:1]}, or more of the leading axes of {target}",
            fix="pass one weight for each example, or one for each position.",
        )
    for _ in range(len(target) - len(shape)):
        weight = ops.expand_dims(weight, -1)
    return ops.broadcast_to(weight, ops.shape(values))


def present(values: Tensor, sample_weight: Any = None, mask: Any = None) -> Tensor:
    """Say which values count: those that are not masked and whose weight is not 0.

    Args:
        values: a tensor of the shape of the losses.
        sample_weight: leading axes of `values`, or more axes than it has, or `None`.
        mask: the same.

    Returns:
        Boolean, of the shape of `values`. With more axes than `values` has, what counts anywhere
        along them counts.
    """
    counts = ops.ones_like(values, dtype="bool")
    for what, part in (("mask", mask), ("sample_weight", sample_weight)):
        if part is not None:
            part = ops.not_equal(as_float32(part), 0.0)
            counts = ops.logical_and(counts, broadcast(what, fold(part, len(values.shape)), values))
    return counts


def fold(real: Tensor, rank: int) -> Tensor:
    """Fold a boolean's last axes until it has the rank: True where any along them is."""
    axes = tuple(range(rank, len(real.shape)))
    return ops.any(real, axis=axes) if axes else real


def blank(tensor: Tensor, mask: Any) -> Tensor:
    """Put zeros at padded positions, so that what stands there has no gradient, NaN or not."""
    real = broadcast("mask", ops.cast(mask, "bool"), tensor)
    return ops.where(real, tensor, ops.zeros_like(tensor))


def blank_labels(y: Any, mask: Any) -> Any:
    """Put zeros at the labels of padded positions, where there are labels of each position."""
    if y is None or len(ops.shape(y)) < len(mask.shape):
        return y
    y = ops.convert_to_tensor(y)
    return blank(y, mask) if tuple(y.shape)[: len(mask.shape)] == tuple(mask.shape) else y
