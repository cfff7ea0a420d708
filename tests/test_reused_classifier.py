"""reuse_classifier: the paper's projector, the teacher's classifier, and what stays as it is."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
from keras import layers

import keras_kd as kd
from keras_kd.reused_classifier import reuse_classifier

MAP = (8, 8, 3)


def teacher_cnn(channels=6, size=MAP):
    """A map, dropout, pooling, dropout, and a softmax classifier of four classes."""
    return keras.Sequential(
        [
            keras.Input(size, name="image"),
            layers.Conv2D(channels, 3, strides=2, padding="same", name="convolution"),
            layers.ReLU(name="features"),
            layers.Dropout(0.5),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.5),
            layers.Dense(4, name="scores"),
            layers.Softmax(),
        ],
        name="teacher",
    )


def student_cnn(channels=5, size=MAP, strides=2):
    return keras.Sequential(
        [
            keras.Input(size, name="image"),
            layers.Conv2D(channels, 3, strides=strides, padding="same", name="small"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4),
        ],
        name="student",
    )


def mlp(*widths, size=(7,), classes=4):
    hidden = [layers.Dense(w, activation="relu", name=f"hidden_{i}") for i, w in enumerate(widths)]
    return keras.Sequential([keras.Input(size), *hidden, layers.Dense(classes, name="scores")])


def scramble(model, rng):
    """Give every weight a value that shows, variances positive ones."""
    model.set_weights(
        [
            rng.normal(size=w.shape) if w.ndim > 1 else rng.uniform(0.2, 1.0, w.shape)
            for w in model.weights
        ]
    )


# --- the paper, in float64 NumPy ------------------------------------------------------------------


def convolve(x, kernel):
    """Convolution of stride 1 with zeros around, (b, h, w, c) by (k, k, c, d)."""
    reach = kernel.shape[0] // 2
    x = np.pad(np.asarray(x, "float64"), ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    height, width = (size - 2 * reach for size in x.shape[1:3])
    out = np.zeros((len(x), height, width, kernel.shape[-1]))
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            out += x[:, i : i + height, j : j + width] @ kernel[i, j].astype("float64")
    return out


def normalise(x, gamma, beta, mean, variance):
    """BatchNorm at its running statistics, ε = 1e-5 as in the authors' framework."""
    return (x - mean) / np.sqrt(np.float64(1e-5) + variance) * gamma + beta


def simkd(feature, projector, scores):
    """Chen et al. 2022, figure 2 and equation 3: 1×1, 3×3, 1×1, BatchNorm and ReLU each; W."""
    weights = [np.asarray(w, "float64") for w in projector]
    for start in range(0, len(weights), 5):
        feature = convolve(feature, weights[start])
        feature = np.maximum(normalise(feature, *weights[start + 1 : start + 5]), 0.0)
    logits = feature.mean((1, 2)) @ scores[0].astype("float64") + scores[1]
    return feature, np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def in_order(projector):
    """The projector's weights, layer by layer: kernel, γ, β, mean, variance."""
    return [np.asarray(w) for layer in projector.layers for w in layer.weights]


def test_it_answers_as_the_paper_says(rng):
    teacher, student = teacher_cnn(), student_cnn()
    model = reuse_classifier(teacher, student, "small")
    scramble(model.get_layer("simkd_projector"), rng)
    x = rng.normal(size=(3, *MAP)).astype("float32")
    feature = np.asarray(student.get_layer("small")(x))
    scores = teacher.get_layer("scores").get_weights()
    projector = model.get_layer("simkd_projector")
    expected, probabilities = simkd(feature, in_order(projector), scores)
    assert (expected > 0).any() and (expected == 0).any()
    np.testing.assert_allclose(projector(feature), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model(x), probabilities, rtol=1e-5)
    assert model.name == "student_with_teacher_classifier"


@pytest.mark.parametrize(
    ("teacher", "student", "layer"),
    [
        (teacher_cnn(), student_cnn(), "small"),
        (mlp(6, 8), mlp(3), "hidden_0"),
        (mlp(6, 8, size=(5, 7)), mlp(3, size=(5, 7)), "hidden_0"),
    ],
    ids=["maps", "vectors", "sequences"],
)
def test_a_student_that_knows_the_feature_answers_as_the_teacher(rng, teacher, student, layer):
    feature = {"teacher": "features"}.get(teacher.name, "hidden_1")
    x = rng.normal(size=(3, *teacher.input_shape[1:])).astype("float32")
    seen = keras.Model(teacher.inputs[0], teacher.get_layer(feature).output)(x)
    model = reuse_classifier(teacher, student, layer)
    assert (
        model.get_layer("simkd_projector")(
            np.zeros((1, *student.get_layer(layer).output.shape[1:]))
        ).shape[1:]
        == seen.shape[1:]
    )
    for training in (False, True):  # the dropout of the teacher is left out
        answer = model.get_layer("teacher_classifier")(seen, training=training)
        np.testing.assert_allclose(answer, teacher(x), rtol=1e-6)
    assert model(x).shape == teacher(x).shape
    np.testing.assert_array_equal(model.inputs[0].shape, student.inputs[0].shape)


def test_the_projector_is_a_bottleneck_by_two():
    parameters = inspect.signature(reuse_classifier).parameters
    assert parameters["factor"].default == 2 and parameters["activation"].default == "relu"
    for factor, width in ((2, 4), (3, 2), (1, 8), (9, 1)):
        model = reuse_classifier(teacher_cnn(8), student_cnn(5), "small", factor=factor)
        projector = model.get_layer("simkd_projector")
        kernels = [w.shape for w in projector.trainable_weights if len(w.shape) == 4]
        assert kernels == [(1, 1, 5, width), (3, 3, width, width), (1, 1, width, 8)]
        assert len(projector.trainable_weights) == 9  # no bias beside BatchNorm's
    for kind in (mlp(8), mlp(8, size=(5, 7))):
        model = reuse_classifier(kind, mlp(3, size=kind.input_shape[1:]), "hidden_0")
        projector = model.get_layer("simkd_projector")
        kernels = [w.shape for w in projector.trainable_weights if len(w.shape) > 1]
        dense = len(kind.input_shape) == 2
        assert kernels == ([(3, 4), (4, 4), (4, 8)] if dense else [(1, 3, 4), (3, 4, 4), (1, 4, 8)])
    norms = [layer for layer in projector.layers if isinstance(layer, layers.BatchNormalization)]
    assert [norm.momentum for norm in norms] == [0.9] * 3
    assert [norm.epsilon for norm in norms] == [1e-5] * 3


def test_the_projector_may_end_without_relu(rng):
    x = rng.normal(size=(16, *MAP))
    signs = {}
    for activation in ("relu", None):
        model = reuse_classifier(teacher_cnn(), student_cnn(), "small", activation=activation)
        layer = model.get_layer("simkd_projector")
        signs[activation] = np.asarray(layer(model.get_layer("small")(x), training=True)).min()
    assert signs["relu"] == 0.0 and signs[None] < 0.0


# --- sizes ----------------------------------------------------------------------------------------


def size_of(model):
    return model.get_layer("simkd_projector").output_shape[1:-1]


def test_a_larger_map_is_averaged_down(rng):
    model = reuse_classifier(teacher_cnn(), student_cnn(strides=1), "small")
    size = model.get_layer("simkd_projector").get_layer("size")
    feature = rng.normal(size=(2, 8, 8, 5)).astype("float32")
    np.testing.assert_allclose(
        size(feature), feature.reshape(2, 4, 2, 4, 2, 5).mean((2, 4)), rtol=1e-5, atol=1e-6
    )
    assert size_of(model) == (4, 4)


@pytest.mark.parametrize("strides", [4, 3, (2, 4)], ids=["smaller", "odd", "mixed"])
def test_another_map_is_resized_bilinearly(rng, strides):
    model = reuse_classifier(teacher_cnn(), student_cnn(strides=strides), "small")
    size = model.get_layer("simkd_projector").get_layer("size")
    assert size_of(model) == (4, 4)
    rows = np.linspace(0.0, 1.0, size.input.shape[1])
    ramp = np.broadcast_to(rows[None, :, None, None], (1, *size.input.shape[1:]))
    result = np.asarray(size(ramp.astype("float32")))[0, :, 0, 0]
    assert (np.diff(result) > 0).all() or size.input.shape[1] == 1
    assert size.interpolation == "bilinear"


@pytest.mark.parametrize(("length", "kind"), [(10, "AveragePooling1D"), (1, "UpSampling1D")])
def test_lengths_that_divide_meet(rng, length, kind):
    teacher, student = mlp(8, size=(5, 7)), mlp(3, size=(length, 7))
    model = reuse_classifier(teacher, student, "hidden_0")
    size = model.get_layer("simkd_projector").get_layer("size")
    feature = rng.normal(size=(2, length, 3)).astype("float32")
    expected = feature.reshape(2, 5, 2, 3).mean(2) if length > 5 else feature.repeat(5, axis=1)
    np.testing.assert_allclose(size(feature), expected, rtol=1e-5, atol=1e-6)
    assert type(size).__name__ == kind and size_of(model) == (5,)


def test_open_sizes_stay_open_where_the_classifier_allows_it():
    model = reuse_classifier(
        teacher_cnn(size=(None, None, 3)), student_cnn(size=(None, None, 3)), "small"
    )
    assert size_of(model) == (None, None)
    assert model(np.zeros((2, 6, 10, 3))).shape == (2, 4)
    fixed = reuse_classifier(teacher_cnn(), student_cnn(size=(None, None, 3)), "small")
    assert size_of(fixed) == (4, 4)


# --- where the teacher is cut ---------------------------------------------------------------------


def test_the_feature_is_what_stands_before_pooling_and_the_last_dense_layer():
    image = keras.Input(MAP)
    convolved = layers.Conv2D(6, 3, name="convolution")(image)
    for between in (
        [layers.Flatten()],
        [layers.GlobalMaxPooling2D()],
        [layers.Identity(), layers.GlobalAveragePooling2D(), layers.GaussianNoise(1.0)],
        [layers.SpatialDropout2D(0.5), layers.Flatten(), layers.AlphaDropout(0.5)],
    ):
        tensor = convolved
        for layer in between:
            tensor = layer(tensor)
        outputs = layers.Activation("softmax")(layers.Dense(4)(tensor))
        model = reuse_classifier(keras.Model(image, outputs), student_cnn(strides=1), "small")
        assert model.get_layer("simkd_projector").output_shape == (None, 6, 6, 6)
    hidden = layers.Dense(9, name="hidden")(layers.Flatten()(convolved))
    deep = keras.Model(image, layers.Dense(4)(hidden))
    model = reuse_classifier(deep, mlp(3, size=(2,)), "hidden_0")
    assert model.get_layer("simkd_projector").output_shape == (None, 9)


def test_the_feature_may_be_named(rng):
    teacher = mlp(6, 8)
    model = reuse_classifier(teacher, mlp(3), "hidden_0", teacher_layer_name="hidden_0", name="new")
    assert model.get_layer("simkd_projector").output_shape == (None, 6)
    assert [layer.name for layer in model.get_layer("teacher_classifier").layers[1:]] == [
        "hidden_1",
        "scores",
    ]
    assert model.name == "new"


def test_a_named_feature_serves_teachers_with_several_outputs(rng):
    image = keras.Input((7,))
    hidden = layers.Dense(6, name="hidden")(image)
    outputs = {"a": layers.Dense(2, name="a")(hidden), "b": layers.Dense(3, name="b")(hidden)}
    teacher = keras.Model(image, outputs)
    model = reuse_classifier(teacher, mlp(3), "hidden_0", teacher_layer_name="hidden")
    answer = model(rng.normal(size=(2, 7)))
    assert {name: value.shape for name, value in answer.items()} == {"a": (2, 2), "b": (2, 3)}


def test_students_with_several_inputs_keep_them(rng):
    inputs = {"x": keras.Input((7,), name="x"), "z": keras.Input((2,), name="z")}
    both = layers.Dense(3, name="both")(layers.Concatenate()(list(inputs.values())))
    student = keras.Model(inputs, layers.Dense(4)(both))
    model = reuse_classifier(mlp(8), student, "both")
    assert model({"x": np.ones((2, 7)), "z": np.ones((2, 2))}).shape == (2, 4)
    assert set(model.input) == {"x", "z"}


# --- trained, saved, exported ---------------------------------------------------------------------


def test_it_is_trained_by_the_distiller_and_nothing_else_is_changed(rng):
    teacher, student = teacher_cnn(), student_cnn()
    before = [model.get_weights() for model in (teacher, student)]
    model = reuse_classifier(teacher, student, "small")
    np.testing.assert_array_equal(
        model.get_layer("small").get_weights()[0], student.get_layer("small").get_weights()[0]
    )
    assert not {id(v) for v in model.variables} & {
        id(v) for own in (teacher, student) for v in own.variables
    }
    classifier = model.get_layer("teacher_classifier")
    assert classifier.trainable_weights == [] and len(classifier.weights) == 2
    assert len(model.trainable_weights) == 11
    hint = kd.FeatureDistillation(
        teacher_layer_name="features", student_layer_name="simkd_projector"
    )
    distiller = kd.Distiller(teacher, model, hint, student_loss_weight=0.0)
    distiller.compile(keras.optimizers.Adam(0.01))
    x = rng.normal(size=(32, *MAP)).astype("float32")
    losses = distiller.fit(x, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    np.testing.assert_array_equal(
        classifier.get_weights()[0], teacher.get_layer("scores").get_weights()[0]
    )
    assert np.abs(model.get_layer("small").get_weights()[0] - before[1][0]).max() > 0
    for own, weights in zip((teacher, student), before, strict=True):
        assert own.trainable and len(own.trainable_weights) == len(weights)
        for now, then in zip(own.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(now, then)


def test_the_students_own_dropout_stays(rng):
    student = keras.Sequential(
        [keras.Input((7,)), layers.Dropout(0.5), layers.Dense(3, name="hidden"), layers.Dense(4)]
    )
    model = reuse_classifier(mlp(8), student, "hidden")
    assert any(isinstance(layer, layers.Dropout) for layer in model.layers)


def test_it_is_saved_and_loaded_as_plain_keras(rng, tmp_path):
    model = reuse_classifier(teacher_cnn(), student_cnn(), "small")
    model.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    x = rng.normal(size=(2, *MAP))
    np.testing.assert_array_equal(loaded(x), model(x))
    assert loaded.get_layer("teacher_classifier").trainable_weights == []
    assert len(loaded.trainable_weights) == len(model.trainable_weights)


def test_it_is_exported_to_tflite(rng, tmp_path):
    x = rng.normal(size=(8, *MAP)).astype("float32")
    for strides in (1, 2, 4):  # a pooled, an equal and a resized map
        model = reuse_classifier(teacher_cnn(), student_cnn(strides=strides), "small")
        artifacts = kd.export_student(model, tmp_path, ["tflite"], verification_data=x)
        assert artifacts["tflite"].certificate["outputs"]


# --- words ----------------------------------------------------------------------------------------


class Subclassed(keras.Model):
    """A model whose layers cannot be cut in two."""

    def call(self, inputs):
        return inputs


@pytest.mark.parametrize("model", [Subclassed(), keras.Sequential([layers.Dense(3)])])
def test_models_without_a_known_graph_are_refused(model):
    with pytest.raises(ValueError, match="teacher is no Functional or Sequential model"):
        reuse_classifier(model, mlp(3), "hidden_0")
    with pytest.raises(ValueError, match="student is no Functional or Sequential model"):
        reuse_classifier(mlp(8), model, "hidden_0")


def test_what_is_no_model_is_refused():
    with pytest.raises(ValueError, match="The teacher is no model"):
        reuse_classifier(None, mlp(3), "hidden_0")
    with pytest.raises(ValueError, match="The student is no model"):
        reuse_classifier(mlp(8), [mlp(3)], "hidden_0")


def test_unknown_layers_are_refused_with_the_closest():
    with pytest.raises(ValueError, match=r"There is no layer in student[\s\S]*'hidden_0'"):
        reuse_classifier(mlp(8), mlp(3), "hiden_0")
    with pytest.raises(ValueError, match=r"There is no layer in teacher[\s\S]*'hidden_0'"):
        reuse_classifier(mlp(8), mlp(3), "hidden_0", teacher_layer_name="hidden_O")


def test_a_layer_that_is_called_twice_is_refused():
    image, shared = keras.Input((7,)), layers.Dense(7, name="shared")
    student = keras.Model(image, layers.Dense(4)(shared(shared(image))))
    with pytest.raises(ValueError, match="'shared' of the student is called several times"):
        reuse_classifier(mlp(8), student, "shared")


def test_a_layer_with_several_outputs_is_refused():
    image = keras.Input((5, 7))
    sequence, state = layers.GRU(3, return_state=True, return_sequences=True, name="gru")(image)
    student = keras.Model(image, layers.Dense(4)(layers.Concatenate()([sequence[:, 0], state])))
    with pytest.raises(ValueError, match=r"'gru' of the student .* has several outputs"):
        reuse_classifier(mlp(8), student, "gru")


def test_a_teacher_without_a_last_dense_layer_is_refused():
    image = keras.Input(MAP)
    pooled = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 1)(image))
    convolutional = keras.Model(image, pooled)
    added = layers.Add()([layers.Dense(4)(pooled), layers.Dense(4)(pooled)])
    several = [layers.Dense(4)(pooled), layers.Dense(3)(pooled)]
    for teacher in (convolutional, keras.Model(image, added), keras.Model(image, several)):
        with pytest.raises(ValueError, match=r"No last Dense layer .*[\s\S]*teacher_layer_name"):
            reuse_classifier(teacher, student_cnn(), "small")


def test_a_teacher_that_is_all_classifier_is_refused():
    with pytest.raises(ValueError, match="nothing before the teacher's classifier"):
        reuse_classifier(mlp(), mlp(3), "hidden_0")


def test_a_name_with_nothing_after_it_is_refused():
    with pytest.raises(ValueError, match="no classifier after layer 'scores'"):
        reuse_classifier(mlp(8), mlp(3), "hidden_0", teacher_layer_name="scores")


def test_a_path_around_the_named_layer_is_refused():
    image = keras.Input((7,))
    hidden = layers.Dense(6, name="hidden")(image)
    teacher = keras.Model(image, layers.Dense(4)(layers.Concatenate()([hidden, image])))
    with pytest.raises(ValueError, match="do not all come from layer 'hidden'"):
        reuse_classifier(teacher, mlp(3), "hidden_0", teacher_layer_name="hidden")


def test_features_of_different_kind_are_refused():
    for teacher, student, layer in (
        (teacher_cnn(), mlp(3), "hidden_0"),
        (mlp(8, size=(2, 3, 4, 5)), mlp(3, size=(2, 3, 4, 5)), "hidden_0"),
    ):
        with pytest.raises(ValueError, match="features are not of one kind"):
            reuse_classifier(teacher, student, layer)


@pytest.mark.parametrize(
    ("teacher", "student", "layer"),
    [
        (mlp(8, size=(5, 7)), mlp(3, size=(3, 7)), "hidden_0"),
        (mlp(8, size=(5, 7)), mlp(3, size=(7, 7)), "hidden_0"),
        (mlp(8, size=(5, 7)), mlp(3, size=(None, 7)), "hidden_0"),
        (teacher_cnn(size=(8, None, 3)), student_cnn(strides=1), "small"),
    ],
    ids=["shorter", "longer", "open", "half open"],
)
def test_sizes_that_cannot_meet_are_refused(teacher, student, layer):
    with pytest.raises(ValueError, match="cannot be brought to the size of the teacher's"):
        reuse_classifier(teacher, student, layer)


@pytest.mark.parametrize("factor", [0, -1, 1.5, "2", True, None])
def test_a_factor_that_is_no_whole_number_is_refused(factor):
    with pytest.raises(ValueError, match="`factor` must be a whole number"):
        reuse_classifier(mlp(8), mlp(3), "hidden_0", factor=factor)
