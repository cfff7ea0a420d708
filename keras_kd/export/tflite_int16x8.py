"""TFLite with int16 activations and int8 weights: where int8 activations lose too much."""

from __future__ import annotations

from keras_kd.export import base, base_tflite


class TFLiteInt16x8(base_tflite.TFLite):
    """A file for LiteRT of int8 weights and int16 activations, inputs and outputs.

    Fewer operators have a kernel for it than for int8; the others compute in float (an island).
    It runs slower than int8 on most CPUs. Inputs of whole numbers are refused.
    """

    file = "{name}_int16x8.tflite"
    bounds = base.Bounds(max_difference=0.05, agreement=0.95, accuracy_drop=0.01, float_islands=0)
    quantised = True
    optimise = True
    ends = "int16"


TARGET = TFLiteInt16x8()
