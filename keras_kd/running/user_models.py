"""Where a person's own models come from, and whether they fit the data.

Everything that can be wrong with a model is found here, before anything is trained: a file that
is damaged, a class that Keras does not know, inputs of another shape.
"""

from __future__ import annotations

import functools
import importlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_kd import checks

if TYPE_CHECKING:
    import keras

    from keras_kd.data import Split

UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError)
"""What Keras and h5py raise for a model file that they cannot read."""


def check_source(role: str, source: str) -> None:
    """Refuse a model's source that cannot be one, without loading Keras.

    Args:
        role: "teacher" or "student", for the words.
        source: `FILE.keras`, or `module:function`.

    Raises:
        ValueError: "The teacher ... is not a file that can be read.", or "... is neither a
            .keras file nor module:function."
    """
    if source.endswith(".keras"):
        if not Path(source).is_file():
            raise checks.bad_value(
                f"The {role} {source!r} is not a file that can be read.",
                given=source,
                expected="a model saved by Keras as FILE.keras",
                fix="check the path; `model.save('model.keras')` writes such a file.",
            )
        return
    module, colon, function = source.partition(":")
    if not colon or not function.isidentifier() or not _is_module_name(module):
        raise checks.bad_value(
            f"The {role} {source!r} is neither a .keras file nor module:function.",
            given=source,
            expected="FILE.keras, or module:function where the function returns a keras.Model",
            fix="pass, for example, teacher.keras or my_package.models:make_teacher.",
        )


def import_module(name: str) -> Any:
    """Import a person's module, so that what it registers is known to Keras.

    Args:
        name: `package.module`.

    Raises:
        ValueError: "The module ... cannot be imported.", with Python's words.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise checks.bad_value(
            f"The module {name!r} cannot be imported.",
            given=f"{name} ({error})",
            expected="a module that Python finds from here",
            fix="start in the folder that holds it, install it, or set PYTHONPATH.",
        ) from error


def load_model(role: str, source: str) -> keras.Model:
    """Load a model from a .keras file, or make it by calling a function.

    Args:
        role: what it is for, for the words: "teacher", "student".
        source: `FILE.keras`, or `module:function`.

    Returns:
        The model, uncompiled.

    Raises:
        ValueError: "... is damaged or no Keras file.", "... holds a class that Keras does not
            know.", "The module ... has no function ...".
        TypeError: "... returned no keras.Model."
    """
    check_source(role, source)
    if source.endswith(".keras"):
        return _read(role, source)
    module_name, _, function = source.partition(":")
    module = import_module(module_name)
    make = getattr(module, function, None)
    if not callable(make):
        options = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise checks.unknown_name(f"function in the module {module_name!r}:", function, options)
    return _model_from(role, source, make())


def _model_from(role: str, source: str, made: Any) -> keras.Model:
    """Return what a function made, if it is a model."""
    import keras

    if not isinstance(made, keras.Model):
        raise checks.bad_type(
            f"The {role}'s function {source!r} returned no keras.Model.",
            given=f"{type(made).__module__}.{type(made).__qualname__}",
            expected="a keras.Model",
            fix="return the model itself.",
        )
    return made


def _read(role: str, source: str) -> keras.Model:
    """Read a .keras file and say what is wrong with it in a person's words."""
    import keras

    damaged = functools.partial(
        checks.bad_value,
        f"The {role}'s file {source!r} is damaged or no Keras file.",
        expected="a whole file written by `model.save('model.keras')`",
        fix="copy or save the file again.",
    )
    try:
        with zipfile.ZipFile(source) as archive:
            broken = archive.testzip()
    except (OSError, zipfile.BadZipFile) as error:
        raise damaged(given=f"{source} ({error})") from error
    if broken is not None:
        raise damaged(given=f"{source} (its part {broken!r} fails its checksum)")
    try:
        return keras.models.load_model(source, compile=False)
    except UNREADABLE as error:
        words = " ".join(str(error).split())[:300]
        if "Could not locate" in words:
            raise checks.bad_value(
                f"The {role}'s file {source!r} holds a class that Keras does not know.",
                given=words,
                expected="each custom class to be registered before the file is read",
                fix="decorate the class with @keras.saving.register_keras_serializable() and "
                "name its module with --import MODULE.",
            ) from error
        raise damaged(given=f"{source} ({words})") from error


def _is_module_name(name: str) -> bool:
    """Say whether a text could be a module's dotted name."""
    return bool(name) and all(part.isidentifier() for part in name.split("."))


def first_outputs(role: str, model: keras.Model, split: Split, count: int = 64) -> Any:
    """Show a model the first examples, which also builds it, and return what it answers.

    Args:
        role: what the model is for, for the words.
        model: the model.
        split: the data that it will see.
        count: how many examples.

    Returns:
        Its outputs as tensors, nested as the model nests them.

    Raises:
        ValueError: "The ... does not take the data's inputs.", with both shapes.
    """
    import tensorflow as tf

    x = _first(split.x, count)
    try:
        return model(x, training=False)
    except (*UNREADABLE, tf.errors.OpError) as error:
        words = " ".join(str(error).split())
        raise checks.bad_value(
            f"The {role} does not take the data's inputs.",
            given=f"inputs of shape {shape_of(split.x)}; {model.name!r} says: {words[:300]}",
            expected=f"inputs that {model.name!r} takes{_declared(model)}",
            fix="name other data with --data, or reshape it before it is stored.",
        ) from error


def named(model: keras.Model, outputs: Any) -> dict[str, Any]:
    """Give each output its name: "" for a single one, else the model's own names or places.

    Args:
        model: the model that answered.
        outputs: its outputs: one, a list or a mapping; or anything nested like them.

    Returns:
        name -> output.
    """
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if not isinstance(outputs, list | tuple):
        return {"": outputs}
    names = getattr(model, "output_names", None)
    if names is None or len(names) != len(outputs):
        names = [f"output_{index}" for index in range(len(outputs))]
    return dict(zip(names, outputs, strict=True))


def shape_of(arrays: Any) -> str:
    """Write the shape of one example, or of each named part of it."""
    if isinstance(arrays, Mapping):
        return "{" + ", ".join(f"{name}: {array.shape[1:]}" for name, array in arrays.items()) + "}"
    return str(tuple(arrays.shape[1:]))


def _first(arrays: Any, count: int) -> Any:
    """Take the first examples of an array or of each named array."""
    if isinstance(arrays, Mapping):
        return {name: array[:count] for name, array in arrays.items()}
    return arrays[:count]


def _declared(model: keras.Model) -> str:
    """Write the input shapes that a model declares, where it declares them."""
    inputs = getattr(model, "inputs", None)
    if not inputs:
        return ""
    return ": " + ", ".join(str(tuple(tensor.shape[1:])) for tensor in inputs)
