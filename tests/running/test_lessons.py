"""What a recipe may add to a training: measures of its own, and what networks take from data."""

from __future__ import annotations

import dataclasses
import json

import keras
import numpy as np
import pytest

from keras_kd.data import Split
from keras_kd.recipes import Recipe
from keras_kd.run import run
from keras_kd.running import lessons


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaled(Recipe):
    """The 8x8 digits; the networks scale them by what they see of the training data."""

    summary: str = "scaled"
    data: str = "digits"
    seeds: tuple[int, ...] = (0,)
    limit: int | None = 64
    batch_size: int = 64
    teacher_epochs: int = 1
    epochs: int = 1
    learning_rate: float = 0.01
    teacher_learning_rate: float = 0.01
    temperature: float = 2.0
    student_loss_weight: float = 0.5
    steps_per_execution: int = 1

    def prepare(self, dataset):
        return dataset.map_inputs(lambda x: x.reshape(len(x), 64))

    def teacher(self):
        return network("teacher")

    def student(self):
        return network("student")

    def measures(self):
        return [keras.metrics.SparseTopKCategoricalAccuracy(k=3, name="top_3")]

    def adapt(self, model, dataset):
        model.get_layer("scale").adapt(dataset.train.x)


def network(name):
    layers = [keras.Input((64,)), keras.layers.Normalization(name="scale"), keras.layers.Dense(10)]
    return keras.Sequential(layers, name=name)


def test_measures_see_the_labels_and_the_models_own_outputs() -> None:
    x = np.random.default_rng(0).normal(size=(23, 3)).astype("float32")
    y = np.arange(23) % 2
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="softmax")])
    metrics = [keras.metrics.SparseCategoricalCrossentropy(name="nats")]
    found = lessons.measured(model, metrics, Split(x=x, y=y), batch_size=10)
    kernel, bias = (w.astype("float64") for w in model.get_weights())
    z = x @ kernel + bias
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    assert found == {"nats": pytest.approx(-log_p[np.arange(23), y].mean(), rel=1e-5)}
    assert lessons.measured(model, [], Split(x=x, y=y), batch_size=10) == {}
    weights = np.arange(23.0)
    split = Split(x=x, y=y, weights=weights)
    found = lessons.measured(model, [keras.metrics.SparseCategoricalCrossentropy()], split, 10)
    expected = -np.average(log_p[np.arange(23), y], weights=weights)
    assert found["sparse_categorical_crossentropy"] == pytest.approx(expected, rel=1e-5)


def test_labels_of_one_number_get_the_axis_of_one_unit() -> None:
    x, y = np.float32([[1.0], [2.0]]), np.array([0, 1])
    model = keras.Sequential([keras.Input((1,)), keras.layers.Rescaling(1.0)])
    metrics = [keras.metrics.BinaryCrossentropy(from_logits=True, name="nats")]
    found = lessons.measured(model, metrics, Split(x=x, y=y), batch_size=2)
    expected = (np.log1p(np.exp(1.0)) + np.log1p(np.exp(-2.0))) / 2
    assert found["nats"] == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return run(Scaled(), out=tmp_path_factory.mktemp("saved_models"), name="one")


def test_a_recipes_measures_are_in_every_row(path) -> None:
    record = json.loads((path / "run.json").read_text())
    for split in ("validation", "test"):
        rows = [record["teacher"][split]]
        rows += [record["students"][arm]["per_seed"]["0"][split] for arm in lessons.ARMS]
        assert all(row["accuracy"] <= row["top_3"] <= 1.0 for row in rows)
    assert record["students"]["alone"]["test"]["top_3"]["sd"] is None


def test_networks_take_their_scaling_from_the_training_data_and_keep_it(path) -> None:
    from keras_kd.run import prepared

    x = prepared(Scaled(), None).train.x.astype("float64")
    student = keras.models.load_model(path / "student.keras")
    scaled = np.asarray(student.get_layer("scale")(x.astype("float32")))
    moving = x.std(0) > 0
    expected = (x - x.mean(0))[:, moving] / x.std(0)[moving]
    np.testing.assert_allclose(scaled[:, moving], expected, rtol=1e-3, atol=1e-3)
