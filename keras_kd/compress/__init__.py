"""Make a trained network smaller: fewer channels, and weights and activations of few bits."""

from __future__ import annotations

from keras_kd.compress.pruning.pruning import prune_channels, prune_iteratively
from keras_kd.compress.pruning.report import PruningReport, pruning_report
from keras_kd.compress.quantization import FreezeRanges, float_student, quantization_aware

__all__ = [
    "FreezeRanges",
    "PruningReport",
    "float_student",
    "prune_channels",
    "prune_iteratively",
    "pruning_report",
    "quantization_aware",
]
