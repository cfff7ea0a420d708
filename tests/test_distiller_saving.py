"""What a Distiller leaves on disk: the student, never the teacher; and how it goes on."""

from __future__ import annotations

import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_kd as kd
from tests.models import LOGITS, Subclassed, data, mlp
from tests.test_distiller import clone, difference, make


def with_hint(teacher, student):
    hint = kd.FeatureDistillation(teacher_layer_name="hidden", student_layer_name="hidden")
    settings = {"optimizer": keras.optimizers.Adam(0.01)}
    return make(teacher, student, [kd.LogitsDistillation(), hint], compile_with=settings)


@pytest.fixture(scope="module")
def big_teacher():
    return keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(3000, name="hidden"), keras.layers.Dense(3)]
    )


def test_save_and_checkpoint_hold_the_student_and_not_the_teacher(tmp_path, big_teacher):
    x, y = data()
    distiller = make(big_teacher, mlp(4))
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "checkpoint.keras")
    distiller.fit(x, y, verbose=0, callbacks=[checkpoint])
    distiller.save(tmp_path / "saved.keras")
    distiller.save_weights(tmp_path / "saved.weights.h5")
    for name in ("checkpoint.keras", "saved.keras", "saved.weights.h5"):
        # the teacher alone has 30,003 weights of 4 bytes
        assert (tmp_path / name).stat().st_size < 80_000, name
    with zipfile.ZipFile(tmp_path / "saved.keras") as archive:
        config = archive.read("config.json").decode()
    assert "3000" not in config and "fingerprint" in config


def test_export_holds_the_student_alone(tmp_path, big_teacher):
    x, y = data()
    student = mlp(4)
    distiller = with_hint(big_teacher, student)
    distiller.fit(x, y, verbose=0)
    distiller.export(tmp_path / "exported", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    assert sum(int(tf.size(v)) for v in loaded.variables) == student.count_params()
    np.testing.assert_allclose(loaded.serve(x), student(x), atol=1e-6)


@pytest.mark.parametrize("load", ["load_distiller", "load_model"])
def test_save_load_fit_goes_on_to_the_same_weights(tmp_path, load):
    x, y = data()
    teacher = mlp(16)
    distiller = with_hint(teacher, mlp(4))
    distiller.fit(x, y, epochs=2, shuffle=False, verbose=0)
    distiller.save(tmp_path / "d.keras")
    if load == "load_distiller":
        loaded = kd.load_distiller(tmp_path / "d.keras", teacher=teacher)
    else:
        loaded = keras.models.load_model(tmp_path / "d.keras")
        loaded.attach_teacher(teacher)
    before = loaded.evaluate(x, y, verbose=0, return_dict=True)
    assert before == pytest.approx(distiller.evaluate(x, y, verbose=0, return_dict=True))
    distiller.fit(x, y, epochs=2, shuffle=False, verbose=0)
    loaded.fit(x, y, epochs=2, shuffle=False, verbose=0)
    assert difference(distiller, loaded) == 0.0


def test_save_load_fit_in_a_fresh_process_gives_the_same_weights(tmp_path):
    x, y = data()
    teacher = mlp(16)
    teacher.save(tmp_path / "t.keras")
    distiller = with_hint(teacher, mlp(4))
    distiller.fit(x, y, epochs=2, shuffle=False, verbose=0)
    distiller.save(tmp_path / "d.keras")
    np.savez(tmp_path / "data.npz", x=x, y=y)
    script = """
import keras, numpy as np
import keras_kd as kd
kd.Distiller  # registers the class for keras.models.load_model
d, data = keras.models.load_model("d.keras"), np.load("data.npz")
d.attach_teacher(keras.models.load_model("t.keras"))
d.fit(data["x"], data["y"], epochs=2, shuffle=False, verbose=0)
np.savez("out.npz", *d.get_weights())
"""
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, env=environment())
    distiller.fit(x, y, epochs=2, shuffle=False, verbose=0)
    for ours, theirs in zip(
        distiller.get_weights(), np.load(tmp_path / "out.npz").values(), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def environment():
    import os
    import pathlib

    root = str(pathlib.Path(kd.__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": root, "TF_CPP_MIN_LOG_LEVEL": "3"}


def test_mixed_precision_and_auto_scale_loss_survive_loading(tmp_path):
    x, y = data()
    student = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, dtype="mixed_float16")])
    for scale in (True, False):
        distiller = make(mlp(16), clone(student), compile_with={"auto_scale_loss": scale})
        distiller.fit(x, y, verbose=0)
        distiller.save(tmp_path / "d.keras")
        loaded = kd.load_distiller(tmp_path / "d.keras")
        scaled = isinstance(loaded.optimizer, keras.optimizers.LossScaleOptimizer)
        assert scaled == scale


def test_loaded_without_its_teacher_it_evaluates_and_says_what_fit_needs(tmp_path):
    x, y = data()
    distiller = make()
    distiller.fit(x, y, verbose=0)
    distiller.save(tmp_path / "d.keras")
    loaded = kd.load_distiller(tmp_path / "d.keras")
    assert np.isfinite(loaded.evaluate(x, y, verbose=0)[0])
    with pytest.raises(ValueError, match=r"loaded without its teacher[\s\S]*attach_teacher"):
        loaded.fit(x, y, verbose=0)
    loaded.save(tmp_path / "again.keras")  # the memory of the teacher goes on
    again = kd.load_distiller(tmp_path / "again.keras")
    again.attach_teacher(distiller.teacher.model)
    again.fit(x, y, verbose=0)


def test_a_different_teacher_is_refused_unless_it_is_meant(tmp_path):
    x, y = data()
    distiller = make(mlp(16), mlp(4))
    distiller.save(tmp_path / "d.keras")
    other = mlp(16)
    with pytest.raises(ValueError, match=r"This is not the teacher[\s\S]*allow_different=True"):
        kd.load_distiller(tmp_path / "d.keras", teacher=other)
    loaded = kd.load_distiller(tmp_path / "d.keras")
    loaded.attach_teacher(other, allow_different=True)
    loaded.fit(x, y, verbose=0)


def test_a_file_that_holds_no_distiller_is_refused(tmp_path):
    mlp().save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match=r"holds no Distiller[\s\S]*keras.models.load_model"):
        kd.load_distiller(tmp_path / "m.keras")


def test_a_subclassed_student_and_every_loss_survive_loading(tmp_path):
    x, y = data()
    teacher, student = Subclassed(16), Subclassed(4)
    losses = [
        kd.LogitsDistillation(direction="jensen_shannon", beta=0.3),
        kd.losses.SoftCrossEntropy(2.0),
        kd.losses.HardLabelDistillation(),
        kd.losses.LogitMatching(),
        kd.FeatureDistillation(
            teacher_layer_name="backbone/hidden",
            student_layer_name="backbone/hidden",
            projector=keras.layers.Dense(16),
        ),
    ]
    distiller = make(teacher, student, losses, [1.0, 0.5, 0.2, 0.1, 1.0])
    distiller.fit(x, y, shuffle=False, verbose=0)
    distiller.save(tmp_path / "d.keras")
    loaded = kd.load_distiller(tmp_path / "d.keras", teacher=teacher)
    assert loaded.distillation_loss_weights == [1.0, 0.5, 0.2, 0.1, 1.0]
    distiller.fit(x, y, epochs=2, shuffle=False, verbose=0)
    loaded.fit(x, y, epochs=2, shuffle=False, verbose=0)
    assert difference(distiller, loaded) == 0.0


def test_an_ensemble_is_remembered_by_its_fingerprint(tmp_path):
    members = [mlp(5), mlp(6)]
    make(members, mlp(4)).save(tmp_path / "d.keras")
    kd.load_distiller(tmp_path / "d.keras", teacher=members)
    with pytest.raises(ValueError, match="This is not the teacher"):
        kd.load_distiller(tmp_path / "d.keras", teacher=members[::-1])


def test_the_student_is_a_plain_model_all_along(tmp_path):
    x, y = data()
    student = mlp(4)
    distiller = with_hint(mlp(16), student)
    distiller.fit(x, y, verbose=0)
    assert distiller.student is student
    student.save(tmp_path / "s.keras")
    loaded = keras.models.load_model(tmp_path / "s.keras")
    np.testing.assert_array_equal(loaded(x), student(x))
    loaded.compile("sgd", LOGITS)
