"""Temperatures and weights that change during training: values, logs, saving, words."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd as kd
from keras_kd import schedules
from tests.models import LOGITS, data, mlp

LINEAR = (
    keras.optimizers.schedules.PolynomialDecay
)  # (start, steps, end): start + (end − start)·k/n


def test_a_number_is_itself_and_a_schedule_its_value_at_the_step():
    assert schedules.at(2.0, None) == 2.0
    value = schedules.at(LINEAR(4.0, 10, 1.0), tf.constant(5))
    assert (float(value), value.dtype) == (pytest.approx(2.5), tf.float32)


@pytest.mark.parametrize("check", [schedules.number, schedules.positive, schedules.fraction])
def test_a_schedule_passes_where_a_number_is_checked(check):
    schedule = LINEAR(4.0, 10, 1.0)
    assert check("x", schedule) is schedule
    assert check("x", 1) == 1.0
    with pytest.raises(TypeError, match="`x` must be a number"):
        check("x", "1")


@pytest.mark.parametrize(
    ("check", "value", "words"),
    [
        (schedules.number, float("nan"), "must be finite"),
        (schedules.positive, 0.0, "must be positive"),
        (schedules.fraction, 1.5, "must be between 0 and 1"),
    ],
)
def test_a_number_out_of_range_is_refused(check, value, words):
    with pytest.raises(ValueError, match=words):
        check("x", value)


def test_without_a_step_a_schedule_is_refused():
    with pytest.raises(ValueError, match=r"A schedule needs the step[\s\S]*kd.Distiller"):
        kd.LogitsDistillation(LINEAR(4.0, 10, 1.0)).compute_loss([[1.0, 2.0]], [[1.0, 0.0]])


def test_a_config_makes_the_schedule_again():
    schedule = LINEAR(4.0, 10, 1.0)
    again = schedules.deserialize(schedules.serialize(schedule))
    assert again.get_config() == schedule.get_config()
    assert schedules.deserialize(schedules.serialize(0.3)) == 0.3


def _distiller(temperature, weights, share):
    keras.utils.set_random_seed(2)
    teacher, student = mlp(12), mlp(4)
    losses = [kd.LogitsDistillation(temperature), kd.losses.SoftCrossEntropy()]
    distiller = kd.Distiller(teacher, student, losses, weights, share)
    distiller.compile(keras.optimizers.SGD(0.1), LOGITS)
    return distiller


def test_a_training_with_schedules_is_the_steps_with_their_numbers():
    """Three steps: each must be the step of a Distiller with that step's constants."""
    x, y = data(24)
    temperature, weight, share = LINEAR(5.0, 4, 1.0), LINEAR(0.0, 4, 1.0), LINEAR(0.9, 4, 0.1)
    scheduled = _distiller(temperature, [weight, 0.5], share)
    history = scheduled.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0).history
    weights = _distiller(1.0, None, 0.5).student.get_weights()
    for step in range(3):
        part = step / 4
        constant = _distiller(5.0 - 4.0 * part, [part, 0.5], 0.9 - 0.8 * part)
        constant.student.set_weights(weights)
        here = slice(8 * step, 8 * step + 8)
        constant.fit(x[here], y[here], batch_size=8, epochs=1, shuffle=False, verbose=0)
        weights = constant.student.get_weights()
    for ours, theirs in zip(scheduled.student.get_weights(), weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    logged = {name: values[0] for name, values in history.items()}
    assert logged["logits_distillation_temperature"] == pytest.approx(3.0)
    assert logged["logits_distillation_weight"] == pytest.approx(0.5)
    assert logged["student_loss_weight"] == pytest.approx(0.5)
    assert "soft_cross_entropy_weight" not in logged


def test_an_evaluation_does_not_show_schedules():
    x, y = data(8)
    distiller = _distiller(LINEAR(5.0, 4, 1.0), None, LINEAR(0.9, 4, 0.1))
    history = distiller.fit(x, y, validation_data=(x, y), epochs=1, verbose=0).history
    assert {name for name in history if name.startswith("val_")} == {"val_loss", "val_student_loss"}


def test_a_saved_training_goes_on_at_the_step_of_its_schedules(tmp_path):
    x, y = data(16)
    whole, cut = (
        _distiller(LINEAR(5.0, 8, 1.0), [LINEAR(0.0, 8, 1.0), 1.0], LINEAR(0.9, 8, 0.1))
        for _ in range(2)
    )
    fit = {"batch_size": 8, "shuffle": False, "verbose": 0}
    whole.fit(x, y, epochs=3, **fit)
    cut.fit(x, y, epochs=1, **fit)
    cut.save(tmp_path / "cut.keras")
    loaded = kd.load_distiller(tmp_path / "cut.keras", teacher=cut.teacher)
    history = loaded.fit(x, y, epochs=3, initial_epoch=1, **fit).history
    assert history["logits_distillation_temperature"][-1] == pytest.approx(2.5)
    for ours, theirs in zip(loaded.student.get_weights(), whole.student.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_labels_are_needed_where_a_schedule_gives_them_weight():
    with pytest.raises(ValueError, match="A student loss is needed"):
        _distiller(1.0, None, LINEAR(0.5, 4, 0.0)).compile("sgd", None)


def test_schedules_work_in_a_compiled_graph_of_several_steps():
    x, y = data(24)
    distiller = _distiller(LINEAR(5.0, 4, 1.0), None, LINEAR(0.9, 4, 0.1))
    distiller.compile(keras.optimizers.SGD(0.1), LOGITS, steps_per_execution=3, jit_compile=True)
    history = distiller.fit(x, y, batch_size=8, epochs=1, verbose=0).history
    assert history["logits_distillation_temperature"][0] == pytest.approx(3.0)
