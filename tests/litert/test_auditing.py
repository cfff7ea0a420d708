"""Audits of files made by hand: operators, types, bytes, float islands."""

from __future__ import annotations

import numpy as np

from keras_kd.litert.auditing import audit
from tests import tflite_files


def test_a_file_of_whole_numbers_has_no_island(tmp_path):
    path = tflite_files.int8_dense(tmp_path / "whole.tflite")
    found = audit(path)
    assert found.ops == {"FULLY_CONNECTED": 1}
    assert found.types == {"int8": 1}
    assert found.weights == {"int8": 12}
    assert found.scale_bytes == 3 * (4 + 8)
    assert found.other_bytes == path.stat().st_size - 12 - 36
    assert found.islands == found.custom == ()


def test_an_island_is_named_by_its_layer(tmp_path):
    path = tflite_files.int8_dense(tmp_path / "island.tflite", island=["ELU", "EXP"])
    (island,) = audit(path).islands
    assert island.layers == ("odd_1",)
    assert island.ops == ("ELU", "EXP")
    assert str(island) == "'odd_1' (ELU, EXP)"
    (named,) = audit(path, layers=["dense", "odd"]).islands
    assert named.layers == ("odd",)
    assert audit(path).to_dict()["islands"] == [{"layers": ["odd_1"], "ops": ["ELU", "EXP"]}]


def test_ends_in_float_are_no_island(tmp_path):
    maker = tflite_files.Maker()
    x = maker.tensor("x", [1, 4])
    inside = maker.tensor("in", [1, 4], "int8", scales=[1.0], zeros=[0])
    w = maker.tensor("w", [3, 4], "int8", tflite_files.WEIGHTS, scales=[1.0], zeros=[0])
    y = maker.tensor("out", [1, 3], "int8", scales=[1.0], zeros=[0])
    end = maker.tensor("end", [1, 3])
    maker.operator("QUANTIZE", [x], [inside])
    maker.operator("FULLY_CONNECTED", [inside, w, -1], [y])
    maker.operator("DEQUANTIZE", [y], [end])
    assert audit(maker.write(tmp_path / "f.tflite", {"x": x}, {"y": end})).islands == ()


def test_two_islands_apart_are_two_and_one_with_two_ways_is_one(tmp_path):
    maker = tflite_files.Maker()
    x = maker.tensor("x", [1, 4], "int8", scales=[1.0], zeros=[0])
    ends = []
    for name in ("left", "right"):
        first, a, b, joined = (maker.tensor(f"net/{name}/{i}", [1, 4]) for i in range(4))
        maker.operator("DEQUANTIZE", [x], [first])
        maker.operator("ELU", [first], [a])
        maker.operator("EXP", [first], [b])
        maker.operator("ADD", [a, b], [joined])
        ends.append(maker.tensor(f"net/{name}/end", [1, 4], "int8", scales=[1.0], zeros=[0]))
        maker.operator("QUANTIZE", [joined], [ends[-1]])
    found = audit(maker.write(tmp_path / "two.tflite", {"x": x}, {"a": ends[0], "b": ends[1]}))
    assert [(i.layers, i.ops) for i in found.islands] == [
        (("left",), ("ELU", "EXP", "ADD")),
        (("right",), ("ELU", "EXP", "ADD")),
    ]


def test_weights_of_whole_numbers_alone_make_no_island_of_a_float_file(tmp_path):
    maker = tflite_files.Maker()
    x, y = maker.tensor("x", [1, 4]), maker.tensor("y", [1, 3])
    w = maker.tensor("w", [3, 4], "int8", tflite_files.WEIGHTS, scales=[1.0], zeros=[0])
    maker.operator("FULLY_CONNECTED", [x, w, -1], [y])
    found = audit(maker.write(tmp_path / "dynamic.tflite", {"x": x}, {"y": y}))
    assert found.islands == ()
    assert found.types == {"float32": 1}


def test_rows_of_a_quantised_table_make_no_island_of_a_float_file(tmp_path):
    maker = tflite_files.Maker()
    ids, y = maker.tensor("ids", [1], "int32"), maker.tensor("y", [1, 4])
    table = maker.tensor("t", [3, 4], "int8", tflite_files.WEIGHTS, scales=[1.0], zeros=[0])
    row = maker.tensor("row", [1, 4], "int8", scales=[1.0], zeros=[0])
    real = maker.tensor("real", [1, 4])
    maker.operator("GATHER", [table, ids], [row])
    maker.operator("DEQUANTIZE", [row], [real])
    maker.operator("ELU", [real], [y])
    assert audit(maker.write(tmp_path / "rows.tflite", {"ids": ids}, {"y": y})).islands == ()


def test_float_between_float_ends_is_an_island_where_others_compute_in_whole_numbers(tmp_path):
    maker = tflite_files.Maker()
    x, end = maker.tensor("x", [1, 4]), maker.tensor("end", [1, 3])
    inside = maker.tensor("in", [1, 4], "int8", scales=[1.0], zeros=[0])
    w = maker.tensor("w", [3, 4], "int8", tflite_files.WEIGHTS, scales=[1.0], zeros=[0])
    y = maker.tensor("out", [1, 3], "int8", scales=[1.0], zeros=[0])
    real = maker.tensor("real", [1, 3])
    maker.operator("QUANTIZE", [x], [inside])
    maker.operator("FULLY_CONNECTED", [inside, w, -1], [y])
    maker.operator("DEQUANTIZE", [y], [real])
    maker.operator("ELU", [real], [end])
    (island,) = audit(maker.write(tmp_path / "ends.tflite", {"x": x}, {"y": end})).islands
    assert island.ops == ("ELU",)


def test_a_buffer_that_tensors_share_counts_once_and_custom_operators_are_named(tmp_path):
    maker = tflite_files.Maker()
    x, y = maker.tensor("x", [1, 2]), maker.tensor("y", [1, 2])
    maker.tensor("a", [2], data=np.ones(2, "float32"))
    second = maker.tensor("b", [2])
    maker.graph.tensors[second].buffer = 1
    maker.operator("CUSTOM", [x], [y], custom=b"FlexDigamma")
    found = audit(maker.write(tmp_path / "c.tflite", {"x": x}, {"y": y}))
    assert found.weights == {"float32": 8}
    assert found.custom == ("FlexDigamma",)


def test_an_island_without_names_says_so(tmp_path):
    path = tflite_files.int8_dense(tmp_path / "island.tflite", island=["ELU"])
    (island,) = audit(path, layers=["other"]).islands
    assert str(island) == "unnamed (ELU)"
