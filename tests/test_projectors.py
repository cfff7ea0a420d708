"""Projectors: shapes, values, saving and words."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_kd.projectors import Projector, projector_for

FITS = [
    pytest.param((None, 16), (None, 4), id="vector_channels"),
    pytest.param((None, 7, 16), (None, 7, 4), id="sequence_channels"),
    pytest.param((None, 7, 4), (None, 5, 4), id="sequence_length"),
    pytest.param((None, 7, 16), (None, 5, 4), id="sequence_both"),
    pytest.param((None, None, 16), (None, None, 4), id="unknown_length"),
    pytest.param((None, 6, 4, 16), (None, 6, 4, 4), id="map_channels"),
    pytest.param((None, 6, 4, 4), (None, 3, 8, 4), id="map_size"),
    pytest.param((None, 6, 4, 16), (None, 3, 8, 4), id="map_both"),
    pytest.param((None, 2, 3, 4, 16), (None, 2, 3, 4, 5), id="volume_channels"),
]


def sample(shape, rng):
    return rng.normal(size=[2 if size is None else size for size in shape]).astype("float32")


@pytest.mark.parametrize(("teacher", "student"), FITS)
def test_the_projector_maps_a_student_feature_onto_the_teachers_shape(rng, teacher, student):
    projector = projector_for(teacher, student)
    assert projector(sample(student, rng)).shape == sample(teacher, rng).shape
    assert len(projector.trainable_weights) == (2 if teacher[-1] != student[-1] else 0)


@pytest.mark.parametrize("shape", [(None, 4), (None, 7, 4), (None, 6, 4, 4)])
def test_no_projector_is_made_where_shapes_agree(shape):
    assert projector_for(shape, shape) is None


def test_the_linear_map_of_a_map_is_a_1x1_convolution(rng):
    x = sample((None, 3, 5, 4), rng)
    projector = projector_for((None, 3, 5, 6), (None, 3, 5, 4))
    projector(x)
    kernel, bias = projector.get_weights()
    convolution = keras.layers.Conv2D(6, 1)
    convolution.build((None, 3, 5, 4))
    convolution.set_weights([kernel[None, None], bias])
    np.testing.assert_allclose(projector(x), convolution(x), rtol=1e-5, atol=1e-6)


def test_resizing_keeps_a_constant_and_interpolates_a_line():
    constant = Projector(size=(7, 5))(np.full((1, 3, 4, 2), 3.0, "float32"))
    np.testing.assert_allclose(constant, np.full((1, 7, 5, 2), 3.0), rtol=1e-6)
    line = np.arange(4.0, dtype="float32").reshape(1, 4, 1)
    doubled = np.ravel(Projector(size=(8,))(line))
    np.testing.assert_allclose(doubled, [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3], rtol=1e-6)


def test_it_computes_in_float32_under_mixed_precision(rng):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        projector = projector_for((None, 3, 5, 6), (None, 2, 2, 4))
        x = sample((None, 2, 2, 4), rng)
        halves = projector(x.astype("float16"))
        assert (halves.dtype, projector.layer.compute_dtype) == ("float32", "float32")
        np.testing.assert_allclose(halves, projector(x), atol=1e-2)
    finally:
        keras.config.set_dtype_policy(before)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Projector(6),
        lambda: Projector(6, size=(3, 3)),
        lambda: Projector(size=(3, 3)),
        lambda: Projector(layer=keras.layers.Conv2D(6, 3, padding="same")),
        lambda: Projector(6, layer=keras.layers.Dense(6, activation="relu")),
    ],
    ids=["channels", "channels_and_size", "size", "layer", "layer_and_channels"],
)
def test_it_is_saved_and_loaded_whole(tmp_path, rng, make):
    inputs = keras.Input((4, 4, 2))
    model = keras.Model(inputs, make()(inputs))
    model.save(tmp_path / "model.keras")
    x = sample((None, 4, 4, 2), rng)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize(
    ("teacher", "student"), [((None, 4, 4, 8), (None, 8)), ((None, 8), (None, 3, 8))]
)
def test_features_of_different_rank_are_refused(teacher, student):
    words = r"Features of different rank cannot be matched by a projector[\s\S]*number of axes"
    with pytest.raises(ValueError, match=words):
        projector_for(teacher, student)


def test_extents_that_cannot_be_resized_are_refused():
    teacher, student = (None, 2, 3, 4, 8), (None, 2, 3, 5, 8)
    with pytest.raises(ValueError, match="differ in an extent that cannot be resized"):
        projector_for(teacher, student)
