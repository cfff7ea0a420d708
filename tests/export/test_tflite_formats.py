"""The TFLite formats: what the bytes of each hold, and the students that need care."""

from __future__ import annotations

import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd.export import base
from keras_kd.litert import auditing, files, running

L = keras.layers
FLOAT = ("tflite", "tflite_float16", "tflite_dynamic")
WHOLE = ("tflite_int8", "tflite_uint8", "tflite_int16x8")
RNG = np.random.default_rng(0)
X = RNG.uniform(-1, 3, size=(300, 40)).astype("float32")
X[0, 0], X[1, 1] = -1, 3  # the ends of the range, which calibration sees
STEPS = RNG.normal(size=(120, 6, 4)).astype("float32")
TOKENS = RNG.integers(0, 9, size=(120, 6))
# Steps of 8 bits that a small network may be off: its layers' roundings, and one of the output.
SMALL = 6.0


def _target(format):
    return importlib.import_module(f"keras_kd.export.{format}").TARGET


class Calls(L.Layer):
    """A layer around a function."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, x):
        return self.function(x)


class Ranged(L.Layer):
    """A Dense layer with trained ranges of input, kernel and output."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 5), initializer="glorot_uniform")

    def call(self, x):
        fake = keras.quantizers.fake_quant_with_min_max_vars
        x = fake(x, -1.0, 3.0, num_bits=8)
        kernel = fake(self.kernel, -0.5, 0.5, num_bits=8, narrow_range=True)
        return fake(x @ kernel, -6.0, 6.0, num_bits=8)


def _chain(shape, *layers, dtype="float32"):
    inputs = x = keras.Input(shape, dtype=dtype, name="x")
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x, name="student")


def _dense():
    return _chain((40,), L.Dense(32, name="out", bias_initializer="random_normal"))


STUDENTS = {
    "dense": (_dense, X),
    "softmax": (lambda: _chain((40,), L.Dense(4, "relu"), L.Dense(3, "softmax", name="out")), X),
    "ranged": (lambda: _chain((40,), Ranged(name="out")), X),
    "elu": (
        lambda: _chain(
            (6, 4), L.Flatten(), L.Dense(8, name="before"), L.ELU(name="bend"), L.Dense(3)
        ),
        STEPS,
    ),
    "norm": (
        lambda: _chain((6, 4), L.Dense(8), L.LayerNormalization(name="level"), L.Dense(3)),
        STEPS,
    ),
    "lstm": (
        lambda: _chain((None, 4), L.LSTM(5, return_sequences=True, name="memory"), L.Dense(3)),
        STEPS,
    ),
    "gru": (lambda: _chain((6, 4), L.Bidirectional(L.GRU(5), name="both"), L.Dense(3)), STEPS),
    "unrolled": (lambda: _chain((6, 4), L.GRU(5, unroll=True), L.Dense(3)), STEPS),
    "loop": (
        lambda: _chain(
            (40,),
            Calls(
                lambda x: tf.while_loop(
                    lambda i, x: i < 3, lambda i, x: (i + 1, tf.sin(x)), (0, x)
                )[1]
            ),
        ),
        X,
    ),
    "lambda": (
        lambda: _chain((40,), L.Dense(8), L.Lambda(lambda x: x * 2 + 1), L.Dense(3)),
        X,
    ),
    "tokens": (
        lambda: _chain((6,), L.Embedding(9, 4), L.Flatten(), L.Dense(3), dtype="int32"),
        TOKENS,
    ),
}


@pytest.fixture(scope="module")
def seen():
    """Give a student as targets see it, made once."""
    cache = {}

    def find(name, **options):
        key = (name, *options)
        if key not in cache:
            keras.utils.set_random_seed(5)
            make, x = STUDENTS[name]
            cache[key] = base.Student(make(), x, **options)
        return cache[key]

    return find


@pytest.fixture(scope="module")
def written(seen, tmp_path_factory):
    """Write a student in a format, once."""
    cache = {}

    def find(name, format, **options):
        key = (name, format, *options)
        if key not in cache:
            student, target = seen(name, **options), _target(format)
            assert target.refuses(student) is None
            path = tmp_path_factory.mktemp("written") / target.file.format(name=name)
            calibration = None
            if target.needs_calibration(student):
                calibration = base.Calibration(student, STUDENTS[name][1], len(STUDENTS[name][1]))
            target.write(student, path, calibration)
            cache[key] = path
        return cache[key]

    return find


def _constants(path, *dtypes):
    graph = files.read(path).graphs[0]
    return [t for t in graph.tensors if t.constant and t.dtype in dtypes and len(t.shape) > 1]


def _ops(path):
    return {operator.name for _, operator in files.read(path).operators()}


def _off(student, path, x, format):
    """Run the file and the student; return the largest difference in steps of 8 bits."""
    arrays = student.flatten(x)
    opened = _target(format).open(path)
    ours, theirs = opened.run(arrays), student.run(arrays)
    worst = 0.0
    for name, value in theirs.items():
        assert ours[name].dtype == np.float32
        step = (value.max() - value.min()) / 255
        worst = max(worst, float(np.abs(ours[name] - value).max() / step))
    return worst


def test_float16_holds_the_weights_rounded_to_float16(seen, written):
    kernel = seen("dense").model.get_layer("out").kernel.numpy()
    (held,) = _constants(written("dense", "tflite_float16"), "float16")
    np.testing.assert_array_equal(held.stored().T, kernel.astype("float16"))


@pytest.mark.parametrize("format", ["tflite_dynamic", *WHOLE])
def test_kernels_of_8_bits_are_scaled_by_their_largest_weight(seen, written, format):
    """scale = max |w| / 127, of the kernel or of each column; w = scale · q, ± scale / 2."""
    kernel = seen("dense").model.get_layer("out").kernel.numpy().T.astype("float64")
    (held,) = _constants(written("dense", format), "int8")
    assert not np.any(held.zero_points)
    scales = np.asarray(held.scales, "float64")
    largest = np.abs(kernel).max() if scales.size == 1 else np.abs(kernel).max(axis=1)
    np.testing.assert_allclose(scales, largest / 127, rtol=1e-5)
    off = np.abs(held.stored() * scales.reshape(-1, 1) - kernel)
    assert (off <= scales.reshape(-1, 1) * 0.5001).all()


@pytest.mark.parametrize(
    ("format", "dtype", "scale", "zero"),
    [
        # values from -1 to 3 over 255 steps; what stands for 0 is a quarter of the way up
        ("tflite_int8", "int8", 4 / 255, -64),
        ("tflite_uint8", "uint8", 4 / 255, 64),
        ("tflite_int16x8", "int16", 3 / 32767, 0),
    ],
)
def test_inputs_and_outputs_are_whole_numbers_of_the_calibrated_range(
    written, format, dtype, scale, zero
):
    path = written("dense", format)
    runner = running.Runner(path)
    info = runner.inputs["x"]
    assert info.dtype == runner.outputs["out"].dtype == dtype
    np.testing.assert_allclose(info.scale, scale, rtol=1e-5)
    assert info.zero_point == zero
    opened = _target(format).open(path)
    assert opened.inputs["x"] == {
        "shape": [1, 40], "dtype": dtype, "scale": info.scale, "zero_point": zero
    }  # fmt: skip


@pytest.mark.parametrize("format", WHOLE)
def test_no_float_is_left_in_a_file_of_whole_numbers(written, format):
    graph = files.read(written("dense", format)).graphs[0]
    assert {tensor.dtype for tensor in graph.tensors} <= {
        "int8",
        "uint8",
        "int16",
        "int32",
        "int64",
    }
    assert auditing.audit(written("dense", format)).islands == ()


def test_int8_computes_what_the_arithmetic_of_whole_numbers_gives(seen, written):
    """y = Σ s_x (q_x − z_x) · s_w q_w + b, then rounded to the step of the output."""
    path = written("dense", "tflite_int8")
    runner = running.Runner(path)
    layer = seen("dense").model.get_layer("out")
    (held,) = _constants(path, "int8")
    x, y = runner.inputs["x"], runner.outputs["out"]
    stored = np.clip(np.rint(X.astype("float64") / x.scale) + x.zero_point, -128, 127)
    real = (stored - x.zero_point) * x.scale
    kernel = held.stored().astype("float64") * np.asarray(held.scales).reshape(-1, 1)
    exact = real @ kernel.T + layer.bias.numpy()
    expected = np.clip(np.rint(exact / y.scale) + y.zero_point, -128, 127)
    found = runner.run_raw({"x": stored.astype("int8")})["out"]
    assert np.abs(found - expected).max() <= 1


def test_uint8_is_int8_with_128_more(written):
    small, large = (running.Runner(written("dense", f)) for f in ("tflite_int8", "tflite_uint8"))
    whole = RNG.integers(-128, 128, size=(20, 40)).astype("int8")
    ours = large.run_raw({"x": (whole.astype("int16") + 128).astype("uint8")})["out"]
    theirs = small.run_raw({"x": whole})["out"]
    np.testing.assert_array_equal(ours.astype("int16"), theirs.astype("int16") + 128)


@pytest.mark.parametrize("format", ["tflite", "tflite_int8"])
def test_logits_leave_no_softmax_in_the_file(seen, written, format):
    student = seen("softmax", outputs="logits")
    path = written("softmax", format, outputs="logits")
    assert "SOFTMAX" not in _ops(path)
    assert _off(student, path, X[:50], format) < SMALL


def test_bytes_go_in_as_they_are_where_the_file_scales(seen, tmp_path):
    """Raw values of 0 to 255 in a uint8 file: one step is 1, and nothing is lost on the way in."""
    raw = RNG.integers(0, 256, size=(300, 40)).astype("float32")
    raw[0, 0], raw[0, 1] = 0, 255
    student = base.Student(_dense(), raw, scaling=(1 / 255, 0.0))
    target = _target("tflite_uint8")
    target.write(student, tmp_path / "raw.tflite", base.Calibration(student, raw))
    info = running.Runner(tmp_path / "raw.tflite").inputs["x"]
    assert (info.scale, info.zero_point) == (1.0, 0)
    assert _off(student, tmp_path / "raw.tflite", raw[:50], "tflite_uint8") < SMALL


def test_ids_stay_int32_in_int8_and_are_refused_with_16_bits(seen, written):
    path = written("tokens", "tflite_int8")
    runner = running.Runner(path)
    assert (runner.inputs["x"].dtype, runner.inputs["x"].scale) == ("int32", None)
    assert _off(seen("tokens"), path, TOKENS, "tflite_int8") < SMALL
    said = _target("tflite_int16x8").refuses(seen("tokens"))
    assert "tflite_int16x8 format does not take inputs of whole numbers" in said
    assert "input 'x' of type int32" in said


@pytest.mark.parametrize(
    ("name", "layer", "format"),
    [
        ("elu", "bend", "tflite_int8"),
        ("elu", "bend", "tflite_int16x8"),
        ("norm", "level", "tflite_int8"),
    ],
)
def test_what_has_no_kernel_of_whole_numbers_is_an_island_with_a_name(
    seen, written, name, layer, format
):
    path = written(name, format)
    found = auditing.audit(path, ["bend", "level"]).islands
    assert [layers for island in found for layers in island.layers] == [layer]
    limit = {"elu": SMALL, "norm": 40.0}[name]  # int8 loses much of a normalisation
    assert _off(seen(name), path, STEPS[:50], format) < limit


@pytest.mark.parametrize(
    ("name", "format"),
    [*(("lstm", format) for format in FLOAT), ("gru", "tflite_dynamic"), ("loop", "tflite")],
)
def test_loops_convert_in_float(seen, written, name, format):
    path = written(name, format)
    assert "WHILE" in _ops(path)
    limit = 1 if format != "tflite_dynamic" else SMALL
    assert _off(seen(name), path, STUDENTS[name][1][:9], format) < limit


@pytest.mark.parametrize("format", WHOLE)
@pytest.mark.parametrize(
    ("name", "loops"),
    [("lstm", "'memory' (LSTM)"), ("gru", "'forward_gru"), ("loop", "while")],
)
def test_loops_are_refused_by_name_in_whole_numbers(seen, name, loops, format):
    said = _target(format).refuses(seen(name))
    assert f"The {format} format cannot hold the loops of the student" in said
    assert loops in said
    assert "unroll=True" in said
    assert "given:" in said


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("unrolled", "tflite_int8"),
        ("unrolled", "tflite_int16x8"),
        ("lambda", "tflite_dynamic"),
        ("lambda", "tflite_int8"),
    ],
)
def test_unrolled_loops_and_lambdas_convert(seen, written, name, format):
    path = written(name, format)
    assert _off(seen(name), path, STUDENTS[name][1][:50], format) < SMALL


@pytest.mark.parametrize(("format", "zero"), [("tflite_int8", -64), ("tflite_uint8", 64)])
def test_trained_ranges_are_the_files_ranges(seen, written, format, zero):
    path = written("ranged", format)  # without calibration
    runner = running.Runner(path)
    x, y = runner.inputs["x"], runner.outputs["out"]
    np.testing.assert_allclose([x.scale, y.scale], [4 / 255, 12 / 255], rtol=1e-5)
    assert x.zero_point == zero
    (held,) = _constants(path, "int8")
    np.testing.assert_allclose(held.scales, 0.5 / 127, rtol=1e-5)
    arrays = {"x": X[:100]}
    off = np.abs(runner.run(arrays)["out"] - seen("ranged").run(arrays)["out"]) / y.scale
    assert off.max() < 1.01
    assert auditing.audit(path).islands == ()


@pytest.mark.parametrize("format", [*FLOAT, "tflite_int16x8"])
def test_other_formats_refuse_trained_ranges(seen, format):
    said = _target(format).refuses(seen("ranged"))
    assert f"{format} format is not for a student with trained ranges" in said
    assert "keras_kd.compress.float_student(student)" in said


def test_raw_inputs_before_trained_ranges_are_refused(seen):
    student = seen("ranged", scaling=(1 / 255, 0.0))
    for format in ("tflite_int8", "tflite_uint8"):
        said = _target(format).refuses(student)
        assert "`scaling` is not for a student with trained ranges" in said
        assert "keras.layers.Rescaling" in said


@pytest.mark.parametrize("format", WHOLE)
def test_whole_numbers_without_examples_are_refused(seen, tmp_path, format):
    with pytest.raises(ValueError, match=rf"(?s){format} format needs examples to take its ranges"):
        _target(format).write(seen("dense"), tmp_path / "x.tflite")
    assert list(tmp_path.iterdir()) == []


def test_every_target_says_what_it_is():
    for format in (*FLOAT, *WHOLE, "saved_model"):
        target = _target(format)
        assert target.format == format
        assert target.quantised == (format in WHOLE)
        assert target.bounds.stated()
    assert len({_target(format).file for format in (*FLOAT, *WHOLE)}) == 6
