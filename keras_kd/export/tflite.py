"""TFLite in float32: for phones, batch 1, builtin operators only."""

from __future__ import annotations

from keras_kd.export import base, base_tflite


class TFLite(base_tflite.TFLite):
    """A file for LiteRT in float32: it answers as the student does, to the rounding."""

    file = "{name}.tflite"
    bounds = base.Bounds(max_difference=1e-4, agreement=0.999)


TARGET = TFLite()
