"""What can be named: recipes, data sets, losses, export formats. The folders are the lists.

The files are read as text, so that `keras-kd list` answers without loading Keras.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from keras_kd import checks, export, recipes

PACKAGE = Path(__file__).parent.parent
KINDS = ("recipes", "data", "losses", "exports")


def rows(kind: str) -> dict[str, str]:
    """List the names of one kind, each with a line about it.

    Args:
        kind: "recipes", "data", "losses" or "exports".

    Returns:
        name -> line, in alphabetical order.

    Raises:
        ValueError: "There is no kind of list ..."

    Example:
        ```python
        from keras_kd.command_line import catalogue

        print(list(catalogue.rows("losses")))
        ```
    """
    if kind == "recipes":
        return {name: recipes.load(name).summary for name in recipes.names()}
    if kind == "data":
        found = dict(_constants("data/sources", "USAGE"))
    elif kind == "losses":
        found = dict(_losses())
    elif kind == "exports":
        found = dict(_exports())
    else:
        raise checks.unknown_name("kind of list", kind, KINDS)
    return dict(sorted(found.items()))


def _files(folder: str) -> Iterator[tuple[Path, ast.Module]]:
    """Read the files of a folder that are named for something."""
    for file in sorted((PACKAGE / folder).glob("*.py")):
        if file.stem != "base" and not file.stem.startswith("_"):
            yield file, ast.parse(file.read_text(encoding="utf-8"))


def _constants(folder: str, name: str) -> Iterator[tuple[str, str]]:
    """Find a text constant in each file, with the first line of the file."""
    for _, tree in _files(folder):
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                targets = [target.id for target in node.targets if isinstance(target, ast.Name)]
                if name in targets:
                    yield str(node.value.value), _first_line(tree)


def _losses() -> Iterator[tuple[str, str]]:
    """Find the classes that the losses' files define and the folder offers."""
    front = ast.parse((PACKAGE / "losses" / "__init__.py").read_text(encoding="utf-8"))
    offered = {part.value for part in ast.walk(front) if isinstance(part, ast.Constant)}
    for _, tree in _files("losses"):
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name in offered:
                yield node.name, _first_line(node)


def _exports() -> Iterator[tuple[str, str]]:
    """Find the formats, each with the first line of its file."""
    for name, module in export.TARGETS.items():
        file = PACKAGE / "export" / f"{module.rpartition('.')[2]}.py"
        yield name, _first_line(ast.parse(file.read_text(encoding="utf-8")))


def _first_line(node: ast.Module | ast.ClassDef) -> str:
    """Return the first line of a docstring."""
    return (ast.get_docstring(node) or "").partition("\n")[0]
