"""Processes of their own, for what must not share one: memory, and reading on one core."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

from benchkit import environment

MEGABYTE = 1e6


def ask(script: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run `scripts/bench/SCRIPT --child JOB`, and return what its last line says."""
    command = [sys.executable, environment.BENCH / script, "--child", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{script} --child {json.dumps(job)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def one_core() -> None:
    """Keep this process and its threads on one core, where the system can; before TensorFlow."""
    if sys.platform == "linux":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def resident() -> float:
    """Return the megabytes that this process has in memory (Linux)."""
    return _status("VmRSS")


def peak() -> float:
    """Return the most megabytes that this process had in memory since `forget_peak` (Linux)."""
    return _status("VmHWM")


def forget_peak() -> None:
    """Let the peak begin again from here; where the system refuses, it is the process's."""
    gc.collect()
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status(key: str) -> float:
    lines = pathlib.Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    line = next(line for line in lines if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024 / MEGABYTE
