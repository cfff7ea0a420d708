"""What a student took from its teacher, as `keras.metrics`: agreement, divergence, calibration."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_kd import checks


@keras.saving.register_keras_serializable(package="keras_kd")
class Agreement(keras.metrics.MeanMetricWrapper):
    """Share of examples on which teacher and student decide alike.

    Accuracy compares with the labels; agreement says how faithfully the student copies, mistakes
    included. `y_true` is the teacher's logits, `y_pred` the student's, both `(…, classes)`; for
    `activation="sigmoid"` each label is a decision of its own.

    Args:
        activation: `"softmax"` (argmax) or `"sigmoid"` (sign of each logit).
        name: name in the logs.
        dtype: dtype of the state.

    Reference:
        Stanton et al. 2021, "Does Knowledge Distillation Really Work?", equation 3.

    Example:
    ```python
    import keras_kd as kd

    metric = kd.metrics.Agreement()
    print(float(metric([[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [3.0, 0.0]])))  # 0.5
    ```
    """

    def __init__(
        self, activation: str = "softmax", name: str = "agreement", dtype: Any = None
    ) -> None:
        super().__init__(_agreement, name=name, dtype=dtype, activation=_activation(activation))
        self._direction = "up"

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"name": self.name, "dtype": self.dtype, **self._fn_kwargs}


@keras.saving.register_keras_serializable(package="keras_kd")
class TeacherDivergence(keras.metrics.MeanMetricWrapper):
    """Mean KL(teacher ‖ student) in nats, at temperature 1.

    It sees what agreement cannot: whether the student is as sure as the teacher. `y_true` is the
    teacher's logits, `y_pred` the student's, both `(…, classes)`.

    Args:
        activation: `"softmax"`, or `"sigmoid"` (Bernoulli KL, summed over the labels).
        name: name in the logs.
        dtype: dtype of the state.

    Reference:
        Stanton et al. 2021, "Does Knowledge Distillation Really Work?", equation 4.

    Example:
    ```python
    import keras_kd as kd

    metric = kd.metrics.TeacherDivergence()
    print(float(metric([[2.0, 0.0]], [[2.0, 0.0]])))  # 0.0
    ```
    """

    def __init__(
        self, activation: str = "softmax", name: str = "teacher_kl", dtype: Any = None
    ) -> None:
        super().__init__(_divergence, name=name, dtype=dtype, activation=_activation(activation))
        self._direction = "down"

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"name": self.name, "dtype": self.dtype, **self._fn_kwargs}


@keras.saving.register_keras_serializable(package="keras_kd")
class ExpectedCalibrationError(keras.metrics.Metric):
    """Gap between how sure a model is and how often it is right, over bins of confidence.

    Students of soft targets are often better calibrated than those of labels: 0 is perfect.
    `y_true` holds integer labels `(…)`, `y_pred` logits `(…, classes)`:

        Σ_b |B_b|/n · |accuracy(B_b) − confidence(B_b)|

    Args:
        bins: number of equal bins of confidence. Defaults to 15.
        from_logits: whether `y_pred` holds logits, or probabilities. Defaults to `True`.
        name: name in the logs.
        dtype: dtype of the state.

    Raises:
        ValueError: "`bins` must be positive", "`bins` must be a whole number".

    Reference:
        Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3.

    Example:
    ```python
    import keras_kd as kd

    metric = kd.metrics.ExpectedCalibrationError()
    print(float(metric([0, 1], [[50.0, 0.0], [0.0, 50.0]])))  # 0.0
    ```
    """

    def __init__(
        self,
        bins: int = 15,
        from_logits: bool = True,
        name: str = "calibration_error",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.from_logits = from_logits
        if checks.positive("bins", bins) != int(bins):
            raise checks.bad_value(
                "`bins` must be a whole number.",
                given=bins,
                expected="an int > 0",
                fix="pass a whole number, for example bins=15.",
            )
        self.bins = int(bins)
        shape = (self.bins,)
        self._weights = self.add_variable(shape, initializer="zeros", name="weights")
        self._hits = self.add_variable(shape, initializer="zeros", name="hits")
        self._confidences = self.add_variable(shape, initializer="zeros", name="confidences")
        self._direction = "down"

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Count a batch into the bins."""
        given, mask = _float32(y_pred), getattr(y_pred, "_keras_mask", None)
        p = ops.softmax(given, axis=-1) if self.from_logits else given
        p = ops.reshape(p, (-1, given.shape[-1]))
        labels = ops.reshape(ops.cast(ops.convert_to_tensor(y_true), "int32"), (-1,))
        confidence = ops.max(p, axis=-1)
        hit = ops.cast(ops.equal(ops.cast(ops.argmax(p, axis=-1), "int32"), labels), "float32")
        weight = ops.reshape(_weights(given[..., 0], sample_weight, mask), (-1,))
        place = ops.cast(ops.ceil(confidence * self.bins), "int32") - 1  # bins are (low, high]
        rows = ops.one_hot(ops.clip(place, 0, self.bins - 1), self.bins) * weight[:, None]
        self._weights.assign_add(ops.sum(rows, axis=0))
        self._hits.assign_add(ops.sum(rows * hit[:, None], axis=0))
        self._confidences.assign_add(ops.sum(rows * confidence[:, None], axis=0))

    def result(self) -> Any:
        """Return the error, from 0 to 1."""
        gaps = ops.sum(ops.abs(self._hits.value - self._confidences.value))
        return ops.divide_no_nan(gaps, ops.sum(self._weights.value))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {
            "bins": self.bins,
            "from_logits": self.from_logits,
            "name": self.name,
            "dtype": self.dtype,
        }


def _weights(like: Any, *parts: Any) -> Any:
    """Return one weight for each decision: the sample's weight, and 0 where a mask hides it."""
    weight = ops.ones_like(like)
    for part in parts:
        if part is not None:
            part = _float32(part)
            missing = len(like.shape) - len(part.shape)
            weight = weight * ops.reshape(part, (*ops.shape(part), *[1] * missing))
    return weight


def _agreement(teacher: Any, student: Any, activation: str) -> Any:
    teacher, student = _float32(teacher), _float32(student)
    if activation == "softmax":
        same = ops.equal(ops.argmax(teacher, axis=-1), ops.argmax(student, axis=-1))
        return ops.cast(same, "float32")
    return ops.mean(ops.cast(ops.equal(teacher > 0, student > 0), "float32"), axis=-1)


def _divergence(teacher: Any, student: Any, activation: str) -> Any:
    teacher, student = _float32(teacher), _float32(student)
    if activation == "softmax":
        log_t, log_s = ops.log_softmax(teacher, axis=-1), ops.log_softmax(student, axis=-1)
        return ops.sum(ops.exp(log_t) * (log_t - log_s), axis=-1)
    yes = ops.sigmoid(teacher) * (ops.log_sigmoid(teacher) - ops.log_sigmoid(student))
    no = ops.sigmoid(-teacher) * (ops.log_sigmoid(-teacher) - ops.log_sigmoid(-student))
    return ops.sum(yes + no, axis=-1)


def _float32(tensor: Any) -> Any:
    return ops.cast(ops.convert_to_tensor(tensor), "float32")


def _activation(name: str) -> str:
    if name not in ("softmax", "sigmoid"):
        raise checks.unknown_name("activation", name, ("softmax", "sigmoid"))
    return name
