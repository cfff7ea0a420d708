"""`keras-kd soft-targets`: what it builds, checks, merges, refuses and says."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tomllib

import keras
import numpy as np
import pytest

import keras_kd as kd
from keras_kd import cli, data
from keras_kd.running import soft_stores

HEAVY = ("tensorflow", "keras")


def call(*words):
    """Run a command in this process and return its exit code."""
    try:
        cli.main(["soft-targets", *map(str, words)])
    except SystemExit as stop:
        return stop.code or 0
    return 0


def refused(capsys, *words, code=2):
    """Return what a person reads when a command is refused."""
    assert call(*words) == code
    said = capsys.readouterr().err
    for part in ("\n  given:", "\n  expected:", "\n  fix:"):
        assert part in said, said
    return said


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Five classes in four numbers as a file, with two teachers that give logits."""
    folder, rng = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    x = rng.normal(size=(90, 4)).astype("float32")
    y = rng.integers(0, 5, size=90)
    np.savez(folder / "d.npz", x_train=x[:60], y_train=y[:60], x_test=x[60:], y_test=y[60:])
    for name in ("one", "two"):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, name="answer")])
        model.set_weights([rng.normal(size=(4, 5)), rng.normal(size=5)])
        model.save(folder / f"{name}.keras")
    return folder


def words_of(place, *more, teachers=("one",)):
    named = [word for name in teachers for word in ("--teacher", place / f"{name}.keras")]
    return ["build", *named, "--data", f"npz:{place / 'd.npz'}", *more]


def logits(place, name, x):
    kernel, bias = keras.models.load_model(place / f"{name}.keras").get_weights()
    return x.astype("float64") @ kernel + bias


def columns(folder):
    store = kd.SoftTargets(folder).store
    return store.layout.teacher_of(store.rows(np.arange(store.count)))


def split_of(place, split, **settings):
    return getattr(data.load(f"npz:{place / 'd.npz'}", **settings), split).x


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_build_keeps_the_answers_to_the_split_that_distill_uses(place, tmp_path, split) -> None:
    words = words_of(place, "--out", tmp_path / "s", "--split", split, "--validation", 0.2)
    assert call(*words, "--dtype", "float32") == 0
    expected = logits(place, "one", split_of(place, split, validation=0.2))
    stored = columns(tmp_path / "s")["outputs"]
    np.testing.assert_allclose(stored, expected, rtol=1e-5, atol=1e-6)


def test_build_keeps_layers_and_the_largest_logits(place, tmp_path, capsys) -> None:
    more = ("--out", tmp_path / "s", "--layers", "answer", "--top-k", 2)
    assert call(*words_of(place, *more, "--temperatures", 1, 4, "--batch-size", 16)) == 0
    assert "54 examples" in capsys.readouterr().out
    z = logits(place, "one", split_of(place, "train", validation=0.1))
    teacher = columns(tmp_path / "s")
    np.testing.assert_array_equal(teacher["outputs"]["classes"], np.argsort(-z, axis=1)[:, :2])
    found = teacher["outputs"]["log_sum_exp"]
    for number, temperature in enumerate((1.0, 4.0)):
        expected = np.log(np.exp(z / temperature).sum(1))
        np.testing.assert_allclose(found[:, number], expected, atol=2e-3)  # logits in float16
    np.testing.assert_allclose(teacher["layers"]["answer"], z, rtol=1e-3, atol=1e-3)
    info = kd.SoftTargets(tmp_path / "s").info()
    assert (info["batch_size"], info["dtype"], info["top_k"]) == (16, "float16", 2)


def test_several_teachers_are_an_ensemble(place, tmp_path) -> None:
    words = words_of(place, "--out", tmp_path / "s", "--dtype", "float32", teachers=("one", "two"))
    assert call(*words) == 0
    x = split_of(place, "train", validation=0.1)
    shares = [np.exp(logits(place, name, x)) for name in ("one", "two")]
    mean = np.mean([share / share.sum(1, keepdims=True) for share in shares], axis=0)
    stored = np.asarray(columns(tmp_path / "s")["outputs"], "float64")
    found = np.exp(stored) / np.exp(stored).sum(1, keepdims=True)
    np.testing.assert_allclose(found, mean, rtol=1e-4, atol=1e-6)


def test_values_are_kept_as_values(place, tmp_path) -> None:
    """The labels say that a linear output is a value, and a person may say what is what."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 4)).astype("float32")
    y = x.sum(1, keepdims=True)
    np.savez(tmp_path / "v.npz", x_train=x[:30], y_train=y[:30], x_test=x[30:], y_test=y[30:])
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]).save(tmp_path / "v.keras")
    words = ("build", "--teacher", tmp_path / "v.keras", "--data", f"npz:{tmp_path / 'v.npz'}")
    assert call(*words, "--out", tmp_path / "auto") == 0
    assert kd.SoftTargets(tmp_path / "auto").stated == ["values"]
    said = ("--outputs", "logits", "--activation", "sigmoid")
    assert call(*words, "--out", tmp_path / "said", *said) == 0
    assert kd.SoftTargets(tmp_path / "said").stated == ["logits"]


TEACHER = """
import keras

def teacher():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
"""


def test_a_teacher_of_a_module(place, tmp_path, monkeypatch) -> None:
    (tmp_path / "asked_teachers.py").write_text(TEACHER)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    words = ("--teacher", "asked_teachers:teacher", "--data", f"npz:{place / 'd.npz'}")
    assert call("build", *words, "--out", tmp_path / "s", "--import", "asked_teachers") == 0
    assert len(kd.SoftTargets(tmp_path / "s")) == 54


def test_shards_are_merged_to_what_one_build_gives(place, tmp_path, capsys) -> None:
    whole, out = tmp_path / "whole", tmp_path / "merged"
    assert call(*words_of(place, "--out", whole)) == 0
    parts = [tmp_path / f"part{number}" for number in range(3)]
    for number, part in enumerate(parts):
        assert call(*words_of(place, "--out", part, "--shard", f"{number}/3")) == 0
    said = refused(capsys, "merge", *parts[:2], "--out", tmp_path / "two")
    assert "not the shards of one build" in said
    assert call("merge", *reversed(parts), "--out", out) == 0
    rows = "shard-00000.rows"
    assert (out / rows).read_bytes() == (whole / rows).read_bytes()
    one, other = (kd.SoftTargets(folder).info() for folder in (out, whole))
    assert one["data_fingerprint"] == other["data_fingerprint"]


def test_what_is_there_is_not_asked_again(place, tmp_path, capsys) -> None:
    assert call(*words_of(place, "--out", tmp_path / "s")) == 0
    assert call(*words_of(place, "--out", tmp_path / "s")) == 0
    assert "already complete" in capsys.readouterr().out
    said = refused(capsys, *words_of(place, "--out", tmp_path / "s", "--dtype", "float32"))
    assert "holds another build" in said


# --- info and verify ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(place, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "store"
    assert call(*words_of(place, "--out", folder)) == 0
    return folder


@pytest.mark.parametrize("command", ["info", "verify"])
def test_the_table_of_what_there_is(capsys, store, command) -> None:
    assert call(command, store) == 0
    shown = capsys.readouterr().out
    lines = dict(line.split(maxsplit=1) for line in shown.splitlines() if "  " in line)
    assert lines["examples"] == "54" and lines["dtype"] == "float16"
    assert lines["teacher_fingerprint"] == kd.SoftTargets(store).fingerprint()
    assert ("Every byte is as it was written." in shown) == (command == "verify")


def test_info_as_json(capsys, store) -> None:
    assert call("info", store, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["examples"] == 54
    assert found["bytes_per_row"] == 8 + 5 * 2
    assert found["bytes"] == sum(file.stat().st_size for file in store.iterdir())


def test_damage_is_told_and_the_exit_code_is_1(capsys, place, tmp_path) -> None:
    folder = tmp_path / "s"
    assert call(*words_of(place, "--out", folder)) == 0
    rows = folder / "shard-00000.rows"
    whole = rows.read_bytes()
    rows.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
    assert call("info", folder) == 0  # it reads no rows
    said = refused(capsys, "verify", folder, code=1)
    assert "shard-00000.rows is damaged: rows 0 to 53" in said
    rows.write_bytes(whole[:-1])
    for command in ("info", "verify"):
        assert "a file of 971 bytes" in refused(capsys, command, folder, code=1)
    rows.write_bytes(whole)
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace("54", "53", 1))
    assert "manifest.json is damaged" in refused(capsys, "verify", folder, code=1)
    with pytest.raises(soft_stores.Damaged, match=r"manifest\.json is damaged"):
        cli.main(["soft-targets", "verify", str(folder), "--debug"])


def test_a_folder_without_a_store_is_no_damage(capsys, tmp_path) -> None:
    assert "There is no store of soft targets" in refused(capsys, "verify", tmp_path)
    for words in (("info", "nowhere"), ("verify", "nowhere"), ("merge", "nowhere", "--out", "o")):
        assert "There is no folder 'nowhere'" in refused(capsys, *words)


# --- what answers at once -------------------------------------------------------------------------


def test_a_dry_run_prints_a_plan_that_config_reads(capsys, place, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    more = ("--out", "s", "--layers", "answer", "--shard", "1/4", "--dry-run")
    assert call(*words_of(place, *more)) == 0
    plan = capsys.readouterr().out
    read = tomllib.loads(plan)
    assert (read["out"], read["layers"], read["shard"]) == ("s", ["answer"], "1/4")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "plan.toml").write_text(plan)
    assert call("build", "--config", "plan.toml", "--dry-run") == 0
    assert capsys.readouterr().out == plan


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["build", "--help"],
        ["build", "--teacher", "m:f", "--data", "digits", "--out", "s", "--dry-run"],
    ],
)
def test_what_asks_nothing_loads_neither_tensorflow_nor_keras(words) -> None:
    program = (
        "import sys\nfrom keras_kd import cli\n"
        "try:\n    cli.main(['soft-targets', *sys.argv[1:]])\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        f"print('loaded:', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "loaded: []", done.stderr


@pytest.mark.parametrize("command", ["build", "verify", "info", "merge"])
def test_every_command_has_help(capsys, command) -> None:
    assert call(command, "--help") == 0
    assert f"keras-kd soft-targets {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--top-k", "0"], "`top_k` is out of range"),
        (["--batch-size", "0"], "`batch_size` is out of range"),
        (["--validation", "0"], "`validation` must be"),
        (["--top-k", "2", "--temperatures", "0"], "`temperatures` must be positive"),
        (["--temperatures", "4"], "`temperatures` belongs to `top_k`"),
        (["--shard", "4/4"], "The shard '4/4' cannot be read"),
        (["--shard", "first"], "The shard 'first' cannot be read"),
        (["--dtype", "int8"], "dtype"),
        (["--split", "dev"], "split"),
        (["--top_kk", "2"], "top"),
        (["--teacher", "no.keras"], "The teacher 'no.keras' is not a file"),
        (["--teacher", "what"], "is neither a .keras file nor module:function"),
    ],
)
def test_bad_options_are_refused_before_anything_loads(capsys, monkeypatch, words, said) -> None:
    monkeypatch.setattr("keras_kd.command_line.console.quiet", None)
    good = ["build", "--teacher", "m:f", "--data", "digits", "--out", "s"]
    assert said in refused(capsys, *good, *words)


def test_a_teacher_that_does_not_fit_is_refused(capsys, place, tmp_path) -> None:
    words = ["build", "--teacher", place / "one.keras", "--data", "digits"]
    for more in ((), ("--outputs", "logits")):
        said = refused(capsys, *words, "--out", tmp_path / "s", *more)
        assert "The teacher does not take the data's inputs" in said
    assert not (tmp_path / "s").exists()
    there = words_of(place, "--out", tmp_path / "s", "--layers", "hidden")
    assert "with the path 'hidden'" in refused(capsys, *there)
    assert "top_k" in refused(capsys, *words_of(place, "--out", tmp_path / "t", "--top-k", 5))
