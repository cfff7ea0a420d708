"""What keeps the losses of a step for the logs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras


class LossTracker(keras.metrics.Mean):
    """The mean of one number a step, each counted by as many examples as it stands for.

    Keras's `Mean` takes tensors of any shape, and brings them to one; that is a dozen operations
    for each loss in each step.

    Args:
        name: name in the logs.
    """

    def update_state(self, values: Any, sample_weight: Any) -> None:
        """Add one number.

        Args:
            values: a float32 scalar.
            sample_weight: how many examples it is the mean of, a float32 scalar.
        """
        self.total.assign_add(values * sample_weight)
        self.count.assign_add(sample_weight)


def logs(metrics: Iterable[keras.metrics.Metric], absent: Iterable) -> dict[str, Any]:
    """Return what metrics say, by name, but for those that are absent."""
    hidden = {id(metric) for metric in absent}
    results: dict[str, Any] = {}
    for metric in metrics:
        if id(metric) not in hidden:
            result = metric.result()
            results.update(result if isinstance(result, dict) else {metric.name: result})
    return results
