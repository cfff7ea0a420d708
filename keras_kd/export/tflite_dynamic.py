"""TFLite with int8 weights and float activations: a quarter of the size, no calibration."""

from __future__ import annotations

from keras_kd.export import base, base_tflite


class TFLiteDynamic(base_tflite.TFLite):
    """A file for LiteRT with int8 weights; ranges of activations are taken while it runs.

    Weights of fewer than 1024 numbers stay float32, and so does all that is no matrix product.
    """

    file = "{name}_dynamic.tflite"
    bounds = base.Bounds(max_difference=0.1, agreement=0.97, accuracy_drop=0.01)
    optimise = True


TARGET = TFLiteDynamic()
