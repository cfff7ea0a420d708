"""Every example runs as it stands, and public things say what they take, give and refuse."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import pathlib
import re

import pytest

import keras_kd as kd

PACKAGE = pathlib.Path(kd.__file__).parent
README = PACKAGE.parent / "README.md"
FENCE = re.compile(r"^( *)```python\n(.*?)\n\1```", re.DOTALL | re.MULTILINE)


def blocks(text: str) -> list[str]:
    return [inspect.cleandoc(f"\n{code}") for _, code in FENCE.findall(text)]


def public_docstrings() -> dict[str, str]:
    """Map the names of public modules, classes, functions and methods to their docstrings."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        waiting = [(name.removesuffix(".__init__"), ast.parse(path.read_text(encoding="utf-8")))]
        while waiting:
            name, node = waiting.pop()
            found[name] = ast.get_docstring(node) or ""
            if isinstance(node, ast.Module | ast.ClassDef):
                waiting += [
                    (f"{name}.{child.name}", child)
                    for child in node.body
                    if isinstance(child, ast.ClassDef | ast.FunctionDef)
                    and not child.name.startswith("_")
                ]
    return found


def numbered(documents: dict[str, str]) -> list:
    return [
        pytest.param(code, id=f"{name}-{number}" if number else name)
        for name, text in documents.items()
        for number, code in enumerate(blocks(text))
    ]


@pytest.mark.parametrize("code", numbered(public_docstrings()))
def test_an_example_runs(code, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "<example>", "exec"), {"__name__": "__example__"})


def readme_blocks() -> list:
    return numbered({"README": README.read_text(encoding="utf-8")} if README.exists() else {})


@pytest.mark.parametrize("code", readme_blocks())
def test_an_example_of_the_readme_runs(code, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "<README>", "exec"), {"__name__": "__example__"})


def public_things() -> dict[str, object]:
    """Map what a user reaches from the front door, one room deep, to its object."""
    found = {}
    for name in kd.__all__:
        if name == "__version__":
            continue
        thing = getattr(kd, name)
        if not inspect.ismodule(thing):
            found[name] = thing
            continue
        inside = getattr(thing, "__all__", None) or [
            key
            for key, value in vars(thing).items()
            if getattr(value, "__module__", None) == thing.__name__
        ]
        for key in inside:
            part = getattr(thing, key)
            if (inspect.isclass(part) or inspect.isfunction(part)) and key[0] != "_":
                found.setdefault(f"{name}.{key}", part)
    return found


def arguments(thing: object) -> list[str]:
    signature = inspect.signature(thing.__init__ if inspect.isclass(thing) else thing)
    return [name for name in signature.parameters if name not in ("self", "kwargs", "args")]


THINGS = public_things()


@pytest.mark.parametrize("name", THINGS)
def test_public_things_say_what_they_do(name) -> None:
    thing = THINGS[name]
    text = inspect.getdoc(thing) or ""
    first = text.splitlines()[0]
    assert first.endswith((".", ":")), f"{name}: one useful line first, as a sentence"
    assert len(blocks(text)) >= 1, f"{name}: give an example that runs"
    assert re.search(r"^(Example|Examples):", text, re.MULTILINE), f"{name}: an Example section"
    takes = arguments(thing)
    if takes:
        assert re.search(r"^(Args|Attributes):", text, re.MULTILINE), f"{name}: no Args section"
        for argument in takes:
            known = re.search(rf"^\s+\**{argument}\b", text, re.MULTILINE)
            assert known, f"{name}: nothing is said of {argument!r}"
    if inspect.isfunction(thing) and inspect.signature(thing).return_annotation != "None":
        assert re.search(r"^Returns:", text, re.MULTILINE), f"{name}: no Returns section"
    if inspect.isfunction(thing) and "raise " in inspect.getsource(thing):
        assert re.search(r"^Raises:", text, re.MULTILINE), f"{name}: no Raises section"
    own = None if dataclasses.is_dataclass(thing) else vars(thing).get("__init__")
    if inspect.isfunction(own) and "raise " in inspect.getsource(own):
        assert re.search(r"^Raises:", text, re.MULTILINE), f"{name}: no Raises section"
