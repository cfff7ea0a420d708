"""TFLite in whole numbers, uint8 in and out: for cameras, whose bytes go in as they are."""

from __future__ import annotations

from keras_kd.export import base_tflite


class TFLiteUint8(base_tflite.TFLite):
    """The int8 file with unsigned inputs and outputs; inside it computes in int8.

    With `scaling=(1 / 255, 0.0)`, or a `Rescaling` layer first, a byte of an image is its own
    quantised value.
    """

    file = "{name}_uint8.tflite"
    bounds = base_tflite.WHOLE
    quantised = True
    optimise = True
    ends = "uint8"


TARGET = TFLiteUint8()
