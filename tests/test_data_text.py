"""The text that Python ships: paragraphs, vocabulary, windows and blocks."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from keras_kd import data
from keras_kd.data.sources import python_text


def as_text(rows: np.ndarray, names: tuple[str, ...]) -> str:
    return "".join("\0" if number == 0 else names[number] for number in rows.ravel())


def test_paragraphs_come_in_the_order_of_the_topics_and_once() -> None:
    topics = {
        "b": "Third.\n\n\n\nFirst\n   and more.\n\n",
        "a": "\nFirst\nand more.\n\n  Second,\n  in two lines.",
    }
    text = python_text.collect(topics)
    assert text == "First\nand more.\n\n  Second,\n  in two lines.\n\nThird."
    assert python_text.collect({}) == ""


def test_the_commonest_characters_get_numbers() -> None:
    assert python_text.common_characters("bbaac", 2) == ("a", "b")
    assert python_text.common_characters("bbbaac") == ("b", "a", "c")
    many = "".join(chr(200 + number) for number in range(100))
    assert len(python_text.common_characters(many)) == 79


def test_windows_are_followed_by_themselves_moved_by_one() -> None:
    split = python_text.windows("abcabcx", ("a", "b", "c"), length=3)
    np.testing.assert_array_equal(split.x, [[1, 2, 3], [1, 2, 3]])
    np.testing.assert_array_equal(split.y, [[2, 3, 1], [2, 3, 0]])
    assert (split.x.dtype, split.y.dtype) == (np.int32, np.int64)
    assert len(python_text.windows("abcabc", ("a",), length=3)) == 1
    assert python_text.windows("", ("a",)).x.shape == (0, 48)


@pytest.fixture(scope="module")
def loaded() -> data.Dataset:
    return data.load("python_text")


def test_the_blocks_are_the_text_of_this_python(loaded) -> None:
    from pydoc_data.topics import topics

    names = loaded.label_names
    assert names[0] == "other"
    assert len(names) == loaded.classes == 80
    assert len(set(names)) == 80
    text = python_text.collect(topics)
    known = "".join(c if c in names[1:] else "\0" for c in text)
    train, test = (
        {as_text(row, names) for row in split.x} for split in (loaded.train, loaded.test)
    )
    begin, end = round(0.8 * len(text)), round(0.9 * len(text))
    assert train == {known[i : i + 48] for i in range(0, begin - 48, 48)}
    assert test == {known[i : i + 48] for i in range(end, len(text) - 48, 48)}
    validation = as_text(loaded.validation.x, names)
    assert validation == known[begin : begin + len(validation)]
    assert len(text) // 480 - 1 <= len(loaded.validation) <= len(text) // 480


def test_the_split_has_no_seed_and_no_share(loaded) -> None:
    assert data.load("python_text", seed=3, validation=0.4).fingerprint == loaded.fingerprint
    assert loaded.train.x.shape[1:] == loaded.train.y.shape[1:] == (48,)
    np.testing.assert_array_equal(loaded.train.x[:, 1:], loaded.train.y[:, :-1])


def test_only_the_training_block_names_characters(monkeypatch) -> None:
    monkeypatch.setattr(python_text, "_topics", lambda: {"a": "x" * 900 + "y" * 100})
    source = python_text.read("", None)
    assert source.label_names == ("other", "x")
    assert set(np.unique(source.test.x)) == {0}


def test_a_python_without_the_texts_is_told_so(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ValueError, match=r"needs texts that this Python came without[\s\S]*npz:"):
        data.load("python_text")
