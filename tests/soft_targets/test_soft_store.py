"""A store, read: rows by number, numbers by fingerprint, and what is said where there is none."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import tensorflow as tf

from keras_kd import fingerprints
from keras_kd.soft_targets import SoftTargets, files, store, writing
from keras_kd.soft_targets.store import Store
from keras_kd.teachers import Teacher
from tests.soft_targets.soft_helpers import build, contents, inputs, model


@pytest.fixture
def soft(tmp_path, monkeypatch) -> SoftTargets:
    """50 rows of 20 bytes in shards of 16."""
    monkeypatch.setattr(writing, "SHARD_BYTES", 16 * 20)
    return build(model(), inputs(), tmp_path / "soft")


def whole(soft: SoftTargets) -> np.ndarray:
    """The rows as they lie in the files."""
    parts = [data for name, data in contents(soft.directory).items() if name.endswith(".rows")]
    return np.frombuffer(b"".join(parts), "uint8").reshape(50, 20)


def test_shards_are_whole_batches(soft) -> None:
    assert [shard["rows"] for shard in soft.store.shards] == [16, 16, 16, 2]
    assert sorted(contents(soft.directory)) == [
        "manifest.json",
        *(f"shard-0000{number}.rows" for number in range(4)),
    ]


@pytest.mark.parametrize(
    "numbers",
    [[], [0], [49], range(50), range(10, 30), [5, 6, 8], [7, 7, 6], [49, 0, 17, 16, 15, 33, 0]],
    ids=str,
)
def test_rows_come_in_any_order(soft, numbers) -> None:
    rows = soft.store.rows(np.array(numbers, "int64"))
    assert rows.shape == (len(numbers), 20)
    np.testing.assert_array_equal(rows, whole(soft)[list(numbers)])


def test_rows_are_copies(soft) -> None:
    rows = soft.store.rows(np.arange(4))
    rows[:] = 0
    np.testing.assert_array_equal(soft.store.rows(np.arange(4)), whole(soft)[:4])


@pytest.mark.parametrize("number", [-1, 50])
def test_a_row_that_is_not_there_is_refused(soft, number) -> None:
    with pytest.raises(ValueError, match=f"There is no row {number}"):
        soft.store.rows(np.array([3, number]))


def test_few_maps_are_open_at_once(soft, monkeypatch) -> None:
    monkeypatch.setattr(store, "_MOST_MAPS", 1)
    numbers = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(soft.store.rows(numbers), whole(soft)[numbers])
    assert len(soft.store._maps) == 1


def test_examples_are_found_by_their_content(soft) -> None:
    x = np.concatenate([inputs()[::-1], inputs() + 1e-6])
    found = soft.store.find(fingerprints.as_numbers(fingerprints.of(x).numpy()))
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found[:50], np.arange(50)[::-1])
    np.testing.assert_array_equal(found[50:], -1)


def test_of_equals_the_first_is_found(tmp_path) -> None:
    x = inputs(8)[[0, 1, 2, 1, 0, 3, 3, 3]]
    soft = build(model(), x, tmp_path / "soft")
    found = soft.store.find(fingerprints.as_numbers(fingerprints.of(x).numpy()))
    np.testing.assert_array_equal(found, [0, 1, 2, 1, 0, 5, 5, 5])


def test_fingerprints_are_read_in_order(soft) -> None:
    expected = fingerprints.as_numbers(fingerprints.of(inputs()).numpy())
    np.testing.assert_array_equal(soft.store.fingerprints(), expected)


def test_several_threads_read_at_once(soft) -> None:
    opened, expected = Store.open(soft.directory), whole(soft)
    wrong: list[int] = []

    def read(seed: int) -> None:
        numbers = np.random.default_rng(seed).integers(0, 50, 200)
        if not np.array_equal(opened.rows(numbers), expected[numbers]):
            wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_checksum_of_a_shard_is_that_of_b2sum(soft) -> None:
    """`b2sum --length 128` of "abc", from GNU coreutils 9.1."""
    assert files.checksum(b"abc").hexdigest() == "cf4ab791c62b8d2b2109c90275287816"


def test_sizes_are_counted_all_told(soft) -> None:
    size = sum(map(len, contents(soft.directory).values()))
    assert soft.store.bytes == size and soft.store.bytes_per_example == size / 50


def test_where_there_is_no_store(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"There is no store[\s\S]*no such folder"):
        Store.open(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"There is no store[\s\S]*without a manifest"):
        SoftTargets(tmp_path)


def test_a_build_that_was_broken_off_says_how_far_it_came(tmp_path) -> None:
    def teacher(x: np.ndarray) -> np.ndarray:
        if x[0, 0] == inputs()[24, 0]:
            raise RuntimeError("the power fails")
        return 3 * x

    with pytest.raises(RuntimeError, match="the power fails"):
        build(teacher, inputs(), tmp_path / "soft")
    with pytest.raises(
        ValueError, match=r"not complete: 24 of 50 rows[\s\S]*run the same"
    ) as error:
        SoftTargets(tmp_path / "soft")
    assert "goes on where it stopped" in str(error.value)


def test_the_number_of_rows_to_come_may_be_known_about_or_not_at_all(tmp_path) -> None:
    stream = tf.data.Dataset.from_tensor_slices((inputs(), np.arange(50)))
    forms = {"about 56": stream.batch(7), "an unknown number of": stream.filter(lambda x, y: True)}
    for words, data in forms.items():
        with pytest.raises(ZeroDivisionError):
            build(lambda x: 1 / 0 if x[0, 0] == inputs()[8, 0] else x * 3, data, tmp_path / words)
        with pytest.raises(ValueError, match=f"not complete: 8 of {words} rows"):
            SoftTargets(tmp_path / words)


def test_another_format_is_refused(soft) -> None:
    path = soft.directory / "manifest.json"
    manifest = json.loads(path.read_bytes())
    del manifest["checksum"]
    path.write_bytes(files.to_text({**manifest, "format": 99}))
    with pytest.raises(ValueError, match=r"another version of keras_kd[\s\S]*format 99"):
        SoftTargets(soft.directory)


def test_a_store_that_was_exchanged_is_told_of(soft, tmp_path) -> None:
    other = build(model(), inputs(40), tmp_path / "other")
    for name, data in contents(other.directory).items():
        (soft.directory / name).write_bytes(data)
    with pytest.raises(ValueError, match="another store than when it was opened"):
        soft.verify()


def test_a_manifest_that_is_no_object_is_damaged(soft) -> None:
    assert files.from_text(b"[1]") is None
    assert files.from_text(b"\xff") is None
    assert files.from_text(files.to_text({"a": 1})) == {"a": 1}


def test_what_a_store_says_of_itself(tmp_path) -> None:
    teacher = model()
    soft = build(teacher, inputs(), tmp_path / "soft")
    info = soft.info()
    assert (info["examples"], info["bytes_per_row"], info["shards"]) == (50, 20, 1)
    assert info["columns"] == {"output 0": "float32 [3]"}
    assert info["teacher_fingerprint"] == soft.fingerprint() == Teacher(teacher).fingerprint()
    assert set(info["versions"]) == {"keras", "keras_kd", "tensorflow"}
    assert info["inputs"][0].startswith("float32 (4,) from -0.9")
    lines = str(info).splitlines()
    assert len(lines) == len(info) and lines[1].split() == ["examples", "50"]
    assert soft.verify() == info
    assert len(soft) == 50 and soft.models == [] and soft.name == teacher.name
    assert repr(soft).endswith(f"50 answers of '{teacher.name}'")
