"""Running a file with LiteRT: against the arithmetic of a file made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from keras_kd.litert.running import Runner, TensorInfo
from tests import tflite_files


@pytest.fixture
def dense(tmp_path):
    return tflite_files.int8_dense(tmp_path / "dense.tflite")


def _expected(x):
    """Compute in float64 what the hand-made file says, with its rounding and its clipping."""
    stored = np.clip(np.rint(x / 0.5), -128, 127)
    exact = (stored * 0.5) @ (tflite_files.WEIGHTS.astype("float64") * 0.1).T
    return (np.clip(np.rint(exact / 0.25) + 3, -128, 127) - 3) * 0.25


def test_real_numbers_in_and_out(dense, rng):
    x = rng.uniform(-4, 4, size=(9, 4))
    found = Runner(dense).run({"x": x})["y"]
    assert found.dtype == np.float32
    assert found.shape == (9, 3)
    assert np.abs(found - _expected(x)).max() <= 0.25  # a step: kernels may round a tie either way
    assert np.mean(found == _expected(x)) > 0.9


def test_answers_stay_in_the_range_of_the_output(dense):
    runner = Runner(dense)
    assert runner.outputs["y"].range == (-32.75, 31.0)
    found = runner.run({"x": [[-60, 60, -60, 60], [60, -60, 60, -60]]})["y"]
    assert found.max() == 31.0
    assert found.min() == -32.75


@pytest.mark.parametrize("options", [{"threads": 2}, {"xnnpack": False}], ids=["threads", "plain"])
def test_threads_and_kernels_change_a_step_at_most(dense, rng, options):
    x = rng.uniform(-4, 4, size=(5, 4))
    found = Runner(dense, **options).run({"x": x})["y"]
    assert np.abs(found - _expected(x)).max() <= 0.25


def test_raw_numbers_pass_as_they_are(dense):
    x = np.array([[2, 0, 0, 0]], "int8")  # 1.0 · 0.1 · (1, 5, −9) in steps of 0.25 around 3
    found = Runner(dense).run_raw({"x": x})["y"]
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, [[3, 5, -1]])


def test_what_goes_in_is_rounded_half_to_even_and_clipped():
    info = TensorInfo((None, 5), "uint8", 0.5, 10, 0)
    stored = info.quantise(np.array([0.25, 0.75, -0.25, 1e9, -1e9]))
    np.testing.assert_array_equal(stored, [10, 12, 10, 255, 0])
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(info.dequantise(stored), [0, 1, 0, 122.5, -5])
    assert info.range == (-5.0, 122.5)
    assert info.to_dict() == {
        "shape": [None, 5], "dtype": "uint8", "scale": 0.5, "zero_point": 10,
    }  # fmt: skip


def test_whole_numbers_without_a_scale_stay_as_they_are():
    info = TensorInfo((1,), "int32", None, None, 0)
    assert info.range is None
    assert info.quantise(np.array([3.0])).dtype == np.int32
    assert info.dequantise(np.array([3], "int32")).dtype == np.int32
    assert info.to_dict() == {"shape": [1], "dtype": "int32"}


def _elu(path, *, signed=True, **shapes):
    maker = tflite_files.Maker()
    x, y = maker.tensor("inside", **shapes), maker.tensor("outside", **shapes)
    maker.operator("ELU", [x], [y])
    return maker.write(path, {"x": x}, {"y": y}, signed=signed)


def test_open_axes_are_resized_to_what_comes(tmp_path):
    runner = Runner(_elu(tmp_path / "open.tflite", shape=[1, 1, 2], signature=[1, -1, 2]))
    assert runner.inputs["x"].shape == (1, None, 2)
    for length in (3, 5, 5, 1):
        x = np.linspace(-1, 1, 2 * 2 * length).reshape(2, length, 2).astype("float32")
        found = runner.run({"x": x})["y"]
        np.testing.assert_allclose(found, np.where(x > 0, x, np.expm1(x)), atol=1e-6)


def test_without_a_signature_the_tensors_names_count(tmp_path):
    runner = Runner(_elu(tmp_path / "plain.tflite", signed=False, shape=[1, 2]))
    assert list(runner.inputs) == ["inside"]
    assert runner.run({"inside": np.ones((3, 2), "float32")})["outside"].shape == (3, 2)


def test_a_fixed_batch_takes_whole_batches(tmp_path):
    runner = Runner(_elu(tmp_path / "four.tflite", shape=[4, 2]))
    assert runner.run({"x": np.ones((8, 2), "float32")})["y"].shape == (8, 2)
    with pytest.raises(ValueError, match=r"(?s)takes whole batches of 4.*5 examples"):
        runner.run({"x": np.ones((5, 2), "float32")})


@pytest.mark.parametrize(
    "arrays",
    [{}, {"z": np.ones((2, 4))}, {"x": np.ones((2, 5))}, {"x": np.ones(4)}, {"x": np.ones((0, 4))}],
    ids=["none", "name", "shape", "no_batch", "empty"],
)
def test_other_inputs_are_refused(dense, arrays):
    with pytest.raises(ValueError, match=r"(?s)does not take these inputs.*'x': \('examples', 4\)"):
        Runner(dense).run(arrays)


def test_a_file_that_does_not_run_is_refused(tmp_path):
    path = tmp_path / "none.tflite"
    path.write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"(?s)TFLite file does not run.*none\.tflite: "):
        Runner(path)
    maker = tflite_files.Maker()
    x, y = maker.tensor("x", [1, 2]), maker.tensor("y", [1, 2])
    maker.operator("CUSTOM", [x], [y], custom=b"FlexDigamma")
    with pytest.raises(ValueError, match=r"(?s)TFLite file does not run.*FlexDigamma"):
        Runner(maker.write(path, {"x": x}, {"y": y}))


def test_nothing_is_printed(dense, capfd):
    Runner(dense).run({"x": np.ones((1, 4))})
    assert capfd.readouterr() == ("", "")
