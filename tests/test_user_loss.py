"""A loss from a paper that is not here, by a user: the class that the README shows."""

from __future__ import annotations

import ast
import json
import pathlib

import keras
import numpy as np
import pytest

import keras_kd as kd
from tests import references
from tests.models import LOGITS, data, mlp

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
NAME = "WeightedSoftLabels"


@pytest.fixture(scope="module")
def shown():
    """The README's block, and what it defines."""
    blocks = README.split("```python\n")[1:]
    (block,) = [text for part in blocks if f"class {NAME}" in (text := part.split("```")[0])]
    space: dict = {}
    exec(compile(block, "README.md", "exec"), space)
    return block, space[NAME]


def weighted_soft_labels(t, s, y, temperature):
    """T²·(1 − exp(−Lₛ/Lₜ))·CE(t/T, s/T): Zhou et al. 2021, as the authors' code has it."""
    ratio = references.cross_entropy(s, y) / (references.cross_entropy(t, y) + 1e-7)
    return (1.0 - np.exp(-ratio)) * references.soft_cross_entropy(t, s, temperature)


def test_it_is_one_class_of_at_most_twenty_lines(shown):
    block, _ = shown
    (node,) = [n for n in ast.parse(block).body if isinstance(n, ast.ClassDef)]
    first = min(decorator.lineno for decorator in node.decorator_list)
    assert node.end_lineno is not None and node.end_lineno - first + 1 <= 20


def test_it_is_the_papers_value_with_weights(rng, shown):
    _, kind = shown
    t, s = (rng.normal(size=(6, 4)) for _ in range(2))
    y, weight = rng.integers(0, 4, 6), rng.uniform(size=6)
    expected = weighted_soft_labels(t, s, y, 3.0)
    loss = kind(3.0)
    assert float(loss.compute_loss(t, s, y=y)) == pytest.approx(expected.mean(), rel=1e-5)
    weighted = float(loss.compute_loss(t, s, y=y, sample_weight=weight))
    assert weighted == pytest.approx((weight * expected).mean(), rel=1e-5)


def test_it_trains_in_a_distiller_with_a_schedule_and_goes_on_after_saving(shown, tmp_path):
    _, kind = shown
    x, y = data(16)
    schedule = keras.optimizers.schedules.PolynomialDecay(4.0, 10, 1.0)
    distiller = kd.Distiller(mlp(8), mlp(4), kind(schedule, name="wsl"))
    distiller.compile("sgd", LOGITS, jit_compile=True)
    history = distiller.fit(x, y, batch_size=8, epochs=1, verbose=0).history
    assert {"wsl", "wsl_temperature"} <= set(history)
    distiller.save(tmp_path / "distiller.keras")
    loaded = kd.load_distiller(tmp_path / "distiller.keras", teacher=distiller.teacher)
    (loss,) = loaded.distillation_losses
    assert json.dumps(loss.get_config()) == json.dumps(
        distiller.distillation_losses[0].get_config()
    )
    loaded.fit(x, y, batch_size=8, epochs=1, verbose=0)


def test_without_labels_it_says_that_it_needs_them(shown):
    _, kind = shown
    with pytest.raises(ValueError, match=f"{NAME} needs labels"):
        kind().compute_loss([[1.0, 0.0]], [[0.0, 1.0]])
