"""Keep what LiteRT prints about its delegates out of the caller's terminal."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Send file descriptor 2 nowhere for a while.

    It belongs to the process, so other threads are silent for that time as well.
    """
    with tempfile.TemporaryFile() as sink, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ValueError):  # a process may have no stderr at all
            sys.stderr.flush()
            saved = os.dup(2)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, 2)
            os.dup2(sink.fileno(), 2)
        yield
