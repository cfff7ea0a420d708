"""Teachers against float64 NumPy; nothing in them changes; fingerprints across processes."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_kd as kd
from keras_kd.teachers import AbsentTeacher, as_teacher, fingerprint


def affine(classes: int = 3, activation: str | None = None, name: str | None = None) -> keras.Model:
    dense = layers.Dense(classes, activation=activation)
    return keras.Sequential([keras.Input((4,)), dense], name=name)


class Behind(keras.Model):
    """A subclassed model whose last activation nobody can read."""

    def __init__(self, classes: int, function) -> None:
        super().__init__()
        self.dense = layers.Dense(classes)
        self.function = function

    def call(self, x):
        return self.function(self.dense(x))


def logits_of(model: keras.Model, x: np.ndarray) -> np.ndarray:
    kernel, bias = (w.astype("float64") for w in model.get_weights()[-2:])
    return x.astype("float64") @ kernel + bias


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-z))


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(16, 4)).astype("float32")


def test_logits_stay_and_probabilities_become_log_space(x) -> None:
    plain, soft, sig = affine(), affine(activation="softmax"), affine(activation="sigmoid")
    np.testing.assert_allclose(kd.Teacher(plain)(x), logits_of(plain, x), atol=1e-5)
    result = softmax(np.asarray(kd.Teacher(soft)(x), "float64"))
    np.testing.assert_allclose(result, softmax(logits_of(soft, x)), atol=1e-6)
    np.testing.assert_allclose(kd.Teacher(sig)(x), logits_of(sig, x), atol=1e-5)


def test_a_teacher_of_half_precision_answers_in_float32(x) -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, dtype="mixed_float16")])
    assert kd.Teacher(model)(x).dtype == tf.float32


def test_preprocess_serves_the_teacher_only(x) -> None:
    model = affine()
    seen = tf.Variable(x)
    result = kd.Teacher(model, preprocess=lambda batch: batch / 2.0 + 1.0)(seen)
    np.testing.assert_allclose(result, logits_of(model, x / 2.0 + 1.0), atol=1e-5)
    np.testing.assert_array_equal(seen, x)


def test_nothing_in_the_teacher_is_changed(x) -> None:
    norm = layers.BatchNormalization(name="norm")
    model = keras.Sequential([keras.Input((4,)), norm, layers.Dropout(0.5), layers.Dense(3)])
    model.layers[-1].trainable = False
    parts = [model, *model.layers]
    attributes = [set(vars(part)) for part in parts]
    weights, config = model.get_weights(), model.get_config()
    trainable = [part.trainable for part in parts]
    attached = kd.Teacher(model).attached(["norm"])
    first, second = attached(x), attached(x)
    attached.learn(first.raw)
    np.testing.assert_array_equal(first.outputs, second.outputs)  # so no dropout
    assert [set(vars(part)) for part in parts] == attributes
    assert [part.trainable for part in parts] == trainable
    assert model.get_config() == config
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_features_come_with_the_same_pass(x) -> None:
    hidden = layers.Dense(5, name="hidden")
    model = keras.Sequential([keras.Input((4,)), hidden, layers.Dense(3, activation="softmax")])
    answer = kd.Teacher(model).attached(["hidden"])(x)
    np.testing.assert_array_equal(answer.features["hidden"], hidden(x))
    np.testing.assert_array_equal(answer.own, model(x))
    assert answer.raw == [answer.own]


# --- ensembles --------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 5.0], [0.0, 1.0, 3.0]])
def test_an_ensemble_of_softmaxes_is_the_log_of_their_mean(weights, x) -> None:
    models = [affine(), affine(activation="softmax"), affine()]
    w = np.array(weights or [1.0, 1.0, 1.0]) / np.sum(weights or [3.0])
    expected = np.log(sum(k * softmax(logits_of(m, x)) for k, m in zip(w, models, strict=True)))
    result = kd.EnsembleTeacher(models, weights=weights)(x)
    np.testing.assert_allclose(result, expected, atol=1e-5)


@pytest.mark.parametrize("activations", [("sigmoid", "sigmoid"), ("sigmoid", None), (None, None)])
def test_an_ensemble_of_sigmoids_is_the_logit_of_their_mean(activations, x) -> None:
    models = [affine(2, activation) for activation in activations]
    w = np.array([0.25, 0.75])
    p = sum(k * sigmoid(logits_of(m, x)) for k, m in zip(w, models, strict=True))
    result = kd.EnsembleTeacher(models, weights=[1.0, 3.0], activation="sigmoid")(x)
    np.testing.assert_allclose(result, np.log(p / (1 - p)), atol=1e-5)


def test_a_list_of_sigmoid_models_is_an_ensemble_of_sigmoids(x) -> None:
    models = [affine(3, "sigmoid"), affine(3, "sigmoid")]
    p = np.mean([sigmoid(logits_of(model, x)) for model in models], axis=0)
    np.testing.assert_allclose(as_teacher(models)(x), np.log(p / (1 - p)), atol=1e-5)
    single = [Behind(1, keras.ops.sigmoid), Behind(1, keras.ops.sigmoid)]
    result = as_teacher(single)(x)
    p = np.mean([model(x) for model in single], axis=0)
    np.testing.assert_allclose(result, np.log(p / (1 - p)), atol=1e-5)


def test_an_ensemble_of_values_is_their_mean(x) -> None:
    models = [affine(1), affine(1)]
    members = [kd.Teacher(model, outputs="values") for model in models]
    expected = 0.25 * logits_of(models[0], x) + 0.75 * logits_of(models[1], x)
    result = kd.EnsembleTeacher(members, weights=[1, 3])(x)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_an_ensemble_far_from_zero_stays_in_log_space() -> None:
    models = [affine(2), affine(2)]
    for model, height in zip(models, (500.0, 300.0), strict=True):
        model.set_weights([np.zeros((4, 2)), np.array([0.0, height])])
    result = kd.EnsembleTeacher(models)(np.zeros((1, 4), "float32"))
    expected = np.array([[np.log(0.5) - 300.0, 0.0]])  # log((e⁻⁵⁰⁰ + e⁻³⁰⁰)/2) and log 1
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    result = kd.EnsembleTeacher(models, activation="sigmoid")(np.zeros((1, 4), "float32"))
    assert np.isfinite(result).all()


def two_heads() -> keras.Model:
    inputs = keras.Input((4,))
    kind = layers.Dense(3, activation="softmax", name="kind")(inputs)
    tags = layers.Dense(2, activation="sigmoid", name="tags")(inputs)
    size = layers.Dense(1, name="size")(inputs)
    return keras.Model(inputs, {"kind": kind, "tags": tags, "size": size})


def test_each_output_of_an_ensemble_is_combined_as_what_it_is(x) -> None:
    models = [two_heads(), two_heads()]
    stated = {"kind": "auto", "tags": "auto", "size": "values"}
    result = kd.EnsembleTeacher([kd.Teacher(m, outputs=stated) for m in models])(x)
    answers = [{k: np.asarray(v, "float64") for k, v in m(x).items()} for m in models]
    mean = {key: (answers[0][key] + answers[1][key]) / 2 for key in stated}
    np.testing.assert_allclose(result["kind"], np.log(mean["kind"]), atol=1e-5)
    tags = np.log(mean["tags"] / (1 - mean["tags"]))
    np.testing.assert_allclose(result["tags"], tags, atol=1e-5)
    np.testing.assert_allclose(result["size"], mean["size"], atol=1e-5)


def test_an_ensemble_inside_an_ensemble_is_one_more_member(x) -> None:
    a, b, c = affine(), affine(), affine(activation="softmax")
    inner = kd.EnsembleTeacher([a, b], weights=[1, 3])
    outer = kd.EnsembleTeacher([inner, c], weights=[2, 1])
    pa, pb, pc = (softmax(logits_of(model, x)) for model in (a, b, c))
    expected = np.log(2 / 3 * (pa / 4 + 3 * pb / 4) + pc / 3)
    np.testing.assert_allclose(outer(x), expected, atol=1e-5)
    assert outer.models == [a, b, c]
    assert outer.fingerprint() == fingerprint([a, b, c], [0.666667, 0.333333])


def test_an_ensemble_answers_in_its_members_own_terms_too(x) -> None:
    soft = [affine(activation="softmax"), affine(activation="softmax")]
    attached = as_teacher(soft).attached()
    expected = np.mean([softmax(logits_of(model, x)) for model in soft], axis=0)
    np.testing.assert_allclose(attached(x).own, expected, atol=1e-6)
    plain = as_teacher([affine(), affine()]).attached()(x)
    np.testing.assert_array_equal(plain.own, plain.outputs)


def test_members_keep_their_own_preprocess(x) -> None:
    a, b = affine(), affine()
    halves = kd.Teacher(a, preprocess=lambda batch: batch / 2.0)
    expected = np.log((softmax(logits_of(a, x / 2)) + softmax(logits_of(b, x))) / 2)
    np.testing.assert_allclose(kd.EnsembleTeacher([halves, b])(x), expected, atol=1e-5)


def test_members_that_differ_are_refused(x) -> None:
    words = r"The teachers of an ensemble do not agree on what they give[\s\S]*sigmoid, softmax"
    with pytest.raises(ValueError, match=words):
        as_teacher([affine(3, "softmax"), affine(3, "sigmoid")])(x)
    mixed = [kd.Teacher(affine(), outputs="values"), affine()]
    with pytest.raises(ValueError, match=r"do not agree on what they give[\s\S]*logits, values"):
        as_teacher(mixed)(x)
    with pytest.raises(ValueError, match=r"answer in other shapes[\s\S]*\(16, 3\)[\s\S]*\(16, 4\)"):
        as_teacher([affine(3), affine(4)])(x)


def test_a_mean_of_softmaxes_over_one_class_is_refused(x) -> None:
    words = r"mean of softmaxes over one class is constant[\s\S]*activation=\"sigmoid\""
    with pytest.raises(ValueError, match=words):
        as_teacher([affine(1), affine(1)])(x)


def test_an_ensemble_needs_members_and_weights_that_fit() -> None:
    for members in ([], (), affine(), kd.Teacher(affine())):
        with pytest.raises(ValueError, match="An ensemble needs members"):
            kd.EnsembleTeacher(members)
    models = [affine(), affine()]
    for weights in ([1.0], [1.0, 2.0, 3.0], [-1.0, 2.0], [0.0, 0.0]):
        words = f"{len(weights)} weights for 2 teachers do not fit"
        with pytest.raises(ValueError, match=words):
            kd.EnsembleTeacher(models, weights=weights)
    with pytest.raises(TypeError, match="`weights` must be a number"):
        kd.EnsembleTeacher(models, weights=["1", "2"])
    with pytest.raises(ValueError, match="`weights` must be finite"):
        kd.EnsembleTeacher(models, weights=[1.0, float("nan")])
    with pytest.raises(ValueError, match="did you mean 'softmax'"):
        kd.EnsembleTeacher(models, activation="softmx")
    with pytest.raises(ValueError, match=r"no layer to learn features from[\s\S]*'hidden'"):
        kd.EnsembleTeacher(models).attached(["hidden"])


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("given", [None, "teacher.keras", 3, {"a": 1}, ["teacher.keras"]])
def test_what_is_no_model_is_refused(given) -> None:
    words = r"The teacher is no model[\s\S]*keras\.models\.load_model\(path\)"
    with pytest.raises(ValueError, match=words):
        as_teacher(given)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="The teacher is no model"):
        kd.Teacher("teacher.keras")
    with pytest.raises(ValueError, match=r"no kind of outputs 'logit'[\s\S]*mean 'logits'"):
        kd.Teacher(affine(), outputs="logit")
    with pytest.raises(ValueError, match=r"no kind of outputs 'odds'"):
        kd.Teacher(affine(), outputs={"a": "odds"})
    with pytest.raises(ValueError, match=r"no activation 'tanh'[\s\S]*sigmoid, softmax"):
        kd.Teacher(affine(), activation="tanh")
    with pytest.raises(TypeError, match="`preprocess` must be a function"):
        kd.Teacher(affine(), preprocess=255)


def test_a_teacher_of_nan_is_refused_with_its_name(x) -> None:
    model = affine(name="broken")
    model.set_weights([np.full((4, 3), np.nan), np.zeros(3)])
    with pytest.raises(ValueError, match="Output 0 of teacher 'broken' is not finite"):
        kd.Teacher(model)(x)


def test_an_absent_teacher_says_how_to_attach_it() -> None:
    absent = as_teacher(AbsentTeacher("big", "0123456789abcdef"))
    assert absent.fingerprint() == "0123456789abcdef"
    words = r"loaded without its teacher[\s\S]*'big', fingerprint 0123456789ab[\s\S]*attach_teacher"
    with pytest.raises(ValueError, match=words):
        absent.attached()


# --- fingerprints -----------------------------------------------------------------------------


def test_a_fingerprint_does_not_go_by_names() -> None:
    a, b = affine(name="a"), affine(name="b")
    b.set_weights(a.get_weights())
    assert kd.Teacher(a).fingerprint() == kd.Teacher(b).fingerprint()


def test_a_fingerprint_sees_the_shares_of_an_ensemble() -> None:
    members = [keras.Sequential([keras.Input((2,)), layers.Dense(2)]) for _ in range(2)]
    equal, other = kd.EnsembleTeacher(members), kd.EnsembleTeacher(members, weights=[3, 1])
    assert equal.fingerprint() == kd.EnsembleTeacher(members, weights=[2, 2]).fingerprint()
    assert equal.fingerprint() != other.fingerprint()


def test_a_fingerprint_sees_one_weight_and_one_layer() -> None:
    model = affine()
    before = kd.Teacher(model).fingerprint()
    kernel, bias = model.get_weights()
    kernel[0, 0] = np.nextafter(kernel[0, 0], 1.0)
    model.set_weights([kernel, bias])
    assert kd.Teacher(model).fingerprint() != before
    deeper = keras.Sequential([keras.Input((4,)), *model.layers, layers.Softmax()])
    assert kd.Teacher(deeper).fingerprint() != kd.Teacher(model).fingerprint()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_weights_of_every_type_have_a_fingerprint(dtype) -> None:
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, dtype=dtype)])
    assert len(kd.Teacher(model).fingerprint()) == 32


def test_a_fingerprint_is_the_same_in_a_fresh_process(tmp_path: pathlib.Path) -> None:
    inputs = keras.Input((4,))
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(5), layers.BatchNormalization()])
    drop = layers.Dropout(0.5)(inner(inputs))
    models = [keras.Model(inputs, layers.Dense(3)(drop)), affine()]
    for index, model in enumerate(models):
        model(np.ones((2, 4)))
        model.save(tmp_path / f"{index}.keras")
    code = (
        "import sys, keras, keras_kd as kd\n"
        "keras.layers.Dense(1); keras.layers.Dense(1)  # so that Keras numbers names otherwise\n"
        "for path in sys.argv[1:]: print(kd.Teacher(keras.models.load_model(path)).fingerprint())\n"
    )
    paths = [str(tmp_path / f"{index}.keras") for index in range(len(models))]
    root = pathlib.Path(kd.__file__).parents[1]
    command = [sys.executable, "-c", code, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.split() == [kd.Teacher(model).fingerprint() for model in models]
