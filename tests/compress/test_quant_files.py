"""What quantisation-aware models become in a file: integers throughout, the same answers."""

from __future__ import annotations

import pathlib

import keras
import numpy as np
import pytest

from keras_kd.compress.quantization import quantization_aware
from keras_kd.compress.quantizers import rounded_weights
from keras_kd.export import base, tflite_int8
from keras_kd.litert import auditing, files, running

KL = keras.layers


def zoo() -> keras.Model:
    """Every kind of layer once, with two outputs."""
    inputs = keras.Input((12, 12, 3), name="image")
    x = KL.Rescaling(1 / 127.5, offset=-1.0, name="scale")(inputs)
    x = KL.Conv2D(6, 3, padding="same", use_bias=False, name="stem")(x)
    x = stem = KL.ReLU(6, name="stem_relu")(KL.BatchNormalization(name="stem_norm")(x))
    x = KL.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="deep")(KL.Dropout(0.5)(x))
    x = KL.ReLU(name="deep_relu")(KL.BatchNormalization(name="deep_norm")(x))
    x = KL.SeparableConv2D(6, 3, padding="same", name="separable")(x)
    x = KL.ReLU(name="add_relu")(KL.Add(name="add")([x, stem, KL.Conv2D(6, 1, name="way")(stem)]))
    gate = KL.Dense(6, activation="sigmoid", name="gate")(KL.GlobalAveragePooling2D(name="pool")(x))
    x = KL.Multiply(name="gated")([x, KL.Reshape((1, 1, 6), name="wide")(gate)])
    y = KL.Conv2D(3, 1, activation="tanh", name="bounded")(x)
    y = KL.AveragePooling2D(2, name="mean")(KL.ZeroPadding2D(1, name="pad")(y))
    x = KL.MaxPooling2D(2, padding="same", name="down")(KL.Conv2D(4, 3, name="valid")(x))
    x = KL.UpSampling2D(interpolation="bilinear", name="up")(x)
    x = KL.Cropping2D(((2, 1), (2, 1)), name="crop")(x)
    x = KL.Concatenate(name="join")([x, y])
    x = KL.LeakyReLU(0.1, name="leaky")(KL.BatchNormalization(name="alone")(x))
    x = KL.Conv2DTranspose(4, 2, strides=2, name="larger")(x)
    x = KL.Activation("hard_silu", name="swish")(KL.BatchNormalization(name="larger_norm")(x))
    flat = KL.Flatten(name="flat")(KL.Subtract(name="difference")([x, KL.Permute((2, 1, 3))(x)]))
    classes = KL.Dense(5, activation="softmax", name="classes")(flat)
    return keras.Model(inputs, {"map": x, "classes": classes}, name="zoo")


def signals() -> keras.Model:
    layers = [
        KL.Normalization(mean=[1.0, -1.0, 0.5], variance=[2.0, 0.5, 1.0], name="scale"),
        KL.Conv1D(6, 3, padding="causal", dilation_rate=2, use_bias=False, name="causal"),
        KL.BatchNormalization(name="causal_norm"),
        KL.Activation("relu", name="relu"),
        KL.Conv1D(8, 3, strides=2, activation="silu", name="strided"),
        KL.DepthwiseConv2D(1, name="deep"),
        KL.Dense(6, activation="gelu", name="hidden"),
        KL.Flatten(name="flat"),
        KL.Dense(3, name="logits"),
    ]
    layers[5:5] = [KL.Reshape((4, 1, 8), name="image")]
    return keras.Sequential([keras.Input((10, 3), name="signal"), *layers], name="signals")


class Converted:
    """A student, its quantisation-aware model, and the file of that."""

    def __init__(self, student: keras.Model, bits: int, top: float, folder: pathlib.Path) -> None:
        rng = np.random.default_rng(11)
        for variable in student.weights:
            if variable.name == "kernel":
                continue
            noise = rng.uniform(0.5, 1.5, variable.shape)
            variable.assign(noise if "variance" in variable.path else noise - 0.8)
            if variable.name == "gamma":
                variable.assign(noise)
        (shape,) = [tuple(tensor.shape[1:]) for tensor in student.inputs]
        self.student = student
        self.x = rng.uniform(-top, top, (48, *shape)).clip(min=-2).astype("float32")
        self.model = quantization_aware(student, bits, data=self.x)
        path = folder / f"{student.name}.tflite"
        seen = base.Student(self.model, self.x[:1])
        assert tflite_int8.TARGET.refuses(seen) is None
        assert not tflite_int8.TARGET.needs_calibration(seen)
        tflite_int8.TARGET.write(seen, path)
        self.audit = auditing.audit(path)
        self.file = files.read(path)
        self.runner = running.Runner(path)
        self.answers = self.runner.run({seen.inputs[0].name: self.x})
        self.expected = {k: np.asarray(v) for k, v in seen.answer(seen.flatten(self.x)).items()}

    def steps(self, name: str) -> np.ndarray:
        scale = self.runner.outputs[name].scale
        assert scale is not None
        return np.abs(self.answers[name] - self.expected[name]) / scale

    def weights(self, operator: str) -> list[files.Tensor]:
        graph = self.file.graphs[0]
        found = [op for op in graph.operators if op.name == operator]
        return [graph.tensors[op.inputs[1]] for op in found]


@pytest.fixture(scope="module")
def image_file(tmp_path_factory) -> Converted:
    return Converted(zoo(), 8, 255.0, tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="module")
def signal_file(tmp_path_factory) -> Converted:
    return Converted(signals(), 4, 2.0, tmp_path_factory.mktemp("signals"))


def test_the_file_is_whole_numbers_throughout(image_file, signal_file) -> None:
    for converted in (image_file, signal_file):
        assert not converted.audit.islands
        types = {tensor.dtype for tensor in converted.file.graphs[0].tensors}
        assert not {kind for kind in types if kind.startswith("float")}
        ends = [*converted.runner.inputs.values(), *converted.runner.outputs.values()]
        assert {end.dtype for end in ends} == {"int8"}


def test_normalisations_and_relus_are_folded_away(image_file) -> None:
    ops = image_file.audit.ops
    assert ops["CONV_2D"] == 5  # stem, the separable's second half, way, bounded, valid
    assert ops["DEPTHWISE_CONV_2D"] == 4  # scale, deep, the separable's first half, alone
    assert ops["ADD"] == 2 and ops["CONCATENATION"] == 1 and ops["TRANSPOSE_CONV"] == 1
    assert not {"RELU", "RELU6", "DIV", "SQUARED_DIFFERENCE", "RSQRT"} & set(ops)


def test_the_answers_are_those_of_the_keras_model(image_file, signal_file) -> None:
    """Within the roundings of the integer kernels, which are up to one step in each."""
    assert set(image_file.answers) == {"classes", "map"} and set(signal_file.answers) == {"logits"}
    assert image_file.steps("classes").max() <= 2.01
    assert signal_file.steps("logits").max() <= 4.01  # kernels of 4 bits round twice
    assert image_file.steps("map").max() <= 5.01  # behind eighteen operations
    assert image_file.steps("map").mean() < 0.25
    for answers in (*image_file.answers.values(), *signal_file.answers.values()):
        assert len(np.unique(answers)) > 20


def test_kernels_have_the_grids_that_they_prescribe(image_file) -> None:
    end = image_file.runner.outputs["classes"]
    assert (end.scale, end.zero_point) == (1 / 256, -128)
    grids = {
        (round(t.scales[0], 9), t.zero_points[0])
        for t in image_file.file.graphs[0].tensors
        if len(t.scales) == 1
    }
    assert {(1 / 256, -128), (1 / 128, 0)} <= grids


def test_four_bits_are_four_bits_in_the_file(signal_file) -> None:
    weights = [*signal_file.weights("CONV_2D"), *signal_file.weights("FULLY_CONNECTED")]
    assert [tensor.dtype for tensor in weights] == ["int4"] * 4
    for tensor in weights:
        assert np.abs(tensor.stored()).max() == 7
    scaled = [t.dtype for t in signal_file.weights("DEPTHWISE_CONV_2D")]
    assert scaled == ["int8", "int4"]  # scaling inputs is exact, whatever the bits of the rest


def test_the_weights_in_the_file_are_the_rounded_ones(image_file) -> None:
    layer = image_file.model.get_layer("stem")
    kernel, _ = map(np.asarray, layer.rounded(layer.kernel.value))
    stem = next(t for t in image_file.weights("CONV_2D") if t.shape == (6, 3, 3, 3))
    assert len(stem.scales) == 6 and stem.axis == 0
    np.testing.assert_allclose(stem.values(), np.moveaxis(kernel, 3, 0), atol=1e-6)
    deep = image_file.model.get_layer("deep")
    rounded, _ = map(np.asarray, deep.rounded(deep.kernel.numpy().reshape(3, 3, 12)))
    found = next(t for t in image_file.weights("DEPTHWISE_CONV_2D") if t.shape == (1, 3, 3, 12))
    assert len(found.scales) == 12 and found.axis == 3
    np.testing.assert_allclose(found.values()[0], rounded, atol=1e-6)
    dense = image_file.weights("FULLY_CONNECTED")
    assert [len(tensor.scales) for tensor in dense] == [1, 1]
    gate = rounded_weights(image_file.model.get_layer("gate").kernel.value, 8, False)[0]
    np.testing.assert_allclose(dense[0].values(), np.transpose(gate), atol=1e-6)
