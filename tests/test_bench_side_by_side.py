"""scripts/bench/{step,soft_targets,memory,evaluation}: they run, and write what they saw.

How fast anything is is no test: `bash scripts/bench/all` measures it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import pathlib
import re
import subprocess
import sys
from importlib.machinery import SourceFileLoader

import numpy as np
import pytest

BENCH = pathlib.Path(__file__).parents[1] / "scripts" / "bench"
SCRIPTS = ("step", "soft_targets", "memory", "evaluation")
HEAD = {
    "command": "scripts/bench/x",
    "date": "2026-01-31",
    "machine": {
        "cpu": "A processor",
        "cores": 2,
        "accelerators": [],
        "python": "3.11",
        "keras": "3.15",
        "tensorflow": "2.21",
        "torch": "2.13",
    },
    "rounds": 9,
}
SAME = {"ratio": 1.0, "quartiles": [0.9, 1.2]}
SLOW = {"ratio": 1.5, "quartiles": [1.4, 1.6]}


@pytest.fixture
def load(monkeypatch):
    """Load a script as a module, as if it were run from its folder."""
    monkeypatch.syspath_prepend(str(BENCH))

    def loaded(name: str):
        loader = SourceFileLoader(f"bench_{name}", str(BENCH / name))
        module = importlib.util.module_from_spec(
            importlib.util.spec_from_loader(f"bench_{name}", loader)
        )
        loader.exec_module(module)
        return module

    return loaded


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_script_says_what_it_does(name) -> None:
    command = [sys.executable, BENCH / name, "--help"]
    words = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert words.startswith(f"usage: scripts/bench/{name}")
    assert all(f"--{option}" in words for option in ("models", "batch", "rounds", "smoke", "out"))


def test_one_command_knows_every_script() -> None:
    everything = BENCH / "all"
    subprocess.run(["bash", "-n", everything], check=True)
    subprocess.run(["bash", "-n", BENCH / "peers.sh"], check=True)
    assert f"names=({' '.join(SCRIPTS)})" in everything.read_text(encoding="utf-8")


def test_the_peers_are_pinned_and_no_place_is_named() -> None:
    lines = (BENCH / "peers.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9.]*", line) for line in pins)
    assert any(line.startswith("torch==") for line in pins)


def test_ratios_are_medians_of_the_rounds_with_their_quartiles(load) -> None:
    results = load("step").results
    own, base = [3.0, 1.0, 2.6, 2.0], [2.0, 1.0, 2.0, 1.0]
    low, middle, high = np.percentile(np.divide(own, base), (25, 50, 75))
    ratio = results.ratio(own, base)
    assert ratio["ratio"] == pytest.approx(middle, abs=1e-4)
    assert ratio["quartiles"] == pytest.approx([low, high], abs=1e-4)
    assert results.ratio([3.0], [2.0]) == {"ratio": 1.5, "quartiles": [1.5, 1.5]}
    assert results.cell(SLOW, 1.4) == "**1.50** (1.40–1.60)"
    assert results.cell(SLOW, 1.5) == "1.50 (1.40–1.60)"
    assert results.cell(None) == "–"


def test_the_floor_is_the_teachers_pass_and_the_students_step(load) -> None:
    times = {"teacher": [1.0, 2.0], "student": [3.0, 2.0], "keras_kd": [4.0, 4.0]}
    seen = load("step").summary({**times, "keras": [8.0, 8.0]})
    assert (seen["floor_ms"], seen["teacher_ms"], seen["student_ms"]) == (4000.0, 1500.0, 2500.0)
    assert seen["contenders"]["keras_kd"]["floor"] == {"ratio": 1.0, "quartiles": [1.0, 1.0]}
    assert seen["contenders"]["keras_kd"]["keras"] == {"ratio": 0.5, "quartiles": [0.5, 0.5]}
    assert seen["contenders"]["keras"]["floor"]["ratio"] == 2.0


def test_the_table_of_step_is_made_from_the_json(load) -> None:
    run = {
        "model": "mlp",
        "batch": 32,
        "steps_per_execution": 8,
        "loss": "logits",
        "floor_ms": 3.0,
        "teacher_ms": 1.0,
        "student_ms": 2.0,
        "contenders": {
            "keras_kd": {"ms": 4.5, "floor": SLOW, "keras": SAME},
            "keras": {"ms": 4.5, "floor": SAME},
            "torch": {"ms": 4.5, "floor": SLOW, "hand-written": SLOW},
        },
    }
    words = load("step").table(json.loads(json.dumps({**HEAD, "runs": [run]})))
    assert (
        "Written by `scripts/bench/x` on 2026-01-31: A processor, 2 cores; Python 3.11, " in words
    )
    assert "TensorFlow 2.21, PyTorch 2.13." in words
    cells = "1.00 + 2.00 ms | **1.50** (1.40–1.60) | 1.00 (0.90–1.20) | – | 1.50 (1.40–1.60)"
    assert f"| mlp, 32, 8 | logits | {cells} | 1.00 (0.90–1.20) | 1.50 (1.40–1.60) |" in words


def test_the_tables_of_soft_targets_are_made_from_the_json(load) -> None:
    part = {"seconds": 0.5}
    own = {name: {"first": part | SLOW, "later": part | SAME} for name in ("live", "dense")}
    own |= {"student": {"later": part | SAME}, "top_k": {"first": part | SAME, "later": SLOW}}
    built = {"model": "mlp", "examples": 5000, "examples_per_second": 1234, "over_forward": 1.25}
    rates = {"plain_read": 9_000_000, "first_pass": 250_000, "later_pass": 450_000}
    found = {
        **HEAD,
        "epoch_seconds": 1.25,
        "processes": 4,
        "epochs": [{"model": "mlp", "batch": 32, "steps": 16, "contenders": own}],
        "building": [built],
        "large": {
            "examples": 1_000_000,
            "build": {"growth_mb": 99.6, "bytes_per_example": 76.01, "examples_per_second": 7000},
            "read": {
                "examples_per_second": rates,
                "over_plain_read": {"first_pass": 0.0278, "later_pass": 0.05},
            },
        },
    }
    words = load("soft_targets").table(json.loads(json.dumps(found)))
    assert "| mlp, 32 | 16 steps, 0.50 s | 1.00 (0.90–1.20) | 1.00 (0.90–1.20) | **1.50**" in words
    assert "about 1.25 seconds for an epoch" in words
    assert "Median of 36 rounds (and quartiles), measured in turns, in 4 processes." in words
    assert "| mlp | 5,000 | 1,234 | 1.25 |" in words
    assert "## 1,000,000 examples of 1,000 classes, top-16, float16" in words
    assert "| the process grows by, building | 100 MB | < 300 MB |" in words
    assert "| read over plainly | 0.028, 0.050 |" in words
    assert "1,000 classes" not in load("soft_targets").table({**found, "large": None})


def test_epochs_are_taken_in_turns_over_all_processes_and_summed_up_together(
    load, monkeypatch
) -> None:
    """Each of 4 processes starts with another contender."""
    script, asked = load("soft_targets"), []

    def ask(name, job):
        asked.append(job)
        turns = range(job["number"] * job["rounds"], (job["number"] + 1) * job["rounds"])
        own = {"student": 2.0, "live": 4.0, "dense": 2.0 + job["number"], "top_k": 1.0}
        return {"steps": 16, "times": {k: [(1.0, v)] * len(turns) for k, v in own.items()}}

    monkeypatch.setattr(script.children, "ask", ask)
    options = argparse.Namespace(
        models=["mlp", "cnn"], batch=[256, 32], processes=4, rounds=3, seconds=2.0
    )
    found = script.epochs(options)
    pairs = [("mlp", 32), ("mlp", 256), ("cnn", 32), ("cnn", 256)]
    assert [(job["model"], job["batch"]) for job in asked] == pairs * 4
    assert [job["steps"] for job in asked] == [None] * 4 + [16] * 12
    assert [(run["model"], run["batch"], run["steps"]) for run in found] == [
        (*pair, 16) for pair in pairs
    ]
    seen = found[0]["contenders"]["dense"]["later"]  # 1, 1.5, 2 and 2.5 times, thrice each
    assert seen == {"seconds": 3.5, "ratio": 1.75, "quartiles": [1.375, 2.125]}
    assert {script.turns.turned(script.CONTENDERS, number)[0] for number in range(4)} == set(
        script.CONTENDERS
    )


@pytest.mark.parametrize("rounds", (1, 3))
def test_every_contender_is_timed_in_each_round(load, rounds) -> None:
    script, order = load("soft_targets"), []

    class Runner:
        def __init__(self, name):
            self.name = name

        def time(self):
            order.append(self.name)
            return (1.0, len(order))

    runners = {name: Runner(name) for name in script.CONTENDERS}
    times = script.in_turns(runners, 1, rounds)
    names = list(script.CONTENDERS)
    first = names[1:] + names[:1]
    second, third = names[2:] + names[:2], names[3:] + names[:3]
    assert order == [*first[::-1], *second, *third[::-1]][: 4 * rounds]
    assert all(len(seen) == rounds for seen in times.values())


def test_the_table_of_memory_is_made_from_the_json(load) -> None:
    ways = {
        way: {"peak_mb": 500.0 + number, "growth_mb": 10.0 + number}
        for number, way in enumerate(("student", "soft", "live", "keras"))
    }
    found = {**HEAD, "runs": [{"model": "cnn", "batch": 256, "ways": ways}]}
    words = load("memory").table(json.loads(json.dumps(found)))
    assert "| cnn, 256 | 10 (500) | 11 (501) | 12 (502) | 13 (503) |" in words


def test_the_tables_of_evaluation_are_made_from_the_json(load) -> None:
    over = {"keras_kd, logits": 1.06, "keras_kd, feature": 1.07, "keras, logits": 1.5}
    file = {
        "model": "mlp",
        "weights_bytes": 2_000_000,
        "bytes": {"student": 6_000_000},
        "over_student": over,
        "projector_over_student": 0.07,
    }
    run = {"model": "mlp", "batch": 32, "student_ms": 0.5, "keras_kd": SLOW, "keras": SLOW}
    found = {**HEAD, "evaluate": [run], "files": [file]}
    words = load("evaluation").table(json.loads(json.dumps(found)))
    assert "| mlp, 32 | 0.50 ms | **1.50** (1.40–1.60) | 1.50 (1.40–1.60) |" in words
    assert "| mlp | 6.00 MB (2.00 MB) | **1.060** | 1.070 | 1.500 | 0.070 |" in words


def test_a_small_run_of_step_writes_both_files(load, tmp_path, capsys) -> None:
    step = load("step")
    step.main(["--smoke", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "step.json").read_text(encoding="utf-8"))
    assert found["command"] == "scripts/bench/step --smoke"
    assert set(found["machine"]) >= {"cpu", "cores", "keras", "tensorflow"}
    assert [(run["model"], run["batch"], run["loss"]) for run in found["runs"]] == [
        ("mlp", 4, "logits")
    ]
    assert set(found["runs"][0]["contenders"]) == {"keras_kd", "keras", "hand-written"}
    assert all(one["ms"] > 0 for one in found["runs"][0]["contenders"].values())
    words = (tmp_path / "step.md").read_text(encoding="utf-8")
    assert words == step.table(found)
    assert words.strip() in capsys.readouterr().out


@pytest.mark.parametrize("kind", ("mlp", "cnn", "transformer"))
def test_every_network_has_the_layers_that_are_compared(load, kind) -> None:
    load("step")
    from benchkit import contenders, networks

    pair = networks.PAIRS[kind]
    teacher, student, wide = (
        contenders.teacher_of(pair),
        contenders.student_of(pair),
        contenders.student_of(pair, wide=True),
    )
    shapes = [
        [
            model.get_layer(name).output.shape
            for model, name in zip((teacher, student), names, strict=True)
        ]
        for names in (pair.hint, pair.equal)
    ]
    assert shapes[0][0][-1] != shapes[0][1][-1], "a hint needs a projector"
    assert shapes[0][0][:-1] == shapes[0][1][:-1]
    assert shapes[1][0] == shapes[1][1]
    assert 4 * wide.count_params() > 1e6


@pytest.mark.parametrize("loss", ("logits", "equal"))
def test_every_contender_does_the_same_job(load, loss) -> None:
    load("step")
    from benchkit import clocks, contenders, networks

    pair, weights = networks.PAIRS["mlp"], {}
    names = ("keras_kd", "keras", "hand-written") if loss == "logits" else ("keras_kd", "keras")
    for name in names:
        model = contenders.compiled(contenders.make(name, pair, loss), 1)
        dataset = clocks.batches("mlp", 4, 2)
        model.fit(dataset, steps_per_epoch=2, verbose=0, shuffle=False)
        weights[name] = np.concatenate([w.numpy().ravel() for w in model.student.weights])
    for name in names[1:]:
        # Adam moves a weight by 1e-4 a step whatever the loss; equal jobs move it the same way.
        apart = np.abs(weights[name] - weights["keras_kd"])
        assert np.mean(apart > 1e-6) < 1e-3, name
