"""The package, its pins, the scripts and the folder for runs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = (ROOT / "requirements.txt").read_text().splitlines()
SCRIPTS = ("demo", "test", "check")


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!~ ;\[]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def test_every_dependency_is_pinned():
    wanted = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["dev"]
    pinned = {name_of(line) for line in PINS if "==" in line}
    assert {name_of(requirement) for requirement in wanted} <= pinned


def test_pins_are_versions_and_nothing_else():
    lines = [line for line in PINS if line and not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+( ; [a-z_]+ .+)?", line), line


def test_pins_are_installed_here_in_these_versions():
    from importlib import metadata

    installed = {name_of(d.metadata["Name"]): d.version for d in metadata.distributions()}
    names = {name_of(r) for r in PROJECT["project"]["dependencies"]}
    for line in PINS:
        if "==" in line and name_of(line) in names:
            assert installed[name_of(line)] == line.split("==")[1].split(" ")[0]


def test_the_command_and_the_types_are_shipped():
    assert PROJECT["project"]["scripts"] == {"keras-kd": "keras_kd.cli:main"}
    assert (ROOT / "keras_kd" / "py.typed").is_file()
    assert PROJECT["project"]["requires-python"] == ">=3.11,<3.14"


def test_version_is_the_same_in_both_places():
    tree = ast.parse((ROOT / "keras_kd" / "__init__.py").read_text())
    versions = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    assert versions == [PROJECT["project"]["version"]]


def test_license_is_apache_2():
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert PROJECT["project"]["license"] == "Apache-2.0"


@pytest.mark.parametrize("name", [*SCRIPTS, "environment.sh"])
def test_scripts_are_valid_and_share_one_way_to_make_the_environment(name):
    script = ROOT / "scripts" / name
    subprocess.run(["bash", "-n", str(script)], check=True)
    if name in SCRIPTS:
        assert 'source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"' in script.read_text()


def test_check_runs_what_test_runs_and_ci_runs_check():
    assert "bash scripts/test" in (ROOT / "scripts" / "check").read_text()
    assert "scripts/check" in (ROOT / ".ci" / "run").read_text()


def test_scripts_say_what_to_do_without_a_python(tmp_path):
    (tmp_path / "scripts").mkdir()
    for name in ("demo", "environment.sh"):
        (tmp_path / "scripts" / name).write_text((ROOT / "scripts" / name).read_text())
    done = subprocess.run(
        ["bash", str(tmp_path / "scripts" / "demo")],
        env={"PATH": "/usr/bin:/bin", "KERAS_KD_PYTHON": "no-such-python"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "There is no Python for keras_kd on this machine." in done.stderr
    assert "fix:" in done.stderr


def test_runs_are_not_tracked_and_the_folder_is(tmp_path):
    rules = (ROOT / "saved_models" / ".gitignore").read_text().split("\n")
    assert [r for r in rules if r and r[0] != "#"] == ["*", "!.gitignore", "!README.md"]
    assert (ROOT / "saved_models" / "README.md").is_file()


def test_import_loads_neither_tensorflow_nor_keras():
    program = (
        "import sys, keras_kd; print([m for m in ('tensorflow', 'keras') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
