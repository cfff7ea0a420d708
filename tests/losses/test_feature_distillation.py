"""FeatureDistillation: oracles, its projector, structures and words."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd.losses import FeatureDistillation
from keras_kd.projectors import ProjectingConnector
from tests import references

SHAPES = [
    pytest.param((4, 6), id="vectors"),
    pytest.param((4, 5, 6), id="sequences"),
    pytest.param((4, 3, 2, 6), id="maps"),
    pytest.param((4, 2, 3, 2, 6), id="volumes"),
]


@pytest.fixture(params=SHAPES)
def features(request, rng):
    """A teacher's and a student's feature of each kind."""
    return [rng.normal(size=request.param).astype("float32") for _ in range(2)]


# --- oracles --------------------------------------------------------------------------------------


def test_the_default_is_the_papers_distance_up_to_the_number_of_elements(features):
    elements = features[0][0].size
    expected = references.hint(*features).mean() * 2.0 / elements
    value = float(FeatureDistillation().compute_loss(*features))
    assert value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "loss", ["cosine_similarity", keras.losses.CosineSimilarity()], ids=["name", "object"]
)
def test_cosine_similarity_is_minus_the_mean_cosine_of_the_channels(features, loss):
    teacher, other = features
    features = [teacher, teacher + other]  # else the cosines nearly cancel, and float32 with them
    value = float(FeatureDistillation(loss=loss).compute_loss(*features))
    assert value == pytest.approx(-references.cosine(*features).mean(), rel=1e-6)


def test_any_keras_loss_or_function_serves(features):
    t, s = (references.float64(z) for z in features)
    for loss, expected in (
        ("mae", np.abs(t - s).mean()),
        (keras.losses.MeanAbsoluteError(), np.abs(t - s).mean()),
        (keras.losses.MeanAbsoluteError, np.abs(t - s).mean()),
        (lambda a, b: keras.ops.mean(keras.ops.square(a - b)), ((t - s) ** 2).mean()),
    ):
        value = float(FeatureDistillation(loss=loss).compute_loss(*features))
        assert value == pytest.approx(expected, rel=1e-6)


def test_options_of_a_keras_loss_are_not_lost(rng):
    t, s = references.softmax(rng.normal(size=(4, 5))), rng.normal(size=(4, 5))
    loss = FeatureDistillation(loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    expected = -(t * references.log_softmax(s)).sum(-1).mean()
    assert float(loss.compute_loss(t, s)) == pytest.approx(expected, rel=1e-6)


def test_it_is_zero_at_teacher_equals_student_and_its_gradient_is_the_difference(features):
    t, s = features
    variable = tf.Variable(s)
    with tf.GradientTape() as tape:
        value = FeatureDistillation().compute_loss(t, variable)
    np.testing.assert_allclose(
        tape.gradient(value, variable), 2.0 * (s - t) / s.size, rtol=1e-5, atol=1e-8
    )
    assert float(FeatureDistillation().compute_loss(t, t)) == 0.0


def test_weights_of_maps_are_one_for_each_example(rng):
    t, s = (rng.normal(size=(4, 3, 2, 6)) for _ in range(2))
    weight = np.array([0.0, 1.0, 2.0, 0.5])
    expected = (weight * ((t - s) ** 2).mean((1, 2, 3))).sum() / 4
    value = FeatureDistillation().compute_loss(t, s, sample_weight=weight)
    assert float(value) == pytest.approx(expected, rel=1e-6)


# --- the projector --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teacher", "student"),
    [((8, 16), (8, 4)), ((8, 7, 16), (8, 5, 4)), ((8, 6, 4, 16), (8, 3, 5, 4))],
    ids=["vectors", "sequences", "maps"],
)
def test_auto_makes_a_trained_projector_where_shapes_differ(rng, teacher, student):
    t, s = rng.normal(size=teacher), rng.normal(size=student)
    connector = FeatureDistillation().connector((None, *teacher[1:]), (None, *student[1:]))
    with tf.GradientTape() as tape:
        same, projected = connector(tf.constant(t, "float32"), tf.constant(s, "float32"))
        value = FeatureDistillation().compute_loss(same, projected)
    assert projected.shape == teacher
    np.testing.assert_array_equal(same, t.astype("float32"))
    gradients = tape.gradient(value, connector.trainable_weights)
    assert len(gradients) == 2
    assert all(np.abs(gradient).max() > 0 for gradient in gradients)


def test_a_matching_shape_or_no_projector_needs_no_connector():
    assert FeatureDistillation().connector((None, 4), (None, 4)) is None
    assert FeatureDistillation(projector=None).connector((None, 8), (None, 4)) is None


def test_one_loss_serves_two_distillers_with_a_projector_each():
    own = keras.layers.Dense(8, name="own")
    own.build((None, 4))
    loss = FeatureDistillation(projector=own)
    first, second = (loss.connector((None, 8), (None, 4)) for _ in range(2))
    t, s = tf.zeros((2, 8)), tf.ones((2, 4))
    np.testing.assert_array_equal(first(t, s)[1], own(s))
    first.set_weights([np.zeros_like(weight) for weight in first.get_weights()])
    np.testing.assert_array_equal(second(t, s)[1], own(s))
    assert np.abs(own.get_weights()[0]).max() > 0


def test_a_model_may_be_the_projector():
    hidden = [keras.layers.Dense(3, activation="relu"), keras.layers.Dense(8)]
    loss = FeatureDistillation(projector=keras.Sequential(hidden))
    connector = loss.connector((None, 8), (None, 4))
    assert connector(tf.zeros((2, 8)), tf.ones((2, 4)))[1].shape == (2, 8)
    assert len(connector.trainable_weights) == 4


def test_the_connector_is_saved_and_loaded(tmp_path):
    teacher, student = keras.Input((8,)), keras.Input((4,))
    connector = FeatureDistillation().connector((None, 8), (None, 4))
    model = keras.Model([teacher, student], list(connector(teacher, student)))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    t, s = np.ones((2, 8), "float32"), np.ones((2, 4), "float32")
    np.testing.assert_array_equal(loaded([t, s])[1], model([t, s])[1])
    assert any(isinstance(layer, ProjectingConnector) for layer in loaded.layers)


def test_a_projector_of_ones_own_survives_the_config():
    loss = FeatureDistillation(projector=keras.layers.Dense(8, use_bias=False, name="own"))
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    again = keras.saving.deserialize_keras_object(config)
    assert isinstance(again.projector, keras.layers.Dense)
    assert (again.projector.units, again.projector.use_bias) == (8, False)


# --- words ----------------------------------------------------------------------------------------


def test_different_shapes_are_refused_with_the_projector_as_the_fix():
    words = r"shapes of teacher and student differ[\s\S]*projector=\"auto\""
    with pytest.raises(ValueError, match=words):
        FeatureDistillation().compute_loss(np.ones((2, 4)), np.ones((2, 3)))


def test_features_of_one_axis_are_refused():
    with pytest.raises(ValueError, match="The outputs have no axis but the batch's"):
        FeatureDistillation().compute_loss(np.ones(4), np.ones(4))


@pytest.mark.parametrize("projector", ["dense", 8, keras.layers.Dense])
def test_a_projector_that_is_no_layer_is_refused(projector):
    with pytest.raises(ValueError, match="`projector` is no layer"):
        FeatureDistillation(projector=projector)


@pytest.mark.parametrize("loss", [None, [None, None]])
def test_no_loss_at_all_is_refused(loss):
    with pytest.raises(ValueError, match="FeatureDistillation has no loss left to compute"):
        FeatureDistillation(loss=loss)


@pytest.mark.parametrize("argument", ["teacher_layer_name", "student_layer_name"])
@pytest.mark.parametrize("name", [3, [], keras.layers.ReLU()], ids=["int", "empty", "layer"])
def test_a_layer_name_that_is_no_string_is_refused(argument, name):
    with pytest.raises(TypeError, match=f"`{argument}` must be a layer's name or path"):
        FeatureDistillation(**{argument: name})


def test_features_of_different_rank_are_refused_by_the_connector():
    with pytest.raises(ValueError, match="Features of different rank cannot be matched"):
        FeatureDistillation().connector((None, 4, 4, 8), (None, 8))


def test_each_of_several_layers_gets_the_projector_that_it_needs(rng):
    shapes = [(None, 4, 4, 8), (None, 4, 4, 3), (None, 6)], [(None, 2, 2, 5), (None, 4, 4, 3), (7,)]
    loss = FeatureDistillation(["mse", "mse", None], ["a", "b", "c"], ["d", "e", "f"])
    connector = loss.connector(*shapes)
    sides = [
        [tf.constant(rng.normal(size=(2, *shape[1:])), "float32") for shape in side]
        for side in shapes
    ]
    teacher, student = connector(*sides)
    assert [tuple(feature.shape) for feature in student[:2]] == [(2, 4, 4, 8), (2, 4, 4, 3)]
    np.testing.assert_array_equal(student[1], sides[1][1])
    np.testing.assert_array_equal(teacher[0], sides[0][0])
    assert [tuple(w.shape) for w in connector.trainable_weights] == [(5, 8), (8,)]
    expected = sum(np.mean((teacher[i] - student[i]) ** 2) for i in range(2))
    assert float(loss.compute_loss(teacher, student)) == pytest.approx(expected, rel=1e-5)


def test_layers_that_fit_and_layers_within_layers_get_no_projector():
    same, within = [(None, 4), (None, 3)], [[(None, 4), (None, 3)], (None, 5)]
    loss = FeatureDistillation("mse", ["a", "b"], ["c", "d"])
    assert loss.connector(same, same) is None
    assert loss.connector(within, [[(None, 2), (None, 3)], (None, 5)]) is None
    assert loss.connector(same, [(None, 4)]) is None
    assert loss.connector(same, {"a": (None, 4)}) is None
    assert FeatureDistillation(["mse"]).connector(same, [(None, 1), (None, 3)]) is None


def test_a_layer_of_ones_own_is_copied_for_each_of_several_layers():
    own = keras.layers.Dense(4)
    loss = FeatureDistillation("mse", ["a", "b"], ["c", "d"], projector=own)
    connector = loss.connector([(None, 4), (None, 4)], [(None, 2), (None, 3)])
    assert [tuple(w.shape) for w in connector.trainable_weights] == [(2, 4), (4,), (3, 4), (4,)]
    assert not own.built
