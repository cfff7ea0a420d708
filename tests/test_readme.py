"""The README's numbers are those of the committed runs, and its lists those of the code."""

from __future__ import annotations

import inspect
import pathlib
import re
import runpy

import pytest

from keras_kd import losses, recipes
from keras_kd.command_line import catalogue

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAYERS = ("teacher_layer_name", "student_layer_name")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_results_is_that_of_the_committed_runs() -> None:
    table = runpy.run_path(str(ROOT / "scripts" / "reproduce" / "table"))["table"]()
    assert len(table.splitlines()) == 2 + len(recipes.names()), "a recipe's run.json is missing"
    for line in table.splitlines():
        assert line in README, "print the table again: scripts/reproduce/table"


@pytest.mark.parametrize("kind", ["certificates", "edge"])
def test_the_tables_of_files_are_those_of_the_committed_certificates(kind) -> None:
    table = runpy.run_path(str(ROOT / "scripts" / "reproduce" / "table"))[kind]()
    assert len(table.splitlines()) >= 2 + len(recipes.names())
    for line in table.splitlines():
        assert line in README, f"print the table again: scripts/reproduce/table --{kind}"


def test_the_table_of_performance_is_that_of_the_committed_measurements() -> None:
    lines = runpy.run_path(str(ROOT / "scripts" / "bench" / "table"))["table"]().splitlines()
    assert len(lines) > 10, "measurements are missing: bash scripts/bench/all"
    for line in lines:
        assert line in README, "print the table again: scripts/bench/table"


def test_the_script_that_needs_only_litert_is_the_one_that_is_tested() -> None:
    script = (ROOT / "tests" / "export" / "only_litert.py").read_text(encoding="utf-8")
    assert script.rstrip() in README


def test_every_loss_and_recipe_is_named() -> None:
    for name in {*losses.__all__} - {"DistillationLoss"} | set(recipes.names()):
        assert f"{name}`" in README, name


def test_the_table_of_losses_is_what_the_command_prints() -> None:
    assert catalogue.markdown() in README, "print it again: keras-kd list losses --markdown"
    for row in catalogue.losses():
        kind = getattr(losses, row.loss)
        arguments = inspect.signature(kind).parameters
        own = [name for name in arguments if name not in ("name", *LAYERS)]
        assert row.paper == kind.paper
        assert all(re.search(rf"\b{name}\b", row.parameters) for name in own)
        assert row.needs.startswith(kind.space)
        assert ("labels" in row.needs) == kind.needs_labels
        assert row.trains == kind.trained_parts


def test_no_placeholder_is_left() -> None:
    for word in ("\nDEMO\n", "\nRESULTS\n", "\nLOSSES\n"):
        assert word not in README
