"""What Keras calls a loss, taken into a loss of ours: configs and words."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest

from keras_kd import keras_losses
from keras_kd.losses import FeatureDistillation, LogitsDistillation

KINDS = [LogitsDistillation, FeatureDistillation]


@keras.saving.register_keras_serializable(package="tests")
def largest_difference(teacher, student):
    return keras.ops.max(keras.ops.abs(teacher - student), axis=-1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "loss",
    ["mse", keras.losses.Tversky(alpha=0.2), keras.losses.mean_absolute_error, largest_difference],
    ids=["name", "object", "function", "own_function"],
)
def test_every_kind_of_loss_survives_the_config(rng, kind, loss):
    t, s = (rng.normal(size=(4, 3)) for _ in range(2))
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(kind(loss=loss))))
    again = keras.saving.deserialize_keras_object(config)
    assert float(again.compute_loss(t, s)) == float(kind(loss=loss).compute_loss(t, s)) > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "loss", [["mse", None, keras.losses.Huber()], {"a": keras.losses.Huber(), "b": None}]
)
def test_a_structure_of_losses_survives_the_config(kind, loss):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(kind(loss=loss))))
    again = keras.saving.deserialize_keras_object(config)
    for before, after in zip(keras.tree.flatten(loss), keras.tree.flatten(again.loss), strict=True):
        assert type(before) is type(after)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_name_is_answered_with_the_closest(kind):
    words = r"There is no loss 'kl_divergance'[\s\S]*did you mean 'kl_divergence'"
    with pytest.raises(ValueError, match=words):
        kind(loss="kl_divergance")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", [3, LogitsDistillation()], ids=["number", "distillation_loss"])
def test_what_cannot_be_computed_is_refused(kind, loss):
    with pytest.raises(TypeError, match="`loss` is nothing that can be computed"):
        kind(loss=loss)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["sum", "none", None])
@pytest.mark.parametrize("loss", [keras.losses.MeanSquaredError, keras.losses.KLDivergence])
def test_another_reduction_is_refused(kind, loss, reduction):
    with pytest.raises(ValueError, match="must average over the batch"):
        kind(loss=loss(reduction=reduction))


@pytest.mark.parametrize(
    ("loss", "option"),
    [
        (keras.losses.CategoricalCrossentropy(label_smoothing=0.1), "label_smoothing=0.1"),
        (keras.losses.CategoricalCrossentropy(axis=1), "axis=1"),
    ],
    ids=["label_smoothing", "axis"],
)
def test_options_without_meaning_for_soft_targets_are_refused(loss, option):
    words = rf"Options of {type(loss).__name__} have no meaning for soft targets[\s\S]*{option}"
    with pytest.raises(ValueError, match=words):
        LogitsDistillation(loss=loss)


def test_a_loss_that_gives_one_number_for_the_batch_refuses_weights():
    loss = LogitsDistillation(loss=lambda t, s: keras.ops.mean(keras.ops.square(t - s)))
    t, s = np.ones((2, 3)), np.zeros((2, 3))
    assert float(loss.compute_loss(t, s)) == pytest.approx(1 / 9)
    with pytest.raises(ValueError, match="one number for the batch cannot honour a sample_weight"):
        loss.compute_loss(t, s, sample_weight=np.ones(2))


@pytest.mark.parametrize(
    "loss",
    ["mse", "MeanSquaredError", keras.losses.MeanSquaredError()],
    ids=["mse", "class", "object"],
)
def test_the_mean_square_is_known_by_each_of_its_names(loss):
    assert keras_losses.is_mean_square(keras_losses.resolve_loss(loss))
    assert not keras_losses.is_mean_square(keras_losses.resolve_loss("mae"))
