"""A person's settings, and which losses their outputs get."""

from __future__ import annotations

import pytest

from keras_kd.running import loss_names, plans

NUMBERS = {
    "seeds": (0,),
    "epochs": 1,
    "batch_size": 2,
    "learning_rate": 0.1,
    "temperature": 2.0,
    "student_loss_weight": 0.5,
    "distillation_losses": (),
    "distillation_loss_weights": None,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": 0.0}, "`temperature` must be positive"),
        ({"learning_rate": -1.0}, "`learning_rate` must be positive"),
        ({"student_loss_weight": 2.0}, "`student_loss_weight` must be between 0 and 1"),
        ({"epochs": 0}, "`epochs` is out of range"),
        ({"batch_size": 0}, "`batch_size` is out of range"),
        ({"seeds": ()}, "`seeds` must be different numbers"),
        ({"seeds": (1, 1)}, "`seeds` must be different numbers"),
        ({"distillation_loss_weights": (1.0,)}, "1 weights do not fit 0 distillation losses"),
        ({"distillation_losses": ("a b",)}, "The distillation loss 'a b' cannot be read"),
    ],
)
def test_settings_are_refused_before_anything_loads(change, words):
    plans.check_settings(**NUMBERS)
    with pytest.raises(ValueError, match=words):
        plans.check_settings(**NUMBERS | change)


def test_default_losses_leave_out_what_is_not_theirs():
    outputs = {
        "a": plans.Output("classes"),
        "b": plans.Output("binary"),
        "c": plans.Output("values"),
    }
    soft, labels, values = plans.default_losses(outputs, {"a": 0, "b": 0, "c": 0}, 2.0)
    assert soft.loss == {"a": "kl_divergence", "b": None, "c": None}
    assert (soft.temperature, soft.activation) == (2.0, "softmax")
    assert (labels.loss["b"], labels.activation) == ("kl_divergence", "sigmoid")
    assert values.terms() == {"a": None, "b": None, "c": values.per_example}
    assert values.get_config() == {"chosen": {"a": False, "b": False, "c": True}}
    (listed,) = plans.default_losses({"a": outputs["a"], "b": outputs["a"]}, [0, 0], 2.0)
    assert listed.loss == ["kl_divergence", "kl_divergence"]


def test_losses_are_read_by_name():
    assert loss_names.parse_loss("LogitMatching") == ("LogitMatching", {})
    loss = loss_names.make_loss("LogitsDistillation(temperature=4, direction='reverse')", 2.0)
    assert (loss.temperature, loss.direction) == (4.0, "reverse")
    assert loss_names.make_loss("SoftCrossEntropy", 2.0).temperature == 2.0
    with pytest.raises(ValueError, match=r"cannot be read\.\n  given"):
        loss_names.parse_loss("f(1)")
    with pytest.raises(ValueError, match="There is no distillation loss 'LogitsDistilation'"):
        loss_names.make_loss("LogitsDistilation", 2.0)
    with pytest.raises(
        ValueError, match="There is no argument of LogitsDistillation: 'temprature'"
    ):
        loss_names.make_loss("LogitsDistillation(temprature=4)", 2.0)


def test_keras_losses_are_read_by_either_name():
    for name in ("MeanSquaredError", "mean_squared_error"):
        assert loss_names.check_keras_loss(name) == "MeanSquaredError"
    with pytest.raises(ValueError, match="There is no Keras loss 'MeanSquareError'"):
        loss_names.check_keras_loss("MeanSquareError")


def test_a_loss_inside_a_loss_is_written_as_one():
    spec = "LogitStandardization(loss=LogitsDistillation(temperature=2))"
    name, arguments = loss_names.parse_loss(spec)
    assert name == "LogitStandardization"
    assert arguments["loss"] == ("LogitsDistillation", {"temperature": 2})
    loss = loss_names.make_loss(spec, 4.0)
    assert loss.loss.temperature == 2.0
    assert loss_names.make_loss("LogitStandardization(loss=SoftCrossEntropy)", 3.0).loss.name


def test_the_temperature_of_the_command_line_leaves_the_papers_alone():
    assert loss_names.make_loss("DIST", 4.0).temperature == 1.0
    assert loss_names.make_loss("LogitsDistillation", 4.0).temperature == 4.0
