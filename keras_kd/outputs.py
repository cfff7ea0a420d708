"""What a model's output is (logits, probabilities or values), and the way back to log space.

A softmax over probabilities is the commonest silent mistake of distillation. Here an output is
recognised by the last activation where it can be read, and by the values of a first batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_kd import checks

TINY = float(np.finfo("float32").tiny)
KINDS = ("auto", "logits", "probabilities", "values")
ACTIVATIONS = ("softmax", "sigmoid")
_NO_PROBABILITIES = tuple(
    getattr(keras.activations, name)
    for name in ("linear", "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "tanh", "softplus")
)
_PASSING = ("Activation", "Dropout", "Identity", "Flatten", "Reshape")


class OutputReader:
    """Bring the outputs of one model to log space.

    Until it has seen a batch it goes by what was stated and by the last activation; `learn` looks
    at the values and decides.

    Args:
        model: the `keras.Model` whose outputs are read.
        who: what to call the model in an error, such as `"teacher 'resnet'"`.
        stated: `"auto"`, `"logits"`, `"probabilities"` or `"values"`, or a structure of them.
        activation: `"softmax"` or `"sigmoid"`, for stated probabilities.
        fix: the line of an error that says how to state what the outputs are.
    """

    def __init__(
        self, model: keras.Model, who: str, stated: Any, activation: str, fix: str
    ) -> None:
        self.model = model
        self.who = who
        self.stated = stated
        self.activation = activation
        self.fix = fix
        self.kinds: list[str] | None = None
        self._marked: list[bool] = []

    def __call__(self, raw: Any) -> Any:
        """Return the outputs as float32 logits (values stay values)."""
        self._check_names(raw)
        flat = keras.tree.flatten(raw)
        self._marked = [getattr(leaf, "_keras_logits", None) is not None for leaf in flat]
        kinds = self.presumed(len(flat))
        logits = [to_log_space(leaf, kind) for leaf, kind in zip(flat, kinds, strict=True)]
        return keras.tree.pack_sequence_as(raw, logits)

    def presumed(self, count: int) -> list[str]:
        """Say what each of `count` outputs is, as far as is known by now."""
        known = zip(*self._known(count), strict=True)
        return self.kinds or [self._presume(*pair) for pair in known]

    def learn(self, raw: Any, said: Sequence[str | None] = ()) -> None:
        """Decide from a first batch's values what each output is; refuse NaN.

        Args:
            raw: the outputs as the model gives them.
            said: what the compiled loss takes each output for, `"logits"`, `"softmax"`,
                `"sigmoid"` or `None`; it decides where nothing else tells.

        Raises:
            ValueError: "… is not finite", "… holds no probabilities", "… may be probabilities or
                logits" where nothing tells.
        """
        self._check_names(raw)
        leaves = keras.tree.flatten(raw)
        known = zip(*self._known(len(leaves)), strict=True)
        hints = said if len(said) == len(leaves) else [None] * len(leaves)
        self.kinds = [
            self._decide(f"Output {index} of {self.who}", as_numbers(leaf), index, *pair, hint)
            for index, (leaf, pair, hint) in enumerate(zip(leaves, known, hints, strict=True))
        ]

    def _check_names(self, raw: Any) -> None:
        """Refuse statements by name that are not the names of the outputs."""
        if not isinstance(self.stated, dict):
            return
        names = list(raw) if isinstance(raw, dict) else []
        if set(self.stated) != set(names):
            raise checks.bad_value(
                f"{self.who} has outputs of other names than was stated.",
                given=f"outputs={self.stated!r}",
                expected=f"the names {names}" if names else "no names: its output is no dict",
                fix=self.fix,
            )

    def _known(self, count: int) -> tuple[list[str], list[str | None]]:
        stated = keras.tree.flatten(self.stated)
        stated = stated * count if len(stated) == 1 else stated
        if len(stated) != count:
            raise checks.bad_value(
                f"{self.who} has another number of outputs than was stated.",
                given=f"outputs={self.stated!r} for {count} outputs",
                expected="one word for all, or one for each output",
                fix=self.fix,
            )
        last = last_activations(self.model)
        return stated, last if len(last) == count else [None] * count

    def _presume(self, stated: str, last: str | None) -> str:
        if stated == "probabilities":
            return last if last in ACTIVATIONS else self.activation
        if stated == "values":
            return stated
        return last if stated == "auto" and last in ACTIVATIONS else "logits"

    def _decide(
        self,
        where: str,
        values: np.ndarray,
        index: int,
        stated: str,
        last: str | None,
        hint: str | None,
    ) -> str:
        refuse_not_finite(where, values)
        kind = self._presume(stated, last)
        if stated == "probabilities" and not _are_probabilities(values, kind):
            raise checks.bad_value(
                f"{where} holds no probabilities, though they were stated.",
                given=f"values from {values.min():.3g} to {values.max():.3g}",
                expected=f"{kind} probabilities",
                fix=self.fix,
            )
        if stated != "auto" or last in ACTIVATIONS:
            return kind
        if last is None and values.shape[-1] > 1 and is_distribution(values):
            return "softmax"
        if self._marked and self._marked[index]:
            return "sigmoid"
        inside = values.size >= 8 and 0.0 <= values.min() < values.max() <= 1.0
        if inside and last is None and hint is not None:
            return hint
        if inside and last is None:
            raise checks.bad_value(
                f"{where} may be probabilities or logits: all its values lie between 0 and 1.",
                given=f"values from {values.min():.3g} to {values.max():.3g}, no last activation",
                expected="a statement of what they are",
                fix=self.fix,
            )
        return "logits"


def as_numbers(tensor: Any) -> np.ndarray:
    """Return a tensor of any float type as float32 numbers."""
    return np.asarray(ops.convert_to_numpy(ops.cast(tensor, "float32")))


def refuse_not_finite(where: str, values: np.ndarray) -> None:
    """Refuse NaN and infinity, which would spread to every weight of the student."""
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise checks.bad_value(
            f"{where} is not finite on the first batch.",
            given=f"{bad} of {values.size} values are NaN or infinite",
            expected="finite numbers",
            fix="check the model's weights and the scaling of its input "
            "(kd.Teacher(preprocess=…)).",
        )


def _are_probabilities(values: np.ndarray, kind: str) -> bool:
    if kind == "softmax":
        return is_distribution(values)
    return bool(values.size == 0 or (values.min() >= 0.0 and values.max() <= 1.0))


def last_activations(model: keras.Model) -> list[str | None]:
    """Read the last activation of each (flattened) output of a model.

    Returns:
        For each output `"softmax"`, `"sigmoid"`, `"linear"` (another activation of Keras, whose
        values are no probabilities), or `None` where it cannot be read, as in a subclassed model or
        behind a function of one's own.
    """
    outputs = getattr(model, "outputs", None)
    return [_last_activation(output) for output in outputs] if outputs else [None]


def _last_activation(tensor: Any) -> str | None:
    history = getattr(tensor, "_keras_history", None)
    if history is None:
        return None
    operation, _, index = history
    inner = getattr(operation, "outputs", None)
    if inner and isinstance(operation, keras.Model):
        return _last_activation(inner[index])
    kind = type(operation).__name__
    if kind == "Softmax":
        return "softmax" if operation.axis in (-1, len(tensor.shape) - 1) else None
    if kind == "Sigmoid":
        return "sigmoid"
    activation = getattr(operation, "activation", None)
    if activation in (keras.activations.softmax, keras.activations.sigmoid):
        return activation.__name__
    if kind in _PASSING and activation in (None, keras.activations.linear):
        source = operation.input if len(operation._inbound_nodes) == 1 else None
        if source is None or keras.tree.is_nested(source):
            return None
        found = _last_activation(source)
        return None if found == "softmax" and source.shape[-1] != tensor.shape[-1] else found
    return "linear" if activation in _NO_PROBABILITIES else None


def is_distribution(values: np.ndarray) -> bool:
    """Say whether every row is a probability distribution, within half precision."""
    if values.size == 0 or values.min() < 0.0 or values.max() > 1.0 + 1e-3:
        return False
    return bool(np.allclose(values.sum(-1), 1.0, atol=5e-3))


def to_log_space(output: Any, kind: str) -> Any:
    """Turn one output into float32 logits: log p for a softmax, log p/(1−p) for a sigmoid.

    The logits that the activation started from are taken where Keras left them on the tensor, so
    that nothing is lost to rounding; otherwise probabilities are kept away from 0 and 1.
    """
    if kind not in ("softmax", "sigmoid"):
        return keep_mask(output, ops.cast(output, "float32"))
    logits = getattr(output, "_keras_logits", None)
    if logits is not None:
        return keep_mask(output, ops.cast(logits, "float32"))
    p = ops.cast(output, "float32")
    if kind == "softmax":
        return keep_mask(output, ops.log(ops.maximum(p, TINY)))
    log_p, log_q = ops.log(ops.maximum(p, TINY)), ops.log(ops.maximum(1.0 - p, 2.0**-25))
    return keep_mask(output, log_p - log_q)


def keep_mask(old: Any, new: Any) -> Any:
    """Let a tensor that was made from another one carry its Keras mask."""
    mask = getattr(old, "_keras_mask", None)
    if mask is not None and new is not old:
        new._keras_mask = mask
    return new
