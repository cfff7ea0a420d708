"""A run asks its teacher once, and its students learn what they would from the teacher itself."""

from __future__ import annotations

import dataclasses
import json

import keras
import numpy as np
import pytest

import keras_kd as kd
from keras_kd.data import Dataset, Split
from keras_kd.recipes import Recipe
from keras_kd.run import run
from keras_kd.running import lessons, soft_lessons
from keras_kd.running.progress import Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Small(Recipe):
    """The 8x8 digits, two perceptrons, a feature loss with a projector, dropout."""

    summary: str = "small"
    data: str = "digits"
    seeds: tuple[int, ...] = (0, 1)
    limit: int | None = 150
    batch_size: int = 40
    teacher_epochs: int = 2
    epochs: int = 3
    learning_rate: float = 0.01
    teacher_learning_rate: float = 0.01
    temperature: float = 2.0
    student_loss_weight: float = 0.5
    steps_per_execution: int = 2

    def prepare(self, dataset):
        return dataset.map_inputs(lambda x: x.reshape(len(x), 64).astype("float32") / 16)

    def teacher(self):
        return perceptron(16)

    def student(self):
        return perceptron(8)

    def distillation_losses(self):
        features = kd.FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden")
        return [*super().distillation_losses(), features]


class Shaken(Small):
    """The same, and every batch is changed."""

    def student_augmentation(self):
        return lambda x, y, seed: (x + 0.1, y)


def perceptron(width):
    layers = [
        keras.Input((64,)),
        keras.layers.Dense(width, activation="relu", name="hidden"),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(10, name="answer"),
    ]
    return keras.Sequential(layers)


class Hearing(Progress):
    def __init__(self):
        self.words = []

    def say(self, text):
        self.words.append(text)


def told(recipe, out, name):
    progress = Hearing()
    path = run(recipe, out=out, name=name, progress=progress)
    return path, json.loads((path / "run.json").read_text()), " ".join(progress.words)


def same_weights(one, other, atol):
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return all(np.allclose(a, b, rtol=0, atol=atol) for a, b in pairs)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("saved_models")


@pytest.fixture(scope="module")
def stored(out):
    return told(Small(), out, "stored")


def test_students_are_those_of_the_teacher_itself(out, stored) -> None:
    path, record, words = stored
    live_path, live, live_words = told(Small(soft_targets=False), out, "live")
    assert live["teacher"]["soft_targets"] is None
    assert "answers" not in live_words
    assert "The teacher's answers are stored once: 150 examples" in words
    for arm in lessons.ARMS:
        for seed in ("0", "1"):
            one, other = (r["students"][arm]["per_seed"][seed] for r in (record, live))
            assert one["history"].keys() == other["history"].keys()
            for name, values in one["history"].items():
                np.testing.assert_allclose(values, other["history"][name], rtol=1e-5, atol=1e-5)
            for name, value in one["test"].items():
                assert value == pytest.approx(other["test"][name], rel=1e-4, abs=1e-5)
    students = [keras.models.load_model(p / "student.keras") for p in (path, live_path)]
    assert same_weights(*students, atol=1e-5)


def test_the_record_says_which_way_the_teacher_taught(stored) -> None:
    path, record, _ = stored
    about = record["teacher"]["soft_targets"]
    soft = kd.SoftTargets(path / about["path"])
    assert soft.verify()["examples"] == about["examples"] == 150
    assert soft.info()["dtype"] == "float32"
    assert soft.info()["layers"] == ["hidden"]
    assert about["bytes"] == sum(file.stat().st_size for file in soft.directory.iterdir())
    assert about["seconds"] > 0 and about["kept"] is False
    assert soft.fingerprint() == record["teacher"]["fingerprint"]


def test_the_next_run_takes_what_is_there_and_makes_what_is_damaged_again(out, stored) -> None:
    path, record, _ = stored
    folder = path / record["teacher"]["soft_targets"]["path"]
    rows = next(folder.glob("*.rows"))
    whole = rows.read_bytes()
    _, again, words = told(Small(epochs=1, seeds=(0,)), out, "again")
    assert f"The teacher's answers are taken from {folder.resolve()}" in words
    assert again["teacher"]["soft_targets"]["kept"] is True
    rows.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    _, mended, words = told(Small(epochs=1, seeds=(0,)), out, "mended")
    assert "stored once" in words and mended["teacher"]["soft_targets"]["kept"] is False
    assert rows.read_bytes() == whole


# --- one lesson at a time -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Two(Small):
    """Two inputs, two outputs (a class and a value), examples of different weight."""

    limit: int | None = None

    def prepare(self, dataset):
        return dataset

    def teacher(self):
        return two(12)

    def student(self):
        return two(4)

    def distillation_losses(self):
        from keras_kd.running.value_matching import ValueMatching

        kl = kd.LogitsDistillation(temperature=2.0, loss={"kind": "kl_divergence", "size": None})
        return [kl, ValueMatching({"kind": False, "size": True})]

    def loss(self):
        kind = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return {"kind": kind, "size": keras.losses.MeanSquaredError()}

    def metrics(self):
        return {"kind": [], "size": []}


def two(width):
    left, right = keras.Input((3,), name="left"), keras.Input((2,), name="right")
    x = keras.layers.Concatenate()([left, right])
    x = keras.layers.Dense(width, activation="tanh", name="hidden")(x)
    kind = keras.layers.Dense(3, activation="softmax", name="kind")(x)
    if width == 4:
        kind = keras.layers.Dense(3, name="kind")(x)
    return keras.Model(
        {"left": left, "right": right},
        {"kind": kind, "size": keras.layers.Dense(1, name="size")(x)},
    )


def example(count, rng):
    x = {"left": rng.normal(size=(count, 3)), "right": rng.normal(size=(count, 2))}
    x = {name: array.astype("float32") for name, array in x.items()}
    y = {"kind": x["left"].argmax(1), "size": x["right"].sum(1, keepdims=True)}
    weights = {"kind": rng.uniform(size=count), "size": np.ones(count)}
    return Split(x=x, y=y, weights=weights)


@pytest.fixture
def lesson(rng):
    keras.utils.set_random_seed(3)
    train, validation, test = (example(count, rng) for count in (70, 20, 20))
    dataset = Dataset(name="two", train=train, validation=validation, test=test)
    return Two(), Two().teacher(), dataset


ABOUT = {"source": "elsewhere:teacher", "fingerprint": "0"}


def ask(plan, teacher, dataset, home, about=ABOUT):
    progress = Hearing()
    found = soft_lessons.ask_once(
        plan, lessons.stated(teacher, dataset), about, dataset, home, progress
    )
    return *found, " ".join(progress.words)


def taught(lesson, folder, soft):
    plan, teacher, dataset = lesson
    return lessons.teach_student(
        "distilled", plan, teacher, dataset, 5, folder / "logs", Progress(), soft
    )


def test_several_inputs_outputs_and_weights(lesson, tmp_path) -> None:
    soft, _, _ = ask(*lesson, tmp_path)
    assert soft.stated == ["softmax", "values"]
    live, kept = (taught(lesson, tmp_path, one) for one in (None, soft))
    assert {"logits_distillation", "value_matching"} <= kept.history.keys()
    for name, values in live.history.items():
        np.testing.assert_allclose(values, kept.history[name], rtol=1e-5, atol=1e-6)
    assert same_weights(live.model, kept.model, atol=1e-5)

    plan, teacher, dataset = lesson
    teacher.set_weights([3 * weight for weight in teacher.get_weights()])
    other, _, _ = ask(*lesson, tmp_path / "other")
    assert not same_weights(live.model, taught((plan, None, dataset), tmp_path, other).model, 1e-3)


def test_a_teacher_that_answers_otherwise_is_asked_again(lesson, tmp_path) -> None:
    """The same source and the same name: what it answers tells."""
    _, teacher, dataset = lesson
    first, _, _ = ask(*lesson, tmp_path)
    same, about, _ = ask(*lesson, tmp_path)
    assert about["kept"] and same.directory == first.directory
    teacher.set_weights([1.01 * weight for weight in teacher.get_weights()])
    other, about, _ = ask(*lesson, tmp_path)
    assert not about["kept"] and other.directory == first.directory
    wanted = lessons.stated(teacher, dataset)({k: v[:5] for k, v in dataset.train.x.items()})
    rows = other.store.rows(np.arange(5))
    stored = other.store.layout.teacher_of(rows)["outputs"]
    for one, want in zip(stored, keras.tree.flatten(wanted), strict=True):
        np.testing.assert_allclose(one, want, rtol=1e-5, atol=1e-6)


def test_the_key_holds_what_decides_about_the_answers(lesson, tmp_path) -> None:
    plan, teacher, dataset = lesson

    class Deep(Two):
        def distillation_losses(self):
            features = kd.FeatureDistillation(
                teacher_layer_name="hidden", student_layer_name="hidden"
            )
            return [features, features]

    shorter = dataclasses.replace(dataset, train=dataset.train.select(slice(60)))
    asked = [
        ask(plan, teacher, dataset, tmp_path),
        ask(Deep(), teacher, dataset, tmp_path),
        ask(plan, teacher, shorter, tmp_path),
        ask(plan, teacher, dataset, tmp_path, {"key": "k", "fingerprint": "0"}),
        ask(plan, teacher, dataset, tmp_path, {"key": "k", "fingerprint": "1"}),
    ]
    assert len({soft.directory for soft, _, _ in asked}) == len(asked)
    assert not any(about["kept"] for _, about, _ in asked)
    assert asked[1][0].info()["layers"] == ["hidden"]
    assert len(asked[2][0]) == 60


def test_where_the_teacher_is_asked_in_each_step(lesson, tmp_path, monkeypatch) -> None:
    plan, teacher, dataset = lesson

    class Moved(Two):
        def student_augmentation(self):
            return lambda x, y, seed: (x, y)

    assert ask(Moved(), teacher, dataset, tmp_path) == (None, None, "")
    off = dataclasses.replace(plan, soft_targets=False)
    assert ask(off, teacher, dataset, tmp_path) == (None, None, "")
    row = 8 + 4 * (3 + 1)
    monkeypatch.setattr(soft_lessons, "LARGEST", 70 * row - 1)
    soft, about, words = ask(*lesson, tmp_path)
    assert (soft, about) == (None, None)
    assert "The teacher is asked anew in each step: its answers would take" in words
    assert not (tmp_path / "soft_targets").exists()
    monkeypatch.setattr(soft_lessons, "LARGEST", 70 * row)
    assert ask(*lesson, tmp_path)[0].info()["bytes_per_row"] == row


def test_the_switch_is_true_or_false() -> None:
    with pytest.raises(TypeError, match="`soft_targets` must be True or False"):
        Small(soft_targets="yes")


def test_another_run_may_have_kept_them_in_the_meantime(lesson, tmp_path, monkeypatch) -> None:
    """Two runs begin at once: the one that comes second takes what the first has made."""
    build, made = kd.SoftTargets.build, []

    def build_twice(teacher, x, directory, **settings):
        build(teacher, x, directory, **settings)
        folder = directory.parent / directory.name[1:17]
        made.append(build(teacher, x, folder, **settings))

    monkeypatch.setattr(kd.SoftTargets, "build", build_twice)
    soft, _, _ = ask(*lesson, tmp_path)
    assert [one.directory for one in made] == [soft.directory]
    assert [path.name for path in (tmp_path / "soft_targets").iterdir()] == [soft.directory.name]

    def fill_the_disk(teacher, x, directory, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kd.SoftTargets, "build", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        ask(*lesson, tmp_path / "other")


def test_a_build_that_is_broken_off_leaves_nothing(lesson, tmp_path, monkeypatch) -> None:
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kd.SoftTargets, "build", stop)
        with pytest.raises(KeyboardInterrupt):
            ask(*lesson, tmp_path)
    assert list((tmp_path / "soft_targets").iterdir()) == []
