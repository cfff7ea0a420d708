"""Every recipe's student and teacher answers, pruned, as it does with the channels masked."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest

from keras_kd import recipes
from tests.compress.masking import check

U_NET = {
    1: {
        "down2_conv1": ["down1_conv1"],
        "down3_conv1": ["down2_conv1"],
        "up2_conv1": ["down3_conv1", "down2_conv1"],
        "up1_conv1": ["up2_conv1", "down1_conv1"],
        "logits": ["up1_conv1"],
    },
    2: {
        "down1_conv2": ["down1_conv1"],
        "down2_conv1": ["down1_conv2"],
        "down2_conv2": ["down2_conv1"],
        "down3_conv1": ["down2_conv2"],
        "down3_conv2": ["down3_conv1"],
        "up2_conv1": ["down3_conv2", "down2_conv2"],
        "up2_conv2": ["up2_conv1"],
        "up1_conv1": ["up2_conv2", "down1_conv2"],
        "up1_conv2": ["up1_conv1"],
        "logits": ["up1_conv2"],
    },
}
RESIDUAL = {
    "block1_1_conv": ["stem_conv"],
    "block1_around": ["stem_conv"],
    "block1_2_conv": ["block1_1_conv"],
    "block2_1_conv": ["block1_2_conv"],
    "block2_around": ["block1_around"],
    "block2_2_conv": ["block2_1_conv"],
    "block3_1_conv": ["block2_2_conv"],
    "block3_around": ["block2_around"],
    "block3_2_conv": ["block3_1_conv"],
    "logits": ["block3_around"],
}


def chain(*names: str, **last) -> dict:
    """Each layer reads the one before it."""
    return {after: [before] for before, after in itertools.pairwise(names)} | last


SIX = ("conv1_1", "conv1_2", "conv2_1", "conv2_2", "conv3_1", "conv3_2")
THREE = ("conv1_1", "conv2_1", "conv3_1")
READS = {
    ("char_lm", "teacher"): {"lstm": ["embedding"]},
    ("char_lm", "student"): {"gru": ["embedding"]},
    ("digit_detector", "teacher"): chain(*SIX, class_head=["conv3_2"], boxes_head=["conv3_2"]),
    ("digit_detector", "student"): chain(*THREE, class_head=["conv3_1"], boxes_head=["conv3_1"]),
    ("digit_tags", "teacher"): chain(*SIX, "logits"),
    ("digit_tags", "student"): chain(*THREE, "logits"),
    ("fashion_cnn", "teacher"): RESIDUAL,
    ("fashion_cnn", "student"): chain(
        "stem_conv",
        "block1_pointwise_conv",
        "block2_pointwise_conv",
        "block3_pointwise_conv",
        "logits",
    ),
    ("mnist1d", "teacher"): chain("conv1", "conv2", "conv3", logits=(["conv3"], 10)),
    ("mnist1d", "student"): chain("conv1", "conv2", "conv3", logits=(["conv3"], 10)),
    ("mnist_mlp", "teacher"): chain("dense1", "dense2", "logits"),
    ("mnist_mlp", "student"): chain("dense1", "dense2", "logits"),
    ("multi_digit", "teacher"): U_NET[2],
    ("multi_digit", "student"): U_NET[1],
    ("tabular", "teacher"): chain("dense1", "dense2", "logit"),
    ("tabular", "student"): chain("dense1", "dense2", "logit"),
    ("tabular_regression", "teacher"): {"value": ["dense"]},
    ("tabular_regression", "student"): {"value": ["dense"]},
}


def test_every_recipe_is_here() -> None:
    assert sorted({name for name, _ in READS}) == recipes.names()


@pytest.mark.parametrize("name, who", READS)
def test_pruned_is_the_masked_original(name, who) -> None:
    def build() -> keras.Model:
        model = getattr(recipes.load(name), who)()
        for layer in model.layers:
            if isinstance(layer, keras.layers.Normalization):
                shape = (40, *layer.input.shape[1:])
                layer.adapt(np.random.default_rng(0).normal(3.0, 2.0, shape).astype("float32"))
        return model

    check(build, READS[name, who])
