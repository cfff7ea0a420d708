"""Build in child processes, kill them at random moments, and compare what a second build makes.

    python kill_builds.py FOLDER KILLS SEED

TensorFlow is imported once and runs nothing before the fork, so that a child is at work at once.
Prints one JSON object: how many children were killed at work, and which stores differ.
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import select
import signal
import sys
import time

import numpy as np

from keras_kd.soft_targets import SoftTargets, writing
from tests.soft_targets.soft_helpers import contents

ROWS, BATCH = 800, 8
writing.SHARD_BYTES = 20 * BATCH * 24  # five shards


def build(directory: pathlib.Path, ready: int) -> None:
    """Build with a teacher that takes its time, and say when it is asked first."""

    def teacher(x: np.ndarray) -> np.ndarray:
        os.write(ready, b".")
        time.sleep(0.002)
        return 2 * x

    x = np.sin(np.arange(4 * ROWS, dtype="float32") * 1.7).reshape(ROWS, 4)
    SoftTargets.build(
        teacher, x, directory, batch_size=BATCH, dtype="float32", fingerprint="f", verbose=0
    )


def child(directory: pathlib.Path) -> tuple[int, int]:
    """Start a build; return its process and a pipe that speaks when it is at work."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.close(read)
            build(directory, write)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    return process, read


def finish(directory: pathlib.Path) -> float:
    """Build to the end; return the seconds from the first question to the end."""
    process, pipe = child(directory)
    select.select([pipe], [], [])
    start = time.monotonic()
    _, status = os.waitpid(process, 0)
    os.close(pipe)
    if status:
        raise SystemExit(f"a build in {directory} failed with status {status}")
    return time.monotonic() - start


def killed(directory: pathlib.Path, delay: float) -> bool:
    """Kill a build so long after its first question; say whether it was still at work."""
    process, pipe = child(directory)
    select.select([pipe], [], [])
    time.sleep(delay)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    os.close(pipe)
    return os.WIFSIGNALED(status)


def main(folder: pathlib.Path, kills: int, seed: int) -> None:
    draw = random.Random(seed)
    seconds = finish(folder / "whole")
    expected = contents(folder / "whole")
    landed, halfway, differ = 0, 0, []
    for number in range(10 * kills):
        if landed == kills:
            break
        directory = folder / str(number)
        landed += killed(directory, draw.uniform(0.0, 1.05 * seconds))
        halfway += (directory / "building" / "journal").exists()
        finish(directory)
        if contents(directory) != expected:
            differ.append(directory.name)
    print(json.dumps({"killed": landed, "halfway": halfway, "differ": differ}))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
