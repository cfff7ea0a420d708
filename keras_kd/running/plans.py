"""A person's own teacher and student on named data, brought into the shape of a recipe.

The story of a run asks a `StudentPlan` for everything it needs; a recipe is one, and `UserPlan`
makes one of two models and a data set, choosing the loss of the labels and the distillation
losses from what the outputs and the labels are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from keras_kd import checks
from keras_kd.data.arrays import whole
from keras_kd.running import answers, loss_names, user_models
from keras_kd.running.answers import Output

if TYPE_CHECKING:
    import keras

    from keras_kd.data import Dataset


class StudentPlan(Protocol):
    """What the story of a run needs to know of its student; a `Recipe` is one."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """One training alone and one distilled for each."""

    @property
    def batch_size(self) -> int:
        """Examples in a step."""

    @property
    def epochs(self) -> int:
        """Passes over the training data."""

    @property
    def learning_rate(self) -> float:
        """The highest learning rate."""

    @property
    def temperature(self) -> float:
        """T, for distributions."""

    @property
    def student_loss_weight(self) -> float:
        """The labels' share of the total loss."""

    @property
    def steps_per_execution(self) -> int:
        """Training steps in one call of the compiled graph."""

    @property
    def soft_targets(self) -> bool:
        """Whether the teacher's answers are kept where the batches are not augmented."""

    def student(self) -> keras.Model:
        """Make a new student."""

    def student_augmentation(self) -> Callable[..., Any] | None:
        """Return what changes its training batches."""

    def distillation_losses(self) -> list[Any]:
        """Make new distillation losses."""

    def distillation_loss_weights(self) -> list[float] | None:
        """Return a weight for each, or None."""

    def optimizer(self, learning_rate: float, total_steps: int) -> keras.optimizers.Optimizer:
        """Make a new optimizer."""

    def loss(self) -> Any:
        """Make a new loss of the labels, nested as the outputs."""

    def metrics(self) -> Any:
        """Make new metrics, nested as the outputs."""

    def measures(self) -> list[keras.metrics.Metric]:
        """Make new metrics to measure beside those of `keras_kd.compare`."""

    def adapt(self, model: keras.Model, dataset: Dataset) -> None:
        """Set what a new network takes from the training data before it learns."""


@dataclass(frozen=True, kw_only=True)
class UserPlan:
    """A person's student and settings, in the shape that a run asks for.

    Args:
        student_source: `FILE.keras` or `module:function`.
        outputs: output name ("" for a single output) -> what it answers.
        structure: the student's outputs, or anything nested like them.
        loss_name: a class of `keras.losses` for every output, or None to choose by the labels.
        loss_specs: `NAME` or `NAME(key=value, ...)` of classes in `keras_kd.losses`; empty: choose.
        loss_weights: one for each of them, or None.
        temperature: T for the losses that take one and were given none.
        batch_size: examples in a step.
        epochs: passes over the training data.
        learning_rate: Adam's rate at the start; it falls to 0 as a cosine.
        student_loss_weight: the labels' share of the total loss, 0 to 1.
        steps_per_execution: training steps in one call of the compiled graph.
        seeds: one training alone and one distilled for each.
        soft_targets: whether the teacher's answers are kept, and the teacher is not asked again.
    """

    student_source: str
    outputs: Mapping[str, Output]
    structure: Any
    loss_name: str | None
    loss_specs: tuple[str, ...]
    loss_weights: tuple[float, ...] | None
    temperature: float
    batch_size: int
    epochs: int
    learning_rate: float
    student_loss_weight: float
    seeds: tuple[int, ...]
    steps_per_execution: int = 1
    soft_targets: bool = True

    def student(self) -> keras.Model:
        """Load or make the student: a file gives its own weights, a function makes new ones."""
        return user_models.load_model("student", self.student_source)

    def student_augmentation(self) -> None:
        """Return None: a person's data is taken as it is."""

    def distillation_losses(self) -> list[Any]:
        """Make the named losses, or the ones that fit the outputs."""
        if self.loss_specs:
            return [loss_names.make_loss(spec, self.temperature) for spec in self.loss_specs]
        return default_losses(self.outputs, self.structure, self.temperature)

    def distillation_loss_weights(self) -> list[float] | None:
        """Return the given weights."""
        return None if self.loss_weights is None else list(self.loss_weights)

    def optimizer(self, learning_rate: float, total_steps: int) -> keras.optimizers.Optimizer:
        """Make Adam with a cosine decay to 0."""
        import keras

        schedule = keras.optimizers.schedules.CosineDecay(learning_rate, total_steps)
        return keras.optimizers.Adam(schedule)

    def loss(self) -> Any:
        """Make a loss for each output."""
        made = {name: output.loss(self.loss_name) for name, output in self.outputs.items()}
        return made.get("", made)

    def metrics(self) -> Any:
        """Make a metric for each output."""
        made = {name: [output.metric()] for name, output in self.outputs.items()}
        return made.get("", made)

    def measures(self) -> list[keras.metrics.Metric]:
        """Return none: `keras_kd.compare` measures what fits any data."""
        return []

    def adapt(self, model: keras.Model, dataset: Dataset) -> None:
        """Do nothing: a person's networks are taken as they are."""


def check_settings(
    *,
    seeds: Sequence[int],
    epochs: int,
    batch_size: int,
    learning_rate: float,
    temperature: float,
    student_loss_weight: float,
    distillation_losses: Sequence[str],
    distillation_loss_weights: Sequence[float] | None,
) -> None:
    """Refuse numbers and loss names that cannot be trained with, before anything loads.

    Raises:
        ValueError: "`temperature` must be positive." and the like; "`seeds` must be different
            numbers, one at least."; "... weights do not fit ... distillation losses."
    """
    whole("epochs", epochs, at_least=1)
    whole("batch_size", batch_size, at_least=1)
    checks.positive("learning_rate", learning_rate)
    checks.positive("temperature", temperature)
    checks.fraction("student_loss_weight", student_loss_weight)
    if not seeds or len(set(seeds)) < len(seeds):
        raise checks.bad_value(
            "`seeds` must be different numbers, one at least.",
            given=tuple(seeds),
            expected="one seed or more, none twice",
            fix="pass, for example, seeds=(0, 1, 2).",
        )
    for seed in seeds:
        whole("seeds", seed, at_least=0)
    for spec in distillation_losses:
        loss_names.parse_loss(spec)
    weights = distillation_loss_weights
    if weights is not None and len(weights) != len(distillation_losses):
        raise checks.bad_value(
            f"{len(weights)} weights do not fit {len(distillation_losses)} distillation losses.",
            given=f"losses {list(distillation_losses)}, weights {list(weights)}",
            expected="one weight for each named loss",
            fix="name each loss and give each a weight, or leave the weights out.",
        )


def for_user(student: keras.Model, dataset: Dataset, **settings: Any) -> UserPlan:
    """Make the plan for a person's student, whose loss and metrics fit its outputs.

    Args:
        student: the student as loaded once, to look at.
        dataset: the data.
        **settings: the other fields of `UserPlan`.

    Returns:
        The plan, its numbers and names checked.
    """
    outputs, structure = answers.look("student", student, dataset.train)
    if settings["loss_name"] is not None:
        settings["loss_name"] = loss_names.check_keras_loss(settings["loss_name"])
    plan = UserPlan(outputs=outputs, structure=structure, **settings)
    plan.distillation_losses()
    return plan


def default_losses(outputs: Mapping[str, Output], structure: Any, temperature: float) -> list[Any]:
    """Make the distillation losses that fit the outputs: one for each kind of answer.

    Args:
        outputs: name -> what it answers.
        structure: the student's outputs, or anything nested like them.
        temperature: T for distributions; values are compared as they are.

    Returns:
        `LogitsDistillation` for classes, another for binary outputs, `ValueMatching` for values;
        each leaves out the outputs of the others.
    """
    from keras_kd.losses import LogitsDistillation
    from keras_kd.running.value_matching import ValueMatching

    def nested(*tasks: str, yes: Any, no: Any) -> Any:
        chosen = {name: yes if output.task in tasks else no for name, output in outputs.items()}
        return answers.nested(chosen, structure)

    found = {output.task for output in outputs.values()}
    losses: list[Any] = []
    if found & {"classes", "one_hot"}:
        loss = nested("classes", "one_hot", yes="kl_divergence", no=None)
        losses.append(LogitsDistillation(temperature=temperature, loss=loss))
    if "binary" in found:
        loss = nested("binary", yes="kl_divergence", no=None)
        binary = LogitsDistillation(
            temperature=temperature, loss=loss, activation="sigmoid", name="binary_distillation"
        )
        losses.append(binary)
    if "values" in found:
        losses.append(ValueMatching(nested("values", yes=True, no=False)))
    return losses


def config_of(plan: Any) -> dict[str, Any]:
    """Return a plan's or a recipe's plain settings, for the record."""
    hidden = ("structure",)
    names = [field.name for field in dataclasses.fields(plan) if field.name not in hidden]
    return {name: getattr(plan, name) for name in names}
