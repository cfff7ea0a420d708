"""MACs, parameters and memory: against sums done by hand, and against LiteRT's own layout."""

from __future__ import annotations

import itertools
import pathlib

import keras
import numpy as np
import pytest

from keras_kd.export import base
from keras_kd.litert import converting, counting, files
from tests import tflite_files

L = keras.layers


def tensor(shape, dtype="float32", *, buffer=0, scales=(), variable=False):
    """Describe a tensor; one with a buffer is a constant."""
    scales = np.array(scales, "float32")
    zeros = np.zeros(scales.shape, "int64")
    data = b"\1" if buffer else b""
    return files.Tensor("t", tuple(shape), dtype, buffer, data, scales, zeros, 0, variable)


def graph(tensors, operators, inputs=(0,), outputs=(-1,)):
    """Describe a graph; operators are (name, inputs, outputs[, options])."""
    steps = tuple(files.Operator(n, i, o, "", *more) for n, i, o, *more in operators)
    count = len(tensors)
    return files.Graph("g", tuple(tensors), steps, inputs, tuple(o % count for o in outputs))


def file(*graphs):
    return files.File(pathlib.Path("a.tflite"), 0, 3, graphs, {}, {})


def of_one(name, *shapes, out):
    """Count a file with one operator: the second shape on are constants."""
    first, *rest = shapes
    tensors = [tensor(first), *(tensor(s, buffer=at) for at, s in enumerate(rest, 1)), tensor(out)]
    numbers = tuple(range(len(shapes)))
    return counting.count_file(file(graph(tensors, [(name, numbers, (len(shapes),))])))


@pytest.mark.parametrize(
    ("name", "shapes", "out", "macs"),
    [
        # every one of 7 · 7 · 8 outputs multiplies 3 · 5 · 4 values
        ("CONV_2D", [(1, 14, 14, 4), (8, 3, 5, 4), (8,)], (1, 7, 7, 8), 7 * 7 * 8 * 3 * 5 * 4),
        # in two groups, 2 of the 4 channels each
        ("CONV_2D", [(1, 7, 7, 4), (8, 3, 3, 2)], (1, 7, 7, 8), 7 * 7 * 8 * 3 * 3 * 2),
        ("CONV_2D", [(2, 1, 9, 4), (6, 1, 3, 4)], (2, 1, 7, 6), 2 * 7 * 6 * 3 * 4),
        ("CONV_3D", [(1, 5, 6, 7, 2), (3, 2, 2, 2, 4)], (1, 3, 5, 6, 4), 90 * 4 * 3 * 2 * 2 * 2),
        ("DEPTHWISE_CONV_2D", [(1, 9, 9, 3), (1, 3, 5, 6), (6,)], (1, 7, 5, 6), 7 * 5 * 6 * 3 * 5),
        ("FULLY_CONNECTED", [(1, 20), (10, 20), (10,)], (1, 10), 20 * 10),
        ("FULLY_CONNECTED", [(1, 6, 20), (10, 20)], (1, 6, 10), 6 * 20 * 10),
        # every one of 4 · 4 · 5 inputs is spread over 3 · 3 places of 7 channels
        ("TRANSPOSE_CONV", [(4,), (7, 3, 3, 5), (1, 4, 4, 5)], (1, 8, 8, 7), 4 * 4 * 5 * 3 * 3 * 7),
        ("BATCH_MATMUL", [(2, 3, 4, 5), (2, 3, 5, 6)], (2, 3, 4, 6), 2 * 3 * 4 * 5 * 6),
        ("BATCH_MATMUL", [(2, 5, 4), (2, 5, 6)], (2, 4, 6), 2 * 4 * 5 * 6),  # the first turned over
        ("ADD", [(1, 9), (9,)], (1, 9), 0),
    ],
)  # fmt: skip
def test_macs_of_an_operator(name, shapes, out, macs) -> None:
    counts = of_one(name, *shapes, out=out)
    assert counts.macs == macs
    assert counts.by_operator == ({name: macs} if macs else {})
    assert (counts.loop_macs, counts.open_axes, counts.uncounted) == (0, False, ())


def test_parameters_are_numbers_that_stand_for_real_ones() -> None:
    tensors = [
        tensor((1, 4), "int8", scales=[0.5]),
        tensor((6, 4), "int4", buffer=1, scales=[0.1] * 6),  # 24 weights
        tensor((6,), "int32", buffer=2, scales=[0.05] * 6),  # 6 biases
        tensor((2,), "int32", buffer=3),  # a shape
        tensor((6,), buffer=4),  # 6 factors
        tensor((6, 4), "int4", buffer=1, scales=[0.1] * 6),  # the same bytes once more
        tensor((99,), buffer=5),  # of no operator
        tensor((1, 6), "int8", scales=[0.5]),
    ]
    steps = [
        ("FULLY_CONNECTED", (0, 1, 2), (7,)),
        ("FULLY_CONNECTED", (0, 5, -1), (7,)),
        ("RESHAPE", (7, 3), (7,)),
        ("MUL", (7, 4), (7,)),
    ]
    assert counting.count_file(file(graph(tensors, steps))).parameters == 24 + 6 + 6


def test_loops_and_branches_are_counted_once_and_apart() -> None:
    dense = [tensor((1, 3)), tensor((5, 3), buffer=1), tensor((1, 5))]
    wide = [tensor((1, 3)), tensor((7, 3), buffer=2), tensor((1, 7))]
    step = ("FULLY_CONNECTED", (0, 1), (2,))
    loop = ("WHILE", (0,), (0,), {"condSubgraphIndex": 1, "bodySubgraphIndex": 2})
    branch = ("IF", (0,), (0,), {"thenSubgraphIndex": 3, "elseSubgraphIndex": 1})
    counts = counting.count_file(
        file(
            graph(dense, [step, loop, loop]),
            graph([tensor((1,))], []),
            graph(dense, [step, branch]),
            graph(wide, [step]),
            graph(wide, [step, step]),  # no loop leads here: another signature
        )
    )
    assert (counts.macs, counts.loop_macs) == (15, 15 + 21)
    assert counts.by_operator == {"FULLY_CONNECTED": 15 + 15 + 21}
    assert counts.parameters == 15 + 21


def test_open_axes_count_as_one_and_are_told() -> None:
    counts = of_one("FULLY_CONNECTED", (None, None, 4), (3, 4), out=(None, None, 3))
    assert (counts.macs, counts.open_axes) == (12, True)


def test_what_is_not_counted_is_told() -> None:
    tensors = [tensor((1, 5, 4)), tensor((1, 5, 3))]
    steps = graph(tensors, [("UNIDIRECTIONAL_SEQUENCE_LSTM", (0,), (1,)), ("SVDF", (0,), (1,))])
    counts = counting.count_file(file(steps))
    assert counts.uncounted == ("SVDF", "UNIDIRECTIONAL_SEQUENCE_LSTM")
    assert counts.to_dict()["uncounted"] == ["SVDF", "UNIDIRECTIONAL_SEQUENCE_LSTM"]


def test_a_file_without_graphs_counts_nothing() -> None:
    assert counting.count_file(file()) == counting.Counts(0, 0, {}, 0, False, ())


def test_the_plan_reuses_what_is_free() -> None:
    """Sizes in units of 64 bytes: in 2 (kept), a 5, b 3, c 4, out 1 (kept).

    The input lies at 0. a lives in steps 0 and 1 and goes behind it (2 to 7); c lives in steps 2
    and 3, when a is gone, and takes 2 to 6; b meets both and begins where a ends (7 to 10); out is
    made in step 3 beside c and fits between c and b's end, at 6. In all 10 units.
    """
    sizes = [2, 5, 3, 4, 1]
    tensors = [tensor((16 * size,)) for size in sizes]  # 4 bytes a number
    chain = [("ABS", (at,), (at + 1,)) for at in range(4)]
    assert counting.planned_bytes(graph(tensors, chain)) == 64 * 10


def test_the_plan_rounds_up_and_keeps_variables() -> None:
    tensors = [tensor((1,), "int8"), tensor((65,), "int8"), tensor((1,), "bool", variable=True)]
    tensors += [tensor((5,), "int8", buffer=1), tensor((9, None), "int8")]
    steps = [("ADD", (0, 3), (1,)), ("ADD", (2, 1), (2,)), ("ADD", (2, 1), (4,))]
    # 64 for each small one; 128 for 65 bytes; a constant takes no working memory
    assert counting.planned_bytes(graph(tensors, steps)) == 64 + 128 + 64 + 64


def test_the_plan_writes_over_no_output() -> None:
    """Out of 4 units is made first and kept, while two others of 4 pass beside an input of 1."""
    tensors = [tensor((16 * size,)) for size in (1, 4, 4, 4)]
    steps = [("ABS", (0,), (1,)), ("ABS", (0,), (2,)), ("ABS", (2,), (3,))]
    assert counting.planned_bytes(graph(tensors, steps, outputs=(1, 3))) == 64 * 13
    assert counting.planned_bytes(graph(tensors, steps, outputs=(3,))) == 64 * 9


def test_a_tensor_goes_into_the_smallest_gap_that_holds_it() -> None:
    taken = [(10, 20), (23, 30), (30, 31), (35, 40)]  # gaps of 10, 3 and 4
    assert counting._best_gap(taken, 2) == 20
    assert counting._best_gap(taken, 4) == 31
    assert counting._best_gap(taken, 9) == 0
    assert counting._best_gap(taken, 11) == 40
    assert counting._best_gap([], 5) == 0


def dense_chain(path, *widths):
    """Write a float32 file of dense layers without biases."""
    maker = tflite_files.Maker()
    x = y = maker.tensor("x", [1, widths[0]])
    for before, after in itertools.pairwise(widths):
        weights = np.ones((after, before), "float32")
        w = maker.tensor(f"w{after}", [after, before], data=weights)
        y, given = maker.tensor(f"y{after}", [1, after]), y
        maker.operator("FULLY_CONNECTED", [given, w, -1], [y])
    return maker.write(path, {"x": x}, {"y": y})


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        ((1000, 500, 10), 4032 + 2048 + 64),
        ((1000, 500, 300, 10), 4032 + 2048 + 1216),  # the end lies where the first 500 were
        ((16, 16), 64 + 64),
    ],
)
def test_litert_lays_memory_out_as_planned(tmp_path, widths, expected) -> None:
    """The sums are done by hand; the measure is what LiteRT's own planner did."""
    path = dense_chain(tmp_path / "chain.tflite", *widths)
    assert counting.planned_bytes(files.read(path).graphs[0]) == expected
    assert counting.arena_bytes(path) == expected


def test_int8_takes_a_quarter_of_the_memory(tmp_path) -> None:
    assert counting.arena_bytes(tflite_files.int8_dense(tmp_path / "i.tflite")) == 64 + 64


def test_open_axes_make_memory_larger(tmp_path) -> None:
    maker = tflite_files.Maker()
    x, y = (maker.tensor(name, [1, 1, 4], signature=[1, -1, 4]) for name in "xy")
    maker.operator("ABS", [x], [y])
    path = maker.write(tmp_path / "open.tflite", {"x": x}, {"y": y})
    assert counting.arena_bytes(path) == 64 + 64
    assert counting.arena_bytes(path, open_axes=100) == 1600 + 1600
    with pytest.raises(ValueError, match="`open_axes` must be a whole number of 1 or more"):
        counting.arena_bytes(path, open_axes=0)


def test_only_tflite_files_are_counted(tmp_path) -> None:
    (tmp_path / "a.tflite").write_bytes(b"PK\3\4 something else")
    for look in (counting.count, counting.arena_bytes):
        with pytest.raises(ValueError, match="is not a TFLite file"):
            look(tmp_path / "a.tflite")


def everything():
    image = keras.Input((12, 12, 3), name="image")
    x = L.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(image)
    x = L.ReLU()(L.BatchNormalization()(x))
    x = L.SeparableConv2D(10, 3, depth_multiplier=2)(x)
    x = L.Conv2DTranspose(6, 3, strides=2, padding="same")(x)
    x = L.Reshape((64, 6))(x)
    x = L.Dot(axes=1)([x, x])
    return keras.Model(image, L.Dense(7)(L.Flatten()(x)))


def loops():
    steps = keras.Input((6, 4), name="steps")
    return keras.Model(steps, L.Dense(3)(L.GRU(5)(steps)))


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    with converting.converter() as converter:
        for name, model in (("everything", everything()), ("loops", loops())):
            for weight in model.weights:
                weight.assign(weight + 0.5)  # biases of zeros would be left out
            student = base.Student(model, np.zeros((1, *model.input_shape[1:]), "float32"))
            with base.quiet():
                student.write_saved_model(folder / name, batch=1)
            job = converting.Job(name, str(folder / name), str(folder / f"{name}.tflite"))
            converter.convert(job)
    return folder


def test_a_converted_network_has_the_macs_of_its_layers(converted) -> None:
    """The layers' own formulas, with the sizes that Keras gives (12 → 6 → 4 → 8, 8 · 8 = 64)."""
    counts = counting.count(converted / "everything.tflite")
    convolutions = (6 * 6 * 8) * (3 * 3 * 3) + (4 * 4 * 10) * 16  # and the pointwise one
    assert counts.by_operator == {
        "BATCH_MATMUL": 6 * 64 * 6,
        "CONV_2D": convolutions,
        "DEPTHWISE_CONV_2D": (4 * 4 * 16) * 3 * 3,
        "FULLY_CONNECTED": 36 * 7,
        "TRANSPOSE_CONV": (4 * 4 * 10) * 3 * 3 * 6,
    }
    assert counts.macs == sum(counts.by_operator.values())
    # kernels and biases; BatchNorm's factors went into the kernel and its offsets became eight
    # biases; the converter gives the depthwise convolution, which has none, 16 zeros
    kernels = 8 * 27 + 16 * 9 + 16 * 10 + 10 * 54 + 36 * 7
    assert counts.parameters == kernels + 8 + 10 + 6 + 7 + 16


def test_a_loop_counts_one_turn(converted) -> None:
    """A GRU multiplies input and state by three matrices each in a step: 3 · 5 · (4 + 5)."""
    path = converted / "loops.tflite"
    counts = counting.count(path)
    assert (counts.macs, counts.loop_macs) == (5 * 3, 3 * 5 * (4 + 5))
    _, *bodies = files.read(path).graphs
    assert bodies
    planned = sum(counting.planned_bytes(body) for body in bodies)
    assert counting.arena_bytes(path) > planned > 0
