"""The recipes: one experiment a file, and the folder is the list.

A new recipe is one new file in this folder with a `RECIPE` in it; nothing else has to know of it.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from keras_kd import checks
from keras_kd.recipes.base import Recipe

__all__ = ["DEFAULT", "Recipe", "load", "names"]

DEFAULT = "mnist1d"
"""The recipe that `keras-kd run` takes where none is named: it needs no download."""


def names() -> list[str]:
    """List the recipes by the files of this folder, in alphabetical order.

    Returns:
        The file names without `.py`; `base` and names that begin with `_` are no recipes.

    Example:
        ```python
        from keras_kd import recipes

        print(recipes.names())
        ```
    """
    files = Path(__file__).parent.glob("*.py")
    return sorted(file.stem for file in files if file.stem != "base" and file.stem[0] != "_")


def load(name: str) -> Recipe:
    """Load a recipe by its file name, as `keras-kd run NAME` does.

    Args:
        name: one of `names()`.

    Returns:
        The recipe; `dataclasses.replace(recipe, epochs=3)` makes a changed copy of it.

    Raises:
        ValueError: "There is no recipe ...", with the list and the closest name.

    Example:
        ```python
        from keras_kd import recipes

        recipe = recipes.load("mnist1d")
        print(recipe.summary)
        print(recipe.epochs, "epochs at temperature", recipe.temperature)
        ```
    """
    if name not in names():
        raise checks.unknown_name("recipe", name, names())
    return importlib.import_module(f"keras_kd.recipes.{name}").RECIPE
