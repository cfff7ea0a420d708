"""Certificates: true for a good file, and no file where weights, ranges or operators are wrong."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import venv

import keras
import numpy as np
import pytest
import sklearn.datasets
from ai_edge_litert.tools import flatbuffer_utils

from keras_kd import export
from keras_kd.export import base_tflite, certificates
from keras_kd.litert import files, provenance
from keras_kd.litert.running import Runner

L = keras.layers
DIGITS = sklearn.datasets.load_digits()
IMAGES = DIGITS.images[..., None].astype("float32")  # (1797, 8, 8, 1), values 0 to 16
TRAIN, X = IMAGES[:1400], IMAGES[1400:]
TRAIN_Y, Y = DIGITS.target[:1400], DIGITS.target[1400:]
LABELS = [f"digit {digit}" for digit in range(10)]
FORMATS = ["tflite", "tflite_int8", "tflite_uint8"]
SCRIPT = pathlib.Path(__file__).with_name("only_litert.py")


def _network(activation="relu"):
    inputs = keras.Input((8, 8, 1), name="image")
    x = L.Rescaling(1 / 8, offset=-1.0)(inputs)
    x = L.Conv2D(16, 3, activation="relu", name="first")(x)
    x = L.Conv2D(32, 3, strides=2, activation=activation, name="second")(x)
    x = L.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, L.Dense(10, name="logits")(x), name="digits")


@pytest.fixture(scope="module")
def student():
    keras.utils.set_random_seed(3)
    model = _network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss, steps_per_execution=8)
    model.fit(TRAIN, TRAIN_Y, batch_size=64, epochs=12, verbose=0)
    return model


@pytest.fixture(scope="module")
def answers(student):
    return student.predict(X, verbose=0)


@pytest.fixture(scope="module")
def exported(student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    return export.export_student(
        student,
        folder,
        FORMATS,
        representative_data=TRAIN,
        verification_data=(X, Y),
        teacher={"accuracy": 0.99, "parameters": 1e6},
        labels=LABELS,
        provenance={"run": "one", "data": {"training": "abc"}},
    )


@pytest.fixture
def tampered(monkeypatch, exported):
    """Let the next export write a good file with a change in it."""

    def let(format, change):
        content = exported[format].path.read_bytes()
        good = files.read(exported[format].path)

        def write(self, student, path, calibration=None):
            path.write_bytes(change(content, good))

        monkeypatch.setattr(base_tflite.TFLite, "write", write)

    return let


def _refused(student, folder, format, words, *, once=False, **options):
    """See the refusal, no file of it, and an earlier good file as it was."""
    earlier = {f"student{e}": f"good {e}".encode() for e in (".tflite", ".tflite.json")}
    earlier |= {f"student_int8{e}": b"good" for e in (".tflite", ".tflite.json")}
    given = {"representative_data": TRAIN, "verification_data": (X, Y)} | options
    for before in ({}, earlier)[1 if once else 0 :]:
        for path in folder.iterdir():
            path.unlink()
        for name, content in before.items():
            (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"(?s)The {format} file {words}"):
            export.export_student(student, folder, [format], **given)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def _constant(file, operator, dtype):
    """Return the largest constant of a type that an operator of the file has."""
    found = [
        graph.tensors[number]
        for graph, one in file.operators()
        if one.name == operator
        for number in one.inputs
        if number >= 0 and graph.tensors[number].dtype == dtype
    ]
    return max((tensor for tensor in found if tensor.constant), key=lambda t: len(t.data))


def _replaced(content, old, new):
    assert content.count(old) == 1
    assert len(old) == len(new)
    return content.replace(old, new)


# Tampering, and what is said of it.


@pytest.mark.parametrize(
    ("format", "dtype", "words"),
    [
        ("tflite", "float32", "does not answer as the student does"),
        ("tflite_int8", "int8", "(answers too many output steps|cannot express too many)"),
    ],
)
def test_flipped_bytes_in_a_convolution_are_refused(
    student, tmp_path, tampered, format, dtype, words
):
    def flip(content, file):
        data = _constant(file, "CONV_2D", dtype).data
        wrong = bytearray(data)
        for index in range(len(data) // 2, len(data) // 2 + 64):
            wrong[index] ^= 0xFF
        return _replaced(content, data, bytes(wrong))

    tampered(format, flip)
    _refused(student, tmp_path, format, f"{words}.*expected:.*fix:")


def test_one_flipped_byte_of_a_float_is_refused(student, tmp_path, tampered):
    def flip(content, file):
        data = _constant(file, "CONV_2D", "float32").data
        index = 4 * int(np.abs(np.frombuffer(data, "<f4")).argmax()) + 3  # sign and exponent
        return _replaced(
            content, data, data[:index] + bytes([data[index] ^ 0x80]) + data[index + 1 :]
        )

    tampered("tflite", flip)
    _refused(student, tmp_path, "tflite", "does not answer as the student does")


def test_saturated_ranges_are_refused(student, tmp_path):
    words = r"cannot express too many.*given:.*beyond its range.*saturation <= 0.01.*more calib"
    _refused(student, tmp_path, "tflite_int8", words, once=True, representative_data=TRAIN * 0.1)


@pytest.mark.parametrize("format", ["tflite", "tflite_int8"])
def test_swapped_classes_are_refused_by_the_task_metric(student, tmp_path, tampered, format):
    """Two rows of the last layer change places: each answer is right, and stands for another."""

    def swap(content, file):
        weights = _constant(file, "FULLY_CONNECTED", "float32" if format == "tflite" else "int8")
        row = len(weights.data) // 10
        first, second = weights.data[:row], weights.data[row : 2 * row]
        return _replaced(content, weights.data, second + first + weights.data[2 * row :])

    tampered(format, swap)
    only = {name: None for name in ("max_difference", "agreement", "steps", "saturation")}
    words = r"is worse at the task.*a drop of 0\.\d+: accuracy 0\.\d+ of the file.*accuracy_drop <="
    bounds = {format: only | {"accuracy_drop": 0.05}}
    _refused(student, tmp_path, format, words, bounds=bounds)
    del bounds[format]["agreement"]
    _refused(student, tmp_path, format, "does not decide as the student does", bounds=bounds)


def test_labels_in_a_wrong_order_show_in_file_student_and_teacher(
    student, tmp_path, tampered, answers
):
    tampered("tflite", lambda content, file: content)
    made = export.export_student(
        student, tmp_path, ["tflite"], verification_data=(X, (Y + 1) % 10), teacher=student
    )
    metric = made["tflite"].certificate["verified"]["metrics"]["accuracy"]
    wrong = np.mean(answers.argmax(-1) == (Y + 1) % 10)
    assert metric["file"] == metric["keras"] == metric["teacher"] == wrong < 0.1


def test_a_dropped_activation_is_refused(student, tmp_path, tampered, exported):
    def drop(content, file):
        model = flatbuffer_utils.read_model(str(file.path))
        convolutions = [
            operator.builtinOptions
            for operator in model.subgraphs[0].operators
            if flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex) == "CONV_2D"
        ]
        assert convolutions[-1].fusedActivationFunction == 1  # RELU in the schema
        convolutions[-1].fusedActivationFunction = 0
        return bytes(flatbuffer_utils.convert_object_to_bytearray(model))

    tampered("tflite", drop)
    _refused(student, tmp_path, "tflite", "does not answer as the student does")


def test_a_dropped_operator_is_refused(student, tmp_path, tampered):
    """The last layer is left out of the file: the pooled features come out in its place."""

    def drop(content, file):
        model = flatbuffer_utils.read_model(str(file.path))
        graph = model.subgraphs[0]
        last = graph.operators.pop()
        graph.outputs[0] = model.signatureDefs[0].outputs[0].tensorIndex = last.inputs[0]
        return bytes(flatbuffer_utils.convert_object_to_bytearray(model))

    tampered("tflite", drop)
    with pytest.raises(ValueError, match=r"(?s)other names or shapes.*\(256, 32\)"):
        export.export_student(student, tmp_path, ["tflite"], verification_data=(X, Y))
    assert list(tmp_path.iterdir()) == []


def test_a_float_island_is_named_and_refused_unless_allowed(tmp_path):
    keras.utils.set_random_seed(0)
    student = _network(activation="elu")
    words = r"computes in float in places.*1 float islands: 'second' \(ELU\).*another activation"
    _refused(student, tmp_path, "tflite_int8", words, once=True)
    made = export.export_student(
        student,
        tmp_path,
        ["tflite_int8"],
        representative_data=TRAIN,
        verification_data=(X, Y),
        bounds={"tflite_int8": {"float_islands": 1}},
    )["tflite_int8"]
    assert made.certificate["audit"]["islands"] == [{"layers": ["second"], "ops": ["ELU"]}]


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"bytes": 5000}, r"is too large.*\d+ bytes.*bytes <= 5000"),
        ({"arena_bytes": 64}, "needs too much working memory.*arena_bytes <= 64"),
        ({"latency_ms": 1e-6}, "is too slow.*latency_ms <= 1e-06"),
        ({"steps": 0.25}, "answers too many output steps.*steps <= 0.25"),
    ],
    ids=["bytes", "arena", "latency", "steps"],
)
def test_each_bound_of_ones_own_is_held(student, tmp_path, tampered, bounds, words):
    tampered("tflite_int8", lambda content, file: content)
    _refused(student, tmp_path, "tflite_int8", words, bounds={"tflite_int8": bounds})


def test_a_bound_without_its_measure_is_refused(student, tmp_path, tampered):
    tampered("tflite", lambda content, file: content)
    with pytest.raises(ValueError, match=r"(?s)nothing to judge the bound 'accuracy_drop' by"):
        export.export_student(
            student,
            tmp_path,
            ["tflite"],
            verification_data=X,
            bounds={"tflite": {"accuracy_drop": 0.1}},
        )
    assert list(tmp_path.iterdir()) == []


def test_a_stamp_that_changes_answers_is_refused(student, tmp_path, tampered, monkeypatch):
    def stamp(path, facts):
        path.write_bytes(_replaced(path.read_bytes(), data, bytes(len(data))))

    def write(content, file):
        nonlocal data
        data = _constant(file, "FULLY_CONNECTED", "float32").data
        return content

    data = b""
    tampered("tflite", write)
    monkeypatch.setattr(provenance, "stamp", stamp)
    with pytest.raises(ValueError, match=r"(?s)answers otherwise with its provenance.*'logits'"):
        export.export_student(student, tmp_path, ["tflite"], verification_data=(X, Y))
    assert list(tmp_path.iterdir()) == []


# What a certificate says.


def test_it_lies_beside_the_file_and_holds_what_was_promised(exported):
    keys = {
        "format", "file", "bytes", "sha256", "student", "inputs", "outputs", "ops", "audit",
        "calibration", "bounds", "verified", "arena_bytes", "latency", "provenance", "versions",
    }  # fmt: skip
    for format, artifact in exported.items():
        beside = artifact.path.with_name(artifact.path.name + ".json")
        assert json.loads(beside.read_text(encoding="utf-8")) == artifact.certificate
        assert set(artifact.certificate) == keys
        assert artifact.certificate["format"] == format
        assert artifact.certificate["bytes"] == artifact.path.stat().st_size


def test_the_metric_is_that_of_the_file_run_apart(exported, answers):
    for artifact in exported.values():
        found = Runner(artifact.path).run({"image": X})["logits"]
        metric = artifact.certificate["verified"]["metrics"]["accuracy"]
        assert metric["file"] == np.mean(found.argmax(-1) == Y) > 0.85
        assert metric["keras"] == np.mean(answers.argmax(-1) == Y)
        assert metric["teacher"] == 0.99
        assert metric["retention"]["teacher"] == metric["file"] / 0.99


def test_rounding_and_saturation_are_those_of_the_file_run_apart(exported, answers):
    artifact = exported["tflite_int8"]
    runner = Runner(artifact.path)
    scale, zero = runner.outputs["logits"].scale, runner.outputs["logits"].zero_point
    off = np.abs(runner.run({"image": X})["logits"].astype("float64") - answers)
    out = (answers < (-128.5 - zero) * scale) | (answers > (127.5 - zero) * scale)
    measured = artifact.certificate["verified"]["outputs"]["logits"]
    assert measured["saturation"]["share"] == pytest.approx(out.mean(), abs=1e-9)
    assert measured["steps"]["max"] == pytest.approx(off[~out].max() / scale, rel=1e-4)
    assert measured["rounding"]["mean"] == pytest.approx(off[~out].mean(), rel=1e-4)


def test_the_coverage_of_the_calibration(exported, student, answers):
    calibration = exported["tflite_int8"].certificate["calibration"]
    assert exported["tflite"].certificate["calibration"] is None
    seen = student.predict(TRAIN[[index * 1400 // 300 for index in range(300)]], verbose=0)
    told = calibration["outputs"]["logits"]
    assert (calibration["from"], calibration["examples"]) == ("representative_data", 300)
    assert told["min"] == pytest.approx(seen.min(), rel=1e-5)
    low, high = max(seen.min(), answers.min()), min(seen.max(), answers.max())
    assert told["covered"] == pytest.approx((high - low) / np.ptp(answers), abs=1e-5)
    outside = (answers < told["min"]) | (answers > told["max"])
    assert told["outside"] == pytest.approx(outside.mean(), abs=1e-9)


def test_few_calibration_examples_are_told(student, tmp_path):
    made = export.export_student(
        student,
        tmp_path,
        ["tflite_int8"],
        representative_data=TRAIN,
        calibration_examples=3,
        verification_data=(X, Y),
        bounds=export.Bounds(),
    )
    calibration = made["tflite_int8"].certificate["calibration"]
    assert calibration["examples"] == 3
    assert "calibrated with 3 examples" in calibration["warning"]
    assert calibration["outputs"]["logits"]["outside"] > 0


def test_the_file_itself_says_where_it_comes_from(exported, student):
    certificate = exported["tflite_int8"].certificate
    facts = provenance.read(exported["tflite_int8"].path)
    assert facts == certificate["provenance"]
    assert facts["labels"] == {"logits": LABELS}
    assert facts["run"] == "one"
    assert facts["data"]["training"] == "abc"
    assert facts["data"]["verification"]["examples"] == len(X)
    assert facts["data"]["calibration"] == {"examples": 300}
    assert facts["teacher"] == {"measures": {"accuracy": 0.99, "parameters": 1e6}}
    assert facts["student"]["parameters"] == student.count_params()
    accuracy = certificate["verified"]["metrics"]["accuracy"]
    assert facts["metrics"]["accuracy"]["file"] == accuracy["file"]
    assert facts["versions"]["ai-edge-litert"]


def test_audit_arena_and_latency(exported):
    audit = exported["tflite_int8"].certificate["audit"]
    # two convolutions, the first with the scaling folded into it, pooling, the last layer
    assert audit["types"] == {"int8": 4}
    assert audit["weights"]["int8"] == 9 * 16 + 9 * 16 * 32 + 32 * 10
    for artifact in exported.values():
        certificate = artifact.certificate
        assert certificate["audit"]["islands"] == certificate["audit"]["custom"] == []
        assert certificate["arena_bytes"] >= 6 * 6 * 16
        assert certificate["latency"]["threads"] == 1
        assert 0 < certificate["latency"]["min_ms"] <= certificate["latency"]["p50_ms"]


def test_a_teacher_and_metrics_of_ones_own(student, tmp_path, tampered):
    tampered("tflite", lambda content, file: content)
    loss = keras.metrics.SparseCategoricalCrossentropy(name="nll", from_logits=True)
    made = export.export_student(
        student,
        tmp_path,
        ["tflite"],
        verification_data=(X, Y),
        teacher=student,
        metrics=[loss],
        bounds={"tflite": {"accuracy_drop": 0.01}},
    )["tflite"]
    (label,) = made.certificate["verified"]["metrics"]
    metric = made.certificate["verified"]["metrics"]["nll"]
    logits = student.predict(X, verbose=0).astype("float64")
    exact = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(Y)), Y]
    assert label == "nll"
    assert metric["file"] == pytest.approx(exact.mean(), rel=1e-4)
    assert metric["teacher"] == pytest.approx(metric["keras"])
    assert metric["retention"]["teacher"] == pytest.approx(1, rel=1e-4)
    assert made.certificate["provenance"]["teacher"]["name"] == "digits"


def test_raw_values_in_and_probabilities_out(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,), name="x")
    student = keras.Model(inputs, L.Dense(3, name="scores")(inputs))
    raw = np.random.default_rng(0).integers(0, 256, size=(40, 4)).astype("float32")
    y = np.arange(40) % 3
    made = export.export_student(
        student,
        tmp_path,
        ["tflite"],
        verification_data=(raw, y),
        teacher=student,
        scaling=(1 / 255, 0.0),
        outputs="probabilities",
        names={"scores": "p", "x": "image"},
    )["tflite"]
    weights = [weight.astype("float64") for weight in student.get_weights()]
    exact = np.exp(raw / 255 @ weights[0] + weights[1])
    exact /= exact.sum(-1, keepdims=True)
    np.testing.assert_allclose(Runner(made.path).run({"image": raw})["p"], exact, atol=1e-5)
    facts = provenance.read(made.path)
    assert facts["preprocessing"]["scaling"]["image"]["scale"] == pytest.approx(1 / 255)
    assert facts["outputs"] == {"p": "probabilities"}
    assert facts["names"] == {"scores": "p", "x": "image"}
    metric = made.certificate["verified"]["metrics"]["accuracy"]
    assert metric["file"] == metric["teacher"] == np.mean(exact.argmax(-1) == y)


def test_the_table(exported):
    lines = str(exported).splitlines()
    assert lines == certificates.table(exported).splitlines()
    told = {format: artifact.certificate for format, artifact in exported.items()}
    assert lines == certificates.table(told).splitlines()
    columns = ["format", "kB", "of", "float32", "accuracy", "Keras", "teacher", "steps"]
    assert lines[0].split() == [*columns, "islands", "arena", "kB", "ms"]
    row = lines[2].split()
    made = told["tflite_int8"]
    assert row[:3] == [
        "tflite_int8",
        f"{made['bytes'] / 1000:,.1f}",
        f"{made['bytes'] / told['tflite']['bytes']:.2f}",
    ]
    assert row[3] == f"{made['verified']['metrics']['accuracy']['file']:.4f}"
    assert row[5] == "0.9900"
    assert lines[1].split()[6] == "–"


def test_columns_that_nobody_has_are_left_out_of_the_table(exported):
    made = {**exported["tflite"].certificate, "audit": None, "arena_bytes": None, "latency": None}
    made["verified"] = {**made["verified"], "metrics": {}}
    head, row = certificates.table({"saved_model": made}).splitlines()
    assert head.split() == ["format", "kB"]
    assert row.split()[0] == "saved_model"
    assert certificates.table({}) == "  ".join(certificates._COLUMNS)


def test_facts_are_merged_dict_by_dict():
    ours = {"data": {"a": 1, "b": 2}, "teacher": None}
    given = {"data": {"b": 3}, "teacher": {"name": "t"}, "run": "one"}
    assert certificates.merged(ours, given) == {
        "data": {"a": 1, "b": 3}, "teacher": {"name": "t"}, "run": "one",
    }  # fmt: skip


def test_a_fingerprint_names_the_examples_and_not_their_order():
    def fingerprint(*batches):
        named = certificates.Fingerprint()
        for x, y in batches:
            named.add({"x": x}, {}, {}, y, None)
        return named.result()

    x, y = np.arange(8.0).reshape(4, 2), np.arange(4)
    whole = fingerprint((x, y))
    assert fingerprint((x[2:], y[2:]), (x[:2], y[:2])) == whole
    assert len({whole, fingerprint((x, y[::-1])), fingerprint((x[:3], y[:3])),
                fingerprint((x.astype("float32"), y)), fingerprint((x, None))}) == 5  # fmt: skip


# A program that has nothing but LiteRT and NumPy.

BLOCKED = """
import runpy, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in {"ai_edge_litert", "numpy"} and top not in sys.stdlib_module_names:
            raise ImportError(f"{name} is not to be had here")

sys.meta_path.insert(0, Block())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "test.npz"
    np.savez(path, x=X, y=Y)
    return path


def test_litert_and_numpy_alone_give_the_certified_accuracy(exported, data):
    for artifact in exported.values():
        command = [sys.executable, "-c", BLOCKED, SCRIPT, artifact.path, data]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        metric = artifact.certificate["verified"]["metrics"]["accuracy"]
        assert float(done.stdout) == metric["file"]


@pytest.mark.slow
def test_an_environment_of_litert_and_numpy_gives_the_certified_accuracy(exported, data, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    install = [python, "-m", "pip", "install", "-q", "ai-edge-litert", "numpy"]
    subprocess.run(install, check=True)
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    assert not {"keras", "tensorflow"} & {line.split("==")[0] for line in listed.stdout.split()}
    for artifact in exported.values():
        command = [python, SCRIPT, artifact.path, data]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        metric = artifact.certificate["verified"]["metrics"]["accuracy"]
        assert float(done.stdout) == metric["file"]
