"""SavedModel: for servers, with an open batch axis; run back with `tf.saved_model.load`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_kd.export import base


class SavedModel(base.Target):
    """A folder that TensorFlow Serving and `tf.saved_model.load` read without Keras.

    The batch axis is open, and so is every other axis that is `None` in the student.
    """

    file = "saved_model"

    def write(
        self, student: base.Student, path: Path, calibration: base.Calibration | None = None
    ) -> None:
        """Write the folder, with the endpoint `serving_default`."""
        with base.quiet():
            student.write_saved_model(path, batch=None)

    def open(self, path: Path) -> base.Opened:
        """Load the folder and read its signature."""
        with base.quiet():
            loaded = tf.saved_model.load(str(path))
        signature = loaded.signatures[base.ENDPOINT]

        def run(arrays: base.Arrays) -> dict[str, np.ndarray]:
            # `loaded` is named so that it lives as long as this function: it owns the variables.
            serve = loaded.signatures[base.ENDPOINT]
            outputs = serve(**{name: tf.constant(value) for name, value in arrays.items()})
            return {name: value.numpy() for name, value in outputs.items()}

        inputs = signature.structured_input_signature[1]
        return base.Opened(run, _told(inputs), _told(signature.structured_outputs), _ops(signature))


def _told(specs: dict[str, tf.TensorSpec]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "shape": None if spec.shape.rank is None else spec.shape.as_list(),
            "dtype": spec.dtype.name,
        }
        for name, spec in sorted(specs.items())
    }


def _ops(signature: Any) -> dict[str, int]:
    graph = signature.graph.as_graph_def()
    nodes = [*graph.node, *(n for function in graph.library.function for n in function.node_def)]
    return dict(sorted(Counter(node.op for node in nodes).items()))


TARGET = SavedModel()
