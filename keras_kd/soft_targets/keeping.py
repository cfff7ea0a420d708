"""What is kept of a teacher's answers, and which answers cannot be kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_kd import checks
from keras_kd.soft_targets.layout import Dense, Layout, Leaf, TopK
from keras_kd.top_k import keep

LARGEST = {"float16": 65504.0, "float32": float(np.finfo("float32").max)}
NOT_FINITE, TOO_LARGE = 1, 2


class Keeping(NamedTuple):
    """What is kept of an answer.

    Attributes:
        layers: the paths of the layers that are kept beside the outputs.
        top_k: how many logits of each output are kept; None: all.
        temperatures: each T at which the log-sum-exp of all logits is kept, with `top_k`.
        dtype: `"float16"` or `"float32"`.
    """

    layers: tuple[str, ...]
    top_k: int | None
    temperatures: tuple[float, ...]
    dtype: str


class Kept(NamedTuple):
    """What is kept of the answers to one batch.

    Attributes:
        teacher: `{"outputs": …, "layers": …}` as `Layout` takes it, of NumPy arrays.
        faults: `(outputs and layers, batch)`: 0, or `NOT_FINITE`, or `TOO_LARGE` for the dtype.
    """

    teacher: dict[str, Any]
    faults: np.ndarray


def kept(
    outputs: list[Any], layers: dict[str, Any], keeping: Keeping
) -> tuple[dict[str, Any], tf.Tensor]:
    """Round answers to what is stored, and note which cannot be: TensorFlow operations."""
    leaves: list[Any] = []
    faults = []
    for output in outputs:
        logits = tf.cast(output, tf.float32)
        if keeping.top_k is None:
            leaves.append(tf.cast(logits, keeping.dtype))
            faults.append(_faults(logits, logits, keeping.dtype))
            continue
        parts = keep(logits, keeping.top_k, keeping.temperatures, keeping.dtype)
        leaves.append(dict(zip(("logits", "classes", "log_sum_exp"), parts, strict=True)))
        faults.append(_faults(logits, tf.gather(logits, parts[1], batch_dims=-1), keeping.dtype))
    features = {path: tf.cast(layers[path], tf.float32) for path in keeping.layers}
    faults += [_faults(values, values, keeping.dtype) for values in features.values()]
    stored = {path: tf.cast(values, keeping.dtype) for path, values in features.items()}
    several = leaves if len(leaves) > 1 else leaves[0]
    return {"outputs": several, "layers": stored}, tf.stack(faults)


def _faults(values: tf.Tensor, stored: tf.Tensor, dtype: str) -> tf.Tensor:
    """Note for each example whether all is finite and what is stored fits: `(batch,)` int32."""
    finite = tf.reduce_all(tf.math.is_finite(values), list(range(1, values.shape.rank)))
    fits = tf.reduce_all(tf.abs(stored) <= LARGEST[dtype], list(range(1, stored.shape.rank)))
    return tf.where(finite, tf.where(fits, 0, TOO_LARGE), NOT_FINITE)


def layout_of(
    outputs: list[Any], layers: dict[str, Any], kinds: list[str], activation: str, keeping: Keeping
) -> Layout:
    """Decide what a row holds, by the answers to the first batch.

    Args:
        outputs: the outputs in log space, flattened, batch first.
        layers: the layers by path.
        kinds: what each output is.
        activation: what belongs between logits and probabilities.
        keeping: what is kept.

    Raises:
        ValueError: "`top_k` keeps the largest logits of a softmax", "`top_k` would keep all".
    """
    leaves: list[Leaf] = []
    for number, (output, kind) in enumerate(zip(outputs, kinds, strict=True)):
        shape = tuple(output.shape)[1:]
        if keeping.top_k is None:
            leaves.append(Dense(shape, keeping.dtype))
            continue
        _refuse_no_classes(number, shape, kind, activation, keeping.top_k)
        leaves.append(TopK(shape, keeping.dtype, keeping.top_k, keeping.temperatures))
    dense = {path: Dense(tuple(values.shape)[1:], keeping.dtype) for path, values in layers.items()}
    return Layout(tuple(leaves), dense)


def _refuse_no_classes(
    number: int, shape: tuple[int, ...], kind: str, activation: str, top_k: int
) -> None:
    """Refuse top-k where there is no softmax, or nothing to leave out."""
    if kind in ("sigmoid", "values") or (kind == "logits" and activation == "sigmoid"):
        raise checks.bad_value(
            "`top_k` keeps the largest logits of a softmax, and there is none.",
            given=f"output {number}: {kind}, activation {activation!r}",
            expected="logits or probabilities of a softmax",
            fix="keep all of it: top_k=None.",
        )
    if not shape or shape[-1] <= top_k:
        raise checks.bad_value(
            "`top_k` would keep all the classes there are.",
            given=f"top_k={top_k} and output {number} of shape {shape}",
            expected="fewer than there are classes",
            fix="pass a smaller top_k, or top_k=None to keep them all.",
        )


def refuse_misfits(outputs: list[Any], layers: dict[str, Any], inputs: Any) -> None:
    """Refuse answers that are not one for each example."""
    count = len(keras.tree.flatten(inputs)[0])
    named = {f"output {number}": leaf for number, leaf in enumerate(outputs)}
    named |= {f"layer {path!r}": leaf for path, leaf in layers.items()}
    for where, leaf in named.items():
        shape = None if keras.tree.is_nested(leaf) else tuple(leaf.shape)
        if not shape or shape[0] != count:
            raise checks.bad_value(
                f"The teacher does not answer each example: {where}.",
                given="several tensors" if shape is None else f"shape {shape} for {count} examples",
                expected=f"one tensor of {count} rows",
                fix="let the teacher answer with one row for each example of the batch.",
            )


def refuse_first_not_finite(raw: Any) -> None:
    """Refuse NaN and infinity among the raw answers to the first batch."""
    for leaf in keras.tree.flatten(raw):
        values = np.asarray(tf.cast(leaf, tf.float32))
        bad = np.nonzero(~np.isfinite(values).reshape(len(values), -1).all(1))[0]
        if bad.size:
            raise _not_finite(f"The teacher's answer to example {bad[0]} of the first batch")


def _not_finite(where: str) -> ValueError:
    return checks.bad_value(
        f"{where} is not finite.",
        given="NaN or infinity",
        expected="finite numbers",
        fix="check the teacher's weights and the scaling of its input, and that example.",
    )


def refuse_faults(kept: Kept, layout: Layout, dtype: str, number_of: Callable[[int], int]) -> None:
    """Refuse answers that are not finite or do not fit the dtype, naming the example.

    Args:
        kept: the answers.
        layout: what they are.
        dtype: what they are stored in.
        number_of: the row of the batch -> the number of the example in the data.

    Raises:
        ValueError: "… is not finite", "… does not fit float16".
    """
    if not kept.faults.any():
        return
    leaf, row = (int(part[0]) for part in np.nonzero(kept.faults))
    places = [f"Output {number}" for number in range(len(layout.outputs))]
    place = [*places, *(f"Layer {path!r}" for path in layout.layers)][leaf]
    where = f"{place} of the teacher for example {number_of(row):,}"
    if kept.faults[leaf, row] == NOT_FINITE:
        raise _not_finite(where)
    raise checks.bad_value(
        f"{where} does not fit {dtype}.",
        given=f"a number beyond ±{LARGEST[dtype]:,.0f}",
        expected=f"numbers that {dtype} holds",
        fix='keep them as float32: build(…, dtype="float32").',
    )
