"""The student as every target sees it: named tensors in, named tensors out."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_kd import checks
from keras_kd.export import base_options, base_structures
from keras_kd.export.base_quiet import quiet
from keras_kd.export.base_structures import Tensor, leaves

if TYPE_CHECKING:
    import keras
    import numpy as np
    import tensorflow as tf

    Arrays = Mapping[str, np.ndarray]

ENDPOINT = "serving_default"


class Student:
    """A Keras model seen from outside: named tensors in, named tensors out.

    A dict gives its keys as names. Elsewhere the names of `keras.Input` and of the output layers
    are kept, except those that Keras made by counting ("input_layer_3", "dense_1"), which differ
    from process to process: they become "input" and "output", numbered where there are several.

    Args:
        model: A built `keras.Model`; it is called, never changed.
        x: One batch of its inputs. A subclassed model takes input shapes and types from it.
        named_by: The model whose layer names count, where `model` is a clone.
        outputs: What outputs are given as: "logits" (taken before the softmax or sigmoid that ends
            the student), "probabilities" (softmax; sigmoid for an output of one value), "sigmoid"
            (probabilities of several yes-or-no labels), or a dict of output name to one of these.
            Default `None`: as the student gives them.
        scaling: (scale, offset) where the file takes raw values and the student sees
            raw * scale + offset, as in `keras.layers.Rescaling`; each a number or one number a
            channel. A dict of input name to such pairs for several inputs. All data is then raw.
        labels: Names of the classes, a list (or a dict of output name to a list).
        names: Other names for inputs and outputs, {old: new}. Data keeps the keys it has.

    Attributes:
        inputs: The inputs, as `Tensor`.
        output_names: The names of the outputs, in the model's order.
        options: What of `outputs`, `scaling`, `labels` and `names` was given, fit for JSON.

    Raises:
        ValueError: "takes text", "does not have the inputs of the student", "does not fit the
            input", and those of `outputs`, `scaling`, `labels` and `names`.
    """

    def __init__(
        self,
        model: keras.Model,
        x: Any,
        named_by: keras.Model | None = None,
        *,
        outputs: str | Mapping[str, str] | None = None,
        scaling: Any = None,
        labels: Any = None,
        names: Mapping[str, str] | None = None,
    ) -> None:
        """Look at the model once, on the first examples."""
        self.model = model
        self._scaling: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._kinds: dict[str, str] = {}
        self._graph: Any = None
        self._operators: dict[str, list[str]] | None = None
        names_of = model if named_by is None else named_by
        self._takes_training = _takes_training(model)
        self.template = base_structures.input_template(names_of, x)
        self.inputs: tuple[Tensor, ...] = tuple(leaf for _, leaf in leaves(self.template))
        for tensor in self.inputs:
            if tensor.dtype == "string":
                raise checks.bad_value(
                    "The student takes text, which the exported formats do not hold.",
                    given=f"input {tensor.key!r} of type string",
                    expected="inputs of numbers",
                    fix="export the part behind the text layer, and look words up before it.",
                )
        self._scaling = base_options.scalings(scaling, self.inputs)
        first = {name: value[:8] for name, value in self.flatten(x).items()}
        answers = self.call(first)
        found = base_structures.output_keys(names_of, answers)
        self._kinds = base_options.kinds(outputs, list(found))
        seen = dict(zip(found, (leaf for _, leaf in leaves(answers)), strict=True))
        self.labels = base_options.class_names(labels, {n: v.shape for n, v in seen.items()})
        self._sums_to_one = {n for n in self._kinds if base_structures.sums_to_one(seen[n])}
        self._output_keys, self.output_names = found, list(found)
        self._rename(base_options.renamed(names, [t.name for t in self.inputs], list(found)))
        self.options = self._told(names)
        if self._kinds:
            self._traced()  # refuses outputs that cannot be read so

    def _rename(self, names: Mapping[str, str]) -> None:
        """Let inputs and outputs carry their new names from here on."""
        import keras

        def new(part: dict[str, Any]) -> dict[str, Any]:
            return {names.get(name, name): value for name, value in part.items()}

        self.template = keras.tree.map_structure(
            lambda t: dataclasses.replace(t, name=names.get(t.name, t.name)), self.template
        )
        self.inputs = tuple(leaf for _, leaf in leaves(self.template))
        self._scaling, self._kinds = new(self._scaling), new(self._kinds)
        self.labels, self._output_keys = new(self.labels), new(self._output_keys)
        self._sums_to_one = {names.get(name, name) for name in self._sums_to_one}
        self.output_names = list(self._output_keys)

    def _told(self, names: Mapping[str, str] | None) -> dict[str, Any]:
        scaling = {
            name: {"scale": scale.tolist(), "offset": offset.tolist()}
            for name, (scale, offset) in self._scaling.items()
        }
        told = {"outputs": self._kinds, "scaling": scaling, "labels": self.labels}
        told["names"] = dict(names or {})
        return {name: value for name, value in told.items() if value}

    def flatten(self, x: Any, whose: str = "verification data") -> dict[str, np.ndarray]:
        """Turn a batch of the caller's data into named arrays of the model's types.

        Args:
            x: Inputs in the structure that the model is called with, or a dict of them.
            whose: What an error calls them.

        Raises:
            ValueError: "does not have the inputs of the student", "does not fit the input".
        """
        pairs = base_structures.match(self.template, x)
        if pairs is None:
            raise checks.bad_value(
                f"The {whose} does not have the inputs of the student.",
                given=base_structures.describe(x),
                expected=", ".join(f"{t.key!r}: {t.shape}" for t in self.inputs),
                fix="give each input in the structure that the student is called with.",
            )
        return {t.name: base_structures.fitted(t, value, whose) for t, value in pairs}

    def call(self, tensors: Mapping[str, Any]) -> Any:
        """Run the model for inference on named tensors, in its own output structure."""
        import keras

        scaled = {
            name: tensors[name] * scale + offset for name, (scale, offset) in self._scaling.items()
        }
        named = {**tensors, **scaled}
        structure = keras.tree.map_structure(lambda tensor: named[tensor.name], self.template)
        return self.model(structure, **({"training": False} if self._takes_training else {}))

    def answer(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Run the model in a graph, for inference on named tensors, and name its outputs."""
        values = [leaf for _, leaf in leaves(self.call(tensors))]
        return {
            name: base_options.read(name, value, self._kinds.get(name), name in self._sums_to_one)
            for name, value in zip(self.output_names, values, strict=True)
        }

    def part(self, structure: Any, name: str, *, shared: bool = False) -> Any:
        """Pick what belongs to one output out of labels (or weights), `None` where nothing does.

        Args:
            structure: Labels in the structure of the outputs, or a dict by output names.
            name: The output.
            shared: Whether one array stands for every output.
        """
        found = list(leaves(structure))
        if isinstance(structure, Mapping):
            named = {"_".join(map(str, path)): leaf for path, leaf in found}
            return named.get(self._output_keys[name], named.get(name))
        if len(found) == 1 and shared:
            return found[0][1]
        same = len(found) == len(self.output_names)
        return found[self.output_names.index(name)][1] if same else None

    def run(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """Run the model for inference on named arrays, compiled once."""
        import numpy as np
        import tensorflow as tf

        graph = self._traced()
        tensors = {name: tf.constant(value) for name, value in arrays.items()}
        return {name: np.asarray(value) for name, value in graph(tensors).items()}

    def _traced(self) -> Any:
        """Return the inference graph, traced once, with an open batch axis."""
        import tensorflow as tf

        if self._graph is None:
            signature = [
                {t.name: tf.TensorSpec((None, *t.shape[1:]), t.dtype) for t in self.inputs}
            ]
            graph = tf.function(self.answer, input_signature=signature, autograph=False)
            with quiet():
                self._graph = graph.get_concrete_function()
        return self._graph

    @property
    def operators(self) -> dict[str, list[str]]:
        """The TensorFlow operators of the inference graph: type to the names of its nodes."""
        if self._operators is None:
            graph = self._traced().graph.as_graph_def()
            found: dict[str, list[str]] = {}
            for nodes in (graph.node, *(f.node_def for f in graph.library.function)):
                for node in nodes:
                    found.setdefault(node.op, []).append(node.name)
            self._operators = found
        return self._operators

    @property
    def carries_ranges(self) -> bool:
        """Whether the graph holds FakeQuant operators: a quantisation-aware student."""
        return any(name.startswith("FakeQuant") for name in self.operators)

    def write_saved_model(self, path: Path, *, batch: int | None) -> None:
        """Write a SavedModel with one endpoint, `serving_default`, and clean names.

        Args:
            path: A folder that does not exist yet.
            batch: Size of the batch axis; `None` leaves it open.
        """
        import keras
        import tensorflow as tf

        specs = [tf.TensorSpec((batch, *t.shape[1:]), t.dtype, name=t.name) for t in self.inputs]

        def endpoint(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
            named = zip((t.name for t in self.inputs), tensors, strict=True)
            return self.answer(dict(named))

        archive = keras.export.ExportArchive()
        archive.add_endpoint(ENDPOINT, endpoint, input_signature=specs)
        archive.write_out(str(path), verbose=False)


def _takes_training(model: keras.Model) -> bool:
    parameters = inspect.signature(model.call).parameters.values()
    return any(p.name == "training" or p.kind is p.VAR_KEYWORD for p in parameters)
