"""TFLite in whole numbers, int8 in and out: for microcontrollers, NPUs and small phones."""

from __future__ import annotations

from keras_kd.export import base_tflite


class TFLiteInt8(base_tflite.TFLite):
    """A file for LiteRT of int8 weights, activations, inputs and outputs.

    Ranges come from a `Calibration`, or from the student itself where it was trained with
    `keras_kd.compress.quantization_aware`. Inputs that are whole numbers already (token ids) stay
    int32.
    """

    file = "{name}_int8.tflite"
    bounds = base_tflite.WHOLE
    quantised = True
    optimise = True
    ends = "int8"


TARGET = TFLiteInt8()
