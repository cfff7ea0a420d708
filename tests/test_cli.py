"""The command line: what it lists, refuses and says, and four kinds of models made elsewhere."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tomllib

import keras
import numpy as np
import pytest

from keras_kd import cli
from keras_kd.command_line import catalogue, console

HEAVY = ("tensorflow", "keras")


def call(*words):
    """Run a command in this process and return its exit code."""
    try:
        cli.main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code or 0
    return 0


def refused(capsys, *words):
    """Return what a person reads when a command is refused: three parts and no traceback."""
    assert call(*words) == 2
    said = capsys.readouterr().err
    for part in ("\n  given:", "\n  expected:", "\n  fix:"):
        assert part in said, said
    assert "Traceback" not in said
    return said


def save_npz(path, x, y, count=120):
    half = count * 2 // 3
    arrays = {}
    for kind, values in (("x", x), ("y", y)):
        parts = values if isinstance(values, dict) else {"": values}
        for name, array in parts.items():
            ending = f"_{name}" if name else ""
            arrays[f"{kind}_train{ending}"] = array[:half]
            arrays[f"{kind}_test{ending}"] = array[half:count]
    np.savez(path, **arrays)
    return f"npz:{path}"


def shell(folder, *words):
    """Run a command in a process of its own, as a person does."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    env["PYTHONPATH"] = os.pathsep.join([os.getcwd(), *sys.path])
    command = [sys.executable, "-m", "keras_kd.cli", *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


@pytest.fixture
def flowers(tmp_path, rng):
    """Three classes in four numbers, as a file, with a teacher and a student."""
    x = rng.normal(size=(120, 4)).astype("float32")
    data = save_npz(tmp_path / "flowers.npz", x, x[:, :3].argmax(axis=1))
    sources = {}
    for name, width in (("teacher", 16), ("student", 4)):
        model = keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(width, "relu"), keras.layers.Dense(3)]
        )
        model.save(tmp_path / f"{name}.keras")
        sources[name] = str(tmp_path / f"{name}.keras")
    return data, sources["teacher"], sources["student"]


def distilled(out, *words, epochs=2):
    """Run `distill` with short settings and return its record and folder."""
    common = ("--out", out, "--epochs", epochs, "--batch-size", 16, "--name", "test")
    assert call("distill", *words, *common) == 0
    folder = out / "distill" / "test"
    return json.loads((folder / "run.json").read_text()), folder


# --- what answers at once -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["list"],
        ["list", "losses"],
        ["run", "--dry-run"],
        ["run", "--help"],
        ["distill", "--teacher", "m:f", "--student", "m:f", "--data", "digits", "--dry-run"],
    ],
)
def test_what_trains_nothing_loads_neither_tensorflow_nor_keras(words):
    program = (
        "import sys\nfrom keras_kd import cli\n"
        "try:\n    cli.main(sys.argv[1:])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"print('loaded:', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "loaded: []", done.stderr


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("recipes", "mnist1d"),
        ("data", "npz:FILE"),
        ("losses", "LogitsDistillation"),
        ("exports", "saved_model"),
    ],
)
def test_list(capsys, what, name):
    assert call("list", what) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(name)]
    assert len(line.split()) > 2


def test_lists_are_what_the_package_has():
    from keras_kd import export, losses, recipes

    assert list(catalogue.rows("recipes")) == recipes.names()
    assert set(catalogue.rows("losses")) == set(losses.__all__) - {"DistillationLoss"}
    assert set(catalogue.rows("exports")) == set(export.TARGETS)
    with pytest.raises(ValueError, match="There is no kind of list 'loses'"):
        catalogue.rows("loses")


@pytest.mark.parametrize(
    "command", ["run", "distill", "export", "evaluate", "soft-targets", "list", "env"]
)
def test_every_command_has_help(capsys, command):
    assert call(command, "--help") == 0
    assert f"keras-kd {command}" in capsys.readouterr().out


def test_help_shows_defaults(capsys):
    call("distill", "--help")
    shown = " ".join(capsys.readouterr().out.split())
    for default in ("[default: 4.0]", "[default: 10]", "[default: saved_models]"):
        assert default in shown


def test_a_dry_run_prints_a_plan_that_config_reads_and_writes_nothing(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert call("run", "mnist_mlp", "--seeds", 4, 5, "--temperature", 2.5, "--dry-run") == 0
    plan = capsys.readouterr().out
    assert tomllib.loads(plan)["seeds"] == [4, 5]
    assert tomllib.loads(plan)["temperature"] == 2.5
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "plan.toml").write_text(plan)
    assert call("run", "mnist_mlp", "--config", "plan.toml", "--dry-run") == 0
    assert capsys.readouterr().out == plan
    assert call("run", "mnist_mlp", "--config", "plan.toml", "--epochs", 1, "--dry-run") == 0
    assert tomllib.loads(capsys.readouterr().out)["epochs"] == 1


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "mnist1"], "There is no recipe 'mnist1'"),
        (["run", "--tempratur", "3"], "Did you mean --temperature?"),
        (["run", "--temperature", "hot"], 'unable to convert "hot" into float'),
        (["run", "--temperature", "0", "--dry-run"], "`temperature` must be positive"),
        (["run", "--seeds", "1", "1", "--dry-run"], "`seeds` must be different numbers"),
        (["run", "--config", "no.toml"], "The configuration 'no.toml' is not a file"),
        (["rnu"], 'Did you mean "run"?'),
        (["list", "loses"], "loses"),
        (["distill", "--student", "m:f", "--data", "digits"], "--teacher"),
        (["evaluate", "--teacher", "m:f", "--student", "s.keras", "--data", "digits"], "no name"),
        (["export", "no.keras", "--data", "digits", "--out", "o"], "The model 'no.keras'"),
        (
            ["export", "m:f", "--data", "digits", "--out", "o", "--formats", "tflight"],
            "There is no export format 'tflight'",
        ),
    ],
)
def test_words_that_cannot_be_meant_are_refused(capsys, words, said):
    assert said in refused(capsys, *words)


@pytest.mark.parametrize(
    ("line", "said"),
    [("sedes = [1]", "sedes"), ("epochs = 'many'", "epochs"), ("epochs = ", "nvalid")],
)
def test_a_configuration_is_checked_as_the_command_line_is(capsys, tmp_path, line, said):
    (tmp_path / "plan.toml").write_text(line)
    assert said in refused(capsys, "run", "--config", tmp_path / "plan.toml")


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="There is no recipe 'mnist1'"):
        cli.main(["run", "mnist1", "--debug"])


def test_a_folder_that_cannot_be_written_to_is_refused(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    said = refused(capsys, "run", "--smoke", "--out", tmp_path / "file" / "runs")
    assert "cannot be written to" in said and "--out" in said


def test_models_and_data_that_do_not_fit_are_refused(capsys, tmp_path, flowers, rng):
    data, teacher, student = flowers
    (tmp_path / "damaged.keras").write_bytes((tmp_path / "teacher.keras").read_bytes()[:500])
    short = ("--out", tmp_path / "out", "--epochs", 1)

    def say(teacher=teacher, student=student, data=data, more=()):
        words = ("--teacher", teacher, "--student", student, "--data", data)
        return refused(capsys, "distill", *words, *short, *more)

    assert "The teacher's file" in say(teacher=str(tmp_path / "damaged.keras"))
    assert "is not a file that can be read" in say(student="no.keras")
    assert "The student does not take the data's inputs" in say(data="digits")
    assert "does not exist" in say(data="npz:no.npz")
    assert "The module 'no_module' cannot be imported" in say(more=("--import", "no_module"))
    assert "There is no distillation loss 'Logits'" in say(more=("--distillation-losses", "Logits"))
    assert "There is no Keras loss 'cross'" in say(more=("--loss", "cross"))
    hint = "FeatureDistillation(teacher_layer_name='block', student_layer_name='block')"
    assert "with the path 'block'" in say(more=("--distillation-losses", hint))
    broken = keras.models.load_model(teacher)
    broken.set_weights([weight * np.nan for weight in broken.get_weights()])
    broken.save(tmp_path / "broken.keras")
    assert "is not finite" in say(teacher=str(tmp_path / "broken.keras"))
    x = rng.normal(size=(120, 4)).astype("float32")
    other = save_npz(tmp_path / "other.npz", x, np.arange(120) % 7)
    assert "The labels reach further than the student's classes" in say(data=other)
    assert not list((tmp_path / "out" / "distill").iterdir())
    assert "alone" not in capsys.readouterr().out  # nothing was trained


def test_ctrl_c_says_how_to_go_on(capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("keras_kd.run.run", stop)
    assert call("run", "--smoke") == 130
    said = capsys.readouterr().err
    assert "No half-written run is left" in said and "the same command goes on" in said


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("Keras says\n  no."), "Keras says no.\n  given:"),
        (OSError(28, "No space left on device"), "The system refused to read or write"),
    ],
)
def test_what_others_raise_is_laid_out_too(capsys, monkeypatch, error, words):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("keras_kd.run.run", fail)
    assert words in refused(capsys, "run", "--smoke")


# --- what is done -------------------------------------------------------------------------------


def test_distill_with_named_losses_then_evaluate_and_export(capsys, tmp_path, flowers):
    data, teacher, student = flowers
    record, folder = distilled(
        tmp_path / "out",
        *("--teacher", teacher, "--student", student, "--data", data, "--seeds", 0, 1),
        *("--distillation-losses", "LogitsDistillation(direction='reverse')"),
        *("--distillation-losses", "LogitMatching"),
        *("--distillation-loss-weights", 1, 0.5),
    )
    history = record["students"]["distilled"]["per_seed"]["0"]["history"]
    assert {"logits_distillation", "logit_matching", "student_loss"} <= history.keys()
    shown = capsys.readouterr().out
    assert "±" in shown and "alone" in shown and f"tensorboard --logdir {folder}" in shown
    assert "in " + str(folder) in shown
    assert "Every seed starts from the student file's weights" in shown

    soft = record["teacher"]["soft_targets"]
    assert "The teacher's answers are stored once" in shown and soft["examples"] > 0
    assert (folder / soft["path"] / "manifest.json").is_file()

    made = folder / "student.keras"
    assert call("evaluate", "--teacher", teacher, "--student", f"small={made}", "--data", data) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("small")]
    chosen = record["students"]["distilled"]["per_seed"][str(record["chosen"]["seed"])]
    assert f"{chosen['test']['accuracy']:.4f}" in row

    assert call("export", made, "--data", data, "--out", tmp_path / "files") == 0
    assert (tmp_path / "files" / "student.tflite").is_file()


def test_a_file_is_every_seeds_start(tmp_path, flowers):
    data, teacher, student = flowers
    start = keras.models.load_model(student).get_weights()
    words = ("--teacher", teacher, "--student", student, "--data", data, "--learning-rate", 1e-9)
    _, folder = distilled(tmp_path / "out", *words, "--seeds", 3)
    for one, other in zip(
        keras.models.load_model(folder / "student.keras").get_weights(), start, strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_way_a_teacher_teaches_changes_no_student(tmp_path, flowers):
    data, teacher, student = flowers
    words = ("--teacher", teacher, "--student", student, "--data", data)
    stored, one = distilled(tmp_path / "stored", *words)
    live, other = distilled(tmp_path / "live", *words, "--no-soft-targets")
    assert stored["config"]["soft_targets"] and stored["teacher"]["soft_targets"]
    assert not live["config"]["soft_targets"] and live["teacher"]["soft_targets"] is None
    assert [path.name for path in other.parent.iterdir()] == ["test"]
    students = [keras.models.load_model(folder / "student.keras") for folder in (one, other)]
    for a, b in zip(*(model.get_weights() for model in students), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


SUBCLASSED = """
import keras

@keras.saving.register_keras_serializable(package="elsewhere")
class Net(keras.Model):
    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.hidden = keras.layers.Dense(width, activation="relu")
        self.answer = keras.layers.Dense(3)

    def call(self, x):
        return self.answer(self.hidden(x))

    def get_config(self):
        return {**super().get_config(), "width": self.width}

def student():
    return Net(4)
"""


def test_distill_a_subclassed_model_of_an_imported_module(tmp_path, flowers, monkeypatch):
    """A fresh process, where only --import can have made the class known."""
    (tmp_path / "their_models.py").write_text(SUBCLASSED)
    monkeypatch.syspath_prepend(tmp_path)
    teacher = importlib.import_module("their_models").Net(16)
    teacher(np.zeros((1, 4), "float32"))
    teacher.save(tmp_path / "net.keras")
    words = ["--teacher", "net.keras", "--student", "their_models:student", "--data", flowers[0]]
    words += ["--import", "their_models", "--epochs", "1", "--name", "test"]
    done = shell(tmp_path, "distill", *words)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    record = json.loads((tmp_path / "saved_models/distill/test/run.json").read_text())
    assert record["students"]["distilled"]["test"]["parameters"]["mean"] == 4 * 4 + 4 + 4 * 3 + 3
    assert "refused" not in record["exports"]["tflite"]


def test_distill_a_model_with_a_nested_backbone(tmp_path, rng):
    def network(channels):
        image = keras.Input((8, 8, 1))
        x = keras.layers.Conv2D(channels, 3, name="conv")(image)
        backbone = keras.Model(image, keras.layers.ReLU(name="relu")(x), name="backbone")
        outer = keras.Input((8, 8, 1), name="image")
        x = keras.layers.GlobalAveragePooling2D()(backbone(outer))
        return keras.Model(outer, keras.layers.Dense(3, activation="softmax")(x))

    network(8).save(tmp_path / "teacher.keras")
    network(2).save(tmp_path / "student.keras")
    x = rng.normal(size=(120, 8, 8, 1)).astype("float32")
    data = save_npz(tmp_path / "images.npz", x, np.arange(120) % 3)
    hint = "FeatureDistillation(teacher_layer_name='backbone/relu', "
    hint += "student_layer_name='backbone/relu')"
    record, folder = distilled(
        tmp_path,
        *("--teacher", tmp_path / "teacher.keras", "--student", tmp_path / "student.keras"),
        *("--data", data, "--distillation-losses", "LogitsDistillation"),
        *("--distillation-losses", hint),
    )
    history = record["students"]["distilled"]["per_seed"]["0"]["history"]
    assert {"logits_distillation", "feature_distillation"} <= history.keys()
    assert record["config"]["outputs"][""] == {"task": "classes", "logits": False}
    saved = keras.models.load_model(folder / "student.keras")
    assert saved.count_params() == network(2).count_params()


def test_distill_a_model_with_several_outputs(tmp_path, rng):
    def network(width, listed):
        x = keras.layers.Dense(width, activation="relu")(inputs := keras.Input((4,), name="x"))
        kind = keras.layers.Dense(3, name="kind")(x)
        size = keras.layers.Dense(1, name="size")(x)
        return keras.Model(inputs, [size, kind] if listed else {"kind": kind, "size": size})

    x = rng.normal(size=(120, 4)).astype("float32")
    labels = {"kind": x[:, :3].argmax(axis=1), "size": x.sum(axis=1, keepdims=True)}
    data = save_npz(tmp_path / "several.npz", x, labels)
    for listed in (False, True):
        folder = tmp_path / str(listed)
        folder.mkdir()
        network(16, listed).save(folder / "teacher.keras")
        network(4, listed).save(folder / "student.keras")
        words = ("--teacher", folder / "teacher.keras", "--student", folder / "student.keras")
        record, _ = distilled(folder, *words, "--data", data)
        history = record["students"]["distilled"]["per_seed"]["0"]["history"]
        expected = {"logits_distillation", "value_matching", "kind_accuracy"}
        assert expected <= history.keys()
        measured = record["students"]["distilled"]["test"]
        assert any(name.endswith("accuracy") for name in measured)
        assert any(name.endswith("mse") for name in measured)
        assert all("refused" not in made for made in record["exports"].values())


@pytest.mark.parametrize("form", ["one", "dict", "list"])
def test_a_regression_is_distilled_in_the_space_of_its_labels(tmp_path, rng, form):
    """A linear teacher and a sigmoid student: both are values, beside classes too."""
    x = rng.normal(size=(120, 4)).astype("float32")
    size = 1 / (1 + np.exp(-x.sum(axis=1, keepdims=True)))
    models = {}
    for name, activation in (("teacher", None), ("student", "sigmoid")):
        inputs = keras.Input((4,), name="x")
        value = keras.layers.Dense(1, activation=activation, name="size")(inputs)
        kind = keras.layers.Dense(3, name="kind")(inputs)
        outputs = {"one": value, "dict": {"size": value, "kind": kind}, "list": [kind, value]}
        models[name] = keras.Model(inputs, outputs[form])
        models[name].save(tmp_path / f"{name}.keras")
    labels = size if form == "one" else {"size": size, "kind": x[:, :3].argmax(axis=1)}
    data = save_npz(tmp_path / "sizes.npz", x, labels)
    words = ("--teacher", tmp_path / "teacher.keras", "--student", tmp_path / "student.keras")
    still = ("--learning-rate", 1e-9, "--validation", 0.0125)  # one of the 80 is out
    record, _ = distilled(tmp_path, *words, "--data", data, *still, epochs=1)
    t, s = (models[n].get_layer("size").get_weights() for n in models)
    taught, said = x @ t[0] + t[1], 1 / (1 + np.exp(-(x @ s[0] + s[1])))
    (history,) = [run["history"] for run in record["students"]["distilled"]["per_seed"].values()]
    expected = np.mean((taught[:80] - said[:80]) ** 2) / 2
    assert history["value_matching"][0] == pytest.approx(expected, rel=0.1)
    name = "mse" if form == "one" else "size/mse"
    measured = record["students"]["distilled"]["test"]
    expected = np.mean((said[80:] - size[80:]) ** 2)
    assert measured[name]["mean"] == pytest.approx(expected, rel=1e-4)
    expected = np.mean((said[80:] - taught[80:]) ** 2)
    assert measured[name.replace("mse", "teacher_mse")]["mean"] == pytest.approx(expected, rel=1e-4)


def test_a_student_that_starts_at_zero_gives_logits(tmp_path, rng):
    x = rng.normal(size=(120, 4)).astype("float32")
    data = save_npz(tmp_path / "yes.npz", x, (x[:, 0] > 0).astype("int64"))
    for name, start in (("teacher", "glorot_uniform"), ("student", "zeros")):
        layers = [keras.layers.Dense(8), keras.layers.Dense(1, kernel_initializer=start)]
        keras.Sequential([keras.Input((4,)), *layers]).save(tmp_path / f"{name}.keras")
    words = ("--teacher", tmp_path / "teacher.keras", "--student", tmp_path / "student.keras")
    words += ("--learning-rate", 0.05, "--student-loss-weight", 1.0)
    record, _ = distilled(tmp_path, *words, "--data", data, epochs=10)
    assert record["config"]["outputs"][""] == {"task": "binary", "logits": True}
    assert record["students"]["alone"]["test"]["binary_accuracy"]["mean"] > 0.9


def test_distill_a_sequence_model(tmp_path, rng):
    def network(width):
        tokens = keras.Input((6,), dtype="int32", name="tokens")
        x = keras.layers.Embedding(9, width, mask_zero=True)(tokens)
        x = keras.layers.GRU(width, return_sequences=True)(x)
        return keras.Model(tokens, keras.layers.Dense(5)(x))

    network(12).save(tmp_path / "teacher.keras")
    network(4).save(tmp_path / "student.keras")
    tokens = rng.integers(1, 9, size=(120, 6)).astype("int32")
    tokens[::3, 4:] = 0
    data = save_npz(tmp_path / "tokens.npz", tokens, tokens % 5)
    words = ("--teacher", tmp_path / "teacher.keras", "--student", tmp_path / "student.keras")
    record, _ = distilled(tmp_path, *words, "--data", data)
    assert record["config"]["outputs"][""] == {"task": "classes", "logits": True}
    assert 0 <= record["students"]["distilled"]["test"]["agreement"]["mean"] <= 1


def test_a_run_from_the_shell_is_quiet(tmp_path):
    """A fresh process: no banner, no warning, a table, and the folder that it names."""
    words = ["run", "--smoke", "--data", "mnist1d", "--limit", "64", "--name", "shell"]
    done = shell(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "saved_models" / "mnist1d" / "shell" / "run.json").is_file()
    assert "distilled" in done.stdout and "tensorboard --logdir" in done.stdout


def test_env(capsys):
    assert call("env") == 0
    shown = capsys.readouterr().out
    assert "tensorflow: " in shown and "cpus: " in shown


# --- what is shown ------------------------------------------------------------------------------


def test_the_table_shows_mean_and_spread():
    from rich.console import Console

    rows = {
        "teacher": {"accuracy": {"mean": 0.98}, "parameters": {"mean": 73000}},
        "alone": {"accuracy": {"mean": 0.928, "sd": 0.007}, "agreement": {"mean": 0.9, "sd": None}},
    }
    screen = Console(width=120, force_terminal=False)
    with screen.capture() as capture:
        screen.print(console.results_table(rows))
    shown = capture.get()
    assert "98.00" in shown and "92.80 ± 0.70" in shown and "73,000" in shown and "–" in shown


def test_the_table_shows_what_a_recipe_measures_beside():
    from rich.console import Console

    row = {"mean_iou": {"mean": 0.5, "sd": 0.01}, "mean_average_precision": {"mean": 0.251}}
    screen = Console(width=120, force_terminal=False)
    with screen.capture() as capture:
        screen.print(console.results_table({"alone": row}))
    assert all(words in capture.get() for words in ("mean IoU %", "50.00 ± 1.00", "mAP %", "25.10"))


def test_bars_show_stages_and_go_away():
    import io

    from rich.console import Console

    stream = io.StringIO()
    bars = console.Bars(Console(file=stream, force_terminal=True, width=120))
    with bars:
        bars.begin({"teacher": 2})
        bars.epoch("teacher", 1, {"loss": 2.0, "val_accuracy": 0.5, "val_loss": 1.0})
        bars.epoch("teacher", 2, {"loss": 1.0, "val_accuracy": 0.75, "val_loss": 0.5})
        bars.say("One sentence.")
    shown = stream.getvalue()
    assert "all epochs" in shown and "2/2" in shown
    assert "teacher: val_accuracy 0.7500" in shown and "One sentence." in shown


def test_what_native_code_says_is_kept_and_shown_on_failure(capfd):
    with console.silent_stderr():
        os.write(2, b"banner")
    assert capfd.readouterr().err == ""
    with pytest.raises(ImportError), console.silent_stderr():
        os.write(2, b"the reason")
        raise ImportError
    assert capfd.readouterr().err == "the reason"
