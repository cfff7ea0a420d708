"""TFLite with float16 weights: half the size, computed in float32 on a CPU."""

from __future__ import annotations

from keras_kd.export import base, base_tflite


class TFLiteFloat16(base_tflite.TFLite):
    """A file for LiteRT whose weights are float16, rounded to 2^-11 of themselves.

    A CPU turns them into float32 when it loads the file; a GPU computes in float16.
    """

    file = "{name}_float16.tflite"
    bounds = base.Bounds(max_difference=0.01, agreement=0.99, accuracy_drop=0.005)
    optimise = True
    float16 = True


TARGET = TFLiteFloat16()
