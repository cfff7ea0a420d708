"""The house stands as it was drawn: floors, rooms, and what is never written in it."""

from __future__ import annotations

import ast
import functools
import pathlib

import pytest

import keras_kd
from keras_kd import export

PACKAGE = pathlib.Path(keras_kd.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# A room is a module or a folder of keras_kd. It imports only from rooms on lower floors.
FLOORS = (
    ("checks",),
    ("inline", "structures"),
    (
        "configs",
        "data",
        "distributions",
        "epochs",
        "features",
        "fingerprints",
        "freed_memory",
        "fusing",
        "graphs",
        "keras_losses",
        "keras_models",
        "litert",
        "metrics",
        "numbered",
        "outputs",
        "projectors",
        "reductions",
        "refusals",
        "replicas",
        "schedules",
        "soft_batch",
        "student_losses",
        "trackers",
    ),
    ("augmentation", "compiled_pass", "folded", "top_k", "updates"),
    ("taps",),
    ("attached", "detection", "losses", "tasks"),
    ("teachers",),
    ("connections", "reused_classifier", "soft_targets"),
    ("compiled_step", "first_look"),
    ("distiller",),
    ("callbacks", "compress", "evaluation", "export", "loading", "teaching"),
    ("recipes",),
    ("running",),
    ("run",),
    ("edge",),
    ("command_line",),
    ("cli",),
)
TRAINING = {
    "attached",
    "callbacks",
    "compress",
    "connections",
    "distiller",
    "epochs",
    "evaluation",
    "first_look",
    "loading",
    "reused_classifier",
    "soft_targets",
    "teaching",
}
SHIPPING = {"export", "litert"}
ONE_BASE = (
    "losses",
    "recipes",
    "export",
)  # a loss, recipe or target imports no sibling but base*.py


def module_of(path: pathlib.Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}
ROOMS = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


@functools.cache
def imports(path: pathlib.Path) -> set[str]:
    """Name the modules of keras_kd that a file imports, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: write imports in full"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return {name for name in found if name in MODULES and name != "keras_kd"}


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_one_floor() -> None:
    listed = [room for rooms in FLOORS for room in rooms]
    assert len(listed) == len(set(listed)), "a room stands on two floors"
    homeless = ROOMS - set(listed)
    assert not homeless, (
        f"{sorted(homeless)} stand on no floor: add them to FLOORS in tests/test_architecture.py, "
        "above all that they import"
    )
    assert not set(listed) - ROOMS, f"{sorted(set(listed) - ROOMS)} in FLOORS are not there"


@pytest.mark.parametrize("module", [name for name in MODULES if name != "keras_kd"])
def test_imports_go_down(module) -> None:
    room = room_of(module)
    for imported in sorted(imports(MODULES[module])):
        other = room_of(imported)
        if other != room:
            assert FLOOR[other] < FLOOR[room], (
                f"{module} (floor {FLOOR[room]}) imports {imported} (floor {FLOOR[other]}): "
                "a file imports only from lower floors"
            )


def reached(module: str) -> set[str]:
    """Name the modules that importing a module may bring, at once or later."""
    found, waiting = set(), {module}
    while waiting:
        found |= waiting
        waiting = set().union(*(imports(MODULES[name]) for name in waiting)) - found
    return found


def test_training_and_shipping_do_not_know_each_other() -> None:
    for module in MODULES:
        if module == "keras_kd":
            continue
        rooms = {room_of(name) for name in reached(module) if name != "keras_kd"}
        if room_of(module) in TRAINING:
            assert not rooms & SHIPPING, f"{module} trains, and reaches {rooms & SHIPPING}"
        if room_of(module) in SHIPPING:
            assert not rooms & TRAINING, f"{module} ships, and reaches {rooms & TRAINING}"


def test_no_import_goes_round() -> None:
    for module in MODULES:
        if module == "keras_kd":
            continue
        package = MODULES[module].name == "__init__.py"
        for imported in imports(MODULES[module]):
            if package and imported.startswith(f"{module}."):
                continue  # a package's front door shows what is in its rooms
            again = {name for name in reached(imported) if name != imported}
            assert module not in again, f"{module} imports {imported}, which leads back to it"


@pytest.mark.parametrize("room", ONE_BASE)
def test_a_loss_a_recipe_a_target_is_one_file(room) -> None:
    for path in sorted((PACKAGE / room).rglob("*.py")):
        if path.name == "__init__.py":
            continue
        siblings = {name for name in imports(path) if name.startswith(f"keras_kd.{room}")}
        if room == "export" and module_of(path) not in export.TARGETS.values():
            continue  # what all targets share
        others = {
            name
            for name in siblings - {f"keras_kd.{room}"}
            if not name.startswith(f"keras_kd.{room}.base")
        }
        assert not others, f"{room}/{path.name} imports {sorted(others)}"


def is_too_wide(handler: ast.ExceptHandler) -> bool:
    """Say whether a handler swallows every error; one that raises it again may look at it."""
    names = set() if handler.type is None else {ast.unparse(n) for n in ast.walk(handler.type)}
    raises = any(isinstance(n, ast.Raise) and n.exc is None for n in handler.body)
    return not raises and (not names or bool(names & {"Exception", "BaseException"}))


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_what_is_never_written(path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 440, "a file is a page or a few: split it"
    for node in ast.walk(ast.parse(text)):
        where = f"{path.name}:{getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.Assert), f"{where}: errors teach, assert does not"
        if isinstance(node, ast.ExceptHandler):
            assert not is_too_wide(node), f"{where}: say which error is expected"
        if isinstance(node, ast.Name):
            assert node.id != "hasattr", f"{where}: wiring does not ask hasattr"
        if isinstance(node, ast.Attribute):
            slows = node.attr == "from_generator"
            assert not slows, f"{where}: every later step is slower for it, see keras_kd.numbered"
        if isinstance(node, ast.Raise) and node.exc is not None:
            unfinished = "NotImplementedError" in ast.unparse(node.exc)
            assert not unfinished, f"{where}: nothing is left for later"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            assert "pickle" not in names, f"{where}: no pickle"
    for mark in ("TODO", "FIXME", "XXX"):
        assert mark not in text, f"{path.name}: {mark}"


def test_the_deprecated_converter_lives_in_one_module() -> None:
    users = [module for module, path in MODULES.items() if "tf.lite" in path.read_text("utf-8")]
    assert len(users) <= 1, f"tf.lite is used in {users}"


def test_tests_mirror_the_package() -> None:
    """A test stands where its subject stands: in the folder of the same name."""
    tests = pathlib.Path(__file__).parent
    for folder in sorted(path for path in tests.iterdir() if path.is_dir()):
        if folder.name[0] not in "._":
            assert (PACKAGE / folder.name).is_dir(), f"tests/{folder.name} mirrors nothing"
