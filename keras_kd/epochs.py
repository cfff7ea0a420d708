"""From one epoch to the next, without waiting for the tuner of the past one."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras


class PastIterators:
    """Let go of the iterator over an epoch's batches while the next epoch trains.

    `tf.data` tunes each iterator in a thread, which looks at it after 10 ms, 20 ms, 40 ms and so
    on, up to a minute, and letting go of an iterator waits for that thread. TensorFlow calls it to
    the end before it says that the iterator has ended; a thread that looks in between (on two cores
    each third to fifth time, with TensorFlow 2.21) sleeps on, and the next epoch waits for as long
    as the last one took, at most. Here another thread does the waiting; as long as it does, the
    past iterator's buffers are in memory beside those of the next.

    An iterator whose epoch was the last one is let go of at once, so that when `fit` has ended
    nothing reads the data any more.

    Reference:
        TensorFlow: `Model::OptimizeLoop` and `CancellationManager::StartCancelWithStatus`, whose
        callbacks run before `IsCancelled` is true.
    """

    def __init__(self) -> None:
        self._kept: dict[str, list] | None = None

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keep each iterator until the next one comes, or until this ends."""
        self._kept, before = {}, self._kept
        try:
            yield
        finally:
            self._kept = before

    def before(self, execute: Callable, use: str) -> Callable:
        """Return an execution that keeps the iterator it is given.

        Args:
            execute: function of an iterator.
            use: what it is for; iterators of different use do not follow each other.
        """

        def run(iterator: Any) -> Any:
            if self._kept is not None:
                last = self._kept.get(use)
                if last is None or last[0] is not iterator:
                    self._kept[use] = [iterator]  # nothing but this list holds the last one
                    if last is not None:
                        threading.Thread(target=last.clear, name="keras_kd past epoch").start()
            return execute(iterator)

        return run


class Trainer(keras.Model):
    """A `keras.Model` whose epochs in `fit` do not wait for the iterator of the one before."""

    train_function: Any
    test_function: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._past = PastIterators()

    @functools.wraps(keras.Model.fit)
    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Train, as `keras.Model.fit`."""
        with self._past.kept():
            return super().fit(*args, **kwargs)

    def make_train_function(self, force: bool = False) -> None:
        """Prepare the step, as `keras.Model.make_train_function`."""
        if force or not self.train_function:
            super().make_train_function(force=force)
            self.train_function = self._past.before(self.train_function, "training")

    def make_test_function(self, force: bool = False) -> None:
        """Prepare the evaluation, as `keras.Model.make_test_function`."""
        if force or not self.test_function:
            super().make_test_function(force=force)
            self.test_function = self._past.before(self.test_function, "validation")
