"""One pass through a model that also returns named intermediates.

A tap is a path of layer names, `"backbone/block3/relu"`. The model itself is run, whatever its
kind (Functional, Sequential, nested, subclassed); its layers are listened to for the length of that
pass.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_kd import checks
from keras_kd.folded import folds

_lock = threading.Lock()


class TappedModel:
    """Call a model once and get its outputs together with named intermediates.

    This is how a feature loss sees inside a teacher or a student without a second pass and without
    rebuilding the model. Nothing in the model is changed once the call has returned.

    Args:
        model: a `keras.Model`, built or not.
        paths: paths of layer names from the model down, such as `"conv1"` or
            `"backbone/block3/relu"`. A layer that is called several times in one pass takes the
            number of the call, counted from 0: `"shared#0"`, `"shared#1"`.

    Raises:
        ValueError: "There is no layer …" for an unknown path, with the closest names;
            "… is called 2 times in one pass" where the number of the call is missing;
            "… is not reachable from outside" for a tensor inside an RNN loop or an inner
            `tf.function`; "… was not called" for a layer that the pass does not run.

    Example:
    ```python
    import keras
    from keras_kd.taps import TappedModel

    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, name="hidden"), keras.layers.Dense(2)]
    )
    outputs, features = TappedModel(model, ["hidden"])(keras.ops.ones((5, 4)))
    print(outputs.shape, features["hidden"].shape)  # (5, 2) (5, 3)
    ```
    """

    def __init__(self, model: keras.Model, paths: Iterable[str] = ()) -> None:
        self.model = model
        self.paths = tuple(dict.fromkeys(paths))  # each once, in order
        self._layers: dict[str, keras.layers.Layer] | None = None
        if self.paths and model.built:
            self._layers = self._resolve()

    def __call__(self, inputs: Any, training: bool = False) -> tuple[Any, dict[str, Any]]:
        """Run the model; return `(outputs, {path: tensor})`."""
        return self._run(inputs, training, {})

    def folded(self, inputs: Any) -> tuple[Any, dict[str, Any]]:
        """Run the model without training, in fewer operations; it gives the same up to rounding."""
        if not self.model.built:
            return self(inputs)
        return self._run(inputs, False, folds(self.model, self._tapped_layers().values()))

    def _run(
        self, inputs: Any, training: bool, instead: dict[Any, Callable]
    ) -> tuple[Any, dict[str, Any]]:
        layers = self._tapped_layers(inputs)
        heard: dict[int, list[Any]] = {id(layer): [] for layer in layers.values()}
        with contextlib.ExitStack() as stack:
            for layer, call in instead.items():
                stack.enter_context(_shadowed(layer, instead=call))
            for layer in {id(layer): layer for layer in layers.values()}.values():
                stack.enter_context(_shadowed(layer, hear=heard[id(layer)].append))
            outputs = call_model(self.model, inputs, training)
        return outputs, {path: self._pick(path, heard[id(layer)]) for path, layer in layers.items()}

    def _tapped_layers(self, inputs: Any = None) -> dict[str, keras.layers.Layer]:
        if self._layers is None:
            if self.paths and not self.model.built:
                call_model(self.model, inputs, False)  # layers made in build() get their names now
            self._layers = self._resolve()
        return self._layers

    def _resolve(self) -> dict[str, keras.layers.Layer]:
        names = {path: path.partition("#")[0] for path in self.paths}
        layers = {path: find_layer(self.model, name) for path, name in names.items()}
        for name in names.values():
            self._refuse_in_loop(name)
        return layers

    def _refuse_in_loop(self, name: str) -> None:
        parts = name.split("/")
        outer = [find_layer(self.model, "/".join(parts[:end])) for end in range(1, len(parts))]
        if any(isinstance(layer, keras.layers.RNN) and not layer.unroll for layer in outer):
            raise self._out_of_reach(name)

    def _out_of_reach(self, name: str) -> ValueError:
        return checks.bad_value(
            f"The output of layer {name!r} in model {self.model.name!r} is not reachable from "
            "outside: it lives inside a loop (an RNN's cell, for example) or an inner tf.function.",
            given=f"{name!r}",
            expected="a layer whose output leaves the loop or function",
            fix="tap the layer that contains it, such as the LSTM in place of its cell.",
        )

    def _pick(self, path: str, calls: list[Any]) -> Any:
        name, _, number = path.partition("#")
        here = f"in model {self.model.name!r}"
        if not calls:
            raise checks.bad_value(
                f"Layer {name!r} {here} was not called in this pass, so it has no output to tap.",
                given=f"{path!r}",
                expected="a layer that every forward pass calls",
                fix="tap the layer that contains it, or the one that comes after it.",
            )
        if not all(_reachable(leaf) for leaf in keras.tree.flatten(calls)):
            raise self._out_of_reach(name)
        if number and not (number.isdecimal() and int(number) < len(calls)):
            raise checks.bad_value(
                f"Layer {name!r} {here} has no call number {number!r}.",
                given=f"{path!r}",
                expected=f"a number from 0 to {len(calls) - 1}",
                fix=f"use {name}#0 for the first call.",
            )
        if not number and len(calls) > 1:
            raise checks.bad_value(
                f"Layer {name!r} {here} is called {len(calls)} times in one pass.",
                given=f"{path!r}",
                expected=", ".join(f"{name}#{k}" for k in range(min(len(calls), 8))),
                fix=f"say which call is meant, for example {name}#{len(calls) - 1} for the last.",
            )
        return calls[int(number or 0)]


def call_model(model: Callable, inputs: Any, training: bool | None) -> Any:
    """Call a Keras model with `training`, also where its `call` does not take that argument."""
    takes_training = getattr(model, "_call_has_training_arg", True)
    return model(inputs, training=training) if takes_training else model(inputs)


def output_names(model: keras.Model) -> list[str] | None:
    """Return the names of a model's outputs in order, where it has them (subclassed: not)."""
    return getattr(model, "output_names", None)


def check_inputs(model: keras.Model, inputs: Any, who: str, fix: str) -> None:
    """Refuse inputs of another shape than a model says it takes.

    Inputs of another rank are left to Keras, which adds or drops an axis of 1.

    Raises:
        ValueError: "… takes inputs of another shape".
    """
    takes = getattr(model, "inputs", None) or []
    given = keras.tree.flatten(inputs)
    for tensor, expected in zip(given, takes, strict=False) if len(given) == len(takes) else []:
        pairs = list(zip(tuple(tensor.shape)[1:], tuple(expected.shape)[1:], strict=False))
        if len(tensor.shape) == len(expected.shape) and any(
            None not in pair and pair[0] != pair[1] for pair in pairs
        ):
            raise checks.bad_value(
                f"{who} takes inputs of another shape.",
                given=f"inputs of shape {tuple(tensor.shape)}",
                expected=f"shape {tuple(expected.shape)}",
                fix=fix,
            )


def layer_paths(model: keras.Model) -> list[str]:
    """List the path of every layer inside a model, outer layers before the ones they contain."""
    return [path for path, _ in _walk(model)]


def find_layer(model: keras.Model, path: str) -> keras.layers.Layer:
    """Return the layer at a path of names, or refuse it with the closest names."""
    found = [layer for candidate, layer in _walk(model) if candidate == path]
    if not found:
        kind = f"layer in model {model.name!r} with the path"
        raise checks.unknown_name(kind, path, layer_paths(model))
    if len(found) > 1:
        raise checks.bad_value(
            f"Several layers in model {model.name!r} have the path {path!r}.",
            given=f"{len(found)} layers of that path",
            expected="one",
            fix="give the layers different names where the model makes them.",
        )
    return found[0]


def _walk(
    parent: keras.layers.Layer, prefix: str = "", above: tuple[int, ...] = ()
) -> Iterator[tuple[str, keras.layers.Layer]]:
    above = (*above, id(parent))
    for layer in parent._flatten_layers(include_self=False, recursive=False):
        if isinstance(layer, keras.layers.InputLayer) or id(layer) in above:
            continue
        path = f"{prefix}{layer.name}"
        yield path, layer
        yield from _walk(layer, f"{path}/", above)


def _reachable(tensor: Any) -> bool:
    """Say whether a tensor belongs to the graph (or the eager context) we are in now."""
    if not tf.is_tensor(tensor):
        return True
    if not tf.is_symbolic_tensor(tensor):
        return True
    return not tf.executing_eagerly() and tensor.graph is tf.compat.v1.get_default_graph()


@contextlib.contextmanager
def _shadowed(
    layer: keras.layers.Layer,
    hear: Callable[[Any], None] | None = None,
    instead: Callable | None = None,
) -> Iterator[None]:
    """Listen to `layer.call`, or put another in its place, in this thread, until the block is left.

    The instance's own `call` is shadowed and laid bare again at the end. Replicas of a
    `tf.distribute` strategy trace the same layer in several threads, so each of them hears and
    replaces its own calls only.

    Args:
        layer: the layer.
        hear: gets every output.
        instead: is called in its place.
    """
    guest = _Guest(threading.get_ident(), hear, instead)
    with _lock:
        shadow = vars(layer).get("call")
        if not isinstance(shadow, _Shadow):
            shadow = _Shadow(layer.call, "call" in vars(layer))
            vars(layer)["call"] = shadow
        shadow.guests.append(guest)
    try:
        yield
    finally:
        with _lock:
            shadow.guests.remove(guest)
            if not shadow.guests:
                if shadow.was_own:
                    vars(layer)["call"] = shadow.call
                else:
                    vars(layer).pop("call", None)


@dataclasses.dataclass(frozen=True, eq=False)
class _Guest:
    """One who listens to a layer, or stands in for it, in one thread."""

    thread: int
    hear: Callable[[Any], None] | None
    instead: Callable | None


class _Shadow:
    """Stand in for a layer's `call`, for the guests of the calling thread."""

    def __init__(self, call: Callable, was_own: bool) -> None:
        self.call = call
        self.was_own = was_own
        self.guests: list[_Guest] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        guests = [guest for guest in self.guests if guest.thread == threading.get_ident()]
        call = next((guest.instead for guest in guests if guest.instead), self.call)
        outputs = call(*args, **kwargs)
        for guest in guests:
            if guest.hear is not None:
                guest.hear(outputs)
        return outputs
