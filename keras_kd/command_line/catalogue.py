"""What can be named: recipes, data sets, losses, export formats. The folders are the lists.

The files are read as text, so that `keras-kd list` answers without loading Keras.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from keras_kd import checks, export, recipes

PACKAGE = Path(__file__).parent.parent
SPACES = ("logits", "values", "features")
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
        found = {row.loss: row.line for row in _losses()}
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


@dataclasses.dataclass(frozen=True)
class LossRow:
    """What `keras-kd list losses` says of one loss.

    Attributes:
        loss: the class's name.
        paper: who published it, and when.
        needs: logits, values or features (of how many layers), a batch of examples that are
            compared with each other, labels.
        parameters: arguments of its own, with their defaults.
        trains: what is trained for it and not exported; empty where nothing is.
        line: the first line of its docstring.
    """

    loss: str
    paper: str
    needs: str
    parameters: str
    trains: str
    line: str


def losses() -> list[LossRow]:
    """Describe every loss from the files' text: on logits, on values, on features, by name.

    Example:
        ```python
        from keras_kd.command_line import catalogue

        print(catalogue.losses()[0].paper)
        ```
    """

    def place(row: LossRow) -> tuple[int, str]:
        return SPACES.index(row.needs.split()[0].strip(",")), row.loss

    return sorted(_losses(), key=place)


def markdown() -> str:
    """Write the losses as the table of the README."""
    lines = ["| loss | paper | needs | parameters | trained with it |", "|---|---|---|---|---|"]
    for row in losses():
        parameters = f"`{row.parameters}`" if row.parameters else ""
        lines.append(f"| `{row.loss}` | {row.paper} | {row.needs} | {parameters} | {row.trains} |")
    return "\n".join(lines)


def _losses() -> Iterator[LossRow]:
    """Find the classes that the losses' files define and the folder offers."""
    front = ast.parse((PACKAGE / "losses" / "__init__.py").read_text(encoding="utf-8"))
    offered = {part.value for part in ast.walk(front) if isinstance(part, ast.Constant)}
    for _, tree in _files("losses"):
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name in offered:
                yield _loss(node)


def _loss(node: ast.ClassDef) -> LossRow:
    said = {"paper": "", "space": "logits", "trained_parts": "", "needs_labels": False, "layers": 1}
    bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    if bases & {"FeatureLoss", "RelationLoss"}:
        said["space"] = "features"
    for part in node.body:
        target = part.targets[0] if isinstance(part, ast.Assign) else None
        if isinstance(target, ast.Name) and target.id in said and isinstance(part, ast.Assign):
            said[target.id] = ast.literal_eval(part.value)
    needs = str(said["space"])
    needs += f" of {said['layers']} layers or more" if said["layers"] != 1 else ""
    needs += ", a batch" if _relates_examples(node) else ""
    needs += ", labels" if said["needs_labels"] else ""
    return LossRow(
        loss=node.name,
        paper=str(said["paper"]),
        needs=needs,
        parameters=", ".join(_parameters(node)),
        trains=str(said["trained_parts"]),
        line=_first_line(node),
    )


def _relates_examples(node: ast.ClassDef) -> bool:
    """Say whether a loss asks who is present; one that passes labels on too asks for another."""
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "per_example":
            taken = {argument.arg for argument in part.args.args}
            return "present" in taken and "y" not in taken
    return False


def _parameters(node: ast.ClassDef) -> Iterator[str]:
    """Write the arguments of a constructor that are the loss's own, with their defaults."""
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            given = part.args.args[1:]
            defaults = [None] * (len(given) - len(part.args.defaults)) + [*part.args.defaults]
            for argument, default in zip(given, defaults, strict=True):
                if argument.arg not in ("teacher_layer_name", "student_layer_name", "name"):
                    end = "" if default is None else f"={ast.unparse(default)}"
                    yield argument.arg + end


def _exports() -> Iterator[tuple[str, str]]:
    """Find the formats, each with the first line of its file."""
    for name, module in export.TARGETS.items():
        file = PACKAGE / "export" / f"{module.rpartition('.')[2]}.py"
        yield name, _first_line(ast.parse(file.read_text(encoding="utf-8")))


def _first_line(node: ast.Module | ast.ClassDef) -> str:
    """Return the first line of a docstring."""
    return (ast.get_docstring(node) or "").partition("\n")[0]
