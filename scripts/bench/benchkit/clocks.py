"""Runners: each holds one compiled contender and says how long its steps take."""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchkit import environment, networks, turns

LEAST = 10  # steps in a stretch, so that one slow one does not decide


def batches(kind: str, batch: int, steps: int) -> tf.data.Dataset:
    """Repeat batches that lie ready in memory, the same for every runner."""
    x, y = (
        values.reshape(steps, batch, *values.shape[1:])
        for values in networks.data(kind, steps * batch)
    )
    return tf.data.Dataset.from_tensor_slices((x, y)).repeat().prefetch(steps)


class FitRunner:
    """A compiled model that trains in `fit`."""

    def __init__(self, model: keras.Model, dataset: tf.data.Dataset) -> None:
        self.model, self.dataset, self.steps = model, dataset, model.steps_per_execution
        self.time(1)  # compiles it

    def time(self, calls: int) -> float:
        """Return the seconds of a step, the median over the executions but the first."""
        clock = Clock()
        self.model.fit(
            self.dataset,
            steps_per_epoch=self.steps * (calls + 1),
            verbose=0,
            shuffle=False,
            callbacks=[clock],
        )
        return clock.median() / self.steps


class Clock(keras.callbacks.Callback):
    """Notes when each execution of the step has ended: all that `fit` does lies between."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Wait for the device, and note the time."""
        float(next(iter((logs or {"": 0.0}).values())))
        self.ends.append(time.perf_counter())

    def median(self) -> float:
        """Return the median seconds from one end to the next."""
        return float(np.median(np.diff(self.ends)))


class ForwardRunner:
    """A teacher that answers to the same batches, in one graph with the same number of steps."""

    def __init__(self, model: keras.Model, dataset: tf.data.Dataset, steps: int) -> None:
        self.dataset, self.steps = dataset, steps
        jit = bool(tf.config.list_physical_devices("GPU"))  # as Keras decides in `fit`

        @tf.function(jit_compile=jit)
        def forward(x: Any) -> Any:
            return tf.reduce_sum(model(x, training=False))

        @tf.function(reduce_retracing=True)
        def run(iterator: Any) -> Any:
            if steps == 1:
                return forward(next(iterator)[0])
            return tf.while_loop(
                lambda step, total: step < steps,
                lambda step, total: (step + 1, total + forward(next(iterator)[0])),
                (0, 0.0),
            )[1]

        self.run = run
        self.time(1)

    def time(self, calls: int) -> float:
        """Return the seconds of a step, the median over the executions but the first."""
        iterator, ends = iter(self.dataset), []
        for _ in range(calls + 1):
            float(self.run(iterator))
            ends.append(time.perf_counter())
        return float(np.median(np.diff(ends))) / self.steps


class TorchRunner:
    """The same job in PyTorch: a process of its own that trains when it is its turn."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.steps = job["steps"]
        self.process = subprocess.Popen(
            [environment.PEERS_PYTHON, environment.BENCH / "torch_loop.py", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.about = self._answer()
        self.time(1)

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"PyTorch's process ended with {self.process.wait()}.")
        return json.loads(line)

    def time(self, calls: int) -> float:
        """Return the seconds of a step, the median over the stretches but the first."""
        self.process.stdin.write(f"{calls}\n")
        self.process.stdin.flush()
        return float(self._answer()["seconds"])

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait()


def alternate(runners: dict[str, Any], rounds: int, seconds: float, words: str) -> dict:
    """Time all runners in turns; return name -> seconds of a step, one for each round.

    A stretch is of as many seconds as given, and of `LEAST` steps.
    """
    steps = {name: max(LEAST, seconds / runner.time(1)) for name, runner in runners.items()}
    calls = {name: max(1, round(steps[name] / runner.steps)) for name, runner in runners.items()}
    times: dict[str, list[float]] = {name: [] for name in runners}
    for number in range(rounds):
        environment.progress(f"{words}: round {number + 1} of {rounds}")
        for name in turns.order(list(runners), number):
            times[name].append(runners[name].time(calls[name]))
    environment.progress("")
    return times
