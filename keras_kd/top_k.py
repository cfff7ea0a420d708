"""The teacher's k largest logits with the log-sum-exp of all: a distribution with one rest class.

What is left of C classes is a distribution over k + 1: the kept classes, and one class for all the
others. Any divergence between two such distributions is a lower bound of the divergence over all
classes, because merging classes loses information (the data processing inequality: Cover and
Thomas, "Elements of Information Theory", 2006, section 2.8).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_kd import checks
from keras_kd.fusing import MATRIX, NUMBER, fused

Tensor = Any
PLACES = tf.TensorSpec((None, None), tf.int32)
EMPTY = 200.0  # e⁻²⁰⁰ is 0 in float32, and its logarithm still a number
ROUNDING = 2.0**-24  # half a step between float32 numbers, relative to the number
MANY = 512  # classes from which one pass that XLA compiles beats the operations one by one


class TopKLogits:
    """A teacher's answer of which only the k largest logits of each example are known.

    `kd.SoftTargets.build(top_k=…)` stores it and a Distiller makes it from what a batch carries;
    `kd.LogitsDistillation` takes it in the place of the teacher's logits.

    Args:
        logits: the kept logits, `(batch, …, k)` in falling order, of any float type.
        classes: their class numbers, `(batch, …, k)`, different from each other.
        log_sum_exp: log Σ exp(z/T) over all classes, `(batch, …, temperatures)`.
        temperatures: each T > 0, in the order of the last axis of `log_sum_exp`.
        count: C, the number of all classes.

    Raises:
        ValueError: "The parts of the top k logits do not fit together".

    Example:
    ```python
    import keras_kd as kd
    from keras_kd.top_k import TopKLogits, keep

    kept = keep([[4.0, 1.0, 3.0, 0.0]], k=2, temperatures=(2.0,))
    teacher = TopKLogits(*kept, temperatures=(2.0,), count=4)
    print(teacher.classes.numpy())  # [[0 2]]
    loss = kd.LogitsDistillation(temperature=2.0)
    print(float(loss.compute_loss(teacher, [[0.0, 1.0, 3.0, 0.0]])) > 0.0)  # True
    ```
    """

    def __init__(
        self,
        logits: Any,
        classes: Any,
        log_sum_exp: Any,
        temperatures: Sequence[float],
        count: int,
    ) -> None:
        self.logits = tf.cast(tf.convert_to_tensor(logits), tf.float32)
        self.classes = tf.cast(tf.convert_to_tensor(classes), tf.int32)
        self.log_sum_exp = tf.cast(tf.convert_to_tensor(log_sum_exp), tf.float32)
        self.temperatures = tuple(checks.positive("temperatures", t) for t in temperatures)
        self.count = checks.count("count", count)
        self._refuse_misfits()

    @property
    def k(self) -> int:
        """The number of classes that were kept."""
        return self.logits.shape[-1]

    @property
    def shape(self) -> tuple:
        """The shape of all logits, `(batch, …, count)`."""
        return (*tuple(self.logits.shape)[:-1], self.count)

    def stored(self, temperature: Any) -> float:
        """Return a temperature that was stored, or refuse another one, and a schedule of it.

        Raises:
            ValueError: "The temperature … was not stored", "A schedule of temperatures was not
                stored".
        """
        number = isinstance(temperature, (int, float))  # at a step, a schedule is a tensor
        if number and temperature in self.temperatures:
            return float(temperature)
        known = ", ".join(map(str, self.temperatures))
        what = f"The temperature {temperature}" if number else "A schedule of temperatures"
        more = f"temperatures=({known}, {temperature})" if number else "top_k=None"
        raise checks.bad_value(
            f"{what} was not stored with the top {self.k} of {self.count} classes.",
            given=f"{temperature!r:.80}",
            expected=f"one of the temperatures of the soft targets: {known}",
            fix=f"use temperature={self.temperatures[0]}, or build the soft targets with {more}.",
        )

    def _refuse_misfits(self) -> None:
        logits, classes, sums = (
            tuple(part.shape) for part in (self.logits, self.classes, self.log_sum_exp)
        )
        fits = (
            len(logits) >= 2
            and logits[-1] is not None
            and 1 <= logits[-1] <= self.count
            and self.classes.shape.is_compatible_with(self.logits.shape)
            and self.log_sum_exp.shape.is_compatible_with((*logits[:-1], len(self.temperatures)))
        )
        if not fits:
            raise checks.bad_value(
                "The parts of the top k logits do not fit together.",
                given=f"logits {logits}, classes {classes}, log_sum_exp {sums}, "
                f"{len(self.temperatures)} temperatures, count={self.count}",
                expected="logits and classes (batch, …, k) with 1 <= k <= count, and log_sum_exp "
                "(batch, …, temperatures)",
                fix="take the parts from keep(logits, k, temperatures), with the same temperatures "
                "and the number of all classes.",
            )


def keep(
    logits: Any, k: int, temperatures: Sequence[float] = (1.0,), dtype: str = "float32"
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the k largest logits of each example, and what all of them sum to.

    The log-sum-exp is that of the kept logits as they are after the rounding to `dtype` and of the
    others as they are, so that what the others sum to can be taken from it.

    Args:
        logits: `(batch, …, classes)`, finite, and within the range of `dtype`.
        k: how many to keep, 1 <= k <= classes.
        temperatures: each T > 0 at which they will be compared. Defaults to `(1.0,)`.
        dtype: float type of the kept logits. Defaults to `"float32"`.

    Returns:
        The kept logits `(batch, …, k)` in falling order (of equal ones the lower class first),
        their classes (int32, the same shape), and log Σ exp(z/T) of all classes (float32,
        `(batch, …, temperatures)`).

    Raises:
        ValueError: "`top_k` keeps more classes than there are".

    Example:
    ```python
    from keras_kd.top_k import keep

    kept, classes, log_sum_exp = keep([[0.0, 2.0, 1.0]], k=1)
    print(kept.numpy(), classes.numpy())  # [[2.]] [[1]]
    print(log_sum_exp.numpy())  # log(1 + e² + e) = [[2.4076…]]
    ```
    """
    logits = tf.cast(tf.convert_to_tensor(logits), tf.float32)
    count = logits.shape[-1]
    if checks.count("top_k", k) > count:
        raise checks.bad_value(
            "`top_k` keeps more classes than there are.",
            given=f"top_k={k} of {count} classes",
            expected=f"1 to {count}",
            fix="keep fewer classes, or all of them without top_k.",
        )
    kept, classes = tf.math.top_k(logits, k)
    kept = tf.cast(kept, dtype)
    rows, places = (tf.reshape(part, (-1, part.shape[-1])) for part in (logits, classes))
    exact = tf.cast(rows, tf.float64)
    rounded = tf.reshape(tf.cast(kept, tf.float64), (-1, k))
    exact = tf.tensor_scatter_nd_update(exact, _indices(places), rounded)
    sums = [
        tf.reduce_logsumexp(exact / checks.positive("temperatures", t), -1) for t in temperatures
    ]
    shape = tf.concat([tf.shape(logits)[:-1], [len(sums)]], 0)
    log_sum_exp = tf.reshape(tf.cast(tf.stack(sums, -1), tf.float32), shape)
    log_sum_exp.set_shape((*logits.shape[:-1], len(sums)))
    return kept, classes, log_sum_exp


def coarsen(
    teacher: TopKLogits, student_logits: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return the logits of both over the kept classes and, last, one class for all the others.

    softmax(t/T) and softmax(s/T) are then the two distributions with the others' probabilities
    added up, so a softmax loss at this T takes them as it takes all logits. The last logit is

        T·log Σ exp(z/T) over the classes that were not kept

    of the student exactly, of the teacher from its log-sum-exp. Where this is within its rounding
    of what the kept classes sum to, the others count as nothing: as 2⁻²⁴ of the kept, or less, at
    which the reverse divergence is finite. With k = C there are none, and the last class has
    probability 0 on both sides.

    Args:
        teacher: the teacher's kept logits.
        student_logits: all logits of the student, of the shape `teacher.shape`.
        temperature: T, one of `teacher.temperatures`.

    Returns:
        Two float32 tensors `(batch, …, k + 1)`. The student's gradient is that of the exact sum,
        and finite.
    """
    temperature = float(temperature)
    student = tf.cast(tf.convert_to_tensor(student_logits), tf.float32)
    places = tf.reshape(teacher.classes, (-1, teacher.k))
    rows = tf.reshape(student, (-1, teacher.count))
    if teacher.k == teacher.count:
        kept = tf.gather(rows, places, axis=1, batch_dims=1)
        sides = _beside_nothing(teacher.logits, temperature), _beside_nothing(kept, temperature)
    else:
        fixed = None not in student.shape[1:]  # else each length would be compiled anew
        at_once = fixed and teacher.count >= MANY
        index = teacher.temperatures.index(temperature)
        parts = teacher.logits, teacher.log_sum_exp[..., index : index + 1]
        known = (tf.reshape(part, (-1, part.shape[-1])) for part in parts)
        rest = _with_rest if at_once else _with_rest.python_function
        sides = rest(*known, temperature), _kept_and_rest(rows, places, temperature, at_once)
    shape = tf.concat([tf.shape(student)[:-1], [teacher.k + 1]], 0)
    t, s = (tf.reshape(side, shape) for side in sides)
    for side in (t, s):
        side.set_shape((*student.shape[:-1], teacher.k + 1))
    return t, s


def _beside_nothing(logits: Tensor, temperature: float) -> Tensor:
    """Add a class of probability 0, without a gradient."""
    largest = ops.stop_gradient(tf.reduce_max(logits, -1, keepdims=True))
    return tf.concat([logits, largest - EMPTY * temperature], -1)


@fused(MATRIX, MATRIX, NUMBER)
def _with_rest(logits: Tensor, total: Tensor, temperature: Tensor) -> Tensor:
    """Add the teacher's rest class: what all classes sum to, without the kept ones.

    In float64, so that only the rounding of the stored log-sum-exp is lost.
    """
    exact, total, temperature = (tf.cast(part, tf.float64) for part in (logits, total, temperature))
    kept = tf.reduce_sum(tf.exp(exact / temperature - total), -1, keepdims=True)
    rounding = ROUNDING * tf.abs(total) + 1e-12
    rest = 1.0 - kept
    rest = tf.where(rest > rounding, rest, tf.minimum(rounding, ROUNDING) * kept)
    rest = temperature * (total + tf.math.log(rest))
    return tf.concat([logits, tf.cast(rest, tf.float32)], -1)


def _kept_and_rest(logits: Tensor, classes: Tensor, temperature: float, at_once: bool) -> Tensor:
    """Return the student's kept logits and its rest class, `(rows, k + 1)`.

    Forward and backward are a pass each over the logits, which XLA fuses where it is asked to;
    backward computes the exponentials again, which is cheaper than keeping them.
    """
    forward, backward = _forward, _backward
    if not at_once:
        forward, backward = (both.python_function for both in (forward, backward))

    @ops.custom_gradient
    def both(logits: Tensor) -> tuple[Tensor, Any]:
        result = forward(logits, classes, temperature)

        def slope(*upstream: Tensor, **_: Any) -> Tensor:
            return backward(logits, classes, result[:, -1:], temperature, upstream[0])

        return result, slope

    return both(logits)


@fused(MATRIX, PLACES, NUMBER)
def _forward(logits: Tensor, classes: Tensor, temperature: Tensor) -> Tensor:
    indices = _indices(classes)
    others = tf.tensor_scatter_nd_update(logits, indices, tf.fill(tf.shape(classes), -np.inf))
    largest = tf.reduce_max(others, -1, keepdims=True)
    total = tf.reduce_sum(tf.exp((others - largest) / temperature), -1, keepdims=True)
    return tf.concat([tf.gather_nd(logits, indices), largest + temperature * tf.math.log(total)], 1)


@fused(MATRIX, PLACES, MATRIX, NUMBER, MATRIX)
def _backward(
    logits: Tensor, classes: Tensor, rest: Tensor, temperature: Tensor, upstream: Tensor
) -> Tensor:
    """The rest's slope by a logit is its share of the rest's probability; by a kept one, 0."""
    slopes = tf.exp((logits - rest) / temperature) * upstream[:, -1:]
    return tf.tensor_scatter_nd_update(slopes, _indices(classes), upstream[:, :-1])


def _indices(classes: Tensor) -> Tensor:
    """Return (row, class) of each kept class, `(rows, k, 2)`."""
    rows = tf.range(tf.shape(classes)[0])[:, tf.newaxis]
    return tf.stack([tf.broadcast_to(rows, tf.shape(classes)), classes], -1)


def refuse(loss: Any, teacher: Any) -> None:
    """Refuse a teacher of kept classes for a loss that takes all of them.

    Args:
        loss: the loss that asks.
        teacher: its outputs, one or a structure of them.

    Raises:
        ValueError: "… needs all classes, and the teacher's soft targets hold the top …".
    """
    for leaf in keras.tree.flatten(teacher):
        if isinstance(leaf, TopKLogits):
            raise needs_all(loss, leaf)


def needs_all(loss: Any, teacher: TopKLogits, because: str = "") -> ValueError:
    """Make the error for a loss that takes all classes and gets the top k.

    Args:
        loss: the loss that asks.
        teacher: what it gets.
        because: which of the loss's arguments it is that needs them.
    """
    known = " or ".join(f"temperature={t}" for t in teacher.temperatures)
    return checks.bad_value(
        f"{type(loss).__name__} needs all classes, and the teacher's soft targets hold the top "
        f"{teacher.k} of {teacher.count}.",
        given=because or f"{type(loss).__name__} on soft targets built with top_k={teacher.k}",
        expected="the softmax's KL divergence, which one rest class for the others serves",
        fix=f"use kd.LogitsDistillation with {known}, or build the soft targets with top_k=None.",
    )
