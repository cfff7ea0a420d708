"""`keras-kd inspect` and `keras-kd benchmark`: what they say, and that they answer at once."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from keras_kd import cli
from keras_kd.command_line import benchmarking
from keras_kd.litert import provenance, timing
from tests import tflite_files

HEAVY = ("tensorflow", "keras", "tf_keras")
QUICK = ("--seconds", 0.002, "--warm-up", 0.001)


def call(*words):
    """Run a command in this process and return its exit code."""
    try:
        cli.main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code or 0
    return 0


def refused(capsys, *words, code=2):
    """Return what a person reads when a command is refused."""
    assert call(*words) == code
    said = capsys.readouterr().err
    for part in ("\n  given:", "\n  expected:", "\n  fix:"):
        assert part in said, said
    return said


@pytest.fixture
def dense(tmp_path):
    return tflite_files.int8_dense(tmp_path / "dense.tflite")


@pytest.fixture
def plain(tmp_path):
    """The same layer in float32, with a bias, for two steps of an open length."""
    maker = tflite_files.Maker()
    x = maker.tensor("x", [1, 1, 4], signature=[1, -1, 4])
    w = maker.tensor("w", [3, 4], data=np.ones((3, 4), "float32"))
    b = maker.tensor("b", [3], data=np.ones(3, "float32"))
    y = maker.tensor("y", [1, 1, 3], signature=[1, -1, 3])
    maker.operator("FULLY_CONNECTED", [x, w, b], [y])
    maker.graph.operators[0].builtinOptions.keepNumDims = True
    return maker.write(tmp_path / "plain.tflite", {"x": x}, {"y": y})


def inspected(capsys, path, code=0):
    assert call("inspect", path, "--json") == code
    return json.loads(capsys.readouterr().out)


def test_inspect_gives_ends_sizes_and_work_as_json(dense, capsys) -> None:
    found = inspected(capsys, dense)
    assert found["bytes"] == dense.stat().st_size
    assert found["sha256"] == hashlib.sha256(dense.read_bytes()).hexdigest()
    x = {"shape": [1, 4], "dtype": "int8", "scale": 0.5, "zero_point": 0}
    y = {"shape": [1, 3], "dtype": "int8", "scale": 0.25, "zero_point": 3}
    assert (found["inputs"], found["outputs"]) == ({"x": x}, {"y": y})
    assert found["audit"]["ops"] == {"FULLY_CONNECTED": 1}
    assert found["audit"]["weights"] == {"int8": 12}
    assert (found["counts"]["macs"], found["counts"]["parameters"]) == (12, 12)
    assert found["arena_bytes"] == 64 + 64
    assert found["provenance"] is None
    assert found["certificate"] is None


def test_inspect_says_it_in_words(dense, capsys) -> None:
    assert call("inspect", dense) == 0
    said = capsys.readouterr().out
    for words in (
        f"dense.tflite, {dense.stat().st_size:,} bytes",
        "x: int8 (1, 4), real = 0.5 · stored\n",
        "y: int8 (1, 3), real = 0.25 · (stored − 3)\n",
        "1: 1 × FULLY_CONNECTED",
        "1 × tensors of int8",
        "int8 12 bytes",
        "12 multiply-accumulates, 12 parameters\n",
        "128 bytes",
        "none beside the file",
        "none in the file",
    ):
        assert words in said, said


def test_inspect_tells_open_axes_and_zero_points_below_zero(plain, tmp_path, capsys) -> None:
    assert call("inspect", plain) == 0
    said = capsys.readouterr().out
    assert "x: float32 (1, open, 4)\n" in said
    assert "at least 12 multiply-accumulates, 15 parameters\n" in said
    maker = tflite_files.Maker()
    x = maker.tensor("x", [1, 2], "uint8", scales=[0.25], zeros=[-7])
    path = maker.write(tmp_path / "same.tflite", {"x": x}, {"x": x}, signed=False)
    assert call("inspect", path) == 0
    assert "x: uint8 (1, 2), real = 0.25 · (stored + 7)\n" in capsys.readouterr().out


def test_inspect_names_float_islands(tmp_path, capsys) -> None:
    path = tflite_files.int8_dense(tmp_path / "i.tflite", island=["ELU", "COS"])
    assert call("inspect", path) == 0
    assert "float between whole numbers: odd_1 (ELU, COS)" in capsys.readouterr().out


def test_inspect_reads_provenance_back(dense, capsys) -> None:
    facts = {"teacher": "fee1", "labels": ["Mütze", "dog"], "metrics": {"accuracy": 0.9}}
    provenance.stamp(dense, facts)
    assert inspected(capsys, dense)["provenance"] == facts
    assert call("inspect", dense) == 0
    said = capsys.readouterr().out
    assert '  "teacher": "fee1",\n' in said
    assert "Mütze" in said


def test_inspect_compares_the_certificate_beside_the_file(dense, capsys) -> None:
    beside = dense.with_name("dense.tflite.json")
    sha256 = hashlib.sha256(dense.read_bytes()).hexdigest()
    beside.write_text(json.dumps({"sha256": sha256}))
    assert inspected(capsys, dense)["certificate"] == {
        "file": str(beside), "sha256": sha256, "fits": True,
    }  # fmt: skip
    assert call("inspect", dense) == 0
    assert "dense.tflite.json is this file's" in capsys.readouterr().out


@pytest.mark.parametrize("written", ['{"sha256": "0f0f"}', "{}", "[]", "not json"])
def test_a_certificate_of_another_file_ends_with_1(dense, capsys, written) -> None:
    dense.with_name("dense.tflite.json").write_text(written)
    assert inspected(capsys, dense, code=1)["certificate"]["fits"] is False
    assert call("inspect", dense) == 1
    assert "IS NOT THIS FILE'S" in capsys.readouterr().out


def test_a_file_that_does_not_run_is_still_told(tmp_path, capsys) -> None:
    maker = tflite_files.Maker()
    x, y = maker.tensor("x", [1, 4]), maker.tensor("y", [1, 4])
    maker.operator("CUSTOM", [x], [y], custom=b"FlexErf")
    path = maker.write(tmp_path / "flex.tflite", {"x": x}, {"y": y})
    found = inspected(capsys, path)
    assert found["arena_bytes"] is None
    assert "flex.tflite" in found["arena"]
    assert found["counts"]["uncounted"] == ["FlexErf"]
    assert call("inspect", path) == 0
    said = capsys.readouterr().out
    assert "FlexErf: LiteRT alone cannot run this file" in said
    assert "not known, since the file does not run" in said


def benchmarked(capsys, *words):
    assert call("benchmark", *words, *QUICK, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_benchmark_times_files_side_by_side(dense, plain, capsys) -> None:
    found = benchmarked(capsys, dense, plain, "--threads", 1, 2, "--open-axes", 2)
    assert [one["file"] for one in found] == [str(dense), str(plain)]
    assert [one["inputs"] for one in found] == [{"x": [1, 4]}, {"x": [1, 2, 4]}]
    assert [one["counts"]["parameters"] for one in found] == [12, 15]
    assert [one["arena_bytes"] for one in found] == [128, 128]
    for one in found:
        settings = [(at["threads"], at["xnnpack"]) for at in one["latencies"]]
        assert settings == [(1, True), (1, False), (2, True), (2, False)]
        assert all(at["runs"] and at["p50_ms"] > 0 for at in one["latencies"])
        assert "peer" not in one


def made(name, p50, **more):
    """Make up what `measure` would have found."""
    counts = {"macs": 2000, "loop_macs": 0, "parameters": 70, "open_axes": False, "uncounted": []}
    setting = {"threads": 1, "delegated": 3, "operators": 4, "p90_ms": p50 + 1, "min_ms": p50 / 4}
    latencies = [
        {**setting, "xnnpack": True, "p50_ms": p50, "runs": 1234},
        {**setting, "xnnpack": False, "p50_ms": 2 * p50, "runs": 56},
    ]
    told = {"file": name, "bytes": 4000, "counts": counts, "arena_bytes": 512, "inputs": {"x": [1]}}
    return told | {"latencies": latencies} | more


def rows(said, name):
    return [line.split() for line in said.splitlines() if line.startswith(f"{name} ")]


def test_the_table_gives_ratios_to_the_first_file(capsys) -> None:
    loops = {**made("a", 1)["counts"], "macs": 500, "loop_macs": 30, "open_axes": True}
    benchmarking.show([made("a", 8.0), made("b", 2.0, bytes=1000, counts=loops, arena_bytes=256)])
    said = capsys.readouterr().out
    about, fast, slow = rows(said, "b")
    assert " ".join(about) == "b 1,000 0.25 ≥ 500 + 30 a turn 0.25 70 256 0.50"
    assert " ".join(fast) == "b 1 3 of 4 operators 2.000 0.25 3.000 0.500 1,234"
    assert " ".join(slow) == "b 1 off 4.000 0.25 3.000 0.500 56"
    assert rows(said, "a")[1][-5:] == ["8.000", "1.00", "9.000", "2.000", "1,234"]
    assert "16.0" in rows(said, "a")[2]
    assert "x (1,)" in said


def test_the_peers_time_stands_beside_ours(capsys) -> None:
    peers = [{"threads": 1, "median_ms": 7.5, "min_ms": 7.0, "num_runs": 50}]
    failed = [{"threads": 1, "failed": "litert-benchmark failed on b."}]
    benchmarking.show([made("a", 8.0, peer=peers), made("b", 8.0, peer=failed)])
    said = capsys.readouterr().out
    assert [row[-1] for row in rows(said, "a")[1:]] == ["7.50", "56"]
    assert [row[-1] for row in rows(said, "b")[1:]] == ["failed", "56"]
    assert "b, 1 threads: litert-benchmark failed on b." in said


@pytest.mark.parametrize(("p50", "runs"), [(0.5, 2000), (0.0001, 5000), (900.0, 50)])
def test_the_peer_is_asked_for_as_many_runs_as_fill_the_seconds(
    dense, monkeypatch, p50, runs
) -> None:
    asked = []

    def peer(path, *, threads, runs):
        asked.append((path, threads, runs))
        return {"latency": {"median_ms": 1.0, "min_ms": 0.5, "num_runs": runs, "avg_ms": 2.0}}

    latency = timing.Latency(2, True, 1, 1, p50, p50, p50, 9)
    monkeypatch.setattr(timing, "peer", peer)
    monkeypatch.setattr(
        timing, "benchmark_together", lambda *_, **__: [timing.Benchmark(dense, {}, (latency,))]
    )
    (found,) = benchmarking.measure([dense], threads=(2,), seconds=1.0, peer=True)
    assert asked == [(dense, 2, runs)]
    assert found["peer"] == [{"threads": 2, "median_ms": 1.0, "min_ms": 0.5, "num_runs": runs}]


def test_benchmark_asks_the_real_peer(dense, capsys) -> None:
    (found,) = benchmarked(capsys, dense, "--threads", 1, "--peer")
    (peer,) = found["peer"]
    assert peer["num_runs"] >= 50
    assert "failed" not in peer


@pytest.mark.parametrize("command", ["inspect", "benchmark"])
def test_what_is_no_tflite_file_is_refused(tmp_path, capsys, command) -> None:
    (tmp_path / "a.tflite").write_text("a text of more than eight letters")
    assert "is not a TFLite file" in refused(capsys, command, tmp_path / "a.tflite")
    assert "No such file" in refused(capsys, command, tmp_path / "none.tflite")
    assert "requires an argument" in refused(capsys, command)


def test_benchmarks_settings_are_refused(dense, capsys) -> None:
    assert "`seconds` must be positive" in refused(capsys, "benchmark", dense, "--seconds", 0)
    assert "`threads` must be a whole" in refused(capsys, "benchmark", dense, "--threads", 0)


@pytest.mark.parametrize("command", ["inspect", "benchmark"])
def test_a_command_answers_in_a_second_without_tensorflow(dense, command) -> None:
    """The processor's time of a whole process, so that other work on the machine does not count."""
    words = [command, str(dense), *(map(str, QUICK) if command == "benchmark" else ())]
    program = (
        "import contextlib, sys, time\n"
        "from keras_kd import cli\n"
        "with contextlib.suppress(SystemExit):\n"
        "    cli.main(sys.argv[1:])\n"
        f"print('loaded:', [name for name in {HEAVY} if name in sys.modules])\n"
        "print(time.process_time())\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    *_, loaded, seconds = done.stdout.splitlines()
    assert loaded == "loaded: []", done.stderr
    assert float(seconds) < 1
