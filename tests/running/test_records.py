"""Folders that are whole or absent, kept teachers, and what goes into run.json."""

from __future__ import annotations

import dataclasses
import json
import statistics

import numpy as np
import pytest

from keras_kd.recipes import mnist1d
from keras_kd.running import records


def test_a_folder_appears_when_everything_is_written(tmp_path):
    with records.whole(tmp_path / "run") as folder:
        (folder / "a.txt").write_text("a")
        assert not (tmp_path / "run").exists()
    assert (tmp_path / "run" / "a.txt").read_text() == "a"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_or_ctrl_c_leaves_nothing(tmp_path, error):
    with pytest.raises(error), records.whole(tmp_path / "run") as folder:
        (folder / "a.txt").write_text("a")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written to[\s\S]*fix: .*--out"):
        records.writable(tmp_path / "file" / "runs")


def test_run_names(tmp_path):
    first = records.new_path(tmp_path, None)
    first.mkdir()
    assert records.new_path(tmp_path, None) != first
    assert records.new_path(tmp_path, "mine") == tmp_path / "mine"
    with pytest.raises(ValueError, match=r"There is a run '.*' already"):
        records.new_path(tmp_path, first.name)
    for name in ("a/b", ".hidden", "", "teachers", "soft_targets", ".."):
        with pytest.raises(ValueError, match="`name` must be the name of a folder"):
            records.new_path(tmp_path, name)


def test_json_takes_what_a_run_knows(tmp_path):
    content = {"a": np.float32(0.5), "b": (1, 2), "c": float("nan"), "d": tmp_path, 3: np.arange(2)}
    records.write_json(tmp_path / "x.json", content)
    found = json.loads((tmp_path / "x.json").read_text())
    assert found == {"a": 0.5, "b": [1, 2], "c": "nan", "d": str(tmp_path), "3": [0, 1]}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_spread_is_mean_and_sample_deviation():
    rows = [{"accuracy": 0.5, "name": "a"}, {"accuracy": 0.7, "name": "b"}, {"accuracy": 0.9}]
    summary = records.spread(rows)
    assert summary.keys() == {"accuracy"}
    assert summary["accuracy"]["mean"] == pytest.approx(0.7)
    assert summary["accuracy"]["sd"] == pytest.approx(statistics.stdev([0.5, 0.7, 0.9]))
    assert records.spread(rows[:1])["accuracy"] == {"mean": 0.5, "sd": None}


def test_a_kept_teacher_is_taken_only_as_it_was_written(tmp_path):
    import keras

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    (tmp_path / "logs").mkdir()
    folder = tmp_path / "teachers" / "key"
    assert records.load_teacher_record(folder) is None
    records.save_teacher(folder, model, {"seconds": 1.0}, tmp_path / "logs")
    assert records.load_teacher_record(folder)["seconds"] == 1.0

    content = bytearray((folder / "teacher.keras").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "teacher.keras").write_bytes(bytes(content))
    assert records.load_teacher_record(folder) is None

    records.save_teacher(folder, model, {"seconds": 2.0}, tmp_path / "logs")
    assert records.load_teacher_record(folder)["seconds"] == 2.0
    (folder / "teacher.json").write_text("{")
    assert records.load_teacher_record(folder) is None


def test_the_teachers_code_is_without_words_and_students():
    code = records.teacher_code(mnist1d.RECIPE)
    assert "'conv'" in code or "conv" in code
    assert "Greydanus" not in code
    assert "def student" not in code and "name='student'" not in code


def test_the_key_changes_with_what_decides_the_teacher_and_nothing_else():
    import keras

    from keras_kd.data import Dataset, Split

    def key(recipe=mnist1d.RECIPE, shift=0.0, seed=0, examples=8):
        keras.utils.set_random_seed(seed)
        split = Split(x=np.full((examples, 40, 1), shift, "float32"), y=np.arange(examples) % 2)
        dataset = Dataset("made", split, split, split)
        return records.teacher_key(recipe, dataset, recipe.teacher(), seed)

    change = dataclasses.replace
    assert key() == key()
    assert key(change(mnist1d.RECIPE, epochs=1, seeds=(7,), temperature=9.0)) == key()
    assert key(change(mnist1d.RECIPE, data="npz:the same data from elsewhere.npz")) == key()
    assert key(change(mnist1d.RECIPE, teacher_epochs=1)) != key()
    assert key(change(mnist1d.RECIPE, teacher_learning_rate=1.0)) != key()
    assert key(change(mnist1d.RECIPE, batch_size=7)) != key()
    assert len({key(), key(shift=1.0), key(seed=1), key(examples=9)}) == 4


def test_versions_and_machine_name_no_host():
    import socket

    assert {"python", "keras", "tensorflow", "numpy"} <= records.versions().keys()
    about = records.machine()
    assert about["cpus"] > 0
    assert socket.gethostname() not in json.dumps(about)
