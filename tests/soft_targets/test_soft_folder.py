"""The folder of a build: another build, other data, another process in it, and what is refused."""

from __future__ import annotations

import fcntl
import re

import numpy as np
import pytest
import tensorflow as tf

from keras_kd.soft_targets import SoftTargets, files, writing
from keras_kd.soft_targets.store import Store
from keras_kd.teachers import Teacher
from tests.soft_targets.soft_helpers import build, contents, inputs, model

X = inputs()


def double(x: np.ndarray) -> np.ndarray:
    return 2 * x


OTHERS = {
    "top_k": (dict(top_k=2), r"top_k=2 \(there: 3\)"),
    "temperatures": (dict(top_k=3, temperatures=(1.0, 2.0)), "temperatures="),
    "dtype": (dict(top_k=3, dtype="float16"), "dtype='float16'"),
    "batch_size": (dict(top_k=3, batch_size=16), r"batch_size=16 \(there: 8\)"),
    "shard": (dict(top_k=3, shard=(0, 2)), r"shard=\[0, 2\] \(there: None\)"),
    "outputs": (dict(top_k=3, outputs="probabilities"), "kinds="),
    "teacher": (dict(top_k=3, fingerprint="g"), r"fingerprint g \(there: .*fingerprint f\)"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("complete", [True, False], ids=["complete", "broken off"])
def test_another_build_in_the_folder(name, complete, tmp_path) -> None:
    kwargs, words = OTHERS[name]
    directory = tmp_path / "soft"

    def teacher(x: np.ndarray) -> np.ndarray:
        if not complete and x[0, 0] == X[24, 0]:
            raise KeyboardInterrupt
        return np.abs(x) / np.abs(x).sum(1, keepdims=True)

    settings = {"fingerprint": "f", "outputs": "logits", "top_k": 3}
    if complete:
        build(teacher, X, directory, **settings)
    else:
        with pytest.raises(KeyboardInterrupt):
            build(teacher, X, directory, **settings)
    before = contents(directory)
    with pytest.raises(ValueError, match=rf"holds another build[\s\S]*{words}"):
        build(teacher, X, directory, **(settings | kwargs))
    assert contents(directory) == before


def test_a_model_of_other_weights(tmp_path) -> None:
    first = model()
    build(first, X, tmp_path / "soft")
    second = model()
    with pytest.raises(ValueError, match=r"holds another build[\s\S]*given: *teacher") as error:
        build(second, X, tmp_path / "soft")
    assert "A function is known by" not in str(error.value)
    second.set_weights(first.get_weights())
    build(second, X, tmp_path / "soft")


def test_a_teacher_of_the_same_weights_that_answers_otherwise(tmp_path) -> None:
    """What `preprocess` does is no part of a teacher's fingerprint; what it answers is."""
    inner = model()
    build(inner, X, tmp_path / "soft")
    with pytest.raises(ValueError, match="of the same weights, with other answers"):
        build(Teacher(inner, preprocess=lambda x: x / 2), X, tmp_path / "soft")


def test_a_function_whose_answers_are_others_is_told_how_to_name_it(tmp_path) -> None:
    build(double, X, tmp_path / "soft")
    with pytest.raises(ValueError, match=r"holds another build[\s\S]*fingerprint=\"my model"):
        build(lambda x: 3 * x, X, tmp_path / "soft")


@pytest.mark.parametrize("complete", [True, False], ids=["complete", "broken off"])
@pytest.mark.parametrize("change", ["first", "later", "shorter", "longer"])
def test_other_data_in_the_folder(change, complete, tmp_path) -> None:
    directory, stops = tmp_path / "soft", not complete

    def teacher(x: np.ndarray) -> np.ndarray:
        if stops and x[0, 0] == X[40, 0]:
            raise KeyboardInterrupt
        return 3 * x

    other = {
        "first": np.concatenate([X[1:], X[:1]]),
        "later": np.concatenate([X[:24], -X[24:]]),
        "shorter": X[:36],
        "longer": np.concatenate([X, X]),
    }[change]
    if complete:
        build(teacher, X, directory)
    else:
        with pytest.raises(KeyboardInterrupt):
            build(teacher, X, directory)
    stops = False
    if not complete and change == "longer":  # there is no knowing that there was less of it
        assert len(build(teacher, other, directory)) == 100
        return
    with pytest.raises(ValueError, match=r"The data is not what the build in .* began with"):
        build(teacher, other, directory)
    if not complete:
        build(teacher, X, directory).verify()


FORMS = {
    "arrays": lambda x: x,
    "single": lambda x: tf.data.Dataset.from_tensor_slices((x, np.arange(len(x)))),
    "batches": lambda x: tf.data.Dataset.from_tensor_slices(x).batch(7),
}
OTHER_DATA = {
    "one example behind the first batch": (np.where(np.arange(50)[:, None] == 30, -X, X), 30),
    "two that changed places": (X[[*range(17), 18, 17, *range(19, 50)]], 17),
    "shorter by one batch": (X[:42], 42),
    "longer by one example": (np.concatenate([X, X[:1]]), 50),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("change", OTHER_DATA)
def test_a_complete_store_of_other_data_is_refused(change, form, tmp_path) -> None:
    """Whatever the form tells of the length; the error names the first row that differs."""
    directory = tmp_path / "soft"
    build(double, X, directory)
    before = contents(directory)
    other, row = OTHER_DATA[change]
    with pytest.raises(ValueError, match=rf"not what the build in[\s\S]*from example {row} on"):
        build(double, FORMS[form](other), directory)
    assert contents(directory) == before


def test_a_complete_shard_names_the_example_of_the_data(tmp_path) -> None:
    build(double, X, tmp_path / "soft", shard=(1, 3))
    other = np.where(np.arange(50)[:, None] == 31, -X, X)
    with pytest.raises(ValueError, match="from example 31 on"):
        build(double, other, tmp_path / "soft", shard=(1, 3))
    build(double, np.where(np.arange(50)[:, None] == 32, -X, X), tmp_path / "soft", shard=(1, 3))


def test_two_processes_at_one_folder(tmp_path) -> None:
    (tmp_path / "soft" / "building").mkdir(parents=True)
    with open(tmp_path / "soft" / "building" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"Another process is building[\s\S]*shard=\(i, n\)"):
            build(double, X, tmp_path / "soft")
    build(double, X, tmp_path / "soft").verify()
    assert not (tmp_path / "soft" / "building").exists()


def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path, monkeypatch) -> None:
    """The last holder removes the file between our opening it and our locking it."""
    path, real, calls = tmp_path / "lock", fcntl.flock, []

    def flock(handle: int, how: int) -> None:
        real(handle, how)
        calls.append(handle)
        if len(calls) == 1:
            path.unlink()

    monkeypatch.setattr(files.fcntl, "flock", flock)
    assert files.lock(path) is not None and len(calls) == 2 and path.exists()
    assert files.lock(path) is None


def test_a_file_in_the_place_of_the_folder(tmp_path) -> None:
    (tmp_path / "soft").write_text("mine")
    with pytest.raises(ValueError, match="is no folder"):
        build(double, X, tmp_path / "soft")


def test_shards_without_a_manifest_are_not_written_over(tmp_path) -> None:
    build(double, X, tmp_path / "soft")
    (tmp_path / "soft" / "manifest.json").unlink()
    before = contents(tmp_path / "soft")
    with pytest.raises(ValueError, match="holds shards and no manifest"):
        build(double, X, tmp_path / "soft")
    assert contents(tmp_path / "soft") == before


def test_other_files_in_the_folder_are_left_alone(tmp_path) -> None:
    (tmp_path / "soft").mkdir()
    (tmp_path / "soft" / "notes.txt").write_text("mine")
    build(double, X, tmp_path / "soft")
    assert (tmp_path / "soft" / "notes.txt").read_text() == "mine"


def test_a_store_that_another_process_completed_meanwhile(tmp_path, monkeypatch) -> None:
    build(double, X, tmp_path / "soft")
    (tmp_path / "soft" / "building").mkdir()  # as a kill between manifest and tidying leaves it
    build(double, X, tmp_path / "soft")
    assert sorted(contents(tmp_path / "soft")) == ["manifest.json", "shard-00000.rows"]


def test_a_store_knows_nothing_of_where_it_lies(tmp_path) -> None:
    soft = build(double, X, tmp_path / "soft")
    (tmp_path / "soft").rename(tmp_path / "moved")
    moved = SoftTargets(tmp_path / "moved")
    assert moved.fingerprint() == soft.fingerprint()
    assert Store.open(str(tmp_path / "moved")).count == 50
    assert writing.rows_per_shard(8, 10**9) == 8
    assert writing.rows_per_shard(256, 76) * 76 <= 64 * 2**20
    assert not re.search(str(tmp_path), moved.store.manifest.__repr__())
