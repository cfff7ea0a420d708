"""Rows: where each byte is, and the way from tensors to bytes and back."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_kd.soft_targets.layout import Dense, Layout, TopK

LAYOUT = Layout(
    (TopK((2, 300), "float16", 2, (1.0, 4.0)), Dense((), "float32")),
    {"block/conv": Dense((2, 3), "float16"), "a": Dense((0,), "float32")},
)


def answers(count: int, rng: np.random.Generator) -> dict:
    kept = {
        "logits": rng.normal(size=(count, 2, 2)).astype("float16"),
        "classes": rng.integers(0, 300, (count, 2, 2)).astype("int32"),
        "log_sum_exp": rng.normal(size=(count, 2, 2)).astype("float32"),
    }
    layers = {
        "block/conv": rng.normal(size=(count, 2, 3)).astype("float16"),
        "a": np.zeros((count, 0), "float32"),
    }
    value = rng.normal(size=count).astype("float32")
    return {"outputs": (kept, value), "layers": layers}


def names(count: int) -> np.ndarray:
    return np.arange(count * 8, dtype="uint8").reshape(count, 8)


def test_a_row_is_its_arrays_one_after_the_other(rng) -> None:
    teacher = answers(3, rng)
    rows = LAYOUT.rows_of(names(3), teacher)
    assert rows.dtype.itemsize == LAYOUT.row_bytes == 8 + 8 + 8 + 16 + 4 + 12
    kept, value = teacher["outputs"]
    for row in range(3):
        expected = (
            names(3)[row].tobytes()
            + kept["logits"][row].astype("<f2").tobytes()
            + kept["classes"][row].astype("<u2").tobytes()
            + kept["log_sum_exp"][row].astype("<f4").tobytes()
            + value[row].astype("<f4").tobytes()
            + teacher["layers"]["block/conv"][row].astype("<f2").tobytes()
        )
        assert rows[row].tobytes() == expected


def test_rows_become_arrays_again(rng) -> None:
    teacher = answers(5, rng)
    rows = LAYOUT.rows_of(names(5), teacher).view("uint8").reshape(5, -1)
    read_back = LAYOUT.teacher_of(rows)
    tf.nest.map_structure(np.testing.assert_array_equal, teacher, read_back)
    assert read_back["outputs"][0]["classes"].dtype == np.int32
    tf.nest.map_structure(
        lambda spec, tensor: (
            pytest.fail("a spec lies") if not spec.is_compatible_with(tf.constant(tensor)) else None
        ),
        LAYOUT.specs(),
        read_back,
    )


def test_one_output_stands_for_itself() -> None:
    layout = Layout((Dense((3,), "float16"),))
    assert not layout.several
    specs = layout.specs()
    assert specs["outputs"].shape == (None, 3) and specs["layers"] == {}


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")],
)
def test_classes_take_the_fewest_bytes(classes, dtype) -> None:
    layout = Layout((TopK((classes,), "float16", 1, (1.0,)),))
    assert layout.columns[1].dtype == dtype
    largest = np.array([[classes - 1]], "int32")
    teacher = {"logits": np.zeros((1, 1), "float16"), "classes": largest}
    teacher["log_sum_exp"] = np.zeros((1, 1), "float32")
    rows = layout.rows_of(names(1), {"outputs": teacher, "layers": {}})
    back = layout.teacher_of(rows.view("uint8").reshape(1, -1))
    assert back["outputs"]["classes"] == classes - 1


def test_top_16_of_1000_in_float16_takes_76_bytes() -> None:
    layout = Layout((TopK((1000,), "float16", 16, (1.0,)),))
    assert layout.row_bytes == 16 * 2 + 16 * 2 + 4 + 8


def test_a_layout_is_written_in_words_and_read_again() -> None:
    assert Layout.from_json(LAYOUT.to_json()) == LAYOUT


def test_answers_of_another_shape_are_refused(rng) -> None:
    teacher = answers(3, rng)
    teacher["layers"]["block/conv"] = np.zeros((3, 3, 2), "float16")
    with pytest.raises(ValueError, match="do not have answers of one shape") as error:
        LAYOUT.rows_of(names(3), teacher)
    assert "layer 'block/conv': (3, 2)" in str(error.value)
