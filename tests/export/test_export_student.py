"""What `export_student` refuses, in which words, and what it leaves on the disk."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.tools import flatbuffer_utils

from keras_kd import export
from keras_kd.export import Bounds, base_tflite

L = keras.layers
X = np.random.default_rng(0).normal(size=(30, 4)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, size=30)


@pytest.fixture(scope="module")
def student():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,), name="features")
    hidden = L.Dense(16, activation="relu", bias_initializer="random_normal")(inputs)
    logits = L.Dense(3, name="logits", bias_initializer="random_normal")(hidden)
    return keras.Model(inputs, logits)


@pytest.fixture(scope="module")
def exported(student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    return export.export_student(student, folder, verification_data=(X, Y))


@pytest.fixture
def damaged(monkeypatch):
    """Flip the sign of one weight in every TFLite file after it is written."""
    write = base_tflite.TFLite.write

    def write_then_damage(self, student, path, calibration=None):
        write(self, student, path, calibration)
        model = flatbuffer_utils.read_model(str(path))
        largest = max(
            (b for b in model.buffers if b.data is not None and len(b.data) >= 4 * 4 * 16),
            key=lambda b: len(b.data),
        )
        values = np.frombuffer(bytes(largest.data), "float32").copy()
        values[np.abs(values).argmax()] *= -1
        largest.data = np.frombuffer(values.tobytes(), "uint8")
        flatbuffer_utils.write_model(model, str(path))

    monkeypatch.setattr(base_tflite.TFLite, "write", write_then_damage)


def _like(shape=(4,), call=None):
    inputs = keras.Input(shape)
    return keras.Model(inputs, call(inputs))


class Calls(L.Layer):
    """A layer around a function, so that any TensorFlow operator can stand in a student."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)


def test_one_wrong_weight_is_refused_with_the_bound_and_both_numbers(student, tmp_path, damaged):
    words = (
        r"(?s)tflite file does not answer as the student does, so it was not kept.*'logits' "
        r"differs by [\d.]+ at most, over 30 examples.*max_difference <= [\d.e-]+ \(0\.0001 of"
    )
    with pytest.raises(ValueError, match=words):
        export.export_student(student, tmp_path, ["tflite"], verification_data=X)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_good_file_survives_a_refusal(student, tmp_path, damaged, exported):
    good = exported["tflite"].path.read_bytes()
    (tmp_path / "student.tflite").write_bytes(good)
    (tmp_path / "student.tflite.json").write_text("{}")
    with pytest.raises(ValueError, match="does not answer"):
        export.export_student(student, tmp_path, ["tflite"], verification_data=X)
    assert (tmp_path / "student.tflite").read_bytes() == good
    assert (tmp_path / "student.tflite.json").read_text() == "{}"


@pytest.mark.parametrize(
    "bounds",
    [
        {"tflite": {"max_difference": 100.0, "agreement": 0.0}},
        {"tflite": Bounds(max_difference=100.0, agreement=0.0)},
        Bounds(max_difference=100.0, agreement=0.0),
    ],
    ids=["dict", "format", "all"],
)
def test_bounds_of_ones_own_are_used_and_told(student, tmp_path, damaged, bounds):
    made = export.export_student(
        student, tmp_path, ["tflite"], verification_data=(X, Y), bounds=bounds
    )["tflite"].certificate
    assert made["bounds"] == {"max_difference": 100.0, "agreement": 0.0}
    assert made["verified"]["outputs"]["logits"]["max_difference"] > 0.01


def test_other_decisions_are_refused(student, tmp_path, damaged):
    loose = Bounds(max_difference=100.0, agreement=1.0)
    words = "(?s)does not decide as the student does.*agreement 0.*agreement >= 1"
    with pytest.raises(ValueError, match=words):
        export.export_student(student, tmp_path, ["tflite"], verification_data=X, bounds=loose)


def test_the_task_metric_of_the_file_and_of_the_model(student, exported):
    expected = np.mean(np.argmax(np.asarray(student(X)), -1) == Y)
    for artifact in exported.values():
        metric = artifact.certificate["verified"]["outputs"]["logits"]["metric"]
        assert (metric["name"], metric["file"], metric["keras"]) == ("accuracy", expected, expected)


def test_the_certificate_holds_the_hash_of_the_file(exported):
    import hashlib

    artifact = exported["tflite"]
    content = artifact.path.read_bytes()
    assert artifact.certificate["sha256"] == hashlib.sha256(content).hexdigest()
    assert artifact.certificate["bytes"] == len(content)
    folder = exported["saved_model"]
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    assert folder.certificate["bytes"] == sum(path.stat().st_size for path in files)


def test_exporting_again_replaces_both_files(student, exported, tmp_path):
    kinds = {"verification_data": X, "name": "small"}
    export.export_student(student, tmp_path, **kinds)
    (tmp_path / "saved_model" / "stale").write_text("from an earlier export")
    again = export.export_student(student, tmp_path, **kinds)
    assert not (tmp_path / "saved_model" / "stale").exists()
    assert again["tflite"].path == tmp_path / "small.tflite"
    tf.saved_model.load(str(again["saved_model"].path))
    assert len(list(tmp_path.iterdir())) == 4


def test_a_failing_rename_brings_the_old_folder_back(student, tmp_path, monkeypatch, exported):
    old = tmp_path / "saved_model"
    old.mkdir()
    (old / "saved_model.pb").write_text("old")

    def refuse(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        export.export_student(student, tmp_path, ["saved_model"], verification_data=X)
    assert (old / "saved_model.pb").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["saved_model"]


def test_the_operator_without_a_builtin_kernel_is_named(tmp_path, capfd):
    odd = _like(call=Calls(tf.math.digamma))
    with pytest.raises(ValueError, match=r"(?s)TFLite's builtin operators.*uses Digamma.*replace"):
        export.export_student(odd, tmp_path, ["tflite"], verification_data=np.abs(X) + 1)
    assert capfd.readouterr() == ("", "")


def test_a_converter_failure_shows_what_it_said(tmp_path):
    quantised = keras.Sequential([keras.Input((4,)), L.Dense(3)])
    quantised.layers[0].quantize("int8")
    with pytest.raises(ValueError, match=r"(?s)converter failed on the student.*fully_connected"):
        export.export_student(quantised, tmp_path, ["tflite"], verification_data=X)


def test_a_file_that_does_not_run_is_refused(tmp_path, monkeypatch):
    spectrum = _like(call=Calls(lambda x: tf.math.real(tf.signal.fft(tf.cast(x, tf.complex64)))))
    with pytest.raises(ValueError, match="TFLite file does not run"):
        export.export_student(spectrum, tmp_path, ["tflite"], verification_data=X)
    monkeypatch.setattr(
        base_tflite.TFLite, "write", lambda self, s, path, c: path.write_bytes(b"no model")
    )
    with pytest.raises(ValueError, match=r"(?s)TFLite file does not run.*student\.tflite: "):
        export.export_student(spectrum, tmp_path, ["tflite"], verification_data=X)


def test_nothing_is_printed(student, tmp_path, capfd):
    export.export_student(student, tmp_path, verification_data=X)
    assert capfd.readouterr() == ("", "")


def test_importing_the_room_loads_no_tensorflow():
    code = "import sys, keras_kd.export; print({'tensorflow', 'keras'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_compiled_student_with_an_optimizer_leaves_it_behind(tmp_path):
    model = keras.Sequential([keras.Input((4,)), L.Dense(3), L.Dropout(0.5)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(X, Y, verbose=0)
    made = export.export_student(model, tmp_path, ["saved_model"], verification_data=(X, Y))
    path = str(made["saved_model"].path / "variables" / "variables")
    stored = [n for n, _ in tf.train.list_variables(path) if n.endswith("VARIABLE_VALUE")]
    assert len(stored) == 2


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"formats": "tflite"}, TypeError, "`formats` must be a list of names"),
        ({"formats": []}, ValueError, "`formats` is empty"),
        ({"formats": ["tflight"]}, ValueError, "(?s)no export format 'tflight'.*mean 'tflite'"),
        ({"student": "model.keras"}, ValueError, "`student` is not a Keras model"),
        ({"student": keras.Sequential([L.Dense(2)])}, ValueError, "has not been built"),
        ({"name": "a/b"}, ValueError, "`name` must be a plain file name"),
        ({"name": ".."}, ValueError, "`name` must be a plain file name"),
        ({"bounds": 1e-3}, TypeError, "`bounds` must be a dict of format to bounds"),
        ({"bounds": {"tflite": 1}}, TypeError, "bounds of a format must be a Bounds or a dict"),
        ({"bounds": {"int8": Bounds()}}, ValueError, "no format to write with the bounds"),
        ({"bounds": {"tflite": {"step": 1}}}, ValueError, "(?s)no bound 'step'.*mean 'steps'"),
        ({"teacher": 0.93}, TypeError, "`teacher` must be a keras.Model or a dict"),
        ({"metrics": ["accuracy"]}, TypeError, "`metrics` must be a list of keras.metrics"),
        ({"provenance": "a run"}, TypeError, "`provenance` must be a dict"),
        ({"formats": ["tflite_int8"]}, ValueError, "needs examples to take its ranges from"),
        ({"verification_data": X[:0]}, ValueError, "`verification_data` holds no example"),
        ({"verification_data": "mnist"}, TypeError, "of a type that cannot be read"),
        ({"verification_data": (X, Y[:3])}, ValueError, "same number of examples"),
        ({"verification_data": X[:, :3]}, ValueError, r"does not fit the input 'features'"),
        (
            {"verification_data": {"other": X}},
            ValueError,
            "does not have the inputs of the student",
        ),
        ({"verification_examples": 0}, ValueError, "`verification_examples` must be a positive"),
        (
            {"verification_data": tf.data.Dataset.from_tensors(X).repeat()},
            ValueError,
            "(?s)never ends.*verification_examples",
        ),
    ],
)
def test_refused_in_three_parts(student, tmp_path, change, error, words):
    given = {"student": student, "verification_data": X} | change
    with pytest.raises(error, match=words) as refused:
        export.export_student(given.pop("student"), tmp_path / "out", **given)
    for part in ("given:", "expected:", "fix:"):
        assert part in str(refused.value)


def test_a_student_with_nan_weights_is_refused(tmp_path):
    model = keras.Sequential(
        [keras.Input((4,)), L.Dense(3, bias_initializer=lambda s, dtype: np.nan * np.ones(s))]
    )
    with pytest.raises(ValueError, match="The student answers NaN or infinity"):
        export.export_student(model, tmp_path / "out", verification_data=X)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_numbers_in_the_tflite_file_are_the_students_weights_and_no_other(student, exported):
    model = flatbuffer_utils.read_model(str(exported["tflite"].path))
    held = [
        np.frombuffer(bytes(model.buffers[tensor.buffer].data), "float32")
        for graph in model.subgraphs
        for tensor in graph.tensors
        if tensor.type == 0 and model.buffers[tensor.buffer].data is not None
    ]
    own = [weight.ravel() for weight in student.get_weights()]
    np.testing.assert_array_equal(np.sort(np.concatenate(held)), np.sort(np.concatenate(own)))


def test_text_students_are_refused(tmp_path):
    inputs = keras.Input((), dtype="string")
    model = keras.Model(inputs, Calls(lambda x: tf.strings.to_number(x))(inputs))
    with pytest.raises(ValueError, match="takes text"):
        export.export_student(model, tmp_path, verification_data=np.array(["1", "2"]))


def test_a_file_where_the_folder_should_be_is_refused_before_converting(student, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match=r"(?s)taken/run' cannot be written to.*Not a directory"):
        export.export_student(student, tmp_path / "taken" / "run", verification_data=X)


def test_a_folder_of_something_else_is_not_overwritten(student, tmp_path):
    (tmp_path / "saved_model").mkdir()
    (tmp_path / "saved_model" / "thesis.txt").write_text("the only copy")
    with pytest.raises(ValueError, match=r"(?s)is in the way.*folder that is no SavedModel"):
        export.export_student(student, tmp_path, verification_data=X)
    assert (tmp_path / "saved_model" / "thesis.txt").read_text() == "the only copy"


def test_a_student_that_answers_once_for_all_is_refused(tmp_path):
    model = _like(call=Calls(tf.reduce_mean))
    with pytest.raises(ValueError, match="does not give one answer an example"):
        export.export_student(model, tmp_path, verification_data=X)


class NoConfig(keras.Model):
    """A student that cannot be made again from its config."""

    def __init__(self, layers):
        super().__init__()
        self.inner = layers

    def call(self, x):
        return self.inner[0](x)


def test_a_mixed_student_that_cannot_be_made_again_is_refused(tmp_path):
    model = NoConfig([L.Dense(3, dtype="mixed_float16")])
    model(X)
    with pytest.raises(ValueError, match=r"(?s)cannot be rebuilt in float32.*NoConfig.*float16"):
        export.export_student(model, tmp_path, verification_data=X)
    assert keras.config.dtype_policy().name == "float32"


class HardMixed(keras.Model):
    """A student whose reduced policies stand in its code."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor
        self.first = L.Dense(8, activation="relu", dtype="mixed_bfloat16")
        self.last = L.Dense(3, dtype="mixed_bfloat16")

    def call(self, x):
        return self.last(self.first(x))

    def get_config(self):
        return {"factor": self.factor}


def test_policies_that_stand_in_the_code_of_a_model_are_replaced(tmp_path):
    keras.utils.set_random_seed(1)
    model = HardMixed(2.0)
    model(X)
    told = export.export_student(model, tmp_path, ["tflite"], verification_data=X)["tflite"]
    about = told.certificate["student"]
    assert about["rebuilt_in_float32_from"] == ["bfloat16", "float32"]
    kernel = [w.astype("float64") for w in model.get_weights()]
    exact = np.maximum(X @ kernel[0] + kernel[1], 0) @ kernel[2] + kernel[3]
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(told.path)).get_signature_runner()
    found = np.concatenate([runner(input=X[i : i + 1])["output"] for i in range(len(X))])
    np.testing.assert_allclose(found, exact, atol=1e-5)
    assert 1e-5 < about["outputs"]["output"]["max_difference"] < 0.1
    assert {layer.compute_dtype for layer in (model.first, model.last)} == {"bfloat16"}


def test_certificates_are_json_with_finite_numbers(exported):
    for artifact in exported.values():
        json.dumps(artifact.certificate, allow_nan=False)


def test_the_docstring_tells_the_default_bounds_of_every_format():
    text = export.export_student.__doc__.split("and why):")[1].split("Args:")[0]
    lines = text.replace("\n" + " " * 36, " ").strip().splitlines()
    rows = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines]
    for format, module in export.TARGETS.items():
        bounds = importlib.import_module(module).TARGET.bounds.stated()
        (row,) = (told for formats, told in rows if format in formats.split(", "))
        if format == "tflite_int16x8":
            whole = importlib.import_module(export.TARGETS["tflite_int8"]).TARGET.bounds.stated()
            assert "257 times as many steps" in row
            assert bounds == whole | {"steps": 257 * whole["steps"]}
            continue
        told = row.replace("no float island", "float_islands 0").split(", ")
        pairs = (part.split() for part in told)
        assert {name: float(value) for name, value in pairs} == bounds
