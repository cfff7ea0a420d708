"""What a compiled loss says of the student's outputs and labels, checked before training."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kd import checks


@dataclasses.dataclass(frozen=True)
class Crossentropy:
    """A cross-entropy of Keras.

    Attributes:
        labels: `"sparse"` (class numbers), `"categorical"` (one-hot rows) or `"binary"`.
        from_logits: whether it takes the outputs for logits.
        ignore_class: the label that it leaves out, or `None`.
    """

    labels: str
    from_logits: bool
    ignore_class: int | None = None


def crossentropy(loss: Any) -> Crossentropy | None:
    """Recognise a cross-entropy by its name, function or object; `None` for any other loss."""
    if isinstance(loss, keras.losses.Loss):
        name, config = type(loss).__name__, loss.get_config()
    else:
        name, config = loss if isinstance(loss, str) else getattr(loss, "__name__", ""), {}
    plain = name.lower().replace("_", "").replace("focal", "")
    labels = {
        "sparsecategoricalcrossentropy": "sparse",
        "categoricalcrossentropy": "categorical",
        "binarycrossentropy": "binary",
    }.get(plain)
    if labels is None:
        return None
    return Crossentropy(labels, bool(config.get("from_logits")), config.get("ignore_class"))


def said(loss: Any) -> str | None:
    """Say what a compiled loss takes an output for: logits, or which probabilities."""
    known = crossentropy(loss)
    if known is None:
        return None if loss is None else "logits"
    return "logits" if known.from_logits else "sigmoid" if known.labels == "binary" else "softmax"


def by_output(given: Any, outputs: Any, names: list[str]) -> list[Any]:
    """Line losses or labels up with the flat outputs, as Keras does; `None` where they do not."""
    leaves = keras.tree.flatten(outputs)
    nothing = [None] * len(leaves)
    if isinstance(given, dict):
        keys = keras.tree.flatten({k: k for k in outputs}) if isinstance(outputs, dict) else names
        return [given.get(key) for key in keys] if len(keys) == len(leaves) else nothing
    parts = list(given) if isinstance(given, (list, tuple)) else [given]
    return parts if len(parts) == len(leaves) else nothing


def refuse_not_finite(label: Any) -> None:
    """Refuse labels with NaN or infinity among them.

    Raises:
        ValueError: "The labels hold numbers that are not finite".
    """
    if not isinstance(label, tf.Tensor) or not label.dtype.is_floating:
        return
    bad = int(tf.reduce_sum(tf.cast(~tf.math.is_finite(label), tf.int32)))
    if bad:
        raise checks.bad_value(
            "The labels hold numbers that are not finite.",
            given=f"{bad} of {int(tf.size(label))} labels are NaN or infinite",
            expected="finite numbers",
            fix="take those examples out; a sample_weight of 0 does not silence NaN.",
        )


def check_labels(loss: Any, label: Any, output: Any, weighted: bool) -> None:
    """Refuse labels that the student has no class for, or of another form than the loss takes.

    Args:
        loss: the loss of one output.
        label: its labels in the first batch.
        output: the student's output, `(…, classes)`.
        weighted: whether weights go with them; what weighs nothing may have any label.

    Raises:
        ValueError: "A label has no class", "The labels are no one-hot rows".
    """
    known = crossentropy(loss)
    composite = isinstance(label, (tf.RaggedTensor, tf.SparseTensor))
    if known is None or label is None or composite or not len(output.shape):
        return
    labels, shape = np.asarray(label), tuple(output.shape)
    if known.labels == "categorical" and labels.shape != shape:
        raise checks.bad_value(
            "The labels are no one-hot rows of the student's classes.",
            given=f"labels of shape {labels.shape}, output of shape {shape}",
            expected=f"labels of shape {shape}",
            fix="use keras.losses.SparseCategoricalCrossentropy for class numbers, or "
            f"keras.ops.one_hot(y, {shape[-1]}).",
        )
    if known.labels != "sparse" or not labels.size or known.ignore_class is not None or weighted:
        return
    wrong = labels[(labels < 0) | (labels >= shape[-1])]
    if wrong.size:
        raise checks.bad_value(
            "A label has no class in the student's output.",
            given=f"label {wrong.flat[0]}, output of shape {shape}",
            expected=f"labels from 0 to {shape[-1] - 1}",
            fix="give the student as many outputs as there are classes, number the labels from 0, "
            "or leave a class out with ignore_class=.",
        )


def warn_of_logits(losses: list[Any], kinds: list[str]) -> None:
    """Warn once where the student gives logits and the loss takes them for probabilities."""
    for loss, kind in zip(losses, kinds, strict=True):
        known = crossentropy(loss)
        if known is not None and not known.from_logits and kind == "logits":
            warnings.warn(
                checks.message(
                    "The student gives logits, but the compiled loss takes them for probabilities.",
                    given=f"{loss!r:.60} with from_logits=False",
                    expected="from_logits=True",
                    fix="compile with keras.losses.SparseCategoricalCrossentropy(from_logits=True) "
                    "or its like.",
                ),
                stacklevel=2,
            )
            return
