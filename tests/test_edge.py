"""The whole way to the edge, with tiny networks on the 8x8 digits."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from keras_kd import edge, run
from keras_kd.recipes import Recipe
from keras_kd.running.progress import Progress
from keras_kd.running.squeezing import Squeeze

FORMATS = ("tflite", "tflite_int8")
LOOSE = Squeeze(formats=FORMATS, prune_epochs=2, quantise_epochs=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiny(Recipe):
    """The 8x8 digits, two small networks of convolutions."""

    summary: str = "tiny"
    data: str = "digits"
    seeds: tuple[int, ...] = (3,)
    batch_size: int = 64
    teacher_epochs: int = 4
    epochs: int = 4
    learning_rate: float = 0.01
    teacher_learning_rate: float = 0.01
    temperature: float = 2.0
    student_loss_weight: float = 0.5
    steps_per_execution: int = 1

    def prepare(self, dataset):
        return dataset.map_inputs(lambda x: x.reshape(-1, 8, 8, 1).astype("float32") / 16)

    def teacher(self):
        return network("teacher", 16)

    def student(self):
        return network("student", 8)


def network(name, width):
    import keras

    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="pixels"),
            keras.layers.Conv2D(width, 3, use_bias=False, name="conv"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.ReLU(name="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(2 * width, activation="relu", name="hidden"),
            keras.layers.Dense(10, name="logits"),
        ],
        name=name,
    )


class Listening(Progress):
    """Remembers what it hears."""

    def __init__(self):
        self.stages, self.epochs, self.words = {}, [], []

    def begin(self, stages):
        self.stages = dict(stages)

    def epoch(self, stage, done, logs):
        self.epochs.append((stage, done))

    def say(self, text):
        self.words.append(text)


@pytest.fixture(scope="module")
def gone(tmp_path_factory):
    """Go the whole way once; what was heard, the folder and the record."""
    heard = Listening()
    out = tmp_path_factory.mktemp("runs")
    path = edge.compress(Tiny(), LOOSE, out=out, name="once", progress=heard)
    return heard, path, json.loads((path / "compress.json").read_text("utf-8"))


def test_every_stage_learns_for_its_epochs(gone):
    heard, _, record = gone
    expected = {"teacher": 4, "distilled seed 3": 4, "pruned": 2, "quantised": 1}
    assert heard.stages == expected
    assert heard.epochs == [(s, e + 1) for s, count in expected.items() for e in range(count)]
    assert list(record["stages"]) == ["distilled", "pruned", "quantised"]


def test_each_stage_is_the_one_before_made_smaller(gone):
    import keras

    _, path, record = gone
    models = {s: keras.models.load_model(path / f"{s}.keras") for s in record["stages"]}
    assert models["distilled"].get_layer("conv").filters == 8
    assert models["pruned"].get_layer("conv").filters == 4
    assert models["pruned"].count_params() < models["distilled"].count_params() / 2
    kernels = [models[stage].get_layer("hidden").kernel.shape for stage in models]
    assert [tuple(shape) for shape in kernels] == [(288, 16), (144, 8), (144, 8)]
    chance = 0.1
    for stage in record["stages"].values():
        assert stage["test"]["accuracy"] > 3 * chance


def test_the_integer_file_is_the_quantised_students(gone):
    _, path, record = gone
    assert {form: made["stage"] for form, made in record["exports"].items()} == {
        "tflite": "pruned",
        "tflite_int8": "quantised",
    }
    certificate = record["exports"]["tflite_int8"]["certificate"]
    assert certificate["calibration"]["from"] == "the student"
    assert (path / record["exports"]["tflite_int8"]["path"]).stat().st_size == certificate["bytes"]
    metric = certificate["verified"]["metrics"]["accuracy"]
    assert metric["teacher"] == record["teacher"]["test"]["accuracy"]
    assert abs(metric["keras"] - record["stages"]["quantised"]["test"]["accuracy"]) < 1e-7


def test_the_quantised_student_learns_from_its_own_float_form(gone, monkeypatch):
    """Without labels, at its share of the rate; the pruned one learns from the teacher."""
    import keras

    from keras_kd.running import lessons, squeezing

    _, path, _ = gone
    learners = {}

    def watched(learner, plan, dataset, budget, stage, logs, progress):
        learners[stage] = learner, budget
        return lessons.Trained(learner, {}, 0.0)

    monkeypatch.setattr(squeezing.lessons, "fit", watched)
    plan, student = Tiny(), keras.models.load_model(path / "distilled.keras")
    teacher = plan.teacher()
    for bits, share in ((8, 1 / 30), (4, 1 / 3)):
        squeeze = dataclasses.replace(LOOSE, weight_bits=bits)
        data = run.prepared(plan, None)
        way = squeezing.Squeezing(plan, squeeze, teacher, data, Progress())
        stages = dict(way.stages(student, path / "logs"))
        (pruned, _), (quantised, budget) = learners["pruned"], learners["quantised"]
        assert pruned.teacher.model is teacher
        assert pruned.student_loss_weight == plan.student_loss_weight
        assert quantised.teacher.model is stages["pruned"].model
        assert quantised.student is stages["quantised"].model
        assert quantised.student_loss_weight == 0.0
        assert budget.learning_rate == pytest.approx(plan.learning_rate * share)
        assert budget.soft is None


def test_a_students_own_way(gone, tmp_path):
    import keras

    _, path, _ = gone
    data = tmp_path / "digits.npz"
    rng = np.random.default_rng(0)
    x = rng.random((96, 8, 8, 1), dtype="float32")
    y = (x.mean((1, 2, 3)) > 0.5).astype("int32")
    np.savez(data, x_train=x, y_train=y, x_test=x[:32], y_test=y[:32])
    squeeze = dataclasses.replace(LOOSE, keep=1.0, formats=("tflite_int8",))
    source = str(path / "distilled.keras")
    heard = Listening()
    own = edge.compress_student(
        source, f"npz:{data}", squeeze, out=tmp_path, name="own", epochs=3, progress=heard
    )
    assert own == tmp_path / "compress" / "own"
    record = json.loads((own / "compress.json").read_text("utf-8"))
    assert heard.stages == {"quantised": 1}
    assert record["pruning"] is None and record["teacher"]["source"] == source
    kept = keras.models.load_model(own / "distilled.keras").get_weights()
    for ours, theirs in zip(kept, keras.models.load_model(source).get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_cannot_be_quantised_is_refused_before_anything_is_trained(tmp_path):
    import keras

    class Bent(Tiny):
        def student(self):
            inputs = keras.Input((8, 8, 1))
            x = keras.layers.Lambda(lambda x: x * 2.0, name="bend")(inputs)
            x = keras.layers.Dense(10, name="logits")(keras.layers.Flatten()(x))
            return keras.Model(inputs, x)

    heard = Listening()
    squeeze = dataclasses.replace(LOOSE, keep=1.0)
    with pytest.raises(ValueError, match="bend"):
        edge.compress(Bent(), squeeze, out=tmp_path, progress=heard)
    assert not heard.epochs and not list(tmp_path.rglob("compress.json"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"keep": 0.0}, "`keep` must be"),
        ({"keep": 1.5}, "`keep` must be"),
        ({"weight_bits": 2}, "`weight_bits` must be 8 or 4"),
        ({"prune_epochs": 0}, "`prune_epochs` must be"),
        ({"quantise_epochs": 0}, "`quantise_epochs` must be"),
        ({"quantise_rate": 0.0}, "`quantise_rate` must be"),
        ({"formats": ("tflight",)}, "There is no export format 'tflight'"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Squeeze(**settings)
