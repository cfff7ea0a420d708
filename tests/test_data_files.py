"""Data from files of the user: npz, idx, and the same data set through each of them."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from keras_kd import data


def content(count: int = 20) -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(0)
    return {
        "x_train": numbers.normal(size=(count, 3)).astype(np.float32),
        "y_train": np.arange(count) % 4,
        "x_test": numbers.normal(size=(count, 3)).astype(np.float32),
        "y_test": np.arange(count) % 4,
    }


def save(tmp_path: Path, arrays: dict[str, np.ndarray]) -> str:
    np.savez(tmp_path / "own.npz", **arrays)
    return f"npz:{tmp_path / 'own.npz'}"


def write_idx(folder: Path, arrays: dict[str, np.ndarray], *, mark: str = "-", packed=False):
    """Write the four files as LeCun's page describes them."""
    folder.mkdir(exist_ok=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        for kind, letter in (("images", "x"), ("labels", "y")):
            array = arrays[f"{letter}_{split}"].astype(np.uint8)
            raw = struct.pack(">HBB", 0, 8, array.ndim)
            raw += struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
            name = f"{prefix}-{kind}{mark}idx{array.ndim}-ubyte" + (".gz" if packed else "")
            (folder / name).write_bytes(gzip.compress(raw) if packed else raw)
    return f"idx:{folder}"


def test_npz_gives_the_arrays_as_they_are(tmp_path):
    arrays = content()
    loaded = data.load(save(tmp_path, arrays), validation=0)
    np.testing.assert_array_equal(loaded.test.x, arrays["x_test"])
    np.testing.assert_array_equal(loaded.test.y, arrays["y_test"])
    assert sorted(map(tuple, loaded.train.x)) == sorted(map(tuple, arrays["x_train"]))
    assert (loaded.classes, loaded.label_names, len(loaded.validation)) == (4, None, 0)


def test_npz_own_validation_split_is_used(tmp_path):
    arrays = content() | {"x_val": np.ones((2, 3), np.float32), "y_val": np.array([0, 1])}
    loaded = data.load(save(tmp_path, arrays), validation=0.5)
    np.testing.assert_array_equal(loaded.validation.x, arrays["x_val"])
    assert len(loaded.train) == 20


def test_npz_of_several_inputs_and_targets(tmp_path):
    plain = content()
    arrays = {}
    for split in ("train", "test"):
        arrays[f"x_{split}_left"] = plain[f"x_{split}"]
        arrays[f"x_{split}_right_eye"] = plain[f"x_{split}"] * 2
        arrays[f"y_{split}_kind"] = plain[f"y_{split}"]
        arrays[f"y_{split}_size"] = plain[f"x_{split}"][:, 0]
    loaded = data.load(save(tmp_path, arrays))
    assert sorted(loaded.train.x) == ["left", "right_eye"]
    np.testing.assert_array_equal(loaded.train.x["right_eye"], loaded.train.x["left"] * 2)
    np.testing.assert_array_equal(loaded.train.y["size"], loaded.train.x["left"][:, 0])
    assert loaded.classes is None
    assert len(loaded.fingerprint) == 32


@pytest.mark.parametrize(
    ("targets", "classes"),
    [(np.linspace(0, 1, 20), None), (np.zeros((20, 2), int), None), (-np.ones(20, int), None)],
)
def test_classes_are_counted_for_class_numbers_only(tmp_path, targets, classes):
    arrays = content() | {"y_train": targets, "y_test": targets}
    assert data.load(save(tmp_path, arrays)).classes is classes


def test_other_arrays_of_the_file_are_left_alone(tmp_path):
    assert data.load(save(tmp_path, content() | {"note": np.array("mine")})).classes == 4


def nan(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed[3, 1] = np.nan
    return changed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: {"y_test": None}, "lacks y_test"),
        (lambda a: {"x_val": a["x_test"]}, "lacks y_val"),
        (lambda a: {"x_valid": a["x_test"]}, "belongs to no split"),
        (lambda a: {"x_train_more": a["x_train"]}, "'x_train' both alone and by name"),
        (lambda a: {"y_train": a["y_train"][:-1]}, "(?s)train arrays have different lengths.*20"),
        (lambda a: {"x_train": nan(a["x_train"])}, "(?s)x_train holds NaN.*1 of 20.*index 3"),
        (lambda a: {"x_test": a["x_test"] * np.inf}, "x_test holds NaN or infinite"),
        (lambda a: {"y_train": np.full(20, np.nan)}, "y_train holds NaN"),
        (lambda a: {"x_train": np.array(["a"] * 20)}, "x_train does not hold numbers"),
        (lambda a: {"x_test": np.zeros((0, 3), "f4"), "y_test": np.zeros(0, int)}, "x_test is emp"),
        (lambda a: {"x_train": np.zeros((20, 0), "f4")}, "x_train is empty"),
        (lambda a: {"x_test": a["x_test"][:, :2]}, "test examples are not like the train"),
        (lambda a: {"x_test": a["x_test"].astype("f8")}, "test examples are not like the train"),
        (lambda a: {"y_test": a["y_test"] + 1}, "(?s)class that training has never seen.*label 4"),
        (lambda a: {"x_train": np.array([None] * 20)}, "(?s)cannot be read.*turn object arrays"),
    ],
)
def test_npz_refuses_bad_arrays(tmp_path, change, words):
    arrays = content()
    arrays = {key: value for key, value in (arrays | change(arrays)).items() if value is not None}
    with pytest.raises((ValueError, TypeError), match=words):
        data.load(save(tmp_path, arrays))


def test_npz_refuses_scalars(tmp_path):
    with pytest.raises(ValueError, match="x_train has no axis of examples"):
        data.load(save(tmp_path, content() | {"x_train": np.float32(3)}))


@pytest.mark.parametrize("raw", [b"", b"not a file of arrays", b"PK\x03\x04 cut short"])
def test_npz_refuses_damaged_files(tmp_path, raw):
    (tmp_path / "bad.npz").write_bytes(raw)
    with pytest.raises(ValueError, match=r"(?s)'bad.npz' cannot be read.*numpy.savez"):
        data.load(f"npz:{tmp_path}/bad.npz")


def test_npz_refuses_a_cut_file_a_lone_array_and_a_missing_file(tmp_path):
    save(tmp_path, content())
    raw = (tmp_path / "own.npz").read_bytes()
    middle = len(raw) // 2
    damaged = raw[:200] + bytes(byte ^ 255 for byte in raw[200:260]) + raw[260:]
    for bad in (raw[:middle], damaged):
        (tmp_path / "bad.npz").write_bytes(bad)
        with pytest.raises(ValueError, match="cannot be read"):
            data.load(f"npz:{tmp_path}/bad.npz")
    np.save(tmp_path / "lone.npy", np.arange(3))
    with pytest.raises(ValueError, match=r"'lone.npy' cannot be read"):
        data.load(f"npz:{tmp_path}/lone.npy")
    with pytest.raises(ValueError, match=r"'gone.npz' does not exist"):
        data.load(f"npz:{tmp_path}/gone.npz")


def byte_images(count: int = 20) -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "test"):
        arrays[f"x_{split}"] = numbers.integers(0, 256, (count, 4, 5)).astype(np.uint8)
        arrays[f"y_{split}"] = (np.arange(count) % 3).astype(np.uint8)
    return arrays


@pytest.mark.parametrize("mark", ["-", "."])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_is_the_same_data_set_as_npz(tmp_path, mark, packed):
    arrays = byte_images()
    one = data.load(write_idx(tmp_path / "idx", arrays, mark=mark, packed=packed))
    two = data.load(save(tmp_path, arrays))
    np.testing.assert_array_equal(one.test.x, arrays["x_test"])
    np.testing.assert_array_equal(one.train.x, two.train.x)
    np.testing.assert_array_equal(one.validation.y, two.validation.y)
    assert one.fingerprint == two.fingerprint
    assert one.classes == 3


def test_idx_refuses_what_is_not_the_four_files(tmp_path):
    name = write_idx(tmp_path / "idx", byte_images())
    images = tmp_path / "idx" / "train-images-idx3-ubyte"
    raw = images.read_bytes()
    for bad, words in (
        (raw[:-1], "has not the size that its header says"),
        (raw + b"x", "has not the size that its header says"),
        (raw[:6], "has not the size that its header says"),
        (b"", "is not an IDX file of unsigned bytes with 3 axes"),
        (b"\0\0\x0d\x03" + raw[4:], "(?s)is not an IDX file.*00 00 0d 03"),
        (b"\0\0\x08\x01" + raw[4:], "is not an IDX file"),
    ):
        images.write_bytes(bad)
        with pytest.raises(ValueError, match=words):
            data.load(name)
    images.unlink()
    images.with_suffix(".gz").write_bytes(gzip.compress(raw)[:-9])
    with pytest.raises(ValueError, match=r"'train-images-idx3-ubyte.gz' cannot be read"):
        data.load(name)
    images.with_suffix(".gz").unlink()
    with pytest.raises(ValueError, match=r"(?s)has no file of train-images.*t10k-images"):
        data.load(name)
    with pytest.raises(ValueError, match="no such folder"):
        data.load(f"idx:{tmp_path}/nothing")
