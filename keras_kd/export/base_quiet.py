"""Keep TensorFlow's words off the terminal."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def quiet() -> Iterator[Callable[[], str]]:
    """Keep what TensorFlow's Python and C++ parts print on stderr; yield a reader of the text.

    File descriptor 2 belongs to the process, so other threads are silent for that time as well.
    """
    import tensorflow as tf
    from absl import logging as absl_logging

    logger, level, verbosity = tf.get_logger(), tf.get_logger().level, absl_logging.get_verbosity()
    with tempfile.TemporaryFile() as sink, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ValueError):  # a process may have no stderr at all
            sys.stderr.flush()
            saved = os.dup(2)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, 2)
            os.dup2(sink.fileno(), 2)
        logger.setLevel("ERROR")
        absl_logging.set_verbosity(absl_logging.ERROR)
        stack.callback(logger.setLevel, level)
        stack.callback(absl_logging.set_verbosity, verbosity)

        def text() -> str:
            sink.seek(0)
            return sink.read().decode(errors="replace")

        yield text
