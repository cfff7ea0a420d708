"""The story of a run, on scikit-learn's digits with tiny networks."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from keras_kd import recipes
from keras_kd.recipes import Recipe
from keras_kd.run import choose, resolve, run
from keras_kd.running import lessons
from keras_kd.running.progress import Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiny(Recipe):
    """The 8x8 digits, two perceptrons."""

    summary: str = "tiny"
    data: str = "digits"
    seeds: tuple[int, ...] = (0, 1)
    limit: int | None = 200
    batch_size: int = 50
    teacher_epochs: int = 2
    epochs: int = 2
    learning_rate: float = 0.01
    teacher_learning_rate: float = 0.01
    temperature: float = 2.0
    student_loss_weight: float = 0.5
    steps_per_execution: int = 1

    def prepare(self, dataset):
        return dataset.map_inputs(lambda x: x.reshape(len(x), 64).astype("float32") / 16)

    def teacher(self):
        return perceptron("teacher", 32)

    def student(self):
        return perceptron("student", 8)


def perceptron(name, width):
    import keras

    return keras.Sequential(
        [
            keras.Input((64,), name="pixels"),
            keras.layers.Dense(width, activation="relu", name="hidden"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(10, name="logits"),
        ],
        name=name,
    )


class Listening(Progress):
    """Remembers what it hears, and may press Ctrl-C in a stage."""

    def __init__(self, stop_in=None):
        self.stages, self.epochs, self.words, self.ended = None, [], [], False
        self.stop_in = stop_in

    def begin(self, stages):
        self.stages = dict(stages)

    def epoch(self, stage, done, logs):
        self.epochs.append((stage, done))
        if stage == self.stop_in:
            raise KeyboardInterrupt

    def say(self, text):
        self.words.append(text)

    def end(self):
        self.ended = True


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("saved_models")


@pytest.fixture(scope="module")
def first(out):
    return run(Tiny(), out=out, name="first", command=["keras-kd", "run"])


@pytest.fixture(scope="module")
def record(first):
    return json.loads((first / "run.json").read_text())


def test_a_run_writes_everything_under_its_name(out, first):
    assert first == out / "test_run" / "first"
    for name in ("student.keras", "saved_model/saved_model.pb", "student.tflite", "run.json"):
        assert (first / name).is_file(), name
    logs = {path.name for path in (first / "logs").iterdir()}
    assert logs == {"teacher"} | {f"{a}-seed{s}" for a in ("alone", "distilled") for s in (0, 1)}
    assert not [path for path in first.parent.iterdir() if path.name.startswith(".")]


def test_the_record_holds_what_a_reader_needs(record):
    assert record["schema"] == 1
    assert (record["recipe"], record["seeds"]) == ("test_run", [0, 1])
    assert record["command"] == ["keras-kd", "run"]
    assert record["config"]["temperature"] == 2.0
    assert record["data"]["train"] == 200
    assert {"python", "keras", "tensorflow"} <= record["versions"].keys()
    assert record["machine"]["cpus"] > 0
    for arm in ("alone", "distilled"):
        found = record["students"][arm]
        values = [found["per_seed"][s]["test"]["accuracy"] for s in ("0", "1")]
        assert found["test"]["accuracy"]["mean"] == pytest.approx(np.mean(values))
        assert found["test"]["accuracy"]["sd"] == pytest.approx(np.std(values, ddof=1))
        assert len(found["per_seed"]["0"]["history"]["val_loss"]) == 2
    distilled = record["students"]["distilled"]["per_seed"]["0"]
    assert {"student_loss", "logits_distillation"} <= distilled["history"].keys()
    assert {"agreement", "teacher_kl", "calibration_error"} <= distilled["test"].keys()
    assert record["exports"]["tflite"]["certificate"]["format"] == "tflite"
    assert len(record["teacher"]["history"]["val_accuracy"]) == 2


def test_the_student_is_chosen_by_validation_and_loads_without_this_package(first, record):
    per_seed = record["students"]["distilled"]["per_seed"]
    best = max(per_seed, key=lambda seed: per_seed[seed]["validation"]["accuracy"])
    assert record["chosen"]["seed"] == int(best)
    program = (
        "import sys, keras; model = keras.models.load_model(sys.argv[1]);"
        "print(model.count_params(), [m for m in sys.modules if m.startswith('keras_kd')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(first / "student.keras")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"{64 * 8 + 8 + 8 * 10 + 10} []"


def test_the_next_run_takes_the_teacher_and_finds_the_same_numbers(out, first, record):
    progress = Listening()
    second = run(Tiny(), out=out, progress=progress)
    again = json.loads((second / "run.json").read_text())
    assert "teacher" not in progress.stages
    assert any("The teacher is taken from" in words for words in progress.words)
    assert again["teacher"]["fingerprint"] == record["teacher"]["fingerprint"]
    assert again["teacher"]["test"] == record["teacher"]["test"]
    for arm in ("alone", "distilled"):
        assert again["students"][arm]["test"] == record["students"][arm]["test"]
    assert (second / "logs" / "teacher").is_dir()


def test_progress_hears_every_epoch_of_every_stage(out, first):
    progress = Listening()
    run(Tiny(seeds=(3,)), out=out, progress=progress)
    assert progress.stages == {"alone seed 3": 2, "distilled seed 3": 2}
    assert progress.epochs == [(s, e) for s in progress.stages for e in (1, 2)]
    assert progress.ended


@pytest.fixture(scope="module")
def lesson():
    from keras_kd.run import prepared

    return prepared(Tiny(), None), Tiny().teacher()


def teach(arm, plan, lesson, folder):
    dataset, teacher = lesson
    return lessons.teach_student(arm, plan, teacher, dataset, 5, folder / arm, Progress())


def test_alone_and_distilled_start_and_go_alike(lesson, tmp_path):
    """Without the teacher's share nothing differs: the two arms end at the same weights."""
    import keras_kd as kd

    class WithProjector(Tiny):
        def distillation_losses(self):
            feature = kd.FeatureDistillation(
                teacher_layer_name="hidden", student_layer_name="hidden"
            )
            return [kd.LogitsDistillation(), feature]

    plan = WithProjector(student_loss_weight=1.0)
    alone, distilled = (teach(arm, plan, lesson, tmp_path) for arm in lessons.ARMS)
    for one, other in zip(alone.model.get_weights(), distilled.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert alone.history["val_loss"] == distilled.history["val_loss"]


def test_alone_and_distilled_see_the_same_batches(lesson, tmp_path):
    import tensorflow as tf

    import keras_kd as kd

    seen = []

    def note(x, y, seed):
        def write(x, seed):
            seen.append((x.sum(), *seed))
            return x

        return tf.ensure_shape(tf.numpy_function(write, [x, seed], x.dtype), x.shape), y

    class Noting(Tiny):
        def student_augmentation(self):
            return note

        def distillation_losses(self):
            return [
                kd.FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden")
            ]

    by_arm = {}
    for arm in lessons.ARMS:
        seen.clear()
        teach(arm, Noting(), lesson, tmp_path)
        by_arm[arm] = sorted(set(seen))
    assert len(by_arm["alone"]) == 2 * 4
    assert by_arm["alone"] == by_arm["distilled"]


def test_other_seeds_give_other_students(record):
    per_seed = record["students"]["alone"]["per_seed"]
    assert per_seed["0"]["history"]["loss"] != per_seed["1"]["history"]["loss"]


def test_ctrl_c_leaves_no_run_and_keeps_the_teacher(tmp_path):
    progress = Listening(stop_in="alone seed 0")
    with pytest.raises(KeyboardInterrupt):
        run(Tiny(), out=tmp_path, progress=progress)
    kept = sorted(path.name for path in (tmp_path / "test_run").iterdir())
    assert kept == ["soft_targets", "teachers"]
    assert progress.ended
    again = Listening(stop_in="alone seed 0")
    with pytest.raises(KeyboardInterrupt):
        run(Tiny(), out=tmp_path, progress=again)
    assert "teacher" in progress.stages and "teacher" not in again.stages


def test_ctrl_c_while_the_teacher_learns_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Tiny(), out=tmp_path, progress=Listening(stop_in="teacher"))
    assert list((tmp_path / "test_run").iterdir()) == []


def test_a_format_that_is_refused_costs_no_training(out, first, monkeypatch):
    import keras_kd.export

    def refuse(*args, **kwargs):
        raise ValueError("It cannot be expressed.")

    monkeypatch.setattr(keras_kd.export, "export_student", refuse)
    path = run(Tiny(seeds=(0,)), out=out, name="refused")
    exports = json.loads((path / "run.json").read_text())["exports"]
    assert exports["tflite"] == {"refused": "It cannot be expressed."}
    assert (path / "student.keras").is_file()


def test_what_does_not_fit_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    progress = Listening()
    with pytest.raises(ValueError, match="There is no recipe 'mnist1'"):
        run("mnist1", out=tmp_path, progress=progress)
    with pytest.raises(ValueError, match=r"There is no field of a recipe 'epoch'[\s\S]*'epochs'"):
        run(Tiny(), out=tmp_path, progress=progress, epoch=3)
    with pytest.raises(ValueError, match="cannot be written to"):
        run(Tiny(), out=tmp_path / "file", progress=progress)
    with pytest.raises(ValueError, match="The teacher does not take the data's inputs"):
        run(recipes.load("mnist1d"), data="digits", out=tmp_path, progress=progress)
    with pytest.raises(ValueError, match="There is no data set 'digit'"):
        run(Tiny(), data="digit", out=tmp_path, progress=progress)
    assert progress.stages is None


def test_fields_are_changed_by_name():
    name, recipe = resolve("mnist1d", {"seeds": (9,), "epochs": 3})
    assert (name, recipe.seeds, recipe.epochs) == ("mnist1d", (9,), 3)
    assert recipe.teacher_epochs == recipes.load("mnist1d").teacher_epochs


def test_choosing_looks_at_accuracy_and_else_at_the_loss():
    def trained(loss):
        return lessons.Trained(None, {"val_loss": [9.0, loss]}, 0.0)

    students = {"distilled-seed0": trained(0.2), "distilled-seed1": trained(0.1)}
    rows = {"distilled-seed0": {"accuracy": 0.9}, "distilled-seed1": {"accuracy": 0.8}}
    assert choose((0, 1), students, rows)["seed"] == 0
    rows = {name: {"mse": 1.0} for name in students}
    chosen = choose((0, 1), students, rows)
    assert (chosen["seed"], chosen["by"], chosen["value"]) == (1, "lowest validation loss", 0.1)
