"""How long a TFLite file takes on this machine: time-bounded runs of `invoke()`, in alternation."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_kd import checks
from keras_kd.litert import files
from keras_kd.litert.examples import random_inputs
from keras_kd.litert.running import Runner
from keras_kd.litert.silence import silent

ROUNDS = 10
"""Turns in which files are timed one after the other; each gets a share of its seconds in each."""


@dataclasses.dataclass(frozen=True)
class Latency:
    """How long `invoke()` took with so many threads, with or without XNNPACK.

    Attributes:
        threads: Threads that LiteRT was allowed.
        xnnpack: Whether LiteRT was allowed to give operators to XNNPACK, as it does by default.
        delegated: Operators that XNNPACK took, out of `operators`.
        operators: Operators of the graph, those in loops' bodies apart.
        p50_ms: Median, in milliseconds.
        p90_ms: Nine of ten runs took no longer.
        min_ms: The shortest run.
        runs: Number of runs timed.
    """

    threads: int
    xnnpack: bool
    delegated: int
    operators: int
    p50_ms: float
    p90_ms: float
    min_ms: float
    runs: int


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What `benchmark` measured.

    Attributes:
        path: The file.
        inputs: Name to shape, as timed: open axes have the size that was asked for.
        latencies: One for each number of threads, with XNNPACK and without.
    """

    path: Path
    inputs: dict[str, tuple[int, ...]]
    latencies: tuple[Latency, ...]

    def of(self, threads: int, *, xnnpack: bool = True) -> Latency:
        """Return the latency with so many threads.

        Raises:
            ValueError: "was not timed".
        """
        for latency in self.latencies:
            if (latency.threads, latency.xnnpack) == (threads, xnnpack):
                return latency
        done = ", ".join(f"({o.threads}, xnnpack={o.xnnpack})" for o in self.latencies)
        raise checks.bad_value(
            f"{self.path.name} was not timed with so many threads.",
            given=f"({threads}, xnnpack={xnnpack})",
            expected=done,
            fix=f"call benchmark(path, threads=({threads},), xnnpack=({xnnpack},)).",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        return {
            "file": str(self.path),
            "inputs": {name: list(shape) for name, shape in self.inputs.items()},
            "latencies": [dataclasses.asdict(latency) for latency in self.latencies],
        }


def benchmark(
    path: str | Path,
    *,
    threads: Sequence[int] = (1, 2),
    seconds: float = 1.0,
    warm_up: float = 0.2,
    xnnpack: Sequence[bool] = (True, False),
    open_axes: int = 1,
) -> Benchmark:
    """Time a TFLite file with LiteRT on this machine's processor.

    Use it to see what a smaller file brings. Only `invoke()` is timed: setting inputs and reading
    outputs are not, and the input is random. The numbers are this machine's and no phone's, and
    they hold while nothing else runs on it. To compare files, time them together
    (`benchmark_together`).

    Args:
        path: The `.tflite` file.
        threads: Numbers of threads. Default 1 and 2.
        seconds: How long each setting is timed; at least one run is. Default 1.
        warm_up: How long each setting runs before that, at least once. Default 0.2.
        xnnpack: Whether LiteRT may use XNNPACK; both by default.
        open_axes: Size of the axes that the file leaves open. Default 1.

    Returns:
        A `Benchmark`.

    Raises:
        ValueError: "is not a TFLite file", "is damaged", "does not run", "`seconds` must be
            positive", "`warm_up` must be positive", "must be a whole number of 1 or more",
            "Nothing was asked to be timed".
        TypeError: "must be a number".

    Example:
        ```python
        import tempfile

        import keras
        import numpy as np

        import keras_kd as kd
        from keras_kd.litert.timing import benchmark

        student = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3)])
        x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
        with tempfile.TemporaryDirectory() as folder:
            made = kd.export_student(student, folder, ["tflite"], verification_data=x)
            timed = benchmark(made["tflite"].path, threads=(1,), seconds=0.02, warm_up=0.01)
        print(timed.of(1).p50_ms < 1)  # True
        ```
    """
    return benchmark_together(
        [path],
        threads=threads,
        seconds=seconds,
        warm_up=warm_up,
        xnnpack=xnnpack,
        open_axes=open_axes,
    )[0]


def benchmark_together(
    paths: Sequence[str | Path],
    *,
    threads: Sequence[int] = (1, 2),
    seconds: float = 1.0,
    warm_up: float = 0.2,
    xnnpack: Sequence[bool] = (True, False),
    open_axes: int = 1,
) -> list[Benchmark]:
    """Time several files in alternation, so that what slows the machine slows all of them.

    Each setting goes ten times round the files, which begin in turn.

    Args:
        paths: The `.tflite` files.
        threads: As in `benchmark`, and so are the others; `seconds` is each file's.
        seconds: How long each file is timed with each setting.
        warm_up: How long each file runs with each setting before that.
        xnnpack: Whether LiteRT may use XNNPACK.
        open_axes: Size of the axes that the files leave open.

    Returns:
        A `Benchmark` a file, in the order given.

    Raises:
        ValueError: As in `benchmark`.
        TypeError: As in `benchmark`.
    """
    checks.positive("seconds", seconds)
    checks.positive("warm_up", warm_up)
    settings = [(checks.count("threads", t), x) for t in threads for x in xnnpack]
    if not settings or not paths:
        raise checks.bad_value(
            "Nothing was asked to be timed.",
            given=f"{len(paths)} files, threads={tuple(threads)}, xnnpack={tuple(xnnpack)}",
            expected="one file, one number of threads and one setting of XNNPACK or more",
            fix="leave `threads` and `xnnpack` out.",
        )
    read = [files.read(path) for path in paths]
    found: list[list[Latency]] = [[] for _ in read]
    for count, delegate in settings:
        runners = [_ready(file, count, delegate, open_axes) for file in read]
        times = _alternate(runners, seconds, warm_up)
        for at, (file, runner) in enumerate(zip(read, runners, strict=True)):
            taken = _delegated(file.graphs[0], runner)
            operators = len(file.graphs[0].operators)
            found[at].append(Latency(count, delegate, taken, operators, *summary(times[at])))
    inputs = [
        {name: tuple(map(int, value.shape)) for name, value in _example(file, runner, open_axes)}
        for file, runner in zip(read, runners, strict=True)
    ]
    return [
        Benchmark(file.path, shapes, tuple(latencies))
        for file, shapes, latencies in zip(read, inputs, found, strict=True)
    ]


def summary(nanoseconds: Sequence[int]) -> tuple[float, float, float, int]:
    """Return median, 90th percentile and minimum in milliseconds, and the number of runs.

    The q-th percentile of n sorted times stands at position (n - 1) · q / 100, counted from 0,
    and is interpolated between neighbours.
    """
    ordered = sorted(nanoseconds)

    def percentile(share: float) -> float:
        at = (len(ordered) - 1) * share
        low = int(at)
        high = min(low + 1, len(ordered) - 1)
        return (ordered[low] + (at - low) * (ordered[high] - ordered[low])) / 1e6

    return percentile(0.5), percentile(0.9), ordered[0] / 1e6, len(ordered)


def peer(path: str | Path, *, threads: int = 1, runs: int = 1000) -> dict[str, Any]:
    """Time a file with `litert-benchmark`, the tool that comes with ai-edge-litert.

    Use it as a second opinion. It is another road: the compiled-model runtime, in a process of its
    own, and its times are rounded to 0.01 ms.

    Args:
        path: The `.tflite` file.
        threads: Threads that it may use.
        runs: Number of runs to time.

    Returns:
        What it found: "latency" (its "median_ms", "min_ms", "num_runs"), "fully_accelerated", ….

    Raises:
        ValueError: "litert-benchmark failed".
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "found.json"
        command = [
            *(sys.executable, "-m", "ai_edge_litert.tools.benchmark_litert_model"),
            *("--model", str(path), "--num_threads", str(checks.count("threads", threads))),
            *("--num_runs", str(checks.count("runs", runs)), "--result_json", str(answer)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not answer.exists():
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise checks.bad_value(
                f"litert-benchmark failed on {Path(path).name}.",
                given=said[-1],
                expected="a file that the compiled-model runtime runs",
                fix="install a newer ai-edge-litert (2.0 and later bring it), or leave it out.",
            )
        return json.loads(answer.read_text(encoding="utf-8"))


def _example(file: files.File, runner: Runner, open_axes: int) -> list[tuple[str, np.ndarray]]:
    return sorted(random_inputs(file, runner.inputs, open_axes=open_axes).items())


def _ready(file: files.File, threads: int, xnnpack: bool, open_axes: int) -> Runner:
    """Open a file and run it once, which lays out its memory and sets its inputs."""
    runner = Runner(file.path, threads=threads, xnnpack=xnnpack)
    runner.run_raw(dict(_example(file, runner, open_axes)))
    return runner


def _alternate(runners: Sequence[Runner], seconds: float, warm_up: float) -> list[list[int]]:
    """Return the times of every file in nanoseconds."""
    times: list[list[int]] = [[] for _ in runners]
    with silent():
        for runner in runners:
            _timed(runner, warm_up)
        for turn in range(ROUNDS):
            for step in range(len(runners)):
                at = (turn + step) % len(runners)
                if turn and sum(times[at]) >= seconds * 1e9:
                    continue  # a slow file is through with its seconds
                runners[at].interpreter.invoke()  # its weights back into the caches
                times[at] += _timed(runners[at], seconds / ROUNDS)
    return times


def _timed(runner: Runner, seconds: float) -> list[int]:
    """Run a file for a while, once at least, and return how long each run took."""
    invoke, clock, times = runner.interpreter.invoke, time.perf_counter_ns, []
    end = clock() + int(seconds * 1e9)
    while True:
        begin = clock()
        invoke()
        now = clock()
        times.append(now - begin)
        if now >= end:
            return times


def _delegated(graph: files.Graph, runner: Runner) -> int:
    """Count the operators that a delegate took: those between its inputs and its outputs."""
    made_by = {out: at for at, operator in enumerate(graph.operators) for out in operator.outputs}
    taken: set[int] = set()
    for node in runner.interpreter._get_ops_details():
        if "delegate" not in node["op_name"].lower():
            continue
        given = {int(number) for number in node["inputs"]}
        waiting = [int(number) for number in node["outputs"]]
        while waiting:
            number = waiting.pop()
            at = made_by.get(number)
            if at is not None and at not in taken and number not in given:
                taken.add(at)
                waiting += graph.operators[at].inputs
    return len(taken)
