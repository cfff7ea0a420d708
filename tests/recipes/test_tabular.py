"""The two recipes of tables: one logit, one value, and measurements that are standardised."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest

from keras_kd import data, recipes
from keras_kd.litert import provenance
from keras_kd.run import prepared, run
from keras_kd.running import lessons
from keras_kd.teachers import Teacher

NAMES = ("tabular", "tabular_regression")
SIZES = {
    "tabular": {"teacher": (30, 64, 64, 1), "student": (30, 16, 16, 1)},
    "tabular_regression": {"teacher": (10, 128, 1), "student": (10, 8, 1)},
}


@pytest.fixture(scope="module", params=NAMES)
def story(request, tmp_path_factory):
    """Tell the whole story at its smallest."""
    recipe = recipes.load(request.param).smoke()
    path = run(recipe, out=tmp_path_factory.mktemp("saved_models"), name="smoke")
    return recipe, path, json.loads((path / "run.json").read_text())


def test_the_files_agree_with_keras(story) -> None:
    _, path, record = story
    for form in ("saved_model", "tflite"):
        certificate = record["exports"][form]["certificate"]
        assert certificate["verified"]["examples"] == record["data"]["test"]
    assert (path / "student.tflite").is_file()
    assert {"alone-seed0", "distilled-seed0"} <= {log.name for log in (path / "logs").iterdir()}


def test_the_rows_hold_what_the_task_asks(story) -> None:
    recipe, _, record = story
    expected = {
        "breast_cancer": {"binary_accuracy", "agreement", "teacher_kl", "log_loss"},
        "diabetes": {"mse", "teacher_mse", "mean_absolute_error"},
    }[recipe.data]
    for arm in lessons.ARMS:
        row = record["students"][arm]["test"]
        assert expected <= row.keys()
    only_students = {"agreement", "teacher_kl", "teacher_mse"}
    assert expected - only_students <= record["teacher"]["test"].keys()


def test_the_kept_student_and_the_written_scaling_give_the_numbers_of_the_table(story) -> None:
    """From raw measurements, the file and NumPy alone."""
    recipe, path, record = story
    test = data.load(recipe.data).test
    student = keras.models.load_model(path / "student.keras")
    told = record["data"]["standardised"]
    x = test.x.astype("float64") * told["scale"] + told["offset"]
    z = student.predict(x.astype("float32"), verbose=0)[:, 0].astype("float64")
    row = record["students"]["distilled"]["per_seed"]["0"]["test"]
    if recipe.data == "diabetes":
        assert row["mse"] == pytest.approx(np.mean((z - test.y) ** 2), rel=1e-4)
        assert row["mean_absolute_error"] == pytest.approx(np.abs(z - test.y).mean(), rel=1e-4)
        return
    assert row["binary_accuracy"] == pytest.approx(np.mean((z > 0) == test.y), abs=1e-6)
    nats = np.logaddexp(0, -z * (2 * test.y - 1))
    assert row["log_loss"] == pytest.approx(nats.mean(), rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_scalings_are_those_of_the_training_split(name: str) -> None:
    recipe = recipes.load(name)
    dataset = prepared(recipe, None)
    assert len(dataset.validation) == pytest.approx(
        0.2 * (len(dataset.train) + len(dataset.validation)), abs=1
    )
    raw = data.load(recipe.data, validation=0.2)
    x, y = raw.train.x.astype("float64"), raw.train.y.astype("float64")
    for split in ("train", "validation", "test"):
        found, own = getattr(dataset, split).x, getattr(raw, split).x.astype("float64")
        np.testing.assert_allclose(found, (own - x.mean(0)) / x.std(0), rtol=1e-4, atol=1e-5)
    if name == "tabular_regression":
        for model in (recipe.teacher(), recipe.student()):
            recipe.adapt(model, dataset)
            points = np.asarray(model.get_layer("points")(np.float32([[0], [1]])))
            np.testing.assert_allclose(points[:, 0], [y.mean(), y.mean() + y.std()], rtol=1e-5)


def test_the_files_say_how_their_inputs_were_standardised(story) -> None:
    _, path, record = story
    told = provenance.read(path / "student.tflite")["standardised"]
    assert told == record["data"]["standardised"]


@pytest.mark.parametrize("name", NAMES)
def test_the_networks_have_the_widths_of_their_docstrings(name: str) -> None:
    recipe = recipes.load(name)
    for role, widths in SIZES[name].items():
        model = getattr(recipe, role)()
        found = [layer.units for layer in model.layers if isinstance(layer, keras.layers.Dense)]
        assert (model.input_shape[1], *found) == widths
        assert "-".join(map(str, widths)) in (getattr(recipe, role).__doc__ or "")
        trained = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
        assert role == "teacher" or str(trained) in recipe.summary
        noisy = {"noise", "dropout", "dropout1"} & {layer.name for layer in model.layers}
        assert bool(noisy) == (role == "teacher")


def test_one_logit_is_distilled_as_a_bernoulli() -> None:
    (loss,) = recipes.load("tabular").distillation_losses()
    found = float(loss.compute_loss([[2.0], [-1.0]], [[0.5], [-1.0]]))
    p, q = 1 / (1 + np.exp(-2.0)), 1 / (1 + np.exp(-0.5))
    divergence = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert found == pytest.approx(divergence / 2, rel=1e-5)


def test_values_are_distilled_as_values() -> None:
    recipe = recipes.load("tabular_regression")
    dataset = prepared(recipe, None)
    teacher = recipe.teacher()
    recipe.adapt(teacher, dataset)
    assert isinstance(lessons.stated(teacher, dataset), Teacher)
    (loss,) = recipe.distillation_losses()
    assert float(loss.compute_loss([[150.0]], [[146.0]])) == pytest.approx(8.0)
