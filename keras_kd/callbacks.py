"""Callbacks for training with a Distiller."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import keras

from keras_kd import checks


class StudentCheckpoint(keras.callbacks.ModelCheckpoint):
    """Save the plain student while it is distilled: the file loads without this package.

    `keras.callbacks.ModelCheckpoint` on a Distiller keeps everything that training needs to go on
    (student, projectors, optimizer); this one keeps what you ship. A file is written under another
    name and then renamed, so it is whole or absent.

    Args:
        filepath: path ending in `.keras`; `{epoch}` and the logs' names are filled in.
        monitor: name in the logs to judge by. Defaults to `"val_loss"`, which is the student's own.
        save_best_only: keep only the best by `monitor`. Defaults to `False`.
        **kwargs: `mode`, `save_freq`, `initial_value_threshold`, `verbose` as in Keras.

    Raises:
        ValueError: "A student is saved whole, as a .keras file", "There is no student to save",
            "There is no value in the logs" for a `monitor` that the best cannot be judged by.

    Example:
    ```python
    import keras_kd as kd

    callback = kd.callbacks.StudentCheckpoint("student.keras", save_best_only=True)
    # distiller.fit(…, validation_data=…, callbacks=[callback])
    ```
    """

    def __init__(
        self,
        filepath: str | os.PathLike,
        monitor: str = "val_loss",
        save_best_only: bool = False,
        **kwargs: Any,
    ) -> None:
        weights_only = kwargs.get("save_weights_only")
        if not str(filepath).endswith(".keras") or weights_only:
            raise checks.bad_value(
                "A student is saved whole, as a .keras file.",
                given=f"{str(filepath)!r}" + ", save_weights_only=True" * bool(weights_only),
                expected="a path that ends in .keras",
                fix='use StudentCheckpoint("student.keras").',
            )
        super().__init__(filepath, monitor=monitor, save_best_only=save_best_only, **kwargs)

    def set_model(self, model: Any) -> None:
        """Take the student of the Distiller that is being trained."""
        student = getattr(model, "student", None)
        if not isinstance(student, keras.Model):
            raise checks.bad_value(
                "There is no student to save.",
                given=f"a {type(model).__name__}",
                expected="a kd.Distiller in fit(callbacks=[…])",
                fix="use keras.callbacks.ModelCheckpoint for a plain model.",
            )
        super().set_model(_WholeFile(student, model))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Save where it is time to; refuse to guess which student is the best."""
        known = logs or {}
        if self.save_best_only and self.monitor not in known:
            raise checks.unknown_name("value in the logs to monitor", self.monitor, known)
        super().on_epoch_end(epoch, logs)


class _WholeFile:
    """What Keras's callback sees as the model: a student, saved under a temporary name."""

    def __init__(self, student: keras.Model, distiller: keras.Model) -> None:
        self.student = student
        self._distiller = distiller

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The metrics of the training, which say whether up or down is better."""
        return self._distiller.metrics

    def save(self, filepath: str, overwrite: bool = True) -> None:
        """Write the file whole, or leave what was there."""
        path = pathlib.Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.stem}.part.keras")
        try:
            self.student.save(part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
