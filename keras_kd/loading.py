"""Load a saved Distiller and go on where it stopped."""

from __future__ import annotations

from typing import Any

import keras

from keras_kd import checks
from keras_kd.distiller import Distiller


def load_distiller(path: Any, teacher: Any = None, **kwargs: Any) -> Distiller:
    """Load a saved Distiller and attach its teacher again, to train on where it stopped.

    Args:
        path: the `.keras` file that `distiller.save(path)` wrote.
        teacher: the teacher, as in `kd.Distiller`; `None` to evaluate only, or to attach it later.
        **kwargs: passed on to `keras.models.load_model`, e.g. `custom_objects`.

    Returns:
        The compiled Distiller; `.student` is the plain student.

    Raises:
        ValueError: "This is not the teacher that the student learned from", "… holds no Distiller".

    Example:
    ```python
    import os, tempfile
    import keras
    import keras_kd as kd

    teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    path = os.path.join(tempfile.mkdtemp(), "distiller.keras")
    kd.Distiller(teacher, student, kd.LogitsDistillation()).save(path)
    distiller = kd.load_distiller(path, teacher=teacher)
    ```
    """
    distiller = keras.models.load_model(path, **kwargs)
    if not isinstance(distiller, Distiller):
        raise checks.bad_value(
            f"{path} holds no Distiller.",
            given=f"a {type(distiller).__name__}",
            expected="a file that distiller.save(path) wrote",
            fix="load a plain model with keras.models.load_model(path).",
        )
    if teacher is not None:
        distiller.attach_teacher(teacher)
    return distiller
