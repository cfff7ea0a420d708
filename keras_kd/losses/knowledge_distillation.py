"""Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015), and its relatives.

The reverse and Jensen-Shannon forms follow Agarwal et al., "On-Policy Distillation of Language
Models" (GKD, 2024), section 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_kd import checks, keras_losses, schedules, top_k
from keras_kd.distributions import log_probabilities, relative_entropy
from keras_kd.losses import base
from keras_kd.losses.base import Tensor

DIRECTIONS = ("forward", "reverse", "jensen_shannon")


def kl_divergence(
    teacher_logits: Tensor,
    student_logits: Tensor,
    temperature: Any = 1.0,
    direction: str = "forward",
    beta: float = 0.5,
    activation: str = "softmax",
) -> Tensor:
    """Return T² · D(t, s) between distributions softened by T, of shape `logits.shape[:-1]`.

    With t and s the softmax (or the sigmoid of each label) of logits/T:
    forward KL(t‖s); reverse KL(s‖t); Jensen-Shannon β·KL(t‖m) + (1−β)·KL(s‖m), m = β·t + (1−β)·s.
    """
    if direction == "forward" and activation == "softmax":
        return _forward_divergence(teacher_logits, student_logits, temperature)
    return temperature**2 * sum(
        _divergence(teacher, student, direction, beta)
        for teacher, student in zip(
            log_probabilities(teacher_logits / temperature, activation),
            log_probabilities(student_logits / temperature, activation),
            strict=True,
        )
    )


def _forward_divergence(teacher_logits: Tensor, student_logits: Tensor, temperature: Any) -> Tensor:
    """Return T²·KL(t‖s) of softmaxes, whose slope by the student's logits, T·(s − t), is known."""

    @tf.custom_gradient
    def divergence(logits: Tensor) -> tuple[Tensor, Callable]:
        log_p, log_q = (
            ops.log_softmax(side / temperature, axis=-1) for side in (teacher_logits, logits)
        )

        def slope(upstream: Tensor) -> Tensor:
            return (ops.exp(log_q) - ops.exp(log_p)) * (temperature * upstream)[..., None]

        return temperature**2 * relative_entropy(log_p, log_q), slope

    return divergence(student_logits)


def soft_cross_entropy(
    teacher_logits: Tensor,
    student_logits: Tensor,
    temperature: Any = 1.0,
    activation: str = "softmax",
) -> Tensor:
    """Return T² · −Σ t·log s between distributions softened by T, of shape `logits.shape[:-1]`."""
    return -(temperature**2) * sum(
        ops.sum(ops.exp(teacher) * student, axis=-1)
        for teacher, student in zip(
            log_probabilities(teacher_logits / temperature, activation),
            log_probabilities(student_logits / temperature, activation),
            strict=True,
        )
    )


def _divergence(teacher: Tensor, student: Tensor, direction: str, beta: float) -> Tensor:
    if direction == "forward":
        return relative_entropy(teacher, student)
    if direction == "reverse":
        return relative_entropy(student, teacher)
    mixture = ops.logaddexp(teacher + ops.log(beta), student + ops.log(1.0 - beta))
    to_teacher, to_student = (relative_entropy(side, mixture) for side in (teacher, student))
    return beta * to_teacher + (1.0 - beta) * to_student


@keras.saving.register_keras_serializable(package="keras_kd")
class LogitsDistillation(base.DistillationLoss):
    """Match the student's softened distribution to the teacher's: the classic distillation loss.

    Use it first: it needs no labels, no layers and no tuning but the temperature. It is computed
    from log-softmax in float32, so it keeps its gradient where the student is confidently wrong:

        T² · KL(softmax(t/T) ‖ softmax(s/T)), averaged over the batch

    On soft targets that hold the top k logits (`kd.SoftTargets.build(top_k=…)`) the KL divergence,
    in any direction, is that over the kept classes and one class for all the others: a lower bound
    of the one over all classes. T must be one of the stored temperatures.

    Args:
        temperature: T > 0, or a `LearningRateSchedule` of it. Higher is softer. Defaults to 3.0.
        loss: `"kl_divergence"` or `"categorical_crossentropy"` (or Keras's objects of these): the
            softened forms above with T². Any other Keras loss or function `(t, s)` gets logits/T
            and no T², as in Keras. A list or dict of these, one for each output, with `None` for an
            output that is left out. Defaults to `"kl_divergence"`.
        direction: `"forward"` KL(t‖s), `"reverse"` KL(s‖t) or `"jensen_shannon"`.
        beta: weight of the teacher in the Jensen-Shannon mixture, 0 < β < 1, or a
            `LearningRateSchedule` of it. Defaults to 0.5.
        activation: `"softmax"`, or `"sigmoid"` for multi-label and binary outputs, where the
            Bernoulli divergences are summed over the labels. Defaults to `"softmax"`.
        name: name in the logs. Defaults to `"logits_distillation"`.

    Raises:
        ValueError: "`temperature` must be positive", "There is no direction …", "There is no loss
            …", "`beta` belongs to the Jensen-Shannon divergence", "`direction`, `beta` and
            `activation` belong to …", "A softmax over one class is
            constant"; on the top k logits "… needs all classes" and "… was not stored".

    Reference:
        Hinton et al. 2015, section 2 (soft targets and the T² of section 2.1); Agarwal et al. 2024,
        section 2, for Jensen-Shannon.

    Example:
    ```python
    import keras_kd as kd

    loss = kd.LogitsDistillation(temperature=2.0)
    print(float(loss.compute_loss([[2.0, 0.0]], [[2.0, 0.0]])))  # 0.0
    ```
    """

    paper = "Hinton et al. 2015; Agarwal et al. 2024 (GKD)"

    def __init__(
        self,
        temperature: Any = 3.0,
        loss: Any = "kl_divergence",
        direction: str = "forward",
        beta: Any = 0.5,
        activation: str = "softmax",
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.temperature = schedules.positive("temperature", temperature)
        self.direction = base.option("direction", direction, DIRECTIONS)
        self.beta = schedules.fraction("beta", beta, open_ends=True)
        self._activation = base.option("activation", activation, base.ACTIVATIONS)
        self.loss = loss
        if all(term is None for term in keras.tree.flatten(self.terms())):
            raise checks.bad_value(
                "LogitsDistillation has no loss left to compute.",
                given=f"loss={loss!r}",
                expected="at least one loss that is not None",
                fix='name a loss for one output, for example loss=["kl_divergence", None].',
            )

    def terms(self) -> Any:
        """Return the softened loss of each output."""
        return keras.tree.map_structure(self._term, self.loss)

    def check_shapes(self, teacher: tuple, student: tuple) -> None:
        """Refuse different class counts, and outputs without an axis for them."""
        super().check_shapes(teacher, student)
        base.refuse_flat(self, student)

    def _term(self, loss: Any) -> Callable | None:
        if loss is None:
            return None
        name = keras_losses.softened_name(loss)
        temperature, activation = self.temperature, self._activation
        if name == "kl_divergence":
            self._refuse_idle_beta()
            return self._softened(
                name,
                lambda t, s: kl_divergence(
                    t, s, temperature, self.direction, self.beta, activation
                ),
            )
        plain = self.direction == "forward" and self.beta == 0.5
        if name == "categorical_crossentropy" and plain:
            return self._softened(
                name, lambda t, s: soft_cross_entropy(t, s, temperature, activation)
            )
        if not plain or activation != "softmax":
            raise checks.bad_value(
                "`direction`, `beta` and `activation` belong to the KL divergence, and mean "
                "nothing with another loss.",
                given=f"loss={loss!r}, direction={self.direction!r}, beta={self.beta}, "
                f"activation={activation!r}",
                expected='loss="kl_divergence", or these three at their defaults',
                fix='use loss="kl_divergence", or leave them out.',
            )
        function = keras_losses.resolve_loss(loss)
        return lambda t, s, y=None: function(t / temperature, s / temperature)

    def _refuse_idle_beta(self) -> None:
        if self.direction != "jensen_shannon" and self.beta != 0.5:
            raise checks.bad_value(
                "`beta` belongs to the Jensen-Shannon divergence.",
                given=f"beta={self.beta}, direction={self.direction!r}",
                expected='direction="jensen_shannon", or no beta',
                fix='add direction="jensen_shannon", or leave beta out.',
            )

    def _softened(self, name: str, function: Callable) -> Callable:
        """Make the term of one output; with one of these, this is a softmax (or sigmoid) loss."""
        self.activation = self._activation
        return _Softened(self, name, function)

    def kept(self, teacher: top_k.TopKLogits, term: Callable) -> float:
        """Return the temperature, where the KL of kept classes and one for the rest can be had.

        Raises:
            ValueError: "… needs all classes", "The temperature … was not stored".
        """
        divergence = isinstance(term, _Softened) and term.name == "kl_divergence"
        if not divergence or self._activation != "softmax":
            what = f"loss={self.loss!r}, activation={self._activation!r}"
            raise top_k.needs_all(self, teacher, what)
        base.refuse_single_class(self, teacher.shape)
        return teacher.stored(self.temperature)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "activation": self._activation}


class _Softened:
    """The term of one output: a divergence of softened distributions, and which one it is."""

    def __init__(self, loss: base.DistillationLoss, name: str, function: Callable) -> None:
        self.loss = loss
        self.name = name
        self.function = function

    def __call__(self, teacher: Tensor, student: Tensor, y: Tensor = None) -> Tensor:
        base.refuse_single_class(self.loss, tuple(student.shape))
        return self.function(teacher, student)


@keras.saving.register_keras_serializable(package="keras_kd")
class SoftCrossEntropy(base.DistillationLoss):
    """Cross-entropy of the student under the teacher's softened distribution.

    Its gradient is that of the KL divergence; its value also holds the teacher's entropy, so it
    does not reach 0. With `LogitsDistillation(direction="reverse")` it makes the objective
    λ·KL(Pₛ‖Pₜ) + CE(Pₛ, Q):

        T² · −Σ softmax(t/T)·log softmax(s/T), averaged over the batch

    Args:
        temperature: T > 0, or a `LearningRateSchedule` of it. Defaults to 1.0.
        activation: `"softmax"`, or `"sigmoid"` for multi-label and binary outputs, summed over
            the labels. Defaults to `"softmax"`.
        name: name in the logs. Defaults to `"soft_cross_entropy"`.

    Raises:
        ValueError: "`temperature` must be positive", "A softmax over one class is constant".

    Reference:
        Hinton et al. 2015, section 2.

    Example:
    ```python
    import keras_kd as kd

    loss = kd.losses.SoftCrossEntropy(temperature=1.0)
    print(float(loss.compute_loss([[0.0, 0.0]], [[0.0, 0.0]])))  # log 2 = 0.693…
    ```
    """

    paper = "Hinton et al. 2015"
    activation: str

    def __init__(
        self, temperature: Any = 1.0, activation: str = "softmax", name: str | None = None
    ) -> None:
        super().__init__(name=name)
        self.temperature = schedules.positive("temperature", temperature)
        self.activation = base.option("activation", activation, base.ACTIVATIONS)

    def per_example(self, teacher: Tensor, student: Tensor, y: Tensor = None) -> Tensor:
        """Return the softened cross-entropy of each example or position."""
        return soft_cross_entropy(teacher, student, self.temperature, self.activation)

    def check_shapes(self, teacher: tuple, student: tuple) -> None:
        """Refuse different class counts, and one class under a softmax."""
        super().check_shapes(teacher, student)
        base.refuse_single_class(self, student)
