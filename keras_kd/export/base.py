"""What every export target shares: the student as named tensors, its tolerance, quiet tools."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import inspect
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from keras_kd import checks
from keras_kd.export.base_calibration import Calibration
from keras_kd.export.bounds import Bounds

if TYPE_CHECKING:
    import keras
    import numpy as np

    Arrays = Mapping[str, np.ndarray]

ENDPOINT = "serving_default"


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far a file may be from the Keras model before it is refused.

    Args:
        max_difference: Largest |file - model| allowed in any output, as a share of the largest
            |output| of the model over the verification data. The default, 1e-4, is about a
            thousand roundings of float32: rounding passes, a wrong weight does not.
        agreement: Share of decisions (argmax, or the side of the threshold) that must be equal.

    Raises:
        ValueError: "`max_difference` must be positive", "`agreement` must be between 0 and 1".

    Example:
        ```python
        from keras_kd.export import Tolerance

        loose = Tolerance(max_difference=1e-2, agreement=0.99)
        ```
    """

    max_difference: float = 1e-4
    agreement: float = 0.999

    def __post_init__(self) -> None:
        """Refuse numbers that bound nothing."""
        checks.positive("max_difference", self.max_difference)
        checks.fraction("agreement", self.agreement)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A file read back: how to run it and what it says about itself."""

    run: Callable[[Arrays], dict[str, np.ndarray]]
    inputs: dict[str, dict[str, Any]]
    outputs: dict[str, dict[str, Any]]
    ops: dict[str, int]


class Target(abc.ABC):
    """One file format: how to write it, and how to run it the way its users will.

    A new target is one new file with a subclass and `TARGET = Subclass()`, and one line in
    `keras_kd.export.TARGETS`.

    Attributes:
        file: What the file is called; `{name}` stands for the caller's name.
        bounds: The bounds that a file must keep where the caller states none.
        quantised: Whether all numbers are whole (int8, uint8, int16): then it needs a
            `Calibration`, unless the student carries its own ranges.
    """

    file: ClassVar[str]
    tolerance: ClassVar[Tolerance] = Tolerance()
    bounds: ClassVar[Bounds] = Bounds(max_difference=1e-4, agreement=0.999)
    quantised: ClassVar[bool] = False

    def refuses(self, student: Student) -> str | None:
        """Say why this format is not for this student, as far as is known before converting.

        Returns:
            `None` to go on, or an error's text in three parts (given, expected, fix), to be
            raised as `ValueError(text)`.
        """
        return None

    @abc.abstractmethod
    def write(self, student: Student, path: Path, calibration: Calibration | None = None) -> None:
        """Write the student to `path`, which does not exist yet.

        Args:
            student: What is written.
            path: The file or folder to make.
            calibration: Examples that the ranges of a quantised format are taken from. `None`
                where the format needs none, or the student carries its own.
        """

    @abc.abstractmethod
    def open(self, path: Path) -> Opened:
        """Read the file back with the runtime that its users have."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One input: its clean name, the key it has in the caller's data, its shape and type."""

    name: str
    key: str
    shape: tuple[int | None, ...]
    dtype: str


class Student:
    """A Keras model seen from outside: named tensors in, named tensors out.

    A dict gives its keys as names. Elsewhere the names of `keras.Input` and of the output layers
    are kept, except those that Keras made by counting ("input_layer_3", "dense_1"), which differ
    from process to process: they become "input" and "output", numbered where there are several.

    Args:
        model: A built `keras.Model`; it is called, never changed.
        x: One batch of its inputs. A subclassed model takes input shapes and types from it.
        named_by: The model whose layer names count, where `model` is a clone.
    """

    def __init__(self, model: keras.Model, x: Any, named_by: keras.Model | None = None) -> None:
        """Look at the model once, on the first example."""
        self.model = model
        self._graph: Any = None
        self._operators: dict[str, list[str]] | None = None
        names_of = model if named_by is None else named_by
        self._takes_training = _takes_training(model)
        self.template = _input_template(names_of, x)
        self.inputs: tuple[Tensor, ...] = tuple(leaf for _, leaf in leaves(self.template))
        for tensor in self.inputs:
            if tensor.dtype == "string":
                raise checks.bad_value(
                    "The student takes text, which the exported formats do not hold.",
                    given=f"input {tensor.key!r} of type string",
                    expected="inputs of numbers",
                    fix="export the part behind the text layer, and look words up before it.",
                )
        first = {name: value[:1] for name, value in self.flatten(x).items()}
        self._output_keys = _output_keys(names_of, self.call(first))
        self.output_names = list(self._output_keys)

    def flatten(self, x: Any, whose: str = "verification data") -> dict[str, np.ndarray]:
        """Turn a batch of the caller's data into named arrays of the model's types.

        Args:
            x: Inputs in the structure that the model is called with, or a dict by their names.
            whose: What an error calls them.
        """
        pairs = _match(self.template, x)
        if pairs is None:
            raise checks.bad_value(
                f"The {whose} does not have the inputs of the student.",
                given=_describe(x),
                expected=", ".join(f"{t.key!r}: {t.shape}" for t in self.inputs),
                fix="give each input in the structure that the student is called with.",
            )
        return {tensor.name: _fitted(tensor, value, whose) for tensor, value in pairs}

    def call(self, tensors: Mapping[str, Any]) -> Any:
        """Run the model for inference on named tensors, in its own output structure."""
        import keras

        structure = keras.tree.map_structure(lambda tensor: tensors[tensor.name], self.template)
        return self.model(structure, **({"training": False} if self._takes_training else {}))

    def answer(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Run the model for inference on named tensors; the outputs carry their names."""
        values = [leaf for _, leaf in leaves(self.call(tensors))]
        return dict(zip(self.output_names, values, strict=True))

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


@contextlib.contextmanager
def quiet() -> Iterator[Callable[[], str]]:
    """Keep what TensorFlow's Python and C++ parts print on stderr; yield a reader of the text.

    File descriptor 2 belongs to the process, so other threads are silent for that time as well.
    """
    import tensorflow as tf
    from absl import logging as absl_logging

    logger, level, verbosity = tf.get_logger(), tf.get_logger().level, absl_logging.get_verbosity()
    with tempfile.TemporaryFile() as sink, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ValueError):  # a process may have no stderr at all
            sys.stderr.flush()
            saved = os.dup(2)
            stack.callback(os.close, saved)
            stack.callback(os.dup2, saved, 2)
            os.dup2(sink.fileno(), 2)
        logger.setLevel("ERROR")
        absl_logging.set_verbosity(absl_logging.ERROR)
        stack.callback(logger.setLevel, level)
        stack.callback(absl_logging.set_verbosity, verbosity)

        def text() -> str:
            sink.seek(0)
            return sink.read().decode(errors="replace")

        yield text


def leaves(structure: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple, Any]]:
    """Yield (path, leaf) of nested dicts, lists and tuples, in the order they were made in."""
    if isinstance(structure, Mapping):
        for key, value in structure.items():
            yield from leaves(value, (*path, str(key)))
    elif isinstance(structure, list | tuple):
        for index, value in enumerate(structure):
            yield from leaves(value, (*path, index))
    else:
        yield path, structure


def is_functional(model: keras.Model) -> bool:
    """Say whether the model's inputs and outputs are known from its graph of layers."""
    from keras.src.models.functional import Functional  # Keras has no public name for it

    return isinstance(model, Functional)


def _takes_training(model: keras.Model) -> bool:
    parameters = inspect.signature(model.call).parameters.values()
    return any(p.name == "training" or p.kind is p.VAR_KEYWORD for p in parameters)


def _input_template(model: keras.Model, x: Any) -> Any:
    """Lay out the inputs in the structure that the model is called with, a `Tensor` a leaf."""
    import keras

    if isinstance(model, keras.Sequential):
        structure = model.inputs[0]
    else:
        structure = model.input if is_functional(model) else x
    found = list(leaves(structure))
    chosen = [_chosen_input(getattr(leaf, "name", "")) for _, leaf in found]
    names = _names([path for path, _ in found], chosen, "input")
    made = iter(zip(names, found, strict=True))

    def build(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {key: build(value) for key, value in part.items()}
        if isinstance(part, list | tuple):
            return [build(value) for value in part]
        name, (path, leaf) = next(made)
        key = str(path[-1]) if path and isinstance(path[-1], str) else getattr(leaf, "name", name)
        dtype = keras.backend.standardize_dtype(leaf.dtype)
        dtype = "float32" if "float" in dtype else dtype
        return Tensor(name, key, (None, *leaf.shape[1:]), dtype)

    return build(structure)


def _output_keys(model: keras.Model, outputs: Any) -> dict[str, str]:
    """Map the clean name of every output to the key that labels have in the caller's data."""
    import keras

    paths = [path for path, _ in leaves(outputs)]
    chosen: list[str | None] = [None] * len(paths)
    own: list[str] = []
    if isinstance(model, keras.Sequential):
        chosen = [_chosen_output(model.layers[-1].name, type(model.layers[-1]).__name__)]
    elif is_functional(model):
        classes = {operation.name: type(operation).__name__ for operation in model.operations}
        own = list(model.output_names)
        chosen = [_chosen_output(name, classes.get(name, "")) for name in own]
    names = _names(paths, chosen, "output")
    keys = ["_".join(map(str, path)) for path in paths]
    if own and not isinstance(outputs, Mapping):
        keys = own
    return dict(zip(names, keys, strict=True))


def _chosen_input(name: str) -> str | None:
    return None if re.fullmatch(r"(input_layer|keras_tensor)?(_\d+)?", name) else name


def _chosen_output(name: str, class_name: str) -> str | None:
    snake = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", class_name)
    snake = re.sub(r"([a-z])([A-Z])", r"\1_\2", snake).lower()
    return None if re.sub(r"_\d+$", "", name) == snake else name


def _names(paths: list[tuple], chosen: list[str | None], fallback: str) -> list[str]:
    names: list[str] = []
    for index, (path, own) in enumerate(zip(paths, chosen, strict=True)):
        if any(isinstance(part, str) for part in path):
            name = "_".join(str(part) for part in path)
        else:
            name = own or (fallback if len(paths) == 1 else f"{fallback}_{index}")
        name = re.sub(r"\W", "_", name, flags=re.ASCII)
        name = name if name[:1].isalpha() else f"{fallback}_{name}"
        while name in names:
            name = f"{name}_{index}"
        names.append(name)
    return names


def _match(template: Any, x: Any) -> list[tuple[Tensor, Any]] | None:
    """Pair every input with its values, or return `None` where the structures differ."""
    if isinstance(template, Tensor):
        if isinstance(x, Mapping):
            return [(template, x[template.key])] if template.key in x else None
        if isinstance(x, list | tuple):
            return [(template, x[0])] if len(x) == 1 else None
        return [(template, x)]
    if isinstance(x, Mapping):
        flat = not isinstance(template, Mapping)
        parts = [(t.key, t) for _, t in leaves(template)] if flat else list(template.items())
        pairs = [(part, x[key]) for key, part in parts if key in x]
        if len(pairs) != len(parts):
            return None
    elif isinstance(x, list | tuple) and not isinstance(template, Mapping):
        if len(x) != len(template):
            return None
        pairs = list(zip(template, x, strict=True))
    else:
        return None
    found = [_match(part, value) for part, value in pairs]
    return (
        None if any(part is None for part in found) else [p for part in found for p in part or ()]
    )


def _fitted(tensor: Tensor, value: Any, whose: str) -> np.ndarray:
    """Give an array the input's type, and its rank where Keras would too (a last axis of 1)."""
    import numpy as np

    array = np.asarray(value)
    shape = array.shape
    if array.ndim == len(tensor.shape) - 1 and tensor.shape[-1] == 1:
        array = array[..., None]
    elif array.ndim == len(tensor.shape) + 1 and array.shape[-1] == 1:
        array = array[..., 0]
    fits = array.ndim == len(tensor.shape) and all(
        want in (None, have) for want, have in zip(tensor.shape, array.shape, strict=True)
    )
    if not fits:
        raise checks.bad_value(
            f"The {whose} does not fit the input {tensor.key!r}.",
            given=f"shape {shape}",
            expected=f"shape {tensor.shape}, the batch first",
            fix="batch the data (`dataset.batch(32)`) and prepare it as for `student.predict`.",
        )
    return array.astype(tensor.dtype)


def _describe(x: Any) -> str:
    parts = ((path, getattr(leaf, "shape", type(leaf).__name__)) for path, leaf in leaves(x))
    return ", ".join(
        f"{'/'.join(map(str, path)) or 'one tensor'}: {shape}" for path, shape in parts
    )
