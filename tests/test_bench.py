"""scripts/bench/losses: it finds the losses by themselves, runs, and writes what it saw."""

from __future__ import annotations

import importlib.util
import json
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

import keras_kd as kd

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench" / "losses"


@pytest.fixture(scope="module")
def bench():
    loader = SourceFileLoader("bench_losses", str(SCRIPT))
    spec = importlib.util.spec_from_loader("bench_losses", loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_losses"] = module  # dataclasses look their module up
    loader.exec_module(module)
    yield module
    del sys.modules["bench_losses"]


class Related(kd.losses.DistillationLoss):
    """Relates the examples of a batch."""

    space = "features"
    layers = 2

    def __init__(self, loss, teacher_layer_name=None, student_layer_name=None):
        super().__init__(
            teacher_layer_name=teacher_layer_name, student_layer_name=student_layer_name
        )
        self.loss = loss

    def per_example(self, teacher, student, present):
        """Take `present`."""


def test_every_loss_is_found_and_gets_the_layers_it_needs(bench):
    found = bench.kinds(["*"])
    assert set(kd.losses.__all__) - set(found) == {"DistillationLoss"}
    for model in bench.MODELS.values():
        for kind in found.values():
            assert isinstance(bench.make(kind, model), kd.losses.DistillationLoss)
    made = bench.make(Related, bench.MODELS["fashion_cnn"])
    assert made.teacher_layer_name == ["block1_relu", "block2_relu"]
    assert isinstance(made.loss, kd.LogitsDistillation)
    assert [bench.sort_of(kind) for kind in (Related, kd.LogitsDistillation)] == [
        "relations",
        "logits",
    ]


def test_the_ratio_is_the_median_of_the_rounds(bench):
    numbers = bench.summary([(1.0, 1.0), (2.0, 2.4), (1.0, 1.4)])
    assert (numbers["ratio"], numbers["quartiles"]) == (1.2, [1.1, 1.3])
    assert (numbers["baseline_ms"], numbers["loss_ms"]) == (1000.0, 1400.0)
    assert bench.cell(numbers, 1.1) == "**1.20** (1.10–1.30)"
    assert bench.cell(numbers, None) == "1.20 (1.10–1.30)"


def test_the_reason_is_the_losss_and_not_keras_frame_around_it(bench):
    framed = "Exception encountered when calling X.call().\n\n\x1b[1mx: maps are needed.\x1b[0m\n"
    assert bench.reason(ValueError(framed)) == "x: maps are needed."
    assert bench.reason(ValueError("x: maps are needed.\n  given: 1")) == "x: maps are needed."


def test_a_small_run_writes_both_files(bench, tmp_path, capsys):
    names = ["LogitMatching", "FeatureDistillation"]
    options = "--models mnist_mlp --batch 4 --rounds 1 --seconds 0.001"
    bench.main(["--losses", *names, *options.split(), "--out", str(tmp_path)])
    results = json.loads((tmp_path / "losses.json").read_text(encoding="utf-8"))
    assert results["command"] == f"scripts/bench/losses --losses {' '.join(names)} {options}"
    assert set(results["machine"]) >= {"cpu", "cores", "keras", "tensorflow"}
    run = results["runs"]["mnist_mlp, 4"]["losses"]
    assert set(run) == set(names)
    assert all(numbers["ratio"] > 0 for numbers in run.values())
    words = (tmp_path / "losses.md").read_text(encoding="utf-8")
    assert "| `FeatureDistillation` | features | 1.50 |" in words
    assert words.strip() in capsys.readouterr().out


def test_a_loss_that_does_not_fit_the_networks_is_named_with_the_reason(bench):
    refused = {"not_for_this": "maps are needed"}
    results = {
        "command": "x",
        "machine": {"cpu": "", "cores": 1, "python": "", "keras": "", "tensorflow": ""},
        "rounds": 1,
        "losses": {"Maps": "features"},
        "runs": {"m, 4": {"model": "m", "batch": 4, "losses": {"Maps": refused}}},
    }
    assert "- `Maps` on m: maps are needed" in bench.table(results)
