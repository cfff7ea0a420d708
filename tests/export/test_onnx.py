"""The onnx target: ONNX Runtime answers as Keras does, and what cannot be translated is named."""

from __future__ import annotations

import importlib.util
import math
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_kd.export import base, onnx

L = keras.layers
EXTRA = all(importlib.util.find_spec(name) for name in ("tf2onnx", "onnx", "onnxruntime"))
needs_extra = pytest.mark.skipif(not EXTRA, reason="pip install keras_kd[onnx] is not done here")


def normal(*shape):
    return np.random.default_rng(1).normal(size=shape).astype("float32")


def image_net():
    inputs = keras.Input((8, 8, 3), name="image")
    x = L.BatchNormalization(momentum=0.5)(L.Conv2D(4, 3, strides=2, padding="same")(inputs))
    x = L.Activation("gelu")(x)
    x = L.SeparableConv2D(6, 3, activation="elu")(x)
    return keras.Model(inputs, L.Dense(3, name="logits")(L.GlobalAveragePooling2D()(x)))


def measured_net():
    norm = L.Normalization(mean=[1.0, 2.0, 3.0], variance=[4.0, 5.0, 6.0])
    return keras.Sequential([keras.Input((3,), name="values"), norm, L.Dense(2, name="points")])


def sequence_net():
    inputs = keras.Input((None, 4), name="steps")
    return keras.Model(
        inputs, L.Bidirectional(L.GRU(3), name="state")(L.LayerNormalization()(inputs))
    )


def two_by_two():
    left, right = keras.Input((4,), name="right"), keras.Input((2,), dtype="int32", name="left")
    x = L.Concatenate()([left, L.Flatten()(L.Embedding(7, 3)(right))])
    return keras.Model(
        {"right": left, "left": right}, {"kind": L.Dense(3)(x), "amount": L.Dense(1)(x)}
    )


IDS = np.random.default_rng(2).integers(0, 7, size=(5, 2)).astype("int32")
STUDENTS = {
    "image": (image_net, {"image": normal(5, 8, 8, 3)}, {"image": [None, 8, 8, 3]}),
    "measured": (measured_net, {"values": normal(5, 3)}, {"values": [None, 3]}),
    "sequence": (sequence_net, {"steps": normal(5, 6, 4)}, {"steps": [None, None, 4]}),
    "two": (
        two_by_two,
        {"right": normal(5, 4), "left": IDS},
        {"left": [None, 2], "right": [None, 4]},
    ),
}


@pytest.fixture(scope="module", params=list(STUDENTS))
def case(request, tmp_path_factory):
    pytest.importorskip("tf2onnx"), pytest.importorskip("onnxruntime")
    make, arrays, shapes = STUDENTS[request.param]
    keras.utils.set_random_seed(3)
    model = make()
    rng = np.random.default_rng(4)
    for weight in model.trainable_weights:
        weight.assign(weight + rng.uniform(0.05, 0.2, size=weight.shape))
    x = arrays if len(arrays) > 1 else next(iter(arrays.values()))
    student = base.Student(model, x)
    path = tmp_path_factory.mktemp(request.param) / "student.onnx"
    onnx.TARGET.write(student, path)
    answers = model(x, training=False)
    answers = answers if isinstance(answers, dict) else {student.output_names[0]: answers}
    return path, arrays, shapes, {name: np.asarray(value) for name, value in answers.items()}


def test_onnx_runtime_alone_answers_as_keras_does(case) -> None:
    import onnxruntime

    path, arrays, shapes, expected = case
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert {value.name: len(value.shape) for value in session.get_inputs()} == {
        name: len(shape) for name, shape in shapes.items()
    }
    names = [value.name for value in session.get_outputs()]
    found = dict(zip(names, session.run(None, arrays), strict=True))
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5 * np.abs(value).max())


def test_target_opens_its_own_file(case) -> None:
    path, arrays, shapes, expected = case
    opened = onnx.TARGET.open(path)
    assert {name: told["shape"] for name, told in opened.inputs.items()} == shapes
    assert {told["dtype"] for told in opened.outputs.values()} == {"float32"}
    two = opened.run({name: value[:2] for name, value in arrays.items()})  # the batch is open
    for name, value in expected.items():
        np.testing.assert_allclose(two[name], value[:2], rtol=0, atol=1e-5 * np.abs(value).max())


def test_operators_in_loops_are_counted(case) -> None:
    import onnx as package

    ops = onnx.TARGET.open(case[0]).ops
    top = package.load(str(case[0])).graph.node
    assert sum(ops.values()) >= len(top)
    assert all(package.defs.has(name) for name in ops)


@needs_extra
def test_exact_gelu_is_written_with_erf(tmp_path) -> None:
    """Hendrycks and Gimpel (2016): GELU(x) = x / 2 · (1 + erf(x / √2))."""
    model = keras.Sequential([keras.Input((9,)), L.Activation("gelu")])
    x = np.linspace(-4, 4, 9, dtype="float32")[None]
    onnx.TARGET.write(base.Student(model, x), tmp_path / "gelu.onnx")
    opened = onnx.TARGET.open(tmp_path / "gelu.onnx")
    expected = [[v / 2 * (1 + math.erf(v / math.sqrt(2))) for v in x[0].tolist()]]
    np.testing.assert_allclose(opened.run({"input": x})["output"], expected, atol=1e-6)


@needs_extra
def test_what_onnx_does_not_know_is_named_and_leaves_no_file(tmp_path, capfd) -> None:
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.ops.erfinv(inputs * 0.1))
    student = base.Student(model, normal(2, 3))
    with pytest.raises(ValueError, match=r"(?s)cannot be expressed in ONNX.*uses Erfinv"):
        onnx.TARGET.write(student, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
    assert "Erfinv" not in "".join(capfd.readouterr())


@needs_extra
def test_a_broken_file_is_refused(tmp_path) -> None:
    import onnx as package

    helper = package.helper
    value = [helper.make_tensor_value_info(n, 1, [1]) for n in ("x", "y")]
    graph = helper.make_graph(
        [helper.make_node("Nonsense", ["x"], ["y"])], "g", *([v] for v in value)
    )
    package.save(helper.make_model(graph), tmp_path / "bad.onnx")
    with pytest.raises(ValueError, match=r"(?s)ONNX file does not run.*bad\.onnx: .*Nonsense"):
        onnx.TARGET.open(tmp_path / "bad.onnx")


@needs_extra
def test_an_input_of_another_size_is_refused(tmp_path) -> None:
    model = keras.Sequential([keras.Input((3,)), L.Dense(2)])
    onnx.TARGET.write(base.Student(model, normal(2, 3)), tmp_path / "a.onnx")
    opened = onnx.TARGET.open(tmp_path / "a.onnx")
    with pytest.raises(ValueError, match=r"(?s)ONNX file does not run.*a\.onnx"):
        opened.run({"input": normal(2, 4)})


def test_trained_ranges_are_refused() -> None:
    inputs = keras.Input((3,))
    ranged = L.Lambda(lambda x: tf.quantization.fake_quant_with_min_max_args(x))(inputs)
    student = base.Student(keras.Model(inputs, ranged), normal(2, 3))
    assert "onnx format is not for a student with trained ranges" in onnx.TARGET.refuses(student)
    plain = base.Student(keras.Sequential([inputs, L.Dense(2)]), normal(2, 3))
    assert onnx.TARGET.refuses(plain) is None


@pytest.mark.parametrize("missing", ["tf2onnx.convert", "onnx"])
def test_a_missing_package_names_the_extra(monkeypatch, tmp_path, missing) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # Python then refuses to import it
    student = base.Student(keras.Sequential([keras.Input((3,)), L.Dense(2)]), normal(2, 3))
    with pytest.raises(ImportError, match=r"pip install 'keras_kd\[onnx\]'"):
        onnx.TARGET.write(student, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
