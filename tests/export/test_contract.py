"""One contract for every export target, over students of every kind."""

from __future__ import annotations

import importlib.util
import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils

from keras_kd import export

L = keras.layers
EXTRA = all(importlib.util.find_spec(name) for name in ("tf2onnx", "onnxruntime"))
FORMATS = [format for format in export.TARGETS if EXTRA or format != "onnx"]
PLAIN = ["saved_model", "tflite"]
WHOLE = ["tflite_int8", "tflite_uint8", "tflite_int16x8"]
FULL = ["mlp", "cnn"]  # the students that go through every format; the others do when it is slow


class Block(L.Layer):
    """A layer of a user's own, with layers inside."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.inner = [L.Dense(units, activation="relu"), L.Dense(units)]

    def call(self, x):
        return x + self.inner[1](self.inner[0](x))

    def get_config(self):
        return super().get_config() | {"units": self.units}


class Subclassed(keras.Model):
    """A subclassed student without a `training` argument and without a config."""

    def __init__(self):
        super().__init__()
        self.first = L.Dense(6)
        self.block = Block(6)
        self.norm = L.BatchNormalization()
        self.drop = L.Dropout(0.5)
        self.last = L.Dense(3)

    def call(self, x):
        return self.last(self.drop(self.norm(self.block(self.first(x)))))


class Pair(keras.Model):
    """A subclassed student with dicts on both sides."""

    def __init__(self):
        super().__init__()
        self.heads = {"colour": L.Dense(3), "size": L.Dense(1, activation="sigmoid")}
        self.colour, self.size = self.heads["colour"], self.heads["size"]

    def call(self, inputs, training=True):
        x = inputs["left"] - inputs["right"]
        x = x + (100.0 if training else 0.0)
        return {"colour": self.colour(x), "size": self.size(x)}


def mlp():
    inputs = keras.Input((5,), name="features")
    x = L.Dense(6, activation="relu")(inputs)
    return keras.Model(inputs, L.Dense(3, name="logits")(x))


def cnn():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            L.Conv2D(4, 3, use_bias=False),
            L.BatchNormalization(),
            L.ReLU(),
            L.DepthwiseConv2D(3, padding="same"),
            L.GlobalAveragePooling2D(),
            L.Dropout(0.5),
            L.Dense(3),
        ]
    )


def nested():
    image = keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, strides=2, padding="same")(image)
    x = L.Activation("gelu")(L.BatchNormalization()(x))
    backbone = keras.Model(image, x, name="backbone")
    inputs = keras.Input((8, 8, 3), name="image")
    x = L.GlobalAveragePooling2D()(backbone(inputs))
    return keras.Model(inputs, L.Softmax()(L.Dense(3)(x)))


def several():
    inputs = {
        "left": keras.Input((4,), name="left"),
        "right": keras.Input((2,), dtype="int32", name="right"),
    }
    x = L.Concatenate()([inputs["left"], L.Flatten()(L.Embedding(7, 3)(inputs["right"]))])
    outputs = [L.Dense(3, name="kind")(x), L.Dense(1)(x)]
    return keras.Model(inputs, outputs)


def lstm():
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = L.Embedding(11, 4, mask_zero=True)(tokens)
    return keras.Model(tokens, L.Dense(3)(L.LSTM(5, return_sequences=True)(x)))


def gru():
    steps = keras.Input((6, 4), name="steps")
    return keras.Model(steps, L.Dense(3)(L.Bidirectional(L.GRU(5))(steps)))


def mixed():
    keep = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        inputs = keras.Input((6, 4), name="steps")
        x = L.LayerNormalization()(Block(4)(inputs))
        x = L.MultiHeadAttention(2, 2)(x, x)
        return keras.Model(inputs, L.Dense(3, dtype="float32", name="logits")(L.LSTM(4)(x)))
    finally:
        keras.config.set_dtype_policy(keep)


def _normal(*shape):
    return np.random.default_rng(1).normal(size=shape).astype("float32")


def _ids(top, *shape, low=0):
    return np.random.default_rng(2).integers(low, top, size=shape)


N = 20
PAIR = {"left": _normal(N, 4), "right": _normal(N, 4)[::-1].copy()}
TOKENS = tf.data.Dataset.from_generator(
    lambda: ((_ids(11, 4, length), _ids(3, 4, length)) for length in (3, 7)),
    output_signature=(tf.TensorSpec((4, None), tf.int64), tf.TensorSpec((4, None), tf.int64)),
)
# name: (student, verification data, input names, output names)
STUDENTS = {
    "mlp": (mlp, (_normal(N, 5), _ids(3, N)), ["features"], ["logits"]),
    "cnn": (cnn, (_normal(N, 8, 8), _ids(3, N)), ["input"], ["output"]),
    "subclassed": (Subclassed, (_normal(N, 5), _ids(3, N)), ["input"], ["output"]),
    "pair": (
        Pair,
        tf.data.Dataset.from_tensor_slices(
            (PAIR, {"colour": _ids(3, N), "size": _ids(2, N)})
        ).batch(8),
        ["left", "right"],
        ["colour", "size"],
    ),
    "nested": (nested, _normal(N, 8, 8, 3), ["image"], ["output"]),
    "several": (
        several,
        ({"left": _normal(N, 4), "right": _ids(7, N, 2)}, [_ids(3, N), _normal(N)]),
        ["left", "right"],
        ["kind", "output_1"],
    ),
    "lstm": (lstm, TOKENS, ["tokens"], ["output"]),
    "gru": (
        gru,
        (_normal(N, 6, 4), keras.utils.to_categorical(_ids(3, N), 3)),
        ["steps"],
        ["output"],
    ),
    "mixed": (mixed, (_normal(N, 6, 4), _ids(3, N)), ["steps"], ["logits"]),
}


PAIRS = [(name, f) for name in STUDENTS for f in (FORMATS if name in FULL else PLAIN)]
LITE = [(name, format) for name, format in PAIRS if format.startswith("tflite")]
# What a file may be off in all, as a share of the largest answer: roundings of float32, float16,
# weights of 8 bits, and activations of 8 bits.
LOOSE = {"tflite_float16": 0.01, "tflite_dynamic": 0.1} | dict.fromkeys(WHOLE, 0.1)

every_pair = pytest.mark.parametrize(("case", "format"), PAIRS, indirect=["case"])


def _inputs(data):
    batch = next(iter(data)) if isinstance(data, tf.data.Dataset) else data
    return batch[0] if isinstance(batch, tuple) else batch


def _student(name):
    make, data, _, _ = STUDENTS[name]
    keras.utils.set_random_seed(3)
    student = make()
    student(_inputs(data))
    rng = np.random.default_rng(4)
    for weight in student.weights:  # BatchNorm's statistics too: defaults would hide a mistake
        weight.assign(weight + rng.uniform(0.05, 0.2, size=weight.shape))
    if student.layers:
        student.layers[-1].trainable = False
    return student


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Export each student once, whatever the order of the tests."""
    made = {}

    def find(name):
        if name not in made:
            _, data, inputs, outputs = STUDENTS[name]
            student = _student(name)
            before = _portrait(student)
            folder = tmp_path_factory.mktemp(name) / "new" / "run"
            formats = [format for other, format in PAIRS if other == name]
            artifacts = export.export_student(
                student, folder, formats, verification_data=data, **_calibrated(data)
            )
            made[name] = {
                "student": student, "data": data, "inputs": inputs, "outputs": outputs,
                "before": before, "artifacts": artifacts,
            }  # fmt: skip
        return made[name]

    return find


@pytest.fixture(params=list(STUDENTS))
def case(request, cases):
    return cases(request.param)


def _calibrated(data):
    """Take the ranges from the verification data itself, so that nothing lies outside of them."""
    count = 8 if data is TOKENS else N
    return {"representative_data": data, "calibration_examples": count}


def _portrait(student):
    layers = student._flatten_layers()
    told = [(layer.name, layer.dtype_policy.name, layer.trainable) for layer in layers]
    return told, [w.copy() for w in student.get_weights()], student.built, student.compiled


def _flat(value, names):
    value = list(value.values()) if isinstance(value, dict) else value
    value = value if isinstance(value, (list, tuple)) else [value]
    return dict(zip(names, (np.asarray(v) for v in value), strict=True))


def _serve(path):
    """Open a file with nothing but its runtime: a function from named arrays to named arrays."""
    if path.is_dir():
        loaded = tf.saved_model.load(str(path))

        def run(arrays):
            served = loaded.signatures["serving_default"](
                **{name: tf.constant(array) for name, array in arrays.items()}
            )
            return {name: value.numpy() for name, value in served.items()}

        return run
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path))
        names = [output.name for output in session.get_outputs()]
        return lambda arrays: dict(zip(names, session.run(names, arrays), strict=True))
    runner = Interpreter(model_path=str(path)).get_signature_runner()
    into, out = runner.get_input_details(), runner.get_output_details()

    def one_by_one(arrays):
        arrays = {name: _stored(array, into[name]) for name, array in arrays.items()}
        rows = [
            runner(**{name: array[i : i + 1] for name, array in arrays.items()})
            for i in range(len(next(iter(arrays.values()))))
        ]
        return {name: _real(np.concatenate([r[name] for r in rows]), out[name]) for name in out}

    return one_by_one


def _stored(values, detail):
    """Stored = round(real / scale) + zero point, within the type."""
    scale, zero = detail["quantization"]
    if not scale:
        return values.astype(detail["dtype"])
    ends = np.iinfo(detail["dtype"])
    return np.clip(np.rint(values / scale) + zero, ends.min, ends.max).astype(detail["dtype"])


def _real(stored, detail):
    """Real = scale · (stored - zero point)."""
    scale, zero = detail["quantization"]
    return ((stored.astype("float32") - zero) * scale).astype("float32") if scale else stored


def _served(case):
    """Return the first batch as named arrays; the CNN's images get their channel axis."""
    arrays = _flat(_inputs(case["data"]), case["inputs"])
    return {n: a[..., None] if a.shape[1:] == (8, 8) else a for n, a in arrays.items()}


def _types(certificate, arrays):
    """Give ids the type that the file takes; real numbers stay real numbers."""
    types = {n: told["dtype"] for n, told in certificate["inputs"].items()}
    return {
        n: a.astype("float32" if "scale" in certificate["inputs"][n] else types[n])
        for n, a in arrays.items()
    }


@every_pair
def test_file_answers_as_the_student_does(case, format):
    artifact = case["artifacts"][format]
    x = _inputs(case["data"])
    expected = _flat(case["student"](x, training=False), case["outputs"])
    arrays = _served(case)
    found = _serve(artifact.path)(_types(artifact.certificate, arrays))
    assert sorted(found) == sorted(case["outputs"])
    mixed = "rebuilt_in_float32_from" in artifact.certificate["student"]
    loose = 0.03 if mixed else LOOSE.get(format, 1e-4)
    for name, value in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], value, rtol=0, atol=loose * np.abs(value).max())


@every_pair
def test_names_in_the_file_are_clean(case, format):
    certificate = case["artifacts"][format].certificate
    assert sorted(certificate["inputs"]) == sorted(case["inputs"])
    assert sorted(certificate["outputs"]) == sorted(case["outputs"])


def test_saved_model_takes_any_batch_and_tflite_takes_one(case):
    for format, batch in (("saved_model", None), ("tflite", 1)):
        certificate = case["artifacts"][format].certificate
        assert {told["shape"][0] for told in certificate["inputs"].values()} == {batch}
    arrays = _served(case)
    arrays = _types(case["artifacts"]["saved_model"].certificate, arrays)
    serve = _serve(case["artifacts"]["saved_model"].path)
    whole = serve(arrays)
    for size in (1, 3):
        part = serve({name: array[:size] for name, array in arrays.items()})
        for name, value in part.items():
            np.testing.assert_allclose(value, whole[name][:size], rtol=1e-4, atol=1e-5)


@every_pair
def test_certificate_lies_beside_the_file_and_tells_what_was_seen(case, format):
    artifact = case["artifacts"][format]
    beside = artifact.path.with_name(artifact.path.name + ".json")
    assert json.loads(beside.read_text()) == artifact.certificate
    told = artifact.certificate
    assert told["format"] == format
    assert told["bytes"] > 0
    assert re.fullmatch("[0-9a-f]{64}", told["sha256"])
    assert told["verified"]["examples"] == (8 if case["inputs"] == ["tokens"] else N)
    assert list(told["verified"]["outputs"]) == case["outputs"]
    for found in told["verified"]["outputs"].values():
        assert found["max_difference"] <= LOOSE.get(format, 1e-4) * found["largest_output"]
        assert found["agreement"] is None or found["agreement"] >= 0.95
    assert {"keras", "tensorflow", "ai-edge-litert"} <= set(told["versions"])


@pytest.mark.parametrize(("case", "format"), LITE, indirect=["case"])
def test_tflite_holds_builtin_operators_only(case, format):
    artifact = case["artifacts"][format]
    model = flatbuffer_utils.read_model(str(artifact.path))
    names = [
        flatbuffer_utils.opcode_to_name(model, operator.opcodeIndex)
        for graph in model.subgraphs
        for operator in graph.operators
    ]
    assert names
    assert "CUSTOM" not in names
    assert not any(code.customCode for code in model.operatorCodes)
    assert sum(artifact.certificate["ops"].values()) == len(names)


def test_nothing_else_is_left_in_the_folder(case):
    names = {artifact.path.name for artifact in case["artifacts"].values()}
    assert len(names) == len(case["artifacts"])
    found = {path.name for path in case["artifacts"]["tflite"].path.parent.iterdir()}
    assert found == names | {f"{name}.json" for name in names}


def test_the_student_is_unchanged(case):
    layers, weights, built, compiled = case["before"]
    now = _portrait(case["student"])
    assert now[0] == layers
    assert (now[2], now[3]) == (built, compiled)
    for old, new in zip(weights, now[1], strict=True):
        np.testing.assert_array_equal(old, new)


def test_saved_model_holds_the_students_weights_and_no_other(case):
    path = str(case["artifacts"]["saved_model"].path / "variables" / "variables")
    stored = [
        tf.train.load_variable(path, name)
        for name, _ in tf.train.list_variables(path)
        if name.endswith("VARIABLE_VALUE")
    ]
    own = case["student"].get_weights()
    assert len(stored) == len(own)
    for value in stored:
        assert any(value.shape == w.shape and np.array_equal(value, w) for w in own)


def test_tflite_holds_no_more_numbers_than_the_student(case):
    model = flatbuffer_utils.read_model(str(case["artifacts"]["tflite"].path))
    floats = sum(
        len(model.buffers[tensor.buffer].data) // 4
        for graph in model.subgraphs
        for tensor in graph.tensors
        if tensor.type == 0 and model.buffers[tensor.buffer].data is not None
    )
    student = case["student"].count_params()
    # Folding BatchNorm and zero states of RNNs add or save a few vectors, never a matrix.
    assert 0.3 * student <= floats <= student + 64


# student: what each format that is refused says
LOOPS = dict.fromkeys(WHOLE, "cannot hold the loops of the student")
REFUSED = {
    "lstm": LOOPS,
    "gru": LOOPS,
    "mixed": LOOPS,
    "several": {"tflite_int16x8": "does not take inputs of whole numbers"},
}


@pytest.mark.slow
@pytest.mark.parametrize("format", [format for format in FORMATS if format not in PLAIN])
@pytest.mark.parametrize("name", [name for name in STUDENTS if name not in FULL])
def test_every_student_in_every_format(name, format, tmp_path):
    data = STUDENTS[name][1]
    words = REFUSED.get(name, {}).get(format)
    kinds = {"verification_data": data, **_calibrated(data)}
    if words is None:
        made = export.export_student(_student(name), tmp_path, [format], **kinds)
        assert made[format].path.exists()
        return
    with pytest.raises(ValueError, match=words):
        export.export_student(_student(name), tmp_path, [format], **kinds)
    assert list(tmp_path.iterdir()) == []
