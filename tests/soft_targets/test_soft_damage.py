"""One byte of a store that is not as it was written is found, wherever it lies."""

from __future__ import annotations

import numpy as np
import pytest

from keras_kd.soft_targets import SoftTargets, writing
from keras_kd.soft_targets.store import Store
from tests.soft_targets.soft_helpers import build, contents, inputs


@pytest.fixture
def soft(tmp_path, monkeypatch) -> SoftTargets:
    """26 rows of 24 bytes, in shards of 16 and 10."""
    monkeypatch.setattr(writing, "SHARD_BYTES", 16 * 24)
    return build(lambda x: 2 * x, inputs(26), tmp_path / "soft")


def read_all(directory) -> np.ndarray:
    store = Store.open(directory)
    return store.rows(np.arange(store.count))


def test_one_flipped_byte_anywhere_is_found(soft, rng) -> None:
    """Every byte of every file, each by another pattern of bits."""
    reader = SoftTargets(soft.directory)
    for name, data in contents(soft.directory).items():
        path = soft.directory / name
        for place in range(len(data)):
            damaged = bytearray(data)
            damaged[place] ^= int(rng.integers(1, 256))
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=f"{name} is damaged"):
                read_all(soft.directory)
            with pytest.raises(ValueError, match=f"{name} is damaged"):
                reader.verify()
        path.write_bytes(data)
        reader.verify()
    assert len(read_all(soft.directory)) == 26


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_truncated_file_is_found_when_the_store_is_opened(soft, keep) -> None:
    for name, data in contents(soft.directory).items():
        path = soft.directory / name
        path.write_bytes(data[:keep])
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            Store.open(soft.directory)
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            soft.verify()
        path.write_bytes(data)


def test_a_file_that_grew_is_found(soft) -> None:
    for name, data in contents(soft.directory).items():
        (soft.directory / name).write_bytes(data + b"\n")
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            Store.open(soft.directory)
        (soft.directory / name).write_bytes(data)


def test_a_missing_shard_is_named(soft) -> None:
    (soft.directory / "shard-00001.rows").unlink()
    with pytest.raises(
        ValueError, match=r"shard-00001.rows is damaged: rows 16 to 25[\s\S]*no such"
    ):
        Store.open(soft.directory)
    with pytest.raises(ValueError, match=r"shard-00001.rows is damaged"):
        soft.store.rows(np.array([20]))


def test_two_shards_in_each_others_place_are_found(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(writing, "SHARD_BYTES", 16 * 24)
    directory = build(lambda x: 2 * x, inputs(32), tmp_path / "soft").directory
    first, second = directory / "shard-00000.rows", directory / "shard-00001.rows"
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    with pytest.raises(ValueError, match=r"shard-00000.rows is damaged"):
        SoftTargets(directory).verify()


def test_only_what_is_read_is_checked(soft) -> None:
    """The first shard can be read while the second is damaged, and says so when it is touched."""
    path = soft.directory / "shard-00001.rows"
    path.write_bytes(bytes(len(path.read_bytes())))
    store = Store.open(soft.directory)
    assert len(store.rows(np.arange(16))) == 16
    for _ in range(2):
        with pytest.raises(ValueError, match=r"shard-00001.rows is damaged: rows 16 to 25"):
            store.rows(np.arange(26))
    with pytest.raises(ValueError, match=r"shard-00001.rows is damaged"):
        store.find(np.zeros(1, "uint64"))


def test_what_is_damaged_in_an_unfinished_build_is_built_again(tmp_path, monkeypatch) -> None:
    """A byte that changed while the build was down leads to no wrong row."""
    monkeypatch.setattr(writing, "SHARD_BYTES", 16 * 24)
    x = inputs(60)
    expected = contents(build(lambda x: 2 * x, x, tmp_path / "whole", fingerprint="f").directory)
    directory = tmp_path / "soft"

    def stopping(given: np.ndarray) -> np.ndarray:
        if given[0, 0] == x[56, 0]:
            raise KeyboardInterrupt
        return 2 * given

    names = ["shard-00000.rows", "shard-00002.rows", "building/rows", "building/journal"]
    for name in names:
        for place in (0, 100, -1):
            with pytest.raises(KeyboardInterrupt):
                build(stopping, x, directory, fingerprint="f")
            path = directory / name
            damaged = bytearray(path.read_bytes())
            damaged[place if len(damaged) > 100 else place // 50] ^= 1
            path.write_bytes(damaged)
            soft = build(lambda x: 2 * x, x, directory, fingerprint="f")
            named = {key: data for key, data in expected.items() if key != "manifest.json"}
            found = contents(directory)
            assert named == {key: found[key] for key in named} and len(soft) == 60
            for file in directory.iterdir():
                file.unlink()
    with pytest.raises(KeyboardInterrupt):
        build(stopping, x, directory, fingerprint="f")
    (directory / "shard-00001.rows").unlink()
    build(lambda x: 2 * x, x, directory, fingerprint="f").verify()
