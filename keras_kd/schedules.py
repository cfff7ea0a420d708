"""Numbers that may change during training: a temperature or a weight as a Keras schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_kd import checks


def is_schedule(value: Any) -> bool:
    """Say whether a number changes with the step."""
    return isinstance(value, LearningRateSchedule)


def number(name: str, value: Any) -> Any:
    """Return a finite number as a float, or a schedule as it is."""
    return value if is_schedule(value) else checks.number(name, value)


def positive(name: str, value: Any) -> Any:
    """Return a number above zero as a float, or a schedule as it is."""
    return value if is_schedule(value) else checks.positive(name, value)


def fraction(name: str, value: Any, *, open_ends: bool = False) -> Any:
    """Return a number between 0 and 1 as a float, or a schedule as it is."""
    return value if is_schedule(value) else checks.fraction(name, value, open_ends=open_ends)


def at(value: Any, step: Any) -> Any:
    """Return a number's value at a step: a float32 scalar for a schedule, else the number.

    Raises:
        ValueError: "A schedule needs the step" where none is given.
    """
    if not is_schedule(value):
        return value
    if step is None:
        raise checks.bad_value(
            "A schedule needs the step that it is asked at.",
            given=f"a {type(value).__name__}, and no step",
            expected="the number of optimizer steps taken",
            fix="train with kd.Distiller, which gives it (keras.distillation.Distiller does not), "
            "or call compute_loss(…, step=0).",
        )
    return ops.cast(value(step), "float32")


def serialize(value: Any) -> Any:
    """Make a number or schedule fit for a config."""
    return keras.saving.serialize_keras_object(value) if is_schedule(value) else value


def deserialize(config: Any) -> Any:
    """Make the number or schedule again from what `serialize` wrote."""
    return keras.saving.deserialize_keras_object(config) if isinstance(config, dict) else config


class ScheduleTracker(keras.metrics.Metric):
    """Show in the logs what a schedule gave at the last step.

    Args:
        name: name in the logs.
        schedule: the schedule.
    """

    def __init__(self, name: str, schedule: LearningRateSchedule) -> None:
        super().__init__(name=name, dtype="float32")
        self.schedule = schedule
        self.last = self.add_variable(
            (), initializer="zeros", aggregation="only_first_replica", name="last"
        )

    def update_state(self, step: Any, sample_weight: Any = None) -> None:
        """Keep the schedule's value at this step."""
        self.last.assign(at(self.schedule, step))

    def result(self) -> Any:
        """Return the value that was kept."""
        return ops.convert_to_tensor(self.last)


def trackers(values: Mapping[str, Any]) -> list[ScheduleTracker]:
    """Make a tracker for each of these numbers that is a schedule."""
    return [ScheduleTracker(name, value) for name, value in values.items() if is_schedule(value)]
