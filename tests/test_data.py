from __future__ import annotations

import dataclasses
import hashlib
import random
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from keras_kd import data
from keras_kd.data import arrays


def images(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Make a small data set of the MNIST family's shape."""
    numbers = np.random.default_rng(seed)
    made = {}
    for split, n in (("train", count), ("test", count // 2)):
        made[f"x_{split}"] = numbers.integers(0, 256, (n, 4, 4)).astype(np.uint8)
        made[f"y_{split}"] = (np.arange(n) % 3).astype(np.uint8)
    return made


def save(path: Path, content: dict[str, np.ndarray]) -> str:
    np.savez(path, **content)
    return f"npz:{path}"


def rows(split: data.Split) -> list[tuple[bytes, int]]:
    return [(x.tobytes(), int(y)) for x, y in zip(split.x, split.y, strict=True)]


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


# Splits


def test_digits_are_all_of_scikit_learns_digits_once():
    digits = data.load("digits")
    raw = load_digits()
    theirs = sorted(
        (x.astype(np.float32).tobytes(), int(y))
        for x, y in zip(raw.images, raw.target, strict=True)
    )
    ours = rows(digits.train) + rows(digits.validation) + rows(digits.test)
    assert sorted(ours) == theirs
    assert digits.train.x.dtype == np.float32 and digits.train.y.dtype == np.int64
    assert (digits.classes, digits.label_names) == (10, tuple("0123456789"))
    assert abs(len(digits.test) - 0.2 * len(theirs)) < 5


def test_the_test_split_depends_on_neither_seed_nor_validation():
    first, second = data.load("digits", seed=0), data.load("digits", seed=1, validation=0.3)
    np.testing.assert_array_equal(first.test.x, second.test.x)
    assert set(rows(first.validation)) != set(rows(second.validation))
    assert not set(rows(first.validation)) & set(rows(first.test))


def test_validation_is_the_smallest_hashes_of_content_and_seed(tmp_path):
    content = images(20)
    loaded = data.load(save(tmp_path / "a.npz", content), validation=0.25, seed=7)

    def key(x: np.ndarray) -> int:
        salt = (7).to_bytes(16, "little")
        digest = hashlib.blake2b(
            x.tobytes(), digest_size=8, salt=salt, person=b"validation"
        ).digest()
        return int.from_bytes(digest, "little")

    ordered = sorted(content["x_train"], key=key)
    np.testing.assert_array_equal(loaded.validation.x, ordered[:5])
    np.testing.assert_array_equal(loaded.train.x, ordered[5:])


def test_splits_are_the_same_whatever_the_order_of_the_file(tmp_path):
    content = images(50)
    content["x_train"][10:12] = content["x_train"][9]  # same input, three different targets
    shuffled = dict(content)
    order = np.random.default_rng(1).permutation(50)
    shuffled["x_train"], shuffled["y_train"] = content["x_train"][order], content["y_train"][order]
    one = data.load(save(tmp_path / "1.npz", content))
    two = data.load(save(tmp_path / "2.npz", shuffled))
    assert rows(one.train) == rows(two.train) and rows(one.validation) == rows(two.validation)
    assert one.fingerprint == two.fingerprint


def test_duplicates_land_on_one_side(tmp_path):
    content = images(60)
    content["x_train"] = np.repeat(content["x_train"][:6], 10, axis=0)
    loaded = data.load(save(tmp_path / "a.npz", content), validation=0.1)
    inputs = [{x for x, _ in rows(split)} for split in (loaded.train, loaded.validation)]
    assert not inputs[0] & inputs[1]
    assert len(loaded.validation) == 10  # asked for 6, the ten copies of one example came


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.001, 1), (0.1, 5), (0.5, 25)])
def test_validation_has_the_share_asked_for(tmp_path, share, count):
    loaded = data.load(save(tmp_path / "a.npz", images(50)), validation=share)
    assert (len(loaded.validation), len(loaded.train)) == (count, 50 - count)


def test_fingerprint_sees_inputs_targets_and_splits(tmp_path):
    content = images(20)
    loaded = data.load(save(tmp_path / "a.npz", content))
    prints = {loaded.fingerprint, data.load(f"npz:{tmp_path}/a.npz", seed=1).fingerprint}
    prints.add(loaded.map_inputs(lambda x: x.astype(np.float32)).fingerprint)
    prints.add(dataclasses.replace(loaded, train=loaded.train.select(slice(9))).fingerprint)
    for key in content:
        changed = dict(content, **{key: content[key].copy()})
        changed[key][0] ^= 1
        prints.add(data.load(save(tmp_path / "b.npz", changed)).fingerprint)
    assert len(prints) == 8
    assert all(len(name) == 32 for name in prints)


def test_hashes_of_several_arrays_are_those_of_their_joined_bytes():
    left, right = np.arange(6.0).reshape(3, 2), np.arange(3)
    expected = [
        hashlib.blake2b(a.tobytes() + b.tobytes(), digest_size=8, salt=bytes(16)).digest()
        for a, b in zip(left, right, strict=True)
    ]
    assert arrays.hashes({"b": right, "a": left}).tobytes() == b"".join(expected)


def test_content_is_the_same_in_another_process():
    code = "from keras_kd import data; print(data.load({!r}).fingerprint)"
    for name in ("digits", "mnist1d"):
        assert run(code.format(name)) == data.load(name).fingerprint


def test_data_loads_no_tensorflow():
    code = "import sys; from keras_kd import data; data.load('digits').fingerprint; "
    assert run(code + "print({'tensorflow', 'keras'} & set(sys.modules))") == "set()"


def test_mnist1d_is_the_packages_own_and_leaves_random_state_alone():
    package = pytest.importorskip("mnist1d.data")
    expected = package.make_dataset(package.get_dataset_args())
    np.random.seed(3)
    random.seed(3)
    following = np.random.rand(), random.random()
    np.random.seed(3)
    random.seed(3)
    loaded = data.load("mnist1d", validation=0)
    assert (np.random.rand(), random.random()) == following
    np.testing.assert_array_equal(loaded.test.x, expected["x_test"].astype(np.float32))
    assert sorted(rows(loaded.train)) == sorted(
        (x.astype(np.float32).tobytes(), int(y))
        for x, y in zip(expected["x"], expected["y"], strict=True)
    )
    assert (len(loaded.train), len(loaded.test), loaded.train.x.shape[1:]) == (4000, 1000, (40,))


def test_splits_are_read_only_and_callers_arrays_stay_writable():
    mine = np.zeros((4, 2), np.float32)
    split = data.Split(x=mine, y=np.arange(4))
    with pytest.raises(ValueError, match="read-only"):
        split.x[0] = 1
    mine[0] = 1


def test_map_inputs_changes_every_split_and_not_the_original():
    digits = data.load("digits")
    scaled = digits.map_inputs(lambda x: x / 16)
    for split in ("train", "validation", "test"):
        before, after = getattr(digits, split), getattr(scaled, split)
        np.testing.assert_array_equal(after.x * 16, before.x)
        np.testing.assert_array_equal(after.y, before.y)
    both = digits.map_inputs(lambda x: {"a": x, "b": x.sum(axis=(1, 2))})
    assert both.test.x["b"].shape == (len(digits.test),)


def test_repr_says_what_an_example_is():
    split = data.Split(x=np.zeros((4, 2), np.float32), y=np.arange(4))
    assert repr(split) == "Split(4 examples, x: float32[2], y: int64[])"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x[:3], "different lengths"),
        (lambda x: np.full(len(x), np.nan), "mapped x holds NaN or infinite values"),
        (lambda x: np.array(["a"] * len(x)), "mapped x does not hold numbers"),
    ],
)
def test_map_inputs_refuses_bad_results(function, words):
    with pytest.raises((ValueError, TypeError), match=words):
        data.load("digits").map_inputs(function)


# Batches


def labels_of(stream, count: int | None = None) -> list[list[int]]:
    return [y.numpy().tolist() for _, y in (stream if count is None else stream.take(count))]


def weighted(weights=None):
    x, y = np.arange(10.0).reshape(10, 1), np.arange(10)
    return data.Split(x=x, y=y, weights=np.arange(10) / 2 if weights is None else weights)


def test_weights_go_with_their_examples():
    split = weighted().select(slice(2, 8))
    assert split.weights.dtype == np.float32 and not split.weights.flags.writeable
    assert "weights: float32[]" in repr(split)
    stream = split.batches(4, shuffle_seed=3, transform=lambda x, y, seed: (x + 1, y))
    for x, y, weight in stream:
        np.testing.assert_array_equal(np.asarray(x)[:, 0] - 1, y)
        np.testing.assert_array_equal(weight, np.asarray(y) / 2)
    assert [len(part) for part in split.examples] == [6, 6, 6]
    assert len(data.Split(x=split.x, y=split.y).examples) == 2


def test_weights_by_name_and_their_fingerprint():
    mask = np.eye(10)[:, :4]
    split = weighted({"boxes": mask})
    _, _, weight = next(iter(split.batches(10)))
    np.testing.assert_array_equal(weight["boxes"], mask)
    prints = {
        data.Dataset("d", train, train, train).map_inputs(lambda x: x * 2).fingerprint
        for train in (split, weighted(), weighted(np.ones(10)), data.Split(x=split.x, y=split.y))
    }
    assert len(prints) == 4


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (np.arange(9), "different lengths"),
        ({"a": np.full(10, np.nan)}, r"weights\['a'\] holds what is no weight"),
        (np.full(10, np.inf), "weights holds what is no weight"),
        (np.arange(10) - 1, "weights holds what is no weight"),
        (np.array(["1"] * 10), "weights holds what is no weight"),
    ],
)
def test_weights_that_are_none_are_refused(weights, words):
    with pytest.raises(ValueError, match=words):
        weighted(weights)


@pytest.mark.parametrize("transform", [lambda x, y, s: (x,), lambda x, y, s: (x, y, y)])
def test_a_transform_beside_weights_returns_a_pair(transform):
    with pytest.raises(TypeError, match="`transform` must return a pair"):
        weighted().batches(5, transform=transform)


@pytest.fixture
def ten() -> data.Split:
    return data.Split(x=np.arange(10, dtype=np.float32)[:, None], y=np.arange(10))


def test_batches_keep_the_order_without_a_seed(ten):
    stream = ten.batches(4)
    assert labels_of(stream) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert int(stream.cardinality()) == 3
    assert labels_of(ten.batches(4, drop_remainder=True)) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_the_same_seed_gives_the_same_stream_whatever_the_global_seed(ten):
    import keras

    def passes(seed: int) -> list[list[list[int]]]:
        stream = ten.batches(3, shuffle_seed=seed)
        return [labels_of(stream) for _ in range(3)]

    keras.utils.set_random_seed(1)
    first = passes(5)
    keras.utils.set_random_seed(2)
    assert passes(5) == first
    assert passes(6) != first
    assert first[0] != first[1] != first[2]
    assert all(sorted(chain(*one)) == list(range(10)) for one in first)


def test_inputs_stay_with_their_targets(ten):
    for x, y in ten.batches(3, shuffle_seed=0):
        np.testing.assert_array_equal(x[:, 0], y)


def test_repeat_shuffles_anew_and_no_batch_crosses_a_pass(ten):
    import tensorflow as tf

    stream = ten.batches(4, shuffle_seed=0, repeat=True)
    assert int(stream.cardinality()) == tf.data.INFINITE_CARDINALITY
    seen = labels_of(stream, 9)
    assert [len(batch) for batch in seen] == [4, 4, 2] * 3
    passes = [list(chain(*seen[start : start + 3])) for start in (0, 3, 6)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert passes[0] != passes[1] != passes[2]
    assert labels_of(ten.batches(4, shuffle_seed=0, repeat=True), 9) == seen


def test_transform_gets_a_new_seed_each_batch_and_pass_and_the_same_for_the_same_seed(ten):
    def seeds(shuffle_seed: int | None) -> list[tuple[int, ...]]:
        stream = ten.batches(5, shuffle_seed=shuffle_seed, transform=lambda x, y, seed: (x, seed))
        return [tuple(y.numpy().tolist()) for _ in range(3) for _, y in stream]

    first = seeds(0)
    assert len(set(first)) == 6 and all(len(seed) == 2 for seed in first)
    assert seeds(0) == first
    assert not set(seeds(1)) & set(first)
    assert len(set(seeds(None))) == 6


def test_batches_of_dicts(ten):
    split = data.Split(x={"a": ten.x, "b": ten.x * 2}, y={"c": ten.y, "d": ten.x})
    ((x, y),) = split.batches(10, shuffle_seed=0, transform=lambda x, y, seed: (x, y))
    np.testing.assert_array_equal(x["b"], x["a"] * 2)
    np.testing.assert_array_equal(x["a"][:, 0], y["c"])
    assert len(split) == 10


def test_fit_takes_batches(ten):
    import keras

    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    history = model.fit(ten.batches(4, shuffle_seed=0), epochs=2, verbose=0)
    assert len(history.history["loss"]) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "`batch_size` is out of range"),
        ({"batch_size": 2.0}, "`batch_size` must be a whole number"),
        ({"batch_size": 2, "shuffle_seed": -1}, "`shuffle_seed` is out of range"),
        ({"batch_size": 2, "transform": 3}, "`transform` must be a function"),
        ({"batch_size": 2, "transform": lambda x, y, seed: x}, "`transform` must return a pair"),
        ({"batch_size": 11, "drop_remainder": True}, "Not one batch would be left"),
    ],
)
def test_batches_refuse_bad_arguments(ten, options, words):
    with pytest.raises((ValueError, TypeError), match=words):
        ten.batches(**options)


def test_an_empty_split_gives_no_batches():
    with pytest.raises(ValueError, match="The split is empty"):
        data.load("digits", validation=0).validation.batches(2)


# Names and arguments


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digit", "There is no data set 'digit'.*did you mean 'digits'"),
        ("cifar10", "written 'tfds:cifar10'"),
        ("tdfs:mnist", "did you mean 'tfds'"),
        ("zzzz:a", "choose one of the forms above"),
        ("npz:", "The name 'npz:' is not complete"),
        ("tfds", "The name 'tfds' is not complete"),
        ("digits:3", "'digits' stands alone"),
        (3, "The name of a data set must be a string"),
    ],
)
def test_names_that_fit_nothing(name, words):
    with pytest.raises((ValueError, TypeError), match=f"(?s){words}"):
        data.load(name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"validation": 1.0}, "`validation` leaves nothing to train on"),
        ({"validation": -0.1}, "`validation` must be between 0 and 1"),
        ({"seed": -1}, "`seed` is out of range"),
        ({"seed": 0.5}, "`seed` must be a whole number"),
        ({"seed": True}, "`seed` must be a whole number"),
        ({"data_dir": "somewhere"}, "`data_dir` means nothing to 'digits'"),
    ],
)
def test_load_refuses_bad_arguments(options, words):
    with pytest.raises((ValueError, TypeError), match=words):
        data.load("digits", **options)


def test_a_draw_that_leaves_nothing_is_refused(tmp_path):
    content = images(4)
    content["x_train"][:] = 0
    with pytest.raises(ValueError, match="The draw leaves no example to train on"):
        data.load(save(tmp_path / "a.npz", content))


def test_mnist1d_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "mnist1d.data", None)
    with pytest.raises(ValueError, match=r"(?s)needs a package.*pip install mnist1d"):
        data.load("mnist1d")
