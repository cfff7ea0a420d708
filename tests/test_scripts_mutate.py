"""scripts/mutate: what it breaks, what it leaves alone, and a whole run on a folder of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "mutate"
SOURCE = '''"""A loss with 7 words."""

def halved(values: tuple[float, 3], weight: float = 0.5, *, root: bool = False):
    """Return 2 things."""
    first = values[-1] ** 2 + 1e-12  # guard: keeps the root finite
    return [a * b * weight for a, b in zip(first, values, strict=True)]
'''


@pytest.fixture(scope="module")
def mutate():
    loader = SourceFileLoader("mutate", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("mutate", loader))
    sys.modules["mutate"] = module  # dataclasses look their module up
    loader.exec_module(module)
    yield module
    del sys.modules["mutate"]


def test_every_number_and_truth_value_is_broken_but_types_words_guards_and_strict(mutate):
    constants, found = mutate.mutants(SOURCE)
    assert (constants, [m.change for m in found]) == (2, ["0.5 → 0.85", "False → True"])
    unguarded = SOURCE.replace("# guard", "# ")
    constants, found = mutate.mutants(unguarded)
    changes = [mutant.change for mutant in found if mutant.line == 5]
    assert sorted(changes) == ["-1 → 1", "1 → 2", "1e-12 → 0.1000000000015", "2 → 3"]
    assert constants == 5
    assert mutate.guards(SOURCE) == {5: "keeps the root finite"}


@pytest.mark.parametrize(
    ("old", "new"), [(0, 1), (2, 3), (512, 1025), (0.0, 0.1), (4.0, 6.1), (True, False)]
)
def test_the_new_value_is_another_one_of_the_same_type(mutate, old, new):
    assert mutate.other(old) == pytest.approx(new)
    assert type(mutate.other(old)) is type(new)


def test_a_mutant_differs_in_one_place(mutate):
    results = set()
    for mutant in mutate.mutants("value = -2.0 + 3\n")[1]:
        space: dict = {}
        exec(compile(mutate.broken("value = -2.0 + 3\n", mutant), "file", "exec"), space)
        results.add(round(space["value"], 6))
    assert results == {5.0, -0.1, 2.0}


@pytest.fixture
def house(tmp_path):
    """A repository with one loss, whose tests do not see one of its constants."""
    files = {
        "scripts/mutate": SCRIPT.read_text(encoding="utf-8"),
        "keras_kd/__init__.py": "",
        "keras_kd/losses/__init__.py": "",
        "keras_kd/losses/tiny.py": "def tiny(x, scale=2.0, shift=1):\n"
        "    return x * scale + shift\n",
        "tests/losses/test_tiny.py": "from keras_kd.losses.tiny import tiny\n\n"
        "def test_tiny():\n    assert tiny(3.0, shift=0) == 6.0\n",
        **{f"stubs/{name}.py": '__version__ = "0"\n' for name in ("keras", "tensorflow")},
    }
    for name, words in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(words, encoding="utf-8")
    return tmp_path


def run(house: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(house / "scripts" / "mutate"), "--jobs", "1", *options]
    environment = {**os.environ, "PYTHONPATH": str(house / "stubs")}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_a_run_names_the_survivor_and_passes_once_a_test_sees_it(house):
    first = run(house)
    assert first.returncode == 1, first.stdout + first.stderr
    results = json.loads((house / "scripts" / "mutations.json").read_text(encoding="utf-8"))
    (file,) = results["files"].values()
    assert [row["change"] for row in file["survivors"]] == ["1 → 2"]
    assert (file["constants"], file["mutants"], file["killed"]) == (2, 2, 1)
    assert "`keras_kd/losses/tiny.py:1`" in (house / "scripts" / "mutations.md").read_text("utf-8")

    tests = house / "tests" / "losses" / "test_tiny.py"
    tests.write_text(tests.read_text("utf-8") + "    assert tiny(0.0) == 1\n", encoding="utf-8")
    second = run(house)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "1 files examined" in second.stdout
    assert "0 files examined" in run(house).stdout
    assert "0 files examined" in run(house, "--again", "--files", "large*").stdout

    tests.write_text("def test_tiny():\n    assert False\n", encoding="utf-8")
    broken = run(house)
    assert broken.returncode == 1
    assert "its tests fail without a mutant" in (house / "scripts" / "mutations.md").read_text()
