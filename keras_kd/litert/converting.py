"""Convert a SavedModel to TFLite in a child process, so that a crash becomes an error.

The converter can take its whole process down (quantising a loop ends in a segmentation fault) and
prints where it likes. Here it runs in a child that reads jobs as JSON lines and answers each with
one. This is the one module that uses `tf.lite`.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from keras_kd import checks

ENDPOINT = "serving_default"
LIMIT = 1800.0


@dataclasses.dataclass(frozen=True)
class Job:
    """One conversion, in words that fit in a line of JSON.

    Args:
        model: What an error calls the model.
        saved_model: Folder of a SavedModel with the endpoint `serving_default`.
        file: The `.tflite` to write.
        optimise: Whether weights may become smaller (`Optimize.DEFAULT`).
        float16: Whether weights are kept as float16.
        ends: Type of floating-point inputs and outputs, "int8", "uint8" or "int16"; then all
            that has a kernel computes in whole numbers ("int16": activations of 16, weights of 8
            bits). `None` leaves them float32.
        examples: An `.npz` of calibration examples, written by `write_examples`. `None` where the
            model carries its ranges (FakeQuant operators), or nothing is calibrated.
    """

    model: str
    saved_model: str
    file: str
    optimise: bool = False
    float16: bool = False
    ends: str | None = None
    examples: str | None = None


class Converter:
    """A child process that converts one model after the other; TensorFlow is loaded once in it.

    A job that crashes the child, hangs past the limit or fails raises a `ValueError`; the next job
    gets a new child where the old one is gone. Nothing of the child reaches the terminal.

    Args:
        limit: Seconds that one job may take before its child is ended. Default 1800.
        command: What is run in the place of this module, for tests.

    Example:
        ```python
        from keras_kd.litert import converting

        with converting.Converter(limit=60) as converter:
            print(converter.running)  # no process before the first job
        ```
    """

    def __init__(self, limit: float = LIMIT, command: list[str] | None = None) -> None:
        """Start nothing yet."""
        self.limit = checks.positive("limit", limit)
        self._command = command or [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "keras_kd.litert.converting",
        ]
        self._child: subprocess.Popen | None = None
        self._answers: queue.Queue[str] = queue.Queue()
        self._log: IO[bytes] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Converter:
        """Give itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """End the child."""
        self.close()

    @property
    def running(self) -> int | None:
        """The id of the child process, or `None` where there is none."""
        alive = self._child is not None and self._child.poll() is None
        return self._child.pid if alive and self._child is not None else None

    def start(self) -> None:
        """Start the child now, so that it loads TensorFlow while this process does something."""
        if self.running is not None:
            return
        self.close()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the child)
        self._child = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_environment(),
            text=True,
            encoding="utf-8",
        )
        self._answers = queue.Queue()
        reader = threading.Thread(
            target=_pass_on, args=(self._child.stdout, self._answers), daemon=True
        )
        reader.start()

    def convert(self, job: Job) -> None:
        """Write `job.file`, or say why it cannot be.

        Raises:
            ValueError: "cannot be expressed in TFLite's builtin operators", "The TFLite converter
                failed on the student", "crashed on the student", "did not finish".
        """
        with self._lock:
            self.start()
            begins = self._printed()
            try:
                self._send(job)
                line = self._answers.get(timeout=self.limit)
            except queue.Empty:
                self.close()
                raise _hung(job, self.limit) from None
            except BaseException:  # an interrupted wait leaves an answer that nobody reads
                self.close()
                raise
            if not line:
                printed = self._printed()[len(begins) :]
                raise _crashed(job, self._ended(), printed)
            answer = json.loads(line)
            if not answer["done"]:
                raise _failed(job, answer["error"], self._printed()[len(begins) :])

    def close(self) -> None:
        """End the child, whatever it does."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        if self._log is not None:
            self._log.close()
            self._log = None

    def _send(self, job: Job) -> None:
        """Hand the job over; a child that is gone already shows in its missing answer."""
        if self._child is not None and self._child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._child.stdin.write(json.dumps(dataclasses.asdict(job)) + "\n")
                self._child.stdin.flush()

    def _printed(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def _ended(self) -> int:
        """Wait for a child whose pipe is closed; return its exit status."""
        code = self._child.wait() if self._child is not None else 0
        self.close()
        return code


class _Shared:
    """The converter of this process, and how many hold it."""

    converter: Converter | None = None
    holders = 0
    lock = threading.Lock()


@contextlib.contextmanager
def converter() -> Iterator[Converter]:
    """Hold the converter of this process; its child is ended when the last holder leaves.

    `export_student` holds it around all formats, so that they share one child. Hold it yourself
    around several exports to load TensorFlow once for all of them.

    Example:
        ```python
        from keras_kd.litert import converting

        with converting.converter() as one, converting.converter() as same:
            print(one is same)
        ```
    """
    with _Shared.lock:
        _Shared.converter = held = _Shared.converter or Converter()
        _Shared.holders += 1
    try:
        yield held
    finally:
        with _Shared.lock:
            _Shared.holders -= 1
            if not _Shared.holders:
                held.close()
                _Shared.converter = None


@atexit.register
def _close() -> None:
    if _Shared.converter is not None:
        _Shared.converter.close()


def write_examples(path: str | os.PathLike, examples: list[dict[str, np.ndarray]]) -> None:
    """Write calibration examples (input name to array of batch 1) to an `.npz` for a `Job`."""
    arrays: dict[str, Any] = {
        f"{index}/{name}": array
        for index, example in enumerate(examples)
        for name, array in example.items()
    }
    np.savez(path, **arrays)


def read_examples(path: str | os.PathLike) -> Iterator[dict[str, np.ndarray]]:
    """Yield the examples of `write_examples` in order, one at a time in memory."""
    with np.load(path, allow_pickle=False) as archive:
        names: dict[int, list[str]] = {}
        for key in archive.files:
            index, name = key.split("/", 1)
            names.setdefault(int(index), []).append(name)
        for index in sorted(names):
            yield {name: archive[f"{index}/{name}"] for name in names[index]}


def serve() -> None:
    """Convert what stdin asks for, line by line; answers go to stdout, and nothing else does."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what TensorFlow prints on stdout belongs to the log
    for line in sys.stdin:
        try:
            _convert(Job(**json.loads(line)))
            answer: dict[str, Any] = {"done": True}
        except (OSError, RuntimeError, ValueError) as error:  # others end the child: a crash
            answer = {"done": False, "error": f"{type(error).__name__}: {error}"}
        sys.stderr.flush()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _convert(job: Job) -> None:
    import tensorflow as tf
    from tensorflow.lite.python.convert_phase import ConverterError

    found = tf.lite.TFLiteConverter.from_saved_model(job.saved_model, signature_keys=[ENDPOINT])
    sets = tf.lite.OpsSet
    sixteen = sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
    found.target_spec.supported_ops = [sets.TFLITE_BUILTINS]
    if job.optimise:
        found.optimizations = [tf.lite.Optimize.DEFAULT]
    if job.float16:
        found.target_spec.supported_types = [tf.float16]
    if job.examples is not None:
        found.representative_dataset = lambda: read_examples(str(job.examples))
        found.target_spec.supported_ops = (
            [sixteen, sets.TFLITE_BUILTINS] if job.ends == "int16" else [sets.TFLITE_BUILTINS_INT8]
        )
    if job.ends is not None:
        found.inference_input_type = found.inference_output_type = tf.as_dtype(job.ends)
    try:
        content = found.convert()
    except ConverterError as error:
        raise RuntimeError(str(error)) from error
    with open(job.file, "wb") as file:
        file.write(content)


def _environment() -> dict[str, str]:
    """Give the child the paths of this process, and no accelerator."""
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    return os.environ | {
        "PYTHONPATH": paths,
        "CUDA_VISIBLE_DEVICES": "-1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }


def _pass_on(pipe: IO[str], answers: queue.Queue[str]) -> None:
    """Put every line of a pipe in the queue, and "" at its end."""
    with contextlib.suppress(OSError, ValueError):
        for line in pipe:
            answers.put(line)
    answers.put("")


def _failed(job: Job, error: str, printed: str) -> ValueError:
    """Say which operators have no builtin kernel, or show what the converter said."""
    text = f"{error}\n{printed}"
    listed = re.findall(r"^(?:Custom|TF Select|Flex) ops: (.+)$", text, flags=re.MULTILINE)
    single = re.findall(r"'tf\.(\w+)' op is neither a custom op nor a flex op", text)
    ops = sorted({op.strip() for line in listed for op in line.split(",")} | set(single))
    if ops:
        return checks.bad_value(
            "The student cannot be expressed in TFLite's builtin operators.",
            given=f"{job.model!r} uses {', '.join(ops)}",
            expected="operators that LiteRT runs everywhere (no custom, no TF Select operator)",
            fix=f"replace what makes {ops[0]}, or export with formats=['saved_model'].",
        )
    said = re.findall(r"error: (?:loc\(.*\): )?(.+)", text) or [" ".join(error.split())[-500:]]
    return checks.bad_value(
        "The TFLite converter failed on the student.",
        given=f"{job.model!r}: {said[0]}",
        expected="a model that converts with a batch of 1",
        fix=_fix(job),
    )


def _crashed(job: Job, code: int, printed: str) -> ValueError:
    if code < 0:
        how = f"its process was ended by {signal.Signals(-code).name}"
    else:
        how = f"its process ended with status {code}"
    last = " ".join(printed.split())[-300:]
    return checks.bad_value(
        "The TFLite converter crashed on the student.",
        given=f"{job.model!r}: {how}{f'; it said: {last}' if last else ''}",
        expected="a model that converts with a batch of 1",
        fix=_fix(job),
    )


def _hung(job: Job, limit: float) -> ValueError:
    return checks.bad_value(
        "The TFLite converter did not finish on the student, so it was ended.",
        given=f"{job.model!r}: no answer after {limit:g} s",
        expected=f"a conversion of {limit:g} s at most",
        fix=f"pass fewer calibration examples; or {_fix(job)}",
    )


def _fix(job: Job) -> str:
    if job.ends is not None:
        return (
            "unroll its loops (`unroll=True` in LSTM and GRU), or use a float format: "
            "formats=['tflite', 'tflite_float16', 'tflite_dynamic']."
        )
    return "unroll its loops (`unroll=True` in LSTM and GRU), or use formats=['saved_model']."


if __name__ == "__main__":
    serve()
