"""What travels through `fit` in the place of x when the teacher's answers come from a disk."""

from __future__ import annotations

from typing import Any, NamedTuple

from keras_kd import checks


class SoftBatch(NamedTuple):
    """Inputs with the teacher's stored answers to them: `(kd.SoftBatch(inputs, teacher), y[, w])`.

    `SoftTargets.attach` makes them. A named tuple keeps its form through `shuffle`, `repeat`,
    `batch`, `class_weight`, `evaluate` and `predict`, so that what is done to an example is done to
    its soft targets too.

    Args:
        inputs: what the student takes; a tensor or a nest of them.
        teacher: `{"outputs": …, "layers": {path: tensor}, "store": (batch,)}`, the last a number
            that tells whose answers they are. The outputs are a tensor in log space,
            or a tuple of them for several; where the top k classes were kept, each is
            `{"logits": (…, k), "classes": (…, k), "log_sum_exp": (…, temperatures)}`.

    Example:
    ```python
    import numpy as np, tensorflow as tf
    import keras_kd as kd

    x, z = np.zeros((6, 4), "float32"), np.zeros((6, 3), "float16")
    batch = kd.SoftBatch(x, {"outputs": z, "layers": {}, "store": np.zeros(6, "int64")})
    data = tf.data.Dataset.from_tensor_slices((batch, np.arange(6))).batch(2)
    (inputs, teacher), y = next(iter(data))
    print(inputs.shape, teacher["outputs"].shape)  # (2, 4) (2, 3)
    ```
    """

    inputs: Any
    teacher: Any


def inputs_of(x: Any) -> Any:
    """Return what the student takes, of a plain x or a `SoftBatch`."""
    return x.inputs if isinstance(x, SoftBatch) else x


def refuse(x: Any, teacher: str) -> None:
    """Refuse soft targets where the teacher is a model that answers by itself.

    Raises:
        ValueError: "The batches carry soft targets, and the teacher is a model".
    """
    if isinstance(x, SoftBatch):
        raise checks.bad_value(
            "The batches carry soft targets, and the teacher is a model that would answer anew.",
            given=f"batches of kd.SoftBatch, and the teacher {teacher!r}",
            expected="one of the two",
            fix="use kd.Distiller(teacher=soft_targets, …), or fit on the data set as it was "
            "before attach.",
        )
