"""What `build` refuses, and in which words."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd.soft_targets import examples
from keras_kd.teachers import AbsentTeacher, Teacher
from tests.soft_targets.soft_helpers import build, inputs, model

X = inputs()
STREAM = tf.data.Dataset.from_tensor_slices(X)


def double(x: np.ndarray) -> np.ndarray:
    return 2 * x


def refused(match: str, tmp_path, *given, error=ValueError, **kwargs) -> None:
    """Expect a refusal that leaves no folder behind."""
    with pytest.raises(error, match=match):
        build(*given, tmp_path / "soft", **kwargs)
    assert not (tmp_path / "soft").exists()


ARGUMENTS = {
    "top_k": (dict(top_k=0), "`top_k` must be a whole number of 1 or more"),
    "batch_size": (dict(batch_size=2.5), "`batch_size` must be a whole number"),
    "dtype": (dict(dtype="float64"), "no dtype of soft targets 'float64'"),
    "no temperature": (dict(top_k=2, temperatures=()), "`temperatures` must be one or more"),
    "temperature twice": (dict(top_k=2, temperatures=(2, 2.0)), "one or more, each once"),
    "cold": (dict(top_k=2, temperatures=(0.0,)), "`temperatures` must be positive"),
    "temperatures alone": (dict(temperatures=(4.0,)), "`temperatures` belongs to `top_k`"),
    "outputs": (dict(outputs="logit"), "no kind of outputs 'logit'"),
    "activation": (dict(activation="relu"), "no activation 'relu'"),
    "shard beyond": (dict(shard=(2, 2)), r"`shard` must be a pair \(i, n\)"),
    "shard alone": (dict(shard=3), r"`shard` must be a pair \(i, n\)"),
    "shard in parts": (dict(shard=(0.0, 2)), r"`shard` must be a pair \(i, n\)"),
    "batched": (dict(batched=True), "`batched` says how a tf.data.Dataset comes"),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(name, tmp_path) -> None:
    kwargs, match = ARGUMENTS[name]
    refused(match, tmp_path, double, X, **kwargs)


def test_layers_must_be_names(tmp_path) -> None:
    refused("`layers` must be a layer's name", tmp_path, model(), X, layers=[3], error=TypeError)
    refused("There is no layer .* 'hiden'", tmp_path, model(), X, layers=["hiden"])


@pytest.mark.parametrize(
    "teacher",
    [3, "model", None, AbsentTeacher("gone", "0")],
    ids=["number", "word", "none", "gone"],
)
def test_a_teacher_that_cannot_be_asked(teacher, tmp_path) -> None:
    refused("is no teacher that can be asked", tmp_path, teacher, X)


def test_soft_targets_cannot_be_asked(tmp_path) -> None:
    soft = build(double, X, tmp_path / "first")
    refused("is no teacher that can be asked", tmp_path, soft, X)


def test_a_fingerprint_beside_a_model(tmp_path) -> None:
    refused("`fingerprint` is for a function", tmp_path, model(), X, fingerprint="mine")


def test_statements_beside_a_teacher_that_makes_its_own(tmp_path) -> None:
    match = "says itself what its outputs are"
    refused(match, tmp_path, Teacher(model()), X, outputs="logits")
    refused(match, tmp_path, [model(), Teacher(model())], X, activation="sigmoid")


NO_DATA = {
    "a generator": (x for x in X),
    "numbers": [[1.0, 2.0]],
    "nothing": None,
    "an empty tuple": (),
}


@pytest.mark.parametrize("name", NO_DATA)
def test_data_that_is_no_data_set(name, tmp_path) -> None:
    refused("The data is no data set", tmp_path, double, NO_DATA[name], error=TypeError)


def test_arrays_of_other_lengths(tmp_path) -> None:
    refused("same number of examples", tmp_path, double, {"a": X, "b": X[:9]})
    refused("same number of examples", tmp_path, double, np.zeros(()))


@pytest.mark.parametrize("kind", ["arrays", "data set", "shard"])
def test_empty_data(kind, tmp_path) -> None:
    data = {"arrays": X[:0], "data set": STREAM.batch(4).take(0), "shard": X[:2]}[kind]
    refused("The data is empty", tmp_path, double, data, shard=(3, 4) if kind == "shard" else None)


def test_data_without_an_end(tmp_path) -> None:
    refused(r"never ends[\s\S]*without repeat", tmp_path, double, STREAM.batch(5).repeat())


def test_data_that_does_not_repeat(tmp_path) -> None:
    asked = []

    def teacher(x: np.ndarray) -> np.ndarray:
        asked.append(x)
        return x

    random = tf.random.Generator.from_seed(1)
    shuffled = STREAM.shuffle(50).batch(7)
    noisy = STREAM.map(lambda x: x + random.uniform((4,))).batch(7)
    drained = iter(X)
    once = tf.data.Dataset.from_generator(lambda: drained, output_signature=tf.TensorSpec((4,)))
    for data in (shuffled, noisy, once.batch(50, drop_remainder=True)):
        match = r"The data does not repeat[\s\S]*ReplayableAugmentation"
        refused(match, tmp_path, teacher, data, batched=True)
    assert not asked


def test_data_that_may_be_batched_or_not(tmp_path) -> None:
    static = STREAM.batch(25, drop_remainder=True)
    refused(r"not clear whether[\s\S]*\(25, 4\)[\s\S]*batched=True", tmp_path, double, static)


def test_ragged_and_sparse_data(tmp_path) -> None:
    ragged = tf.data.Dataset.from_tensor_slices(tf.ragged.constant([[1], [2, 3]])).batch(2)
    refused(r"no dense tensor[\s\S]*to_tensor", tmp_path, double, ragged, error=TypeError)
    sparse = tf.data.Dataset.from_tensor_slices(tf.sparse.from_dense([[1.0, 0.0]])).batch(1)
    refused(r"no dense tensor[\s\S]*to_dense", tmp_path, double, sparse, error=TypeError)


def test_examples_that_differ_in_shape(tmp_path) -> None:
    lengths = tf.data.Dataset.from_generator(
        lambda: (np.ones(3 + number // 4, "float32") for number in range(8)),
        output_signature=tf.TensorSpec((None,), tf.float32),
    )
    for data in (lengths, lengths.padded_batch(4)):
        refused(
            "most likely they differ in shape",
            tmp_path,
            double,
            data,
            batched=data is not lengths,
        )


def test_answers_that_differ_in_shape(tmp_path) -> None:
    """Batches of one length each are read well; the answers are as long as the batches."""
    lengths = tf.data.Dataset.from_generator(
        lambda: (np.full((8, 3 + number), number + 2.5, "float32") for number in range(3)),
        output_signature=tf.TensorSpec((None, None), tf.float32),
    )
    match = r"answers of one shape[\s\S]*\(4,\), before that \(3,\)"
    with pytest.raises(ValueError, match=match):
        build(double, lengths, tmp_path / "function")
    same = keras.Sequential([keras.Input((None,)), keras.layers.Lambda(lambda x: x * 2)])
    with pytest.raises(ValueError, match=match):
        build(same, lengths, tmp_path / "model")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [3, 30])
@pytest.mark.parametrize("kwargs", [{}, {"top_k": 2}, {"dtype": "float16"}], ids=str)
def test_answers_that_are_not_finite(bad, row, kwargs, tmp_path) -> None:
    def teacher(x: np.ndarray) -> np.ndarray:
        answer = 3 * x
        answer[(x == X[row]).all(1), 1] = bad
        return answer

    where = f"example {row} of the first batch" if row < 8 else f"Output 0 .* for example {row}"
    with pytest.raises(ValueError, match=f"{where} is not finite"):
        build(teacher, X, tmp_path / "soft", **kwargs)


def test_a_shard_names_the_example_of_the_data(tmp_path) -> None:
    def teacher(x: np.ndarray) -> np.ndarray:
        return np.where((x == X[41]).all(1)[:, None], np.nan, 3 * x)

    with pytest.raises(ValueError, match="for example 41 is not finite"):
        build(teacher, X, tmp_path / "soft", shard=(2, 3))


def test_layers_that_are_not_finite(tmp_path) -> None:
    with pytest.raises(ValueError, match="Layer 'f' of the teacher for example 9 is not finite"):
        build(
            lambda x: (3 * x, {"f": np.where((x == X[9]).all(1), np.nan, 1.0)}),
            X,
            tmp_path / "soft",
            layers=["f"],
        )


@pytest.mark.parametrize("top_k", [None, 2])
def test_numbers_that_float16_does_not_hold(top_k, tmp_path) -> None:
    def teacher(x: np.ndarray) -> np.ndarray:
        return np.where((x == X[20]).all(1)[:, None], [65504.5, 1, 2, 3], 3 * x)

    match = "Output 0 .* for example 20 does not fit float16"
    with pytest.raises(ValueError, match=match + r'[\s\S]*dtype="float32"'):
        build(teacher, X, tmp_path / "soft", dtype="float16", top_k=top_k)
    build(teacher, X, tmp_path / "fine", top_k=top_k)


def test_a_logit_that_is_not_kept_may_be_beyond_float16(tmp_path) -> None:
    """A class that is ruled out by -1e9 has probability 0."""
    build(
        lambda x: np.where([0, 0, 0, 1], -1e9, 3 * x), X, tmp_path / "s", top_k=2, dtype="float16"
    )


def test_top_k_without_a_softmax(tmp_path) -> None:
    match = "`top_k` keeps the largest logits of a softmax, and there is none"
    refused(match, tmp_path, model(activation="sigmoid"), X, top_k=2)
    refused(match, tmp_path, double, X, top_k=2, outputs="values")
    refused(match, tmp_path, double, X, top_k=2, activation="sigmoid")
    refused(match, tmp_path, Teacher(model(), activation="sigmoid"), X, top_k=2)


@pytest.mark.parametrize("top_k", [3, 4])
def test_top_k_that_leaves_nothing_out(top_k, tmp_path) -> None:
    refused("would keep all the classes", tmp_path, model(), X, top_k=top_k)


def test_top_k_of_single_numbers(tmp_path) -> None:
    refused("would keep all the classes", tmp_path, lambda x: 3 * x[:, 0], X, top_k=1)


ANSWERS = {
    "another number": (lambda x: x[1:], r"not answer each example: output 0[\s\S]*shape \(7, 4\)"),
    "one for all": (lambda x: x.sum(), r"not answer each example: output 0[\s\S]*shape \(\)"),
    "words": (lambda x: np.array(["a"] * len(x)), "no array of numbers"),
    "nothing": (lambda x: None, r"not answer each example: output 0[\s\S]*shape \(\)"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_that_are_none(name, tmp_path) -> None:
    teacher, match = ANSWERS[name]
    refused(match, tmp_path, teacher, X, error=(TypeError, ValueError))


@pytest.mark.parametrize(
    "teacher", [double, lambda x: (x, {"g": x}), lambda x: (x, [x])], ids=["none", "other", "list"]
)
def test_a_function_that_answers_without_the_layers(teacher, tmp_path) -> None:
    refused("does not answer with the layers", tmp_path, teacher, X, layers=["f"])


def test_a_layer_of_several_tensors(tmp_path) -> None:
    x = keras.Input((6, 4))
    sequence, *_ = keras.layers.LSTM(3, return_sequences=True, return_state=True, name="rnn")(x)
    teacher = keras.Model(x, sequence)
    data = np.ones((9, 6, 4), "float32") * np.arange(9)[:, None, None]
    refused("each example: layer 'rnn'", tmp_path, teacher, data, layers=["rnn"])


def test_layers_of_an_ensemble(tmp_path) -> None:
    refused("An ensemble has no layer", tmp_path, [model(), model()], X, layers=["hidden"])


def test_arrays_become_a_data_set_of_single_examples() -> None:
    data = examples.as_dataset(({"a": X, "b": [X, X]}, np.arange(50)), None)
    x, y = next(iter(data))
    np.testing.assert_array_equal(x["b"][1], X[0])
    assert y == 0 and len(data) == 50
    assert examples.as_dataset(data, None) is data
    with pytest.raises(TypeError, match="The data is no data set"):
        examples.as_dataset("words", None)


def test_inputs_in_words() -> None:
    assert examples.described(X[:1]) == "float32 (4,) from -0.925815 to 0.991665"
    assert examples.described(np.array(["a", "b"])) == "string ()"
    assert examples.described(np.zeros((0, 3), "uint8")) == "uint8 (3,)"
