"""Building: what is stored is what the teacher answers, whatever form it and the data have."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd.soft_targets import SoftTargets, writing
from keras_kd.teachers import EnsembleTeacher, Teacher
from tests.soft_targets.soft_helpers import build, contents, inputs, model, values

X = inputs()
Y = np.arange(50)


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z.astype("float64")
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def dense(layer: keras.layers.Dense, x: np.ndarray) -> np.ndarray:
    kernel, bias = (weight.numpy().astype("float64") for weight in layer.weights)
    return x.astype("float64") @ kernel + bias


def test_logits_are_stored_as_they_are(tmp_path) -> None:
    teacher = model()
    soft = build(teacher, X, tmp_path / "soft")
    hidden = np.tanh(dense(teacher.layers[0], X))
    np.testing.assert_allclose(values(soft)["outputs"], dense(teacher.layers[1], hidden), atol=1e-5)
    assert soft.store.manifest["build"]["answer"]["kinds"] == ["logits"]


def test_probabilities_are_stored_as_logarithms(tmp_path) -> None:
    """The logits in front of the softmax are, but for a constant, the log-probabilities."""
    teacher = model(activation="softmax")
    soft = build(teacher, X, tmp_path / "soft")
    hidden = np.tanh(dense(teacher.layers[0], X))
    expected = log_softmax(dense(teacher.layers[1], hidden))
    np.testing.assert_allclose(log_softmax(values(soft)["outputs"]), expected, atol=1e-5)
    assert soft.store.manifest["build"]["answer"]["kinds"] == ["softmax"]


def test_float16_is_the_nearest(tmp_path) -> None:
    soft = build(lambda x: 100 * x, X, tmp_path / "soft", dtype="float16")
    np.testing.assert_array_equal(values(soft)["outputs"], (100 * X).astype("float16"))


STREAM = tf.data.Dataset.from_tensor_slices((X, Y))
FORMS = {
    "arrays": (X, Y),
    "array": X,
    "with weights": (X, Y, np.ones(50)),
    "tensor": tf.constant(X),
    "single": STREAM,
    "single x": tf.data.Dataset.from_tensor_slices(X),
    "batches of 1": STREAM.batch(1),
    "batches of 7": STREAM.batch(7),
    "batches of 8": STREAM.batch(8),
    "one batch": STREAM.batch(50),
    "full batches": STREAM.batch(25, drop_remainder=True),
    "x alone": tf.data.Dataset.from_tensor_slices((X,)).batch(9),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_the_data_leaves_no_trace(form, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(writing, "SHARD_BYTES", 16 * 20)
    keras.utils.set_random_seed(1)
    teacher = model()
    build(teacher, X, tmp_path / "expected")
    build(teacher, FORMS[form], tmp_path / "given")
    assert contents(tmp_path / "given") == contents(tmp_path / "expected")


def test_the_teacher_is_asked_once_for_each_example_in_its_own_batches(tmp_path) -> None:
    asked = []

    def teacher(x: np.ndarray) -> np.ndarray:
        assert type(x) is np.ndarray
        asked.append(x)
        return 3 * x

    build(teacher, STREAM.batch(5), tmp_path / "soft", batch_size=16)
    assert [len(x) for x in asked] == [16, 16, 16, 2]
    np.testing.assert_array_equal(np.concatenate(asked), X)


def test_top_k_keeps_the_largest_and_what_all_sum_to(tmp_path) -> None:
    logits = np.random.default_rng(0).normal(size=(50, 20)).astype("float32") * 3
    soft = build(
        lambda x: logits[x[:, 0]],
        np.arange(50)[:, None],
        tmp_path / "s",
        top_k=4,
        temperatures=(1, 5.0),
    )
    kept = values(soft)["outputs"]
    order = np.argsort(-logits, axis=1)[:, :4]
    np.testing.assert_array_equal(kept["classes"], order)
    np.testing.assert_array_equal(kept["logits"], np.take_along_axis(logits, order, 1))
    for place, t in enumerate((1.0, 5.0)):
        expected = np.log(np.exp(logits.astype("float64") / t).sum(1))
        np.testing.assert_allclose(kept["log_sum_exp"][:, place], expected, rtol=1e-6)
    assert soft.info()["temperatures"] == [1.0, 5.0]


def test_layers_of_a_model_are_stored_beside_the_outputs(tmp_path) -> None:
    teacher = model()
    soft = build(teacher, X, tmp_path / "soft", layers=["hidden", "hidden"], top_k=2)
    hidden = values(soft)["layers"]["hidden"]
    np.testing.assert_allclose(hidden, np.tanh(dense(teacher.layers[0], X)), atol=1e-6)
    assert soft.info()["layers"] == ["hidden"]
    again = build(teacher, X, tmp_path / "named", layers="hidden", top_k=2)
    assert contents(again.directory) == contents(soft.directory)


def test_layers_of_a_function_come_in_a_dict(tmp_path) -> None:
    soft = build(
        lambda x: (2 * x, {"a": x[:, None], "b": -x}), X, tmp_path / "s", layers=["b", "a"]
    )
    found = values(soft)
    np.testing.assert_array_equal(found["outputs"], 2 * X)
    np.testing.assert_array_equal(found["layers"]["a"], X[:, None])
    np.testing.assert_array_equal(found["layers"]["b"], -X)
    assert list(soft.store.layout.layers) == ["b", "a"]


def test_several_outputs_and_inputs_by_name(tmp_path) -> None:
    left, right = keras.Input((4,), name="left"), keras.Input((2,), name="right")
    first = keras.layers.Dense(2, name="first")
    second = keras.layers.Dense(3, activation="sigmoid", name="second")
    teacher = keras.Model(
        {"left": left, "right": right}, {"z": first(left), "a": second(right)}, name="two"
    )
    given = {"left": X, "right": X[:, :2]}
    soft = build(teacher, tf.data.Dataset.from_tensor_slices((given, Y)).batch(7), tmp_path / "s")
    answer = soft.store.manifest["build"]["answer"]
    assert answer["names"] == ["a", "z"] and answer["structure"] == {"a": 0, "z": 1}
    assert answer["kinds"] == ["sigmoid", "logits"]
    a, z = values(soft)["outputs"]
    np.testing.assert_allclose(z, dense(first, X), atol=1e-6)
    np.testing.assert_allclose(a, dense(second, X[:, :2]), atol=1e-5)
    arrays = build(teacher, given, tmp_path / "arrays")
    assert contents(arrays.directory) == contents(soft.directory)


def test_a_function_may_answer_with_a_list_or_with_numbers(tmp_path) -> None:
    soft = build(lambda x: [2 * x, x.sum(1)], X, tmp_path / "list")
    first, second = values(soft)["outputs"]
    np.testing.assert_array_equal(first, 2 * X)
    np.testing.assert_array_equal(second, X.sum(1))
    assert soft.store.manifest["build"]["answer"]["structure"] == [0, 1]
    plain = build(lambda x: (2 * x).tolist(), X, tmp_path / "numbers")
    np.testing.assert_array_equal(values(plain)["outputs"], 2 * X)


def test_sequences(tmp_path) -> None:
    tokens = np.arange(60).reshape(10, 6) % 7
    teacher = keras.Sequential(
        [keras.Input((6,), dtype="int32"), keras.layers.Embedding(7, 5, name="embed")]
    )
    table = teacher.layers[0].embeddings.numpy()
    soft = build(teacher, tokens, tmp_path / "soft", layers=["embed"])
    np.testing.assert_array_equal(values(soft)["outputs"], table[tokens])
    np.testing.assert_array_equal(values(soft)["layers"]["embed"], table[tokens])
    kept = values(build(teacher, tokens, tmp_path / "kept", top_k=2))["outputs"]
    order = np.argsort(-table[tokens], axis=-1)[..., :2]
    np.testing.assert_array_equal(kept["classes"], order)
    assert kept["log_sum_exp"].shape == (10, 6, 1)


WORDS = np.array(["a", "longer", "", "of words", "é", "x"])


@pytest.mark.parametrize("form", ["array", "objects", "single", "batches"])
def test_strings_as_inputs(form, tmp_path) -> None:
    stream = tf.data.Dataset.from_tensor_slices(WORDS)
    forms = {"array": WORDS, "objects": WORDS.astype(object), "single": stream}
    data = forms.get(form, stream.batch(4))
    soft = build(
        lambda x: np.array([[len(word), 1.0] for word in x]),
        data,
        tmp_path / "soft",
        outputs="values",
    )
    lengths = [len(word.encode()) for word in WORDS]
    np.testing.assert_array_equal(values(soft)["outputs"][:, 0], lengths)


def test_an_ensemble_is_stored_as_the_mean_of_its_probabilities(tmp_path) -> None:
    models = [model(), model()]
    soft = build(models, X, tmp_path / "soft")
    answers = [np.exp(log_softmax(np.asarray(each(X)))) for each in models]
    expected = np.log(np.mean(answers, axis=0))
    np.testing.assert_allclose(values(soft)["outputs"], expected, atol=1e-5)
    assert soft.fingerprint() == EnsembleTeacher(models).fingerprint()


def test_a_teacher_with_its_own_scaling(tmp_path) -> None:
    inner = model(width=2)
    teacher = Teacher(inner, outputs="logits", preprocess=lambda x: x[:, :2] / 2)
    soft = build(teacher, STREAM.batch(5), tmp_path / "soft")
    np.testing.assert_allclose(values(soft)["outputs"], np.asarray(inner(X[:, :2] / 2)), atol=1e-6)


def test_statements_reach_a_plain_model(tmp_path) -> None:
    """A linear output that is stated to be values is stored as it is, and never a softmax."""
    soft = build(model(), X, tmp_path / "soft", outputs="values")
    assert soft.store.manifest["build"]["answer"]["kinds"] == ["values"]
    two = [model(), model()]
    soft = build(two, X, tmp_path / "two", outputs="values")
    expected = np.mean([np.asarray(each(X)) for each in two], axis=0)
    np.testing.assert_allclose(values(soft)["outputs"], expected, atol=1e-6)


def test_a_function_of_probabilities(tmp_path) -> None:
    soft = build(
        lambda x: 1 / (1 + np.exp(-x)),
        X,
        tmp_path / "soft",
        outputs="probabilities",
        activation="sigmoid",
    )
    np.testing.assert_allclose(values(soft)["outputs"], X, atol=1e-5)


def test_a_function_is_known_by_its_answers_or_by_its_name(tmp_path) -> None:
    def once(x):
        return 2 * x

    by_answers = [
        build(f, X, tmp_path / name).fingerprint()
        for f, name in [
            (once, "a"),
            (lambda x: x + x, "b"),
            (lambda x: 3 * x, "c"),
        ]
    ]
    assert by_answers[0] == by_answers[1] != by_answers[2]
    named = build(once, X, tmp_path / "d", fingerprint="version 1")
    assert named.fingerprint() == "version 1" and named.name == "once"


def test_the_rank_of_the_teachers_input_tells_whether_data_is_batched(tmp_path) -> None:
    """Shapes (25, 4) alone do not tell; the model takes (batch, 4)."""
    static = tf.data.Dataset.from_tensor_slices(X).batch(25, drop_remainder=True)
    soft = build(model(), static, tmp_path / "model")
    assert len(soft) == 50
    said = build(lambda x: 2 * x, static, tmp_path / "said", batched=True)
    assert len(said) == 50
    single = build(lambda x: 2 * x, static, tmp_path / "single", batched=False)
    assert len(single) == 2 and single.store.layout.outputs[0].shape == (25, 4)
    variable = tf.data.Dataset.from_generator(
        lambda: iter(X), output_signature=tf.TensorSpec((None,), tf.float32)
    )
    assert len(build(model(), variable, tmp_path / "variable")) == 50


def test_shapes_that_the_data_does_not_tell(tmp_path) -> None:
    loose = tf.data.Dataset.from_generator(
        lambda: (X[at : at + 6] for at in range(0, 50, 6)),
        output_signature=tf.TensorSpec(None, tf.float32),
    )
    soft = build(model(), loose, tmp_path / "soft", batched=True)
    assert len(soft) == 50


def test_a_complete_store_is_left_as_it_is(tmp_path, capsys) -> None:
    asked = []

    def teacher(x: np.ndarray) -> np.ndarray:
        asked.append(len(x))
        return 3 * x

    build(teacher, X, tmp_path / "soft")
    before = contents(tmp_path / "soft")
    asked.clear()
    soft = build(teacher, STREAM.batch(3), tmp_path / "soft", verbose=1)
    assert asked == [8] and contents(tmp_path / "soft") == before
    assert "already complete: 50 examples" in capsys.readouterr().out
    assert len(soft) == 50


def test_one_line_is_said_where_there_is_no_terminal(tmp_path, capsys) -> None:
    build(model(), X, tmp_path / "soft", verbose=1)
    (line,) = capsys.readouterr().out.strip().splitlines()
    assert "soft: 50 examples, 2." in line and "kB" in line and "examples/s" in line
    build(model(), X, tmp_path / "silent")
    assert capsys.readouterr().out == ""


def test_a_bar_is_drawn_on_a_terminal(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    build(model(), STREAM.batch(10), tmp_path / "soft", verbose=1)
    assert "soft targets" in capsys.readouterr().out


def test_nothing_that_differs_between_two_builds_is_written(tmp_path) -> None:
    teacher = model()
    first = build(teacher, X, tmp_path / "one", layers=["hidden"], dtype="float16")
    second = build(teacher, X, tmp_path / "elsewhere" / "two", layers=["hidden"], dtype="float16")
    assert contents(first.directory) == contents(second.directory)
    assert str(tmp_path).encode() not in b"".join(contents(first.directory).values())


def test_what_the_caller_hands_in_is_not_changed(tmp_path) -> None:
    teacher = model()
    before = [weight.numpy() for weight in teacher.weights]
    x = X.copy()
    build(teacher, x, tmp_path / "soft", layers=["hidden"])
    np.testing.assert_array_equal(x, X)
    assert teacher.trainable and isinstance(SoftTargets(tmp_path / "soft"), Teacher)
    for old, new in zip(before, teacher.weights, strict=True):
        np.testing.assert_array_equal(old, new.numpy())
