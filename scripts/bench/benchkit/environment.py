"""Where a benchmark runs: the repository's environment, without TensorFlow's start-up lines."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[3]
BENCH = ROOT / "scripts" / "bench"
RESULTS = BENCH / "results"
PEERS_PYTHON = BENCH / ".venv-peers" / "bin" / "python"


def start() -> None:
    """Go on in the repository's .venv where this Python has no TensorFlow, and import it quietly.

    `CUDA_VISIBLE_DEVICES=0 scripts/bench/step` measures on an accelerator; without it, the CPU.
    `--help` needs none of it.
    """
    if {"-h", "--help"} & set(sys.argv):
        return
    python = ROOT / ".venv" / "bin" / "python"
    inside = pathlib.Path(sys.prefix) == python.parents[1]
    if importlib.util.find_spec("tensorflow") is None and python.exists() and not inside:
        os.execv(python, [str(python), *sys.argv])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    sys.path.insert(0, str(ROOT))
    with quiet():
        import tensorflow as tf

        tf.constant(0.0) + 1.0  # the devices introduce themselves with the first operation
    tf.get_logger().setLevel("ERROR")  # it takes many models for one that is traced again


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what C++ writes to standard error back, and show it only where the body fails."""
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as hidden:
        os.dup2(hidden.fileno(), 2)
        try:
            yield
        except BaseException:
            hidden.seek(0)
            os.write(shown, hidden.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)


def progress(words: str) -> None:
    """Write over the last line of a terminal."""
    if sys.stdout.isatty():
        print(f"\r\033[K{words}", end="", flush=True)


def torch_version() -> str:
    """Ask the peers' environment which PyTorch it has."""
    program = "import importlib.metadata as m; print(m.version('torch'))"
    return subprocess.check_output([PEERS_PYTHON, "-c", program], text=True).strip()
