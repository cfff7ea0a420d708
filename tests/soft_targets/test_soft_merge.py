"""Shards of one build, put together again in the order of the data."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from keras_kd.soft_targets import SoftTargets, writing
from tests.soft_targets.soft_helpers import build, contents, inputs, model, values

X = inputs()


def double(x: np.ndarray) -> np.ndarray:
    return 2 * x


def shards(teacher, data, directory, count, **kwargs) -> list[SoftTargets]:
    return [
        build(teacher, data, directory / f"part{i}", shard=(i, count), fingerprint="f", **kwargs)
        for i in range(count)
    ]


def shard_files(directory) -> dict[str, bytes]:
    return {name: data for name, data in contents(directory).items() if name.endswith(".rows")}


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("form", ["arrays", "single", "batches"])
def test_shards_and_merge_are_the_unbroken_store(count, form, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(writing, "SHARD_BYTES", 16 * 24)
    stream = tf.data.Dataset.from_tensor_slices((X, np.arange(50)))
    data = {"arrays": X, "single": stream, "batches": stream.batch(7)}[form]
    parts = shards(double, data, tmp_path, count)
    assert [len(part) for part in parts] == [len(X[i::count]) for i in range(count)]
    np.testing.assert_array_equal(values(parts[1])["outputs"], 2 * X[1::count])
    merged = SoftTargets.merge(parts[::-1], tmp_path / "merged", verbose=0)
    whole = build(double, data, tmp_path / "whole", fingerprint="f")
    assert shard_files(merged.directory) == shard_files(whole.directory)
    assert merged.info()["data_fingerprint"] == whole.info()["data_fingerprint"]
    merged.verify()


def test_shards_of_a_model_are_the_unbroken_store_but_for_rounding(tmp_path) -> None:
    teacher = model()
    folders = [tmp_path / f"{i}" for i in range(2)]
    for i, folder in enumerate(folders):
        build(teacher, X, folder, shard=(i, 2))
    merged = values(SoftTargets.merge(folders, tmp_path / "merged", verbose=0))["outputs"]
    whole = values(build(teacher, X, tmp_path / "whole"))["outputs"]
    np.testing.assert_allclose(merged, whole, rtol=1e-6, atol=1e-6)


def test_stores_without_shard_come_one_after_the_other(tmp_path) -> None:
    parts = [
        build(double, piece, tmp_path / f"{number}", fingerprint="f")
        for number, piece in enumerate((X[:20], X[20:23], X[23:]))
    ]
    merged = SoftTargets.merge(parts, tmp_path / "merged", verbose=0)
    whole = build(double, X, tmp_path / "whole", fingerprint="f")
    assert shard_files(merged.directory) == shard_files(whole.directory)


def test_a_shard_of_one_is_all(tmp_path) -> None:
    one = build(double, X, tmp_path / "one", shard=(0, 1))
    whole = build(double, X, tmp_path / "whole")
    assert contents(one.directory) == contents(whole.directory)


def test_merging_again_finds_it_done_and_goes_on_when_broken_off(tmp_path, monkeypatch) -> None:
    parts = shards(double, X, tmp_path, 2)
    SoftTargets.merge(parts, tmp_path / "expected", verbose=0)

    def fail(self: writing.Writer, data: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(writing.Writer, "finish", fail)
        with pytest.raises(KeyboardInterrupt):
            SoftTargets.merge(parts, tmp_path / "merged", verbose=0)
    with pytest.raises(ValueError, match="not complete: 48 of 50 rows"):
        SoftTargets(tmp_path / "merged")
    for _ in range(2):
        SoftTargets.merge(parts, tmp_path / "merged", verbose=0)
        assert contents(tmp_path / "merged") == contents(tmp_path / "expected")


def test_missing_and_doubled_shards_are_refused(tmp_path) -> None:
    zero, one, two = shards(double, X, tmp_path, 3)
    whole = build(double, X, tmp_path / "whole", fingerprint="f")
    for given in ([zero, two], [zero, one, one], [zero, one, two, two], [zero, one, whole]):
        with pytest.raises(ValueError, match="not the shards of one build, each once"):
            SoftTargets.merge(given, tmp_path / "merged", verbose=0)
    assert not (tmp_path / "merged").exists()


def test_shards_of_another_data_set_are_refused(tmp_path) -> None:
    zero = build(double, X, tmp_path / "0", shard=(0, 2), fingerprint="f")
    one = build(double, X[:40], tmp_path / "1", shard=(1, 2), fingerprint="f")
    with pytest.raises(ValueError, match="not built from one data set"):
        SoftTargets.merge([zero, one], tmp_path / "merged", verbose=0)


def test_stores_of_other_builds_are_refused(tmp_path) -> None:
    first = build(double, X[:20], tmp_path / "a", fingerprint="f")
    others = {
        "teacher": build(double, X[20:], tmp_path / "b", fingerprint="g"),
        "dtype": build(double, X[20:], tmp_path / "c", fingerprint="f", dtype="float16"),
        "batch_size": build(double, X[20:], tmp_path / "d", fingerprint="f", batch_size=4),
    }
    for what, other in others.items():
        with pytest.raises(ValueError, match=f"are not of one build.\n.*another .*{what}"):
            SoftTargets.merge([first, other], tmp_path / "merged", verbose=0)


@pytest.mark.parametrize("given", [[], "folder"])
def test_there_must_be_something_to_merge(given, tmp_path) -> None:
    with pytest.raises(ValueError, match="nothing to merge"):
        SoftTargets.merge(given, tmp_path / "merged")


def test_a_store_is_not_merged_into_one_of_its_parts(tmp_path) -> None:
    first = build(double, X[:20], tmp_path / "a", fingerprint="f")
    second = build(double, X[20:], tmp_path / "b", fingerprint="f")
    with pytest.raises(ValueError, match="not what the build"):
        SoftTargets.merge([first, second], tmp_path / "a", verbose=0)
    sharded = shards(double, X, tmp_path, 2)
    with pytest.raises(ValueError, match="holds another build"):
        SoftTargets.merge(sharded, sharded[0].directory, verbose=0)
