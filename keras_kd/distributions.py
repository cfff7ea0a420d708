"""Distributions in log space: what the losses on logits are made of, exact in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from keras import ops

from keras_kd import checks

Tensor = Any
ACTIVATIONS = ("softmax", "sigmoid")


def log_probabilities(logits: Tensor, activation: str = "softmax") -> tuple[Tensor, ...]:
    """Return log softmax, or for sigmoid the pair log σ(z), log(1 − σ(z)) of every label."""
    if activation == "softmax":
        return (ops.log_softmax(logits, axis=-1),)
    return ops.log_sigmoid(logits), ops.log_sigmoid(-logits)


def relative_entropy(log_p: Tensor, log_q: Tensor, axis: int = -1) -> Tensor:
    """Return Σ p·(log p − log q), exact to float32 also where p and q nearly agree.

    Σ q − Σ p, which is 0, is added. Each summand is then p·(eᵘ − 1 − u) with u = log q − log p: of
    second order in u, so the rounding of a logarithm, which T² would magnify, cancels. Its slopes,
    −p·u by log p and q − p by log q, are written out.
    """

    @tf.custom_gradient
    def divergence(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Callable]:
        p, q = ops.exp(log_p), ops.exp(log_q)

        def slopes(upstream: Tensor) -> tuple[Tensor, Tensor]:
            upstream = ops.expand_dims(upstream, axis)
            return p * (log_p - log_q) * upstream, (q - p) * upstream

        return ops.sum(surprise(p, q, log_q - log_p), axis=axis), slopes

    return divergence(log_p, log_q)


def surprise(p: Tensor, q: Tensor, u: Tensor) -> Tensor:
    """Return q − p − p·u with u = log q − log p, exact to float32 also where u is near 0."""
    small = ops.minimum(u, 1.0)  # guard: eᵘ must not overflow where the other form is taken
    near = u < 1.0  # guard: both forms are exact around here
    return ops.where(near, p * ops.expm1(small), q - p) - p * u


def softened_divergence(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Any, activation: str = "softmax"
) -> Tensor:
    """Return T²·KL(t‖s) of distributions softened by T, of shape `logits.shape[:-1]`."""
    pairs = zip(
        log_probabilities(teacher_logits / temperature, activation),
        log_probabilities(student_logits / temperature, activation),
        strict=True,
    )
    return temperature**2 * sum(relative_entropy(t, s) for t, s in pairs)


def class_numbers(y: Any, logits: Tensor) -> Tensor:
    """Return the class number of each example or position, from numbers or one-hot rows.

    Args:
        y: `(…)` or `(…, 1)` class numbers, or `(…, classes)` one-hot rows.
        logits: `(…, classes)`.

    Returns:
        int32 of shape `logits.shape[:-1]`.

    Raises:
        ValueError: "The labels do not fit the classes".
    """
    y, target = ops.convert_to_tensor(y), tuple(logits.shape)
    shape = tuple(y.shape)
    if _fits(shape, target) and target[-1] != 1:
        return ops.cast(ops.argmax(y, axis=-1), "int32")
    if len(shape) == len(target) and shape[-1] == 1:
        y, shape = ops.squeeze(y, -1), shape[:-1]
    if not _fits(shape, target[:-1]):
        raise checks.bad_value(
            "The labels do not fit the classes of the outputs.",
            given=f"labels of shape {tuple(y.shape)}, outputs of shape {target}",
            expected=f"class numbers of shape {target[:-1]}, or one-hot rows of shape {target}",
            fix="give each example (or position) the number of its class.",
        )
    return ops.cast(y, "int32")


def one_hot_labels(y: Any, logits: Tensor) -> Tensor:
    """Return the labels as float32 one-hot rows of the shape of the logits."""
    return ops.one_hot(class_numbers(y, logits), logits.shape[-1], dtype="float32")


def _fits(shape: tuple, target: tuple) -> bool:
    pairs = zip(shape, target, strict=False)
    return len(shape) == len(target) and all(None in pair or pair[0] == pair[1] for pair in pairs)
