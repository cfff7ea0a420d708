from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from keras_kd import data

SCRIPT = Path(__file__).parents[1] / "scripts" / "prepare_tfds"


def save(path: Path, **changes: np.ndarray) -> str:
    """Write a small data set of MNIST's shape."""
    numbers = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 30), ("test", 12)):
        arrays[f"x_{split}"] = numbers.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        arrays[f"y_{split}"] = (np.arange(count) % 10).astype(np.uint8)
    np.savez(path, **(arrays | changes))
    return f"npz:{path}"


def pairs(x: np.ndarray, y: np.ndarray) -> list[tuple[bytes, int]]:
    return sorted((one.tobytes(), int(label)) for one, label in zip(x, y, strict=True))


@pytest.fixture
def no_network(monkeypatch):
    """Send every download to a port where nobody listens."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)


def subset(shared_data: Path, name: str, folder: Path) -> str:
    with np.load(shared_data / f"{name}.npz") as file:
        arrays = {key: file[key][:300] for key in file.files}
    np.savez(folder / f"{name}.npz", **arrays)
    return f"npz:{folder}/{name}.npz"


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_tfds_load_gives_the_images_of_the_file(shared_data, tmp_path, no_network, name):
    import tensorflow_datasets as tfds

    source = subset(shared_data, name, tmp_path)
    folder = data.prepare_tfds(name, source, tmp_path / "tfds")
    assert folder.parent == tmp_path / "tfds" / name
    assert sorted(path.name for path in (tmp_path / "tfds").iterdir()) == [name]
    loaded, info = tfds.load(
        name, data_dir=tmp_path / "tfds", batch_size=-1, as_supervised=True, with_info=True
    )
    with np.load(tmp_path / f"{name}.npz") as file:
        for split in ("train", "test"):
            x, y = (value.numpy() for value in loaded[split])
            assert (x.shape, x.dtype, y.dtype) == ((300, 28, 28, 1), np.uint8, np.int64)
            assert pairs(x, y) == pairs(file[f"x_{split}"], file[f"y_{split}"])
    assert info.features["image"].shape == (28, 28, 1)
    assert info.features["label"].num_classes == 10


def test_the_data_set_is_the_same_through_npz_and_tfds(shared_data, tmp_path, no_network):
    source = subset(shared_data, "fashion_mnist", tmp_path)
    data.prepare_tfds("fashion_mnist", source, tmp_path)
    one = data.load(source, seed=3)
    two = data.load("tfds:fashion_mnist", data_dir=tmp_path, seed=3)
    assert one.fingerprint == two.fingerprint
    np.testing.assert_array_equal(one.train.x, two.train.x)
    np.testing.assert_array_equal(one.validation.y, two.validation.y)
    assert (two.classes, two.label_names[9]) == (10, "Ankle boot")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_whole_data_set_is_the_same_through_npz_and_tfds(shared_data, tmp_path, name):
    source = f"npz:{shared_data}/{name}.npz"
    data.prepare_tfds(name, source, tmp_path)
    one, two = data.load(source), data.load(f"tfds:{name}", data_dir=tmp_path)
    assert one.fingerprint == two.fingerprint
    assert (len(one.train), len(one.validation), len(one.test)) == (54000, 6000, 10000)


def test_reading_a_prepared_set_is_silent(tmp_path, capfd):
    data.prepare_tfds("mnist", save(tmp_path / "a.npz"), tmp_path)
    loaded = data.load("tfds:mnist", data_dir=str(tmp_path))
    lines = [line for text in capfd.readouterr() for line in text.splitlines()]
    assert not [line for line in lines if "mnist" in line or "examples" in line]
    assert len(loaded.test) == 12


def test_a_configuration_and_a_validation_split(tmp_path):
    images, labels = np.ones((5, 28, 28), np.uint8), np.arange(5)
    source = save(tmp_path / "a.npz", x_val=images, y_val=labels)
    folder = data.prepare_tfds("emnist:letters", source, tmp_path)
    assert folder.parent == tmp_path / "emnist" / "letters"
    loaded = data.load("tfds:emnist:letters", data_dir=tmp_path)
    assert pairs(loaded.validation.x, loaded.validation.y) == pairs(images, labels)
    assert (len(loaded.train), loaded.classes) == (30, 37)


def test_the_script_prepares_says_where_and_refuses_to_overwrite(tmp_path, monkeypatch, capsys):
    options = ["--name", "mnist", "--from", save(tmp_path / "a.npz")]
    options += ["--data-dir", str(tmp_path / "tfds")]
    command = [sys.executable, str(SCRIPT), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "tfds" / "mnist") in done.stdout
    monkeypatch.setattr(sys, "argv", ["prepare_tfds", *options])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert end.value.code == 2
    assert "prepare_tfds: The TFDS data set 'mnist' is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("mnst", {}, "(?s)There is no TFDS data set 'mnst'.*did you mean 'mnist'"),
        ("emnist:leters", {}, "(?s)no configuration of tfds:emnist.*did you mean 'letters'"),
        ("mnist:x", {}, "(?s)'mnist' cannot be opened as.*write 'tfds:mnist'"),
        ("cifar10", {}, r"(?s)not those.*'cifar10': image differs.*uint8\(32, 32, 3\)"),
        ("mnist", {"x_train": np.zeros((30, 28, 28)), "x_test": np.zeros((12, 28, 28))}, "image d"),
        ("mnist", {"y_train": np.arange(30)}, "(?s)label differs.*labels 0 to 29.*from 0 to 9"),
        ("mnist", {"x_train": np.zeros((3, 28, 28), np.uint8)}, "different lengths"),
        ("coco:2017", {}, "does not say what is input and what is target"),
    ],
)
def test_prepare_refuses_what_does_not_fit_and_leaves_nothing(tmp_path, name, changes, words):
    source = save(tmp_path / "a.npz", **changes)
    with pytest.raises(ValueError, match=words):
        data.prepare_tfds(name, source, tmp_path / "tfds")
    assert not [path for path in (tmp_path / "tfds").rglob("*") if path.is_file()]


def test_prepare_refuses_several_inputs(tmp_path):
    image, label = np.zeros((4, 28, 28), np.uint8), np.zeros(4, int)
    arrays = {f"x_{split}_{side}": image for split in ("train", "test") for side in "ab"}
    np.savez(tmp_path / "a.npz", **arrays, y_train=label, y_test=label)
    with pytest.raises(ValueError, match=r"(?s)image differs.*a dict of arrays"):
        data.prepare_tfds("mnist", f"npz:{tmp_path}/a.npz", tmp_path / "tfds")


def test_prepare_refuses_a_folder_it_cannot_write_to(tmp_path):
    source = save(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"(?s)data_dir cannot be written to.*choose another"):
        data.prepare_tfds("mnist", source, tmp_path / "a.npz")


def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(self, *args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(tfds.core.DatasetInfo, "write_to_directory", fail)
    with pytest.raises(KeyboardInterrupt):
        data.prepare_tfds("mnist", save(tmp_path / "a.npz"), tmp_path / "tfds")
    assert not list((tmp_path / "tfds").iterdir())


# tfds: names that cannot be loaded


def test_a_missing_data_set_without_a_network(tmp_path, no_network):
    with pytest.raises(ValueError, match="is not prepared, and could not be downloaded") as error:
        data.load("tfds:mnist", data_dir=tmp_path)
    assert "scripts/prepare_tfds --name mnist" in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tfds:fashion_mnst", "(?s)no TFDS data set 'fashion_mnst'.*did you mean 'fashion_mnist'"),
        ("tfds:emnist:digit", "(?s)no configuration of tfds:emnist.*did you mean 'digits'"),
        ("tfds:m nist", "(?s)no TFDS data set 'm nist'.*did you mean 'mnist'"),
        ("tfds:../mnist", "no TFDS data set '../mnist'"),
        ("tfds:mnist:small", "(?s)'mnist' cannot be opened as.*write 'tfds:mnist'"),
        ("tfds:coco:2017", "(?s)does not say what is input and what is target.*numpy.savez"),
        ("tfds:imdb_reviews", "(?s)feature 'text'.*does not fit an array.*numpy.savez"),
        ("tfds:wine_quality:white", "feature 'features'.*does not fit an array"),
        ("tfds:cats_vs_dogs", "feature 'image'.*does not fit an array"),
    ],
)
def test_tfds_names_that_cannot_be_arrays_are_refused_before_a_download(
    tmp_path, no_network, name, words
):
    with pytest.raises(ValueError, match=words):
        data.load(name, data_dir=tmp_path)


def test_tfds_without_supervised_keys(tmp_path):
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(shape=(2, 2, 1)), "label": np.int64}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="mine",
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": [(0, {"image": np.zeros((2, 2, 1), np.uint8), "label": 1})]},
        data_dir=tmp_path,
    )
    with pytest.raises(ValueError, match="'mine' does not say what is input"):
        data.load("tfds:mine", data_dir=tmp_path)


def test_tfds_without_a_test_split(tmp_path):
    folder = data.prepare_tfds("mnist", save(tmp_path / "a.npz"), tmp_path)
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"] = [split for split in info["splits"] if split["name"] == "train"]
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"(?s)'mnist' has no test split.*splits train"):
        data.load("tfds:mnist", data_dir=tmp_path)
