"""The papers' equations in float64 NumPy: what the losses are held against.

Nothing here is taken from the package. Values are per example: one number for each row of the last
axis; logits are (…, classes), t the teacher's and s the student's.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Array = np.ndarray


def float64(values: object) -> Array:
    """Numbers in double precision."""
    return np.asarray(values, dtype="float64")


def log_softmax(logits: Array) -> Array:
    """Log of qᵢ = exp(zᵢ) / Σⱼ exp(zⱼ): Hinton et al. 2015, equation 1 at T = 1."""
    shifted = float64(logits) - np.max(float64(logits), axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))


def softmax(logits: Array) -> Array:
    """Hinton et al. 2015, equation 1 at T = 1."""
    return np.exp(log_softmax(logits))


def log_sigmoid(logits: Array) -> Array:
    """Log of σ(z) = 1 / (1 + exp(−z))."""
    return -np.logaddexp(0.0, -float64(logits))


def sigmoid(logits: Array) -> Array:
    """σ(z) = 1 / (1 + exp(−z))."""
    return np.exp(log_sigmoid(logits))


def _log_outcomes(logits: Array, temperature: float, activation: str) -> Array:
    """Log-probabilities of all outcomes on the last axis, of the classes or of each label's two."""
    scaled = float64(logits) / temperature
    if activation == "softmax":
        return log_softmax(scaled)
    return np.concatenate([log_sigmoid(scaled), log_sigmoid(-scaled)], axis=-1)


def _relative_entropy(log_p: Array, log_q: Array) -> Array:
    """KL(P‖Q) = Σ P(c) log(P(c) / Q(c)): Agarwal et al. 2024, section 2."""
    return np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)


def kl_divergence(
    t: Array, s: Array, temperature: float = 1.0, activation: str = "softmax"
) -> Array:
    """T²·KL(t‖s) of softened outputs: Hinton et al. 2015, section 2 and the T² of section 2.1.

    With "sigmoid", the Kullback-Leibler divergences of the labels' Bernoulli distributions, summed.
    """
    log_t, log_s = (_log_outcomes(z, temperature, activation) for z in (t, s))
    return temperature**2 * _relative_entropy(log_t, log_s)


def reverse_kl_divergence(
    t: Array, s: Array, temperature: float = 1.0, activation: str = "softmax"
) -> Array:
    """T²·KL(s‖t) of softened outputs: Agarwal et al. 2024, section 2."""
    log_t, log_s = (_log_outcomes(z, temperature, activation) for z in (t, s))
    return temperature**2 * _relative_entropy(log_s, log_t)


def jensen_shannon(
    t: Array, s: Array, temperature: float = 1.0, beta: float = 0.5, activation: str = "softmax"
) -> Array:
    """T²·[β·KL(t‖m) + (1−β)·KL(s‖m)], m = β·t + (1−β)·s: Agarwal et al. 2024, section 2."""
    log_t, log_s = (_log_outcomes(z, temperature, activation) for z in (t, s))
    log_m = np.log(beta * np.exp(log_t) + (1.0 - beta) * np.exp(log_s))
    parts = beta * _relative_entropy(log_t, log_m) + (1.0 - beta) * _relative_entropy(log_s, log_m)
    return temperature**2 * parts


def soft_cross_entropy(
    t: Array, s: Array, temperature: float = 1.0, activation: str = "softmax"
) -> Array:
    """T²·−Σ t·log s of softened outputs: Hinton et al. 2015, section 2."""
    log_t, log_s = (_log_outcomes(z, temperature, activation) for z in (t, s))
    return -(temperature**2) * np.sum(np.exp(log_t) * log_s, axis=-1)


def entropy(t: Array, temperature: float = 1.0, activation: str = "softmax") -> Array:
    """T²·−Σ t·log t of softened outputs (Shannon's entropy in nats)."""
    return soft_cross_entropy(t, t, temperature, activation)


def cross_entropy(logits: Array, labels: Array) -> Array:
    """−log softmax(z)[label], for integer labels."""
    return -np.take_along_axis(log_softmax(logits), np.asarray(labels)[..., None], -1)[..., 0]


def hard_label(t: Array, s: Array) -> Array:
    """Cross-entropy with y_t = argmax t: Touvron et al. 2021, equation 3, second term."""
    return cross_entropy(s, np.argmax(t, axis=-1))


def logit_matching(t: Array, s: Array) -> Array:
    """½·‖s − t‖²: Ba and Caruana 2014, equation 1."""
    return 0.5 * np.sum((float64(s) - float64(t)) ** 2, axis=-1)


def hint(t: Array, s: Array) -> Array:
    """½·‖t − s‖² of a whole feature, one row per example: Romero et al. 2015, equation 3."""
    flat_t, flat_s = (float64(z).reshape(len(z), -1) for z in (t, s))
    return 0.5 * np.sum((flat_t - flat_s) ** 2, axis=-1)


def cosine(t: Array, s: Array) -> Array:
    """Cosine of the angle between the vectors on the last axis."""
    dot = np.sum(float64(t) * float64(s), axis=-1)
    return dot / np.linalg.norm(float64(t), axis=-1) / np.linalg.norm(float64(s), axis=-1)


def high_temperature_limit(t: Array, s: Array) -> Array:
    """1/(2N)·Σ (sᵢ − tᵢ)² of centred logits: what equation 4 of Hinton et al. 2015 descends."""
    centred = [float64(z) - np.mean(float64(z), axis=-1, keepdims=True) for z in (t, s)]
    return np.mean((centred[1] - centred[0]) ** 2, axis=-1) / 2.0


def gradient(function: Callable[[Array], float], at: Array, step: float = 1e-5) -> Array:
    """Central differences of a scalar function, one coordinate at a time."""
    at = float64(at)
    slopes = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        change = np.zeros_like(at)
        change[index] = step
        slopes[index] = (function(at + change) - function(at - change)) / (2.0 * step)
    return slopes
