"""The README's numbers are those of the committed runs, and its lists those of the code."""

from __future__ import annotations

import pathlib
import runpy

from keras_kd import losses, recipes

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_results_is_that_of_the_committed_runs() -> None:
    table = runpy.run_path(str(ROOT / "scripts" / "reproduce" / "table"))["table"]()
    assert len(table.splitlines()) == 2 + len(recipes.names()), "a recipe's run.json is missing"
    for line in table.splitlines():
        assert line in README, "print the table again: scripts/reproduce/table"


def test_every_loss_and_recipe_is_named() -> None:
    for name in {*losses.__all__} - {"DistillationLoss"} | set(recipes.names()):
        assert f"{name}`" in README, name


def test_no_placeholder_is_left() -> None:
    for word in ("\nDEMO\n", "\nRESULTS\n"):
        assert word not in README
