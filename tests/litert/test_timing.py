"""Timing: the arithmetic of percentiles, who runs when, and what is refused. No times are tests."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

from keras_kd.litert import files, timing
from keras_kd.litert.examples import random_inputs
from keras_kd.litert.running import TensorInfo
from tests import tflite_files

SHORT = {"seconds": 0.002, "warm_up": 0.001}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tflite_files.int8_dense(tmp_path_factory.mktemp("timed") / "dense.tflite")


def odd(folder):
    """Write x → |x| → WHERE |x| > 0: XNNPACK has no kernel for the last two."""
    maker = tflite_files.Maker()
    x, size = maker.tensor("x", [1, 4]), maker.tensor("size", [1, 4])
    zero = maker.tensor("zero", [1], data=np.zeros(1, "float32"))
    large = maker.tensor("large", [1, 4], "bool")
    maker.operator("ABS", [x], [size])
    maker.operator("GREATER", [size, zero], [large])
    return maker.write(folder / "odd.tflite", {"x": x}, {"size": size, "large": large})


@pytest.mark.parametrize(
    ("milliseconds", "p50", "p90"),
    [
        ([7], 7, 7),
        ([3, 1], 2, 2.8),  # position 0.9 between 1 and 3
        ([5, 1, 3], 3, 4.6),  # position 1.8 between 3 and 5
        (range(11), 5, 9),
        ([1] * 9 + [100], 1, 10.9),  # position 8.1 between 1 and 100
    ],
)
def test_percentiles_are_interpolated(milliseconds, p50, p90) -> None:
    found = timing.summary([round(value * 1e6) for value in milliseconds])
    np.testing.assert_allclose(found, (p50, p90, min(milliseconds), len(milliseconds)), rtol=1e-12)


def test_percentiles_are_numpys(rng) -> None:
    times = rng.integers(1000, 9_000_000, size=137)
    p50, p90, least, runs = timing.summary(times.tolist())
    expected = np.percentile(times, [50, 90]) / 1e6
    np.testing.assert_allclose((p50, p90), expected, rtol=1e-12)
    assert (least, runs) == (times.min() / 1e6, 137)


def test_each_setting_is_timed(path) -> None:
    found = timing.benchmark(path, threads=(1, 2), **SHORT)
    settings = [(latency.threads, latency.xnnpack) for latency in found.latencies]
    assert settings == [(1, True), (1, False), (2, True), (2, False)]
    for latency in found.latencies:
        assert latency.runs >= timing.ROUNDS
        assert 0 < latency.min_ms <= latency.p50_ms <= latency.p90_ms
        assert latency.operators == 1
    assert found.path == path
    assert found.inputs == {"x": (1, 4)}


def test_xnnpack_is_stated(path, tmp_path) -> None:
    """A dense layer in int8 is XNNPACK's; GREATER is LiteRT's own."""
    found = timing.benchmark(path, threads=(1,), **SHORT)
    assert found.of(1).delegated == 1
    assert found.of(1, xnnpack=False).delegated == 0
    mixed = timing.benchmark(odd(tmp_path), threads=(1,), **SHORT)
    assert (mixed.of(1).delegated, mixed.of(1).operators) == (1, 2)
    assert mixed.of(1, xnnpack=False).delegated == 0


def test_operators_before_xnnpacks_part_are_not_its(tmp_path) -> None:
    maker = tflite_files.Maker()
    x, real, size = (maker.tensor(name, [1, 4]) for name in ("x", "real", "size"))
    zero = maker.tensor("zero", [1], data=np.zeros(1, "float32"))
    large = maker.tensor("large", [1, 4], "bool")
    maker.operator("GREATER", [x, zero], [large])
    maker.operator("CAST", [large], [real])
    maker.operator("ABS", [real], [size])
    path = maker.write(tmp_path / "late.tflite", {"x": x}, {"size": size})
    found = timing.benchmark(path, threads=(1,), xnnpack=(True,), **SHORT).of(1)
    assert (found.delegated, found.operators) == (1, 3)


def test_latencies_are_found_by_setting_and_written_as_json(path) -> None:
    found = timing.benchmark(path, threads=(1,), xnnpack=(False,), **SHORT)
    assert found.of(1, xnnpack=False) is found.latencies[0]
    with pytest.raises(ValueError, match=r"(?s)was not timed with so many threads.*\(4, xnnpack"):
        found.of(4)
    told = json.loads(json.dumps(found.to_dict()))
    assert told["file"] == str(path)
    assert told["inputs"] == {"x": [1, 4]}
    assert told["latencies"][0]["p50_ms"] == found.latencies[0].p50_ms


class Clock:
    """Runs that take as long as they are told to, one of three files each."""

    def __init__(self, monkeypatch, cost):
        self.now, self.order = 0, []
        monkeypatch.setattr(timing.time, "perf_counter_ns", lambda: self.now)
        self.runners = [self.runner(at, milliseconds) for at, milliseconds in enumerate(cost)]

    def runner(self, at, milliseconds):
        clock = self

        class Interpreter:
            def invoke(self):
                clock.now += int(milliseconds * 1e6)
                clock.order.append(at)

        class Runner:
            interpreter = Interpreter()

        return Runner()


def test_files_take_turns_and_begin_in_turn(monkeypatch) -> None:
    clock = Clock(monkeypatch, [1, 1, 1])
    times = timing._alternate(clock.runners, seconds=0.02, warm_up=0.003)
    # three runs of warm-up each; in each of ten rounds one run untimed and two timed of each
    assert clock.order[:9] == [0] * 3 + [1] * 3 + [2] * 3
    rounds = np.reshape(clock.order[9:], (timing.ROUNDS, 3, 3))
    assert (rounds == rounds[:, :, :1]).all()
    assert rounds[:4, :, 0].tolist() == [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]]
    assert times == [[1_000_000] * 20] * 3


def test_a_slow_file_stops_when_its_seconds_are_over(monkeypatch) -> None:
    clock = Clock(monkeypatch, [1, 30])
    fast, slow = timing._alternate(clock.runners, seconds=0.05, warm_up=0.001)
    assert sum(fast) == 50e6
    assert slow == [30e6] * 2


def test_open_axes_get_the_size_that_is_asked_for(tmp_path) -> None:
    maker = tflite_files.Maker()
    x, y = (maker.tensor(name, [1, 1, 4], signature=[1, -1, 4]) for name in "xy")
    maker.operator("ABS", [x], [y])
    path = maker.write(tmp_path / "open.tflite", {"x": x}, {"y": y})
    found = timing.benchmark(path, threads=(1,), open_axes=7, **SHORT)
    assert found.inputs == {"x": (1, 7, 4)}


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"seconds": 0}, ValueError, "`seconds` must be positive"),
        ({"warm_up": -1}, ValueError, "`warm_up` must be positive"),
        ({"seconds": "1"}, TypeError, "`seconds` must be a number"),
        ({"threads": (0,)}, ValueError, "`threads` must be a whole number of 1 or more"),
        ({"open_axes": 0}, ValueError, "`open_axes` must be a whole number of 1 or more"),
        ({"threads": ()}, ValueError, "Nothing was asked to be timed"),
        ({"xnnpack": ()}, ValueError, "Nothing was asked to be timed"),
    ],
)
def test_settings_are_refused(path, given, error, words) -> None:
    with pytest.raises(error, match=words):
        timing.benchmark(path, **{**SHORT, **given})


def test_files_are_refused(path, tmp_path) -> None:
    with pytest.raises(ValueError, match="Nothing was asked to be timed"):
        timing.benchmark_together([])
    text = tmp_path / "a.tflite"
    text.write_text("no flatbuffer at all")
    with pytest.raises(ValueError, match="is not a TFLite file"):
        timing.benchmark_together([path, text], **SHORT)
    maker = tflite_files.Maker()
    x, y = maker.tensor("x", [1, 4]), maker.tensor("y", [1, 4])
    maker.operator("CUSTOM", [x], [y], custom=b"FlexErf")
    flex = maker.write(tmp_path / "flex.tflite", {"x": x}, {"y": y})
    with pytest.raises(ValueError, match=r"(?s)does not run.*flex\.tflite"):
        timing.benchmark(flex, **SHORT)


def test_the_peer_is_asked(path) -> None:
    found = timing.peer(path, threads=1, runs=20)
    assert found["latency"]["num_runs"] == 20
    assert found["num_threads"] == 1


def test_a_peer_that_fails_is_told(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"(?s)litert-benchmark failed on none\.tflite.*not found"):
        timing.peer(tmp_path / "none.tflite")
    with pytest.raises(ValueError, match="`runs` must be a whole number"):
        timing.peer(tmp_path / "none.tflite", runs=0)


NO_TABLE = files.File(pathlib.Path("a.tflite"), 0, 3, (), {}, {})


def drawn(dtype, *, file=NO_TABLE, scale=None, size=4000):
    info = TensorInfo((1, size), dtype, scale, None if scale is None else 3, 0)
    (values,) = random_inputs(file, {"x": info}).values()
    assert (values.shape, values.dtype) == ((1, size), np.dtype(dtype))
    return values.min(), values.max()


def with_table(tmp_path, *sizes, name="GATHER"):
    maker = tflite_files.Maker()
    ids = maker.tensor("ids", [1, 5], "int32")
    for rows in sizes:
        table = maker.tensor("table", [rows, 2], data=np.zeros((rows, 2), "float32"))
        made = maker.tensor("made", [1, 5, 2])
        maker.operator(name, [table, ids] if name == "GATHER" else [ids, table], [made])
    return files.read(maker.write(tmp_path / "t.tflite", {"ids": ids}, {"made": made}))


def test_random_inputs_fit_the_type(tmp_path) -> None:
    low, high = drawn("float32")
    assert -1 <= low < -0.9
    assert 0.9 < high < 1
    assert drawn("int8", scale=0.5) == (-128, 127)
    assert drawn("uint8") == (0, 255)  # a raw image
    assert drawn("int64") == (0, 1)  # numbers of what, nobody knows
    assert drawn("bool") == (False, True)


@pytest.mark.parametrize("name", ["GATHER", "EMBEDDING_LOOKUP"])
def test_random_numbers_are_rows_of_the_table(tmp_path, name) -> None:
    file = with_table(tmp_path, 9, 7, 8, name=name)
    assert drawn("int32", file=file) == (0, 6)
    assert drawn("int32", file=with_table(tmp_path, 1, name=name)) == (0, 0)
    assert drawn("uint8", file=file) == (0, 6)
    low, high = drawn("int16", file=file, scale=0.5)  # real numbers, no rows
    assert low < -30000 < 30000 < high


def test_random_inputs_are_the_same_in_every_run_and_differ_by_seed() -> None:
    info = {"x": TensorInfo((1, None, 2), "float32", None, None, 0)}
    one, again = (random_inputs(NO_TABLE, info, open_axes=3)["x"] for _ in range(2))
    other = random_inputs(NO_TABLE, info, open_axes=3, seed=1)["x"]
    np.testing.assert_array_equal(one, again)
    assert one.shape == (1, 3, 2)
    assert (one != other).all()
