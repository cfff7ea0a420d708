"""Augmentation that can be seen again: the same views of the same examples, in any process.

`ReplayableAugmentation` draws nothing but from an example's own content, so that soft targets and
augmentation go together: the teacher's answer to a view is stored once, and the view comes again.

- for one example: `flips`, `shifts`, `crops`, `rotations`, `noise`, `brightness`, `contrast`
- for a batch: `mixup`, `cutmix`
- `chain`: several as one
"""

from __future__ import annotations

from keras_kd.augmentation.functions import chain
from keras_kd.augmentation.images import crops, flips, rotations, shifts
from keras_kd.augmentation.mixing import cutmix, mixup
from keras_kd.augmentation.replayable import ReplayableAugmentation
from keras_kd.augmentation.values import brightness, contrast, noise

__all__ = [
    "ReplayableAugmentation",
    "brightness",
    "chain",
    "contrast",
    "crops",
    "cutmix",
    "flips",
    "mixup",
    "noise",
    "rotations",
    "shifts",
]
