"""Measure the accuracy of a .tflite file, with ai-edge-litert and numpy alone."""

import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter

path, data = sys.argv[1:]
images, labels = (np.load(data)[name] for name in ("x", "y"))
runner = Interpreter(path).get_signature_runner()
((name, info),) = runner.get_input_details().items()
scale, zero_point = info["quantization"]
right = 0
for image, label in zip(images, labels, strict=True):
    if scale:  # an integer file: round to its steps, stay in its range
        ends = np.iinfo(info["dtype"])
        image = np.clip(np.rint(image / np.float64(scale)) + zero_point, ends.min, ends.max)
    (answer,) = runner(**{name: image[None].astype(info["dtype"])}).values()
    right += int(answer.argmax() == label)
print(right / len(labels))
