"""What keeps the losses of a step for the logs counts as Keras's own metrics do."""

from __future__ import annotations

import numpy as np
import pytest

from keras_kd.trackers import LossTracker
from tests.models import LOGITS, data
from tests.test_distiller import make


def test_a_tracker_is_a_weighted_mean_that_begins_anew():
    values, counts = np.array([2.0, 5.0, 1.0], "float32"), np.array([8.0, 8.0, 3.0], "float32")
    tracker = LossTracker(name="loss")
    assert float(tracker.result()) == 0.0
    for _ in range(2):
        for value, count in zip(values, counts, strict=True):
            tracker.update_state(value, count)
        assert float(tracker.result()) == pytest.approx(np.average(values, weights=counts))
        tracker.reset_state()
        assert [float(number) for number in tracker.variables] == [0.0, 0.0]


def test_every_metric_is_listed_once_however_often_a_distiller_is_compiled():
    x, y = data()
    distiller = make()
    for _ in range(2):
        distiller.compile("sgd", LOGITS, metrics=["accuracy"])
        distiller.fit(x, y, verbose=0)
        names = [metric.name for metric in distiller.metrics]
        assert names == ["loss", "compile_metrics", "student_loss", "logits_distillation"]
        variables = list(map(id, distiller.metrics_variables))
        assert len(variables) == len(set(variables))


def test_evaluate_begins_anew_after_training_and_after_itself():
    """The numbers of NumPy, whatever the trackers held before."""
    x, y = data()
    distiller = make()
    distiller.fit(x, y, epochs=2, verbose=0)
    logits = distiller.student.predict(x, verbose=0).astype("float64")
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    expected = -np.log(shares / shares.sum(-1, keepdims=True))[np.arange(len(y)), y].mean()
    for _ in range(2):
        report = distiller.evaluate(x, y, verbose=0, return_dict=True)
        assert report["loss"] == report["student_loss"] == pytest.approx(expected, rel=1e-5)
