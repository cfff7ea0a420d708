"""The names of examples: by content, whatever the batch; different for different content."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_kd import fingerprints


def names(x) -> list[int]:
    return fingerprints.as_numbers(fingerprints.of(x).numpy()).tolist()


X = np.random.default_rng(3).integers(0, 255, (6, 3, 2)).astype("uint8")


def test_the_batch_and_the_order_play_no_part() -> None:
    whole = names(X)
    assert len(set(whole)) == 6
    assert names(X[::-1]) == whole[::-1]
    assert names(X[:2]) + names(X[2:]) == whole


def test_a_graph_that_knows_no_shape_gives_the_same_names() -> None:
    loose = tf.function(fingerprints.of, input_signature=[tf.TensorSpec(None, tf.uint8)])
    assert fingerprints.as_numbers(loose(X).numpy()).tolist() == names(X)


@pytest.mark.parametrize(
    "other",
    [
        X.astype("int8"),
        X.astype("float32"),
        X.astype("float32") / 255,
        X.reshape(6, 2, 3),
        X.reshape(6, 6),
        X ^ 1,
        {"a": X, "b": X},
    ],
    ids=["signed", "float", "scaled", "turned", "flat", "one bit", "twice"],
)
def test_other_content_type_or_shape_has_other_names(other) -> None:
    assert not set(names(other)) & set(names(X))


def test_places_among_several_inputs_count() -> None:
    a, b = X, X + 1
    assert not set(names({"a": a, "b": b})) & set(names({"a": b, "b": a}))
    assert names((a, b)) == names({"a": a, "b": b})


def test_strings_keep_their_bounds() -> None:
    split = np.array([["ab", "c"], ["a", "bc"], ["ab", "c"]])
    first, second, third = names(split)
    assert first != second and first == third
    assert names(np.array(["x", "", "x"]))[0] == names(np.array(["x", "", "x"]))[2]


@pytest.mark.parametrize("dtype", ["bool", "int64", "float16", "float64", "complex64"])
def test_every_type_of_number_has_names(dtype) -> None:
    zero, one = names(np.array([0, 1]).astype(dtype))
    assert zero != one


def test_examples_of_nothing_and_no_examples() -> None:
    assert len(set(names(np.zeros((3, 0))))) == 1
    assert names(np.zeros((0, 4))) == []


def test_numbers_are_the_eight_bytes_little_endian() -> None:
    raw = np.array([[1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1]], "uint8")
    assert fingerprints.as_numbers(raw).tolist() == [1, 2**56]


def test_ragged_and_sparse_tensors_are_refused() -> None:
    with pytest.raises(TypeError, match=r"no dense tensor[\s\S]*to_tensor"):
        fingerprints.of(tf.ragged.constant([[1], [2, 3]]))
    with pytest.raises(TypeError, match=r"no dense tensor[\s\S]*to_dense"):
        fingerprints.of(tf.sparse.from_dense([[1.0, 0.0]]))


def test_a_tensor_without_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="stands alone"):
        fingerprints.of(np.float32(3))


@pytest.mark.parametrize("shape", [(3, 2, 4), (3, 1), (3,), (0, 4)], ids=str)
def test_a_shape_that_is_known_only_later_makes_no_difference(shape) -> None:
    x = np.arange(np.prod(shape), dtype="float32").reshape(shape)
    unknown = tf.TensorSpec((None,) * len(shape), tf.float32)
    later = tf.function(fingerprints.of, input_signature=[unknown])
    np.testing.assert_array_equal(later(x), fingerprints.of(x))
