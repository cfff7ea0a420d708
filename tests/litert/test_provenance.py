"""Facts in the file itself: written, read back, replaced, and no answer changed."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from keras_kd.litert import auditing, files, provenance
from keras_kd.litert.running import Runner
from tests import tflite_files

FACTS = {"teacher": "résnet", "metrics": {"accuracy": 0.5}, "labels": ["a", "b"], "none": None}


@pytest.fixture
def path(tmp_path):
    return tflite_files.int8_dense(tmp_path / "dense.tflite", island=["ELU"])


def test_what_was_stamped_is_read_back_and_the_answers_stay(path, rng):
    x = rng.uniform(-4, 4, size=(5, 4))
    before, audit = Runner(path).run({"x": x})["y"], auditing.audit(path)
    assert provenance.read(path) is None
    provenance.stamp(path, FACTS)
    assert provenance.read(path) == FACTS
    np.testing.assert_array_equal(Runner(path).run({"x": x})["y"], before)
    after = auditing.audit(path)
    assert (after.ops, after.weights, after.islands) == (audit.ops, audit.weights, audit.islands)


def test_a_second_stamp_takes_the_place_of_the_first(path):
    provenance.stamp(path, {"text": "x" * 10_000})
    provenance.stamp(path, FACTS)
    assert provenance.read(path) == FACTS
    assert path.stat().st_size < 5_000
    assert list(files.read(path).metadata) == ["keras_kd"]


def test_other_metadata_stays(tmp_path):
    maker = tflite_files.Maker()
    x = maker.tensor("x", [1, 2])
    maker.metadata("min_runtime_version", b"1.5.0")
    path = maker.write(tmp_path / "noted.tflite", {"x": x}, {"x": x})
    provenance.stamp(path, FACTS)
    assert files.read(path).metadata["min_runtime_version"] == b"1.5.0"


def test_constants_begin_on_boundaries_of_16_bytes(path):
    provenance.stamp(path, {"text": "x" * 33})
    model = schema.Model.GetRootAs(path.read_bytes(), 0)
    table = [model.Buffers(index)._tab for index in range(model.BuffersLength())]
    starts = [tab.Vector(tab.Offset(4)) for tab in table if tab.Offset(4)]
    assert len(starts) == 2
    assert all(start % 16 == 0 for start in starts)


def test_what_json_cannot_hold_is_refused_and_the_file_stays(path):
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"(?s)cannot be written as JSON.*ndarray"):
        provenance.stamp(path, {"x": np.ones(2)})
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        provenance.stamp(path, {"x": float("nan")})
    with pytest.raises(TypeError, match="`facts` must be a dict"):
        provenance.stamp(path, ["x"])
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_failing_rename_leaves_the_file_alone(path, monkeypatch):
    before = path.read_bytes()

    def refuse(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(provenance.os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        provenance.stamp(path, FACTS)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_metadata_that_is_no_json_is_refused(tmp_path):
    maker = tflite_files.Maker()
    x = maker.tensor("x", [1, 2])
    maker.metadata("keras_kd", b"\xff{")
    path = maker.write(tmp_path / "odd.tflite", {"x": x}, {"x": x})
    with pytest.raises(ValueError, match=r"provenance in '.*odd\.tflite' cannot be read"):
        provenance.read(path)
