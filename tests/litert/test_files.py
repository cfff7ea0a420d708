"""TFLite files read back: what was put in by hand comes out."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from keras_kd.litert import files
from tests import tflite_files


@pytest.fixture
def small(tmp_path):
    return files.read(tflite_files.int8_dense(tmp_path / "small.tflite", island=["ELU"]))


def test_graph_operators_and_ends(small):
    (graph,) = small.graphs
    assert [operator.name for operator in graph.operators] == [
        "FULLY_CONNECTED", "DEQUANTIZE", "ELU", "QUANTIZE",
    ]  # fmt: skip
    assert graph.operators[0].inputs == (0, 1, -1)
    assert graph.operators[0].options["keepNumDims"] is False
    assert graph.operators[2].options == {}
    assert (graph.inputs, graph.outputs) == ((0,), (5,))
    assert small.signatures == {
        "serving_default": {"inputs": {"x": 0}, "outputs": {"y": 5}, "graph": 0}
    }
    assert small.version == 3
    assert small.bytes == small.path.stat().st_size


def test_tensors_and_their_constants(small):
    x, weights, *_, end = small.graphs[0].tensors
    assert (x.name, x.shape, x.dtype, x.constant) == ("serving_default_x:0", (1, 4), "int8", False)
    assert end.scales.tolist() == [0.25]
    assert end.zero_points.tolist() == [3]
    assert end.is_quantised
    assert not end.variable
    np.testing.assert_array_equal(weights.stored(), tflite_files.WEIGHTS)
    np.testing.assert_allclose(weights.values(), tflite_files.WEIGHTS * 0.1, rtol=1e-6)
    with pytest.raises(ValueError, match="has no constant in the file"):
        x.values()


def test_int4_is_unpacked_low_bits_first_and_scaled_by_its_axis(tmp_path):
    maker = tflite_files.Maker()
    x = maker.tensor("x", [1, 3])
    # −8, 7, −1 and 1, 0, 5 in four bits each, the first in the low half of its byte
    packed = np.array([0x78, 0x1F, 0x50], "uint8")
    maker.tensor("w", [2, 3], "int4", packed, scales=[0.5, 2.0], zeros=[0, 1], axis=0)
    maker.tensor("u", [4], "uint4", packed[:2], scales=[1.0])
    path = maker.write(tmp_path / "w.tflite", {"x": x}, {"x": x})
    _, w, u = files.read(path).graphs[0].tensors
    assert w.dtype == "int4"
    np.testing.assert_array_equal(w.stored(), [[-8, 7, -1], [1, 0, 5]])
    np.testing.assert_array_equal(w.values(), [[-4, 3.5, -0.5], [0, -2, 8]])
    np.testing.assert_array_equal(u.values(), [8, 7, 15, 1])


def test_open_axes_metadata_and_custom_operators(tmp_path):
    maker = tflite_files.Maker()
    x = maker.tensor("x", [1, 1, 2], signature=[1, -1, 2])
    y = maker.tensor("y", [1, 1, 2])
    maker.operator("CUSTOM", [x], [y], custom=b"FlexDigamma")
    maker.metadata("note", b"hello")
    file = files.read(maker.write(tmp_path / "open.tflite", {"x": x}, {"y": y}))
    assert file.graphs[0].tensors[0].shape == (1, None, 2)
    assert file.metadata == {"note": b"hello"}
    ((_, operator),) = file.operators()
    assert (operator.name, operator.custom) == ("CUSTOM", "FlexDigamma")


def test_text_is_no_number(tmp_path):
    maker = tflite_files.Maker()
    maker.tensor("words", [1], "string", b"abc")
    file = files.read(maker.write(tmp_path / "text.tflite", {}, {}))
    with pytest.raises(ValueError, match="'words' cannot be read as numbers"):
        file.graphs[0].tensors[0].stored()


def test_other_files_and_damaged_ones_are_refused(tmp_path):
    other = tmp_path / "student.keras"
    other.write_bytes(b"PK\x03\x04 and more")
    with pytest.raises(ValueError, match=r"(?s)student.keras' is not a TFLite file.*PK"):
        files.read(other)
    whole = tflite_files.int8_dense(tmp_path / "whole.tflite").read_bytes()
    other.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(ValueError, match="is damaged"):
        files.read(other)
    with pytest.raises(FileNotFoundError):
        files.read(tmp_path / "none.tflite")


def test_the_room_needs_no_tensorflow_and_no_keras():
    code = (
        "import sys\n"
        "for name in ('tensorflow', 'keras'): sys.modules[name] = None\n"
        "from keras_kd.litert import auditing, files, provenance, running\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
