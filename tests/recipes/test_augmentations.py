"""The transforms that recipes share, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_kd.recipes import base


def seed(*values: int) -> tf.Tensor:
    return tf.constant(values, tf.int64)


def test_cyclic_shifts_turn_each_signal_by_its_own_number_of_places() -> None:
    x = np.random.default_rng(0).normal(size=(64, 9, 2)).astype("float32")
    y = np.arange(64)
    turned, labels = base.cyclic_shifts(tf.constant(x), tf.constant(y), seed(5, 6))
    np.testing.assert_array_equal(labels, y)
    drawn = set()
    for before, after in zip(x, np.asarray(turned), strict=True):
        fits = [s for s in range(9) if np.array_equal(np.roll(before, s, axis=0), after)]
        assert len(fits) == 1
        drawn.update(fits)
    assert drawn == set(range(9))


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_shifts_move_each_image_and_fill_with_zeros(channels: tuple[int, ...]) -> None:
    x = 1 + np.random.default_rng(0).random(size=(200, 7, 5, *channels)).astype("float32")
    moved, _ = base.shifts(2)(tf.constant(x), tf.zeros(200), seed(1, 2))
    border = [(0, 0), (2, 2), (2, 2)] + [(0, 0)] * len(channels)
    padded = np.pad(x, border)
    drawn = set()
    for index, after in enumerate(np.asarray(moved)):
        fits = [
            (row, column)
            for row in range(5)
            for column in range(5)
            if np.array_equal(padded[index, row : row + 7, column : column + 5], after)
        ]
        assert len(fits) == 1
        drawn.update(fits)
    assert drawn == {(row, column) for row in range(5) for column in range(5)}


def test_shifts_by_zero_pixels_change_nothing() -> None:
    x = np.random.default_rng(0).random(size=(4, 6, 6, 1)).astype("float32")
    moved, _ = base.shifts(0)(tf.constant(x), tf.zeros(4), seed(1, 2))
    np.testing.assert_array_equal(moved, x)


@pytest.mark.parametrize("channels", [(), (2,)])
def test_flips_mirror_about_half_of_the_images(channels: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).random(size=(400, 3, 4, *channels)).astype("float32")
    mirrored, _ = base.flips(tf.constant(x), tf.zeros(400), seed(1, 2))
    mirrored = np.asarray(mirrored)
    same = np.array([np.array_equal(a, b) for a, b in zip(x, mirrored, strict=True)])
    np.testing.assert_array_equal(mirrored[~same], x[~same][:, :, ::-1])
    assert 150 < same.sum() < 250


def test_a_chain_does_one_after_the_other_with_different_seeds() -> None:
    seen = []

    def note(name: str, add: float):
        def transform(x, y, seed):
            seen.append((name, tuple(np.asarray(seed))))
            return x * 2 + add, y

        return transform

    x, _ = base.chain(note("first", 1.0), note("second", 0.0))(tf.ones(1), tf.ones(1), seed(1, 2))
    assert np.asarray(x) == pytest.approx(6.0)
    assert [name for name, _ in seen] == ["first", "second"]
    assert seen[0][1] != seen[1][1]


def test_transforms_keep_the_shape_in_a_graph_of_unknown_batch_size() -> None:
    spec = tf.TensorSpec((None, 8, 8, 1), tf.float32)
    steps = tf.function(base.chain(base.flips, base.shifts(1)))
    x, _ = steps.get_concrete_function(
        spec, tf.TensorSpec((None,), tf.int32), tf.TensorSpec((2,), tf.int64)
    ).structured_outputs
    assert x.shape.as_list() == [None, 8, 8, 1]
