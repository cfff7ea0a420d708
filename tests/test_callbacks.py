"""StudentCheckpoint: the plain student, whole or absent."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest

import keras_kd as kd


def mlp(width: int) -> keras.Model:
    layers = [keras.layers.Dense(width, activation="relu"), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((4,)), *layers])


@pytest.fixture
def data(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(size=(32, 4)).astype("float32"), rng.integers(0, 3, 32)


@pytest.fixture
def distiller() -> kd.Distiller:
    hint = kd.FeatureDistillation(teacher_layer_name="dense", student_layer_name="dense")
    teacher, student = mlp(16), mlp(5)
    for model in (teacher, student):
        model.layers[0].name = "dense"
    distiller = kd.Distiller(teacher, student, [kd.LogitsDistillation(), hint])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile("adam", loss, metrics=["accuracy"])
    return distiller


def fit(distiller: kd.Distiller, data, callback, epochs: int = 1, **kwargs):
    kwargs = {"validation_data": data, "verbose": 0, "batch_size": 16} | kwargs
    return distiller.fit(*data, epochs=epochs, callbacks=[callback], **kwargs)


def test_the_file_loads_in_a_fresh_process_without_this_package(distiller, data, tmp_path) -> None:
    path = tmp_path / "new" / "student.keras"
    fit(distiller, data, kd.callbacks.StudentCheckpoint(path))
    np.save(tmp_path / "x.npy", data[0])
    code = (
        "import sys, json, numpy as np, keras\n"
        "model = keras.models.load_model(sys.argv[1])\n"
        "y = model.predict(np.load(sys.argv[2]), verbose=0)\n"
        "print(json.dumps(['keras_kd' in sys.modules, type(model).__name__, y.tolist()]))\n"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "x.npy")]
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    imported, kind, answers = json.loads(done.stdout.splitlines()[-1])
    assert (imported, kind) == (False, "Sequential")
    np.testing.assert_allclose(answers, distiller.student.predict(data[0], verbose=0), atol=1e-5)
    with zipfile.ZipFile(path) as archive:
        assert b"keras_kd" not in archive.read("config.json")
    saved = keras.models.load_model(path)
    assert saved.count_params() == distiller.student.count_params()


def test_the_best_by_a_monitor_is_kept(distiller, data, tmp_path) -> None:
    """Accuracy goes up, so the direction must come from the metrics of the training."""
    path = tmp_path / "student.keras"
    weights = []

    class Remember(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_accuracy"] = [0.1, 0.9, 0.5][epoch]
            weights.append(self.model.student.get_weights())

    checkpoint = kd.callbacks.StudentCheckpoint(path, monitor="val_accuracy", save_best_only=True)
    distiller.fit(
        *data,
        epochs=3,
        validation_data=data,
        callbacks=[Remember(), checkpoint],
        verbose=0,
    )
    for old, new in zip(weights[1], keras.models.load_model(path).get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_names_are_filled_in(distiller, data, tmp_path) -> None:
    path = tmp_path / "{epoch:02d}-{val_loss:.2f}.keras"
    history = fit(distiller, data, kd.callbacks.StudentCheckpoint(path), epochs=2)
    expected = [f"{k + 1:02d}-{v:.2f}.keras" for k, v in enumerate(history.history["val_loss"])]
    assert sorted(file.name for file in tmp_path.iterdir()) == expected


def test_every_so_many_batches(distiller, data, tmp_path) -> None:
    path = tmp_path / "{epoch}-{batch}.keras"
    fit(distiller, data, kd.callbacks.StudentCheckpoint(path, save_freq=1))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1-1.keras", "1-2.keras"]


def test_a_file_is_whole_or_what_it_was(distiller, data, tmp_path, monkeypatch) -> None:
    path = tmp_path / "student.keras"
    checkpoint = kd.callbacks.StudentCheckpoint(path)
    fit(distiller, data, checkpoint)
    before = path.read_bytes()

    def break_off(file, *args, **kwargs) -> None:
        pathlib.Path(file).write_bytes(b"half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr(distiller.student, "save", break_off)
    with pytest.raises(OSError, match="No space left on device"):
        fit(distiller, data, checkpoint)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["student.keras"]


def test_training_is_not_disturbed(data, tmp_path) -> None:
    results = []
    for name in ("with", "without"):
        keras.utils.set_random_seed(3)
        distiller = kd.Distiller(mlp(16), mlp(5), kd.LogitsDistillation())
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        distiller.compile("adam", loss)
        callbacks = [kd.callbacks.StudentCheckpoint(tmp_path / "s.keras")] * (name == "with")
        distiller.fit(*data, epochs=2, verbose=0, callbacks=callbacks)
        results.append(distiller.student.get_weights())
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("path", ["student.h5", "student", "student.weights.h5"])
def test_a_student_is_saved_whole(path) -> None:
    words = r"A student is saved whole, as a \.keras file[\s\S]*StudentCheckpoint\(\"student\.keras"
    with pytest.raises(ValueError, match=words):
        kd.callbacks.StudentCheckpoint(path)
    with pytest.raises(ValueError, match="save_weights_only=True"):
        kd.callbacks.StudentCheckpoint("student.keras", save_weights_only=True)


def test_a_plain_model_has_no_student(data, tmp_path) -> None:
    model = mlp(4)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    words = r"There is no student to save[\s\S]*a Sequential[\s\S]*ModelCheckpoint"
    with pytest.raises(ValueError, match=words):
        model.fit(*data, verbose=0, callbacks=[kd.callbacks.StudentCheckpoint("s.keras")])


def test_the_best_by_what_nobody_logs_is_refused(distiller, data, tmp_path) -> None:
    checkpoint = kd.callbacks.StudentCheckpoint(
        tmp_path / "s.keras", monitor="val_acuracy", save_best_only=True, mode="max"
    )
    words = r"no value in the logs to monitor 'val_acuracy'[\s\S]*did you mean 'val_accuracy'"
    with pytest.raises(ValueError, match=words):
        fit(distiller, data, checkpoint)
    assert list(tmp_path.iterdir()) == []
