"""Canvases with several digits: what is on them, and what the three sources say of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from keras_kd import data
from keras_kd.data import canvases
from keras_kd.data.sources import digit_detector, digit_tags, multi_digit

SOURCES = ("multi_digit", "digit_tags", "digit_detector")


@pytest.fixture(scope="module")
def made() -> canvases.Canvases:
    digits = data.load("digits").test
    return canvases.make(digits.x, digits.y, 60, seed=5)


@pytest.fixture
def few(monkeypatch) -> None:
    monkeypatch.setattr(canvases, "COUNTS", {"train": 7, "validation": 3, "test": 4})


@pytest.fixture
def pictures(tmp_path):
    """Write pictures of bars, of which each is like no other, as a data set of single digits."""
    rng = np.random.default_rng(0)
    x = np.zeros((60, 28, 28), "uint8")
    x[:, 4:24, 8:20] = rng.integers(100, 256, (60, 20, 12))
    y = np.arange(60) % 10
    path = tmp_path / "bars.npz"
    np.savez(path, x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    return path


def test_chance_is_numpys_own_stream() -> None:
    expected = np.random.Generator(np.random.PCG64([3, 4])).random(6)
    np.testing.assert_array_equal(canvases.Chance(3, 4).uniform(2, 3).ravel(), expected)
    chance = canvases.Chance(0)
    assert {chance.integer(2, 5) for _ in range(200)} == {2, 3, 4, 5}


@pytest.mark.parametrize("size", [(8, 8), (10, 16), (16, 5), (4, 3)])
def test_resizing_is_that_of_tensorflow(size: tuple[int, int]) -> None:
    import tensorflow as tf

    picture = np.random.default_rng(0).random((8, 6))
    theirs = tf.image.resize(picture[..., None], size, "bilinear", antialias=True)[..., 0]
    np.testing.assert_allclose(canvases.resize(picture, *size), theirs, atol=1e-6)


def test_a_digit_is_cut_out_at_its_ink() -> None:
    picture = np.array([[5, 5, 5, 5], [5, 9, 25, 5], [5, 5, 15, 5], [5, 5, 5, 8]])
    np.testing.assert_allclose(canvases.cut_out(picture), [[1.0], [0.5]])


def test_every_canvas_has_one_to_four_digits_with_room(made: canvases.Canvases) -> None:
    there = made.digits >= 0
    assert set(there.sum(axis=1)) == {1, 2, 3, 4}
    assert not made.boxes[~there].any()
    top, left, height, width = made.boxes[there].T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + height <= 32).all() and (left + width <= 32).all()
    assert set(height) == set(range(10, 17))
    assert width.min() >= 3 and width.max() <= 16
    cells = {}
    for digits, boxes in zip(made.digits, made.boxes, strict=True):
        taken = np.zeros((32, 32), int)
        middles = []
        for top, left, height, width in boxes[digits >= 0]:
            taken[top : top + height, left : left + width] += 1
            middles.append((int((top + height / 2) // 8), int((left + width / 2) // 8)))
        assert taken.max() == 1
        assert len(set(middles)) == len(middles)
        cells |= dict.fromkeys(middles)
    assert len(cells) > 8


def test_the_map_has_each_digit_in_its_box_to_the_edges(made: canvases.Canvases) -> None:
    assert made.images.dtype == np.uint8
    for image, labels, digits, boxes in zip(
        made.images, made.maps, made.digits, made.boxes, strict=True
    ):
        rest = labels.copy()
        for digit, (top, left, height, width) in zip(digits, boxes, strict=True):
            if digit < 0:
                continue
            inside = labels[top : top + height, left : left + width]
            assert set(np.unique(inside)) <= {0, digit + 1}
            ink = inside == digit + 1
            assert ink[:2].any() and ink[-2:].any() and ink[:, :2].any() and ink[:, -2:].any()
            assert image[top : top + height, left : left + width][ink].min() > 255 * 0.3 * 0.5 - 1
            rest[top : top + height, left : left + width] = 0
        assert not rest.any()


def test_the_ground_is_noise_and_the_ink_has_an_intensity_of_its_own(made) -> None:
    boxed = np.zeros(made.maps.shape, bool)
    for index, place in zip(*np.nonzero(made.digits >= 0), strict=True):
        top, left, height, width = made.boxes[index, place]
        boxed[index, top : top + height, left : left + width] = True
    ground = made.images[~boxed] / 255
    assert 0.39 < ground.max() < 0.402
    assert ground.min() == 0.0
    assert ground.mean() == pytest.approx(0.2, abs=0.003)
    brightest = np.where(made.maps > 0, made.images / 255, 0.0).max(axis=(1, 2))
    assert 0.5 <= brightest.min() < 0.85
    assert brightest.max() == 1.0


def test_a_canvas_depends_on_its_seed_and_number_only(made: canvases.Canvases) -> None:
    digits = data.load("digits").test
    for seed, alike in ((5, True), (6, False)):
        again = canvases.make(digits.x, digits.y, 3, seed=seed)
        for field in dataclasses.fields(made):
            one, other = getattr(made, field.name)[:3], getattr(again, field.name)
            assert np.array_equal(one, other) is alike


def test_no_two_splits_share_a_digit(few, pictures, monkeypatch) -> None:
    seen = []

    def note(x, y, count, *, seed):
        seen.append(({picture.tobytes() for picture in x}, len(x), seed))
        return make(x, y, count, seed=seed)

    make = canvases.make
    monkeypatch.setattr(canvases, "make", note)
    found = canvases.split_canvases(f"npz:{pictures}", None)
    assert list(found) == ["train", "validation", "test"]
    assert [len(made.images) for made in found.values()] == [7, 3, 4]
    (train, *_), (validation, *_), (test, *_) = seen
    assert (len(train), len(validation), len(test)) == (36, 4, 20)
    assert not train & validation and not train & test and not validation & test
    assert len({seed for *_, seed in seen}) == 3


@pytest.mark.parametrize("name", SOURCES)
def test_the_sources_load_and_are_the_same_each_time(few, pictures, name: str) -> None:
    ours, again = data.load(name), data.load(name)
    assert ours.fingerprint == again.fingerprint
    assert [len(s) for s in (ours.train, ours.validation, ours.test)] == [7, 3, 4]
    assert ours.train.x.shape[1:] == (32, 32) and ours.train.x.dtype == np.uint8
    theirs = data.load(f"{name}:npz:{pictures}")
    assert theirs.fingerprint != ours.fingerprint
    assert theirs.train.x.shape == ours.train.x.shape


def test_a_validation_split_of_the_source_is_kept(few, pictures, tmp_path) -> None:
    with np.load(pictures) as file:
        arrays = dict(file)
    arrays["x_val"], arrays["y_val"] = arrays["x_test"][:9], np.full(9, 7)
    np.savez(tmp_path / "three.npz", **arrays)
    loaded = data.load(f"multi_digit:npz:{tmp_path / 'three.npz'}")
    assert set(np.unique(loaded.validation.y)) == {0, 8}
    assert set(np.unique(loaded.train.y)) - {0, 8}


def test_multi_digit_has_a_class_for_each_pixel(made: canvases.Canvases) -> None:
    split = multi_digit._split(made)
    np.testing.assert_array_equal(split.y, made.maps)
    np.testing.assert_array_equal(split.x, made.images)


def test_multi_digit_names_its_classes(few) -> None:
    loaded = data.load("multi_digit")
    assert (loaded.classes, loaded.label_names) == (11, ("background", *"0123456789"))


def test_digit_tags_say_which_digits_are_there(made: canvases.Canvases) -> None:
    split = digit_tags._split(made)
    for tags, digits in zip(split.y, made.digits, strict=True):
        assert set(np.flatnonzero(tags)) == set(digits[digits >= 0])
    assert set(np.unique(split.y)) == {0, 1}


def test_digit_detector_matches_cells_with_boxes(made: canvases.Canvases) -> None:
    split = digit_detector._split(made)
    cells = np.arange(16)
    for index, classes in enumerate(split.y["class"]):
        encoded, weight = split.y["boxes"][index], split.weights["boxes"][index]
        digits, boxes = made.digits[index], made.boxes[index]
        matched = np.flatnonzero(classes)
        np.testing.assert_array_equal(weight, classes > 0)
        assert not encoded[classes == 0].any()
        assert np.abs(encoded[matched, :2]).max() <= 5.0
        theirs = digit_detector.decode(encoded, cells)[matched]
        order = np.lexsort(theirs.round().T)
        expected = boxes[digits >= 0]
        by_place = np.lexsort(expected.T)
        np.testing.assert_allclose(theirs[order], expected[by_place], atol=1e-4)
        np.testing.assert_array_equal(classes[matched][order] - 1, digits[digits >= 0][by_place])
    np.testing.assert_array_equal(split.weights["class"], 1)


def test_boxes_are_encoded_as_in_ssd() -> None:
    """A box of 16x4 with its middle 2 down and 1 left of the middle of cell 6 (12, 20)."""
    box = np.array([6.0, 17.0, 16.0, 4.0])
    encoded = digit_detector.encode(box, np.array(6))
    np.testing.assert_allclose(
        encoded, [2 / 8 / 0.1, -1 / 8 / 0.1, np.log(2) / 0.2, np.log(0.5) / 0.2], rtol=1e-6
    )
    np.testing.assert_allclose(digit_detector.decode(encoded, np.array(6)), box, rtol=1e-6)


def test_the_sizes_of_the_three_data_sets() -> None:
    assert canvases.COUNTS == {"train": 3000, "validation": 500, "test": 1000}
    assert (canvases.SIZE, canvases.CELLS, canvases.MOST) == (32, 4, 4)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("multi_digit:multi_digit", "'multi_digit' holds no pictures of single digits"),
        ("digit_tags:mnist1d", "'mnist1d' holds no pictures of single digits"),
        ("digit_tags:digit", "There is no data set 'digit'"),
        ("digit_detector:npz:no.npz", "'no.npz' does not exist"),
    ],
)
def test_what_is_made_of_no_single_digits_is_refused(few, name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        data.load(name)


def test_more_than_ten_classes_and_blank_pictures_are_refused(few, pictures, tmp_path) -> None:
    with np.load(pictures) as file:
        arrays = dict(file)
    np.savez(tmp_path / "many.npz", **{**arrays, "y_train": np.arange(40)})
    with pytest.raises(ValueError, match="holds no pictures of single digits"):
        data.load(f"multi_digit:npz:{tmp_path / 'many.npz'}")
    np.savez(tmp_path / "blank.npz", **{**arrays, "x_test": np.full((20, 28, 28), 3, "uint8")})
    with pytest.raises(ValueError, match=r"A picture of a digit is blank[\s\S]*all 3"):
        data.load(f"multi_digit:npz:{tmp_path / 'blank.npz'}")


def test_a_data_dir_goes_to_the_single_digits(few) -> None:
    with pytest.raises(ValueError, match="`data_dir` means nothing to 'digits'"):
        data.load("multi_digit", data_dir="somewhere")
