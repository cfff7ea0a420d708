"""Knowledge distillation for Keras 3 on TensorFlow: teach a small model what a big one knows.

```python
import keras
import keras_kd as kd

teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(64), keras.layers.Dense(3)])
student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
distiller = kd.Distiller(teacher, student, kd.LogitsDistillation(temperature=4.0))
```

Names are loaded when they are first touched, so that `import keras_kd` loads no TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from keras_kd import checks, freed_memory

__version__ = "0.1.0"

_HOMES = {
    "Distiller": "keras_kd.distiller",
    "load_distiller": "keras_kd.loading",
    "Teacher": "keras_kd.teachers",
    "EnsembleTeacher": "keras_kd.teachers",
    "LogitsDistillation": "keras_kd.losses",
    "FeatureDistillation": "keras_kd.losses",
    "compare": "keras_kd.evaluation",
    "reuse_classifier": "keras_kd.reused_classifier",
    "MutualDistiller": "keras_kd.teaching",
    "SoftTargets": "keras_kd.soft_targets",
    "SoftBatch": "keras_kd.soft_batch",
    "ReplayableAugmentation": "keras_kd.augmentation",
    "export_student": "keras_kd.export",
}
_ROOMS = ("augmentation", "callbacks", "compress", "data", "losses", "metrics", "teaching")

__all__ = [
    "Distiller",
    "EnsembleTeacher",
    "FeatureDistillation",
    "LogitsDistillation",
    "MutualDistiller",
    "ReplayableAugmentation",
    "SoftBatch",
    "SoftTargets",
    "Teacher",
    "__version__",
    "augmentation",
    "callbacks",
    "compare",
    "compress",
    "data",
    "export_student",
    "load_distiller",
    "losses",
    "metrics",
    "reuse_classifier",
    "teaching",
]

if TYPE_CHECKING:
    from keras_kd import augmentation, callbacks, compress, data, losses, metrics, teaching
    from keras_kd.augmentation import ReplayableAugmentation
    from keras_kd.distiller import Distiller
    from keras_kd.evaluation import compare
    from keras_kd.export import export_student
    from keras_kd.loading import load_distiller
    from keras_kd.losses import FeatureDistillation, LogitsDistillation
    from keras_kd.reused_classifier import reuse_classifier
    from keras_kd.soft_batch import SoftBatch
    from keras_kd.soft_targets import SoftTargets
    from keras_kd.teachers import EnsembleTeacher, Teacher
    from keras_kd.teaching import MutualDistiller


freed_memory.keep()  # before TensorFlow runs: memory that it has had since stays as it was


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"keras_kd.{name}")
    fix = checks.closest(name, __all__)
    hint = f" Did you mean {fix[0]!r}?" if fix else ""
    raise AttributeError(f"module 'keras_kd' has no attribute {name!r}.{hint}")


def __dir__() -> list[str]:
    return sorted(__all__)
