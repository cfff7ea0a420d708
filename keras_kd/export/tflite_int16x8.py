"""TFLite with int16 activations and int8 weights: where int8 activations lose too much."""

from __future__ import annotations

import dataclasses

from keras_kd.export import base_tflite


class TFLiteInt16x8(base_tflite.TFLite):
    """A file for LiteRT of int8 weights and int16 activations, inputs and outputs.

    Fewer operators have a kernel for it than for int8; the others compute in float (an island).
    Its bound of 5140 steps is that of int8, 20 steps, on a scale that is 257 times as fine. It runs
    slower than int8 on most CPUs. Inputs of whole numbers are refused.
    """

    file = "{name}_int16x8.tflite"
    bounds = dataclasses.replace(base_tflite.WHOLE, steps=257 * base_tflite.STEPS)
    quantised = True
    optimise = True
    ends = "int16"


TARGET = TFLiteInt16x8()
