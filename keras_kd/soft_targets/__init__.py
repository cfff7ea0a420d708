"""What a teacher answers, kept on the disk: asked once, learnt from as often as one likes.

SoftTargets    build, open, verify, merge
"""

from __future__ import annotations

from keras_kd.soft_targets.targets import SoftTargets

__all__ = ["SoftTargets"]
