"""A build that is broken off at any moment goes on where it stopped, to the same bytes."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from keras_kd.soft_targets import SoftTargets, files, writing
from tests.soft_targets.soft_helpers import build, contents, inputs

ROOT = pathlib.Path(__file__).resolve().parents[2]
X = inputs(60)


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_build_goes_on_to_the_same_bytes(kills, tmp_path) -> None:
    script = pathlib.Path(__file__).with_name("kill_builds.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script, tmp_path, str(kills), "7"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["killed"] == kills and told["differ"] == []
    assert told["halfway"] >= kills // 2  # most were killed with rows to go on from


class Broken(BaseException):
    """The end of a process, as far as a test in one process can play it."""


@pytest.fixture
def small_shards(monkeypatch) -> None:
    """Shards of 16 rows of 24 bytes."""
    monkeypatch.setattr(writing, "SHARD_BYTES", 16 * 24)


def breaking(monkeypatch, at: int) -> None:
    """Let the `at`-th step on the disk be the last, and no later one work."""
    count = iter(range(10**6))

    def wrap(module, name: str) -> None:
        real = getattr(module, name)

        def step(*given):
            if next(count) >= at:
                raise Broken
            return real(*given)

        monkeypatch.setattr(module, name, step)

    wrap(files.os, "replace")
    wrap(files.os, "fsync")
    wrap(writing.shutil, "rmtree")
    wrap(writing.Writer, "append")


def test_a_build_may_be_broken_off_at_every_step_on_the_disk(
    tmp_path, monkeypatch, small_shards
) -> None:
    expected = contents(build(lambda x: 2 * x, X, tmp_path / "whole").directory)
    broken = 0
    for at in range(100):
        directory = tmp_path / str(at)
        with monkeypatch.context() as patch:
            breaking(patch, at)
            try:
                build(lambda x: 2 * x, X, directory)
            except Broken:
                broken += 1
        build(lambda x: 2 * x, X, directory)
        assert contents(directory) == expected, f"broken off at step {at}"
        if broken <= at:
            break
    assert 20 < broken < 100


def test_a_build_that_goes_on_may_be_broken_off_again(tmp_path, monkeypatch, small_shards) -> None:
    expected = contents(build(lambda x: 2 * x, X, tmp_path / "whole").directory)
    for at in range(100):
        with monkeypatch.context() as patch:
            breaking(patch, 1 + at)
            try:
                build(lambda x: 2 * x, X, tmp_path / "soft")
            except Broken:
                continue
        break
    assert 5 < at < 100
    assert contents(tmp_path / "soft") == expected


def test_only_what_is_missing_is_asked_for(tmp_path, small_shards, capsys) -> None:
    asked: list[float] = []
    stop = True

    def teacher(x: np.ndarray) -> np.ndarray:
        if stop and x[0, 0] == X[40, 0]:
            raise Broken
        asked.append(float(x[0, 0]))
        return 2 * x

    with pytest.raises(Broken):
        build(teacher, X, tmp_path / "soft")
    assert asked == X[:40:8, 0].tolist()
    asked.clear()
    stop = False
    build(teacher, X, tmp_path / "soft", verbose=1)
    assert asked == [X[0, 0], *X[40::8, 0]]  # the first batch, to know the teacher again
    assert "60 examples, 40 of them from a build that was broken off" in capsys.readouterr().out
    whole = build(lambda x: 2 * x, X, tmp_path / "whole")
    assert _rows(tmp_path / "soft") == _rows(whole.directory)


def test_a_build_goes_on_from_data_in_another_form(tmp_path, small_shards) -> None:
    def stopping(x: np.ndarray) -> np.ndarray:
        if x[0, 0] == X[24, 0]:
            raise Broken
        return 2 * x

    with pytest.raises(Broken):
        build(stopping, X, tmp_path / "soft", fingerprint="f")
    with pytest.raises(ValueError, match="is not complete: 24 of 60 rows"):
        SoftTargets(tmp_path / "soft")
    data = tf.data.Dataset.from_tensor_slices(X).batch(7)
    build(lambda x: 2 * x, data, tmp_path / "soft", fingerprint="f")
    whole = build(lambda x: 2 * x, X, tmp_path / "whole", fingerprint="f")
    assert _rows(tmp_path / "soft") == _rows(whole.directory)


def test_a_plan_that_cannot_be_read_is_no_reason_to_write_over_shards(
    tmp_path, small_shards
) -> None:
    def stopping(x: np.ndarray) -> np.ndarray:
        if x[0, 0] == X[24, 0]:
            raise Broken
        return 2 * x

    with pytest.raises(Broken):
        build(stopping, X, tmp_path / "soft")
    plan = tmp_path / "soft" / "building" / "plan.json"
    plan.write_bytes(plan.read_bytes()[:-5])
    with pytest.raises(ValueError, match="is not complete"):
        SoftTargets(tmp_path / "soft")
    with pytest.raises(ValueError, match="holds shards and no manifest"):
        build(lambda x: 2 * x, X, tmp_path / "soft")


def _rows(directory: pathlib.Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(directory).items() if name.endswith("rows")}
