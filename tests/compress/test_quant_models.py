"""quantization_aware and float_student on every pattern, in training, saved, and refused."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import keras_kd as kd
from keras_kd import taps
from keras_kd.compress.folding import FoldedInto
from keras_kd.compress.quantization import FreezeRanges, float_student, quantization_aware
from keras_kd.compress.quantizers import ActivationRange, FixedRange
from keras_kd.keras_models import layers_of

KL = keras.layers
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
IMAGE = (8, 8, 2)


def conv(x, width: int, name: str, *, size: int = 3, kind=KL.Conv2D, **kwargs):
    x = kind(width, size, padding="same", use_bias=False, name=f"{name}_conv", **kwargs)(x)
    return KL.ReLU(name=f"{name}_relu")(KL.BatchNormalization(name=f"{name}_norm")(x))


def residual() -> keras.Model:
    inputs = keras.Input(IMAGE, name="image")
    x = conv(KL.Rescaling(1 / 127.5, offset=-1.0, name="scale")(inputs), 6, "stem")
    way = KL.Conv2D(6, 1, name="way")(x)
    x = KL.Conv2D(6, 3, padding="same", name="inner")(x)
    x = KL.BatchNormalization(name="inner_norm")(x)
    x = KL.ReLU(name="joined_relu")(KL.Add(name="joined")([x, way]))
    x = KL.Dropout(0.2, name="dropout")(KL.GlobalAveragePooling2D(name="pool")(x))
    return keras.Model(inputs, KL.Dense(3, name="logits")(x), name="residual")


def concatenated() -> keras.Model:
    """Branches into one range, one of them with the grid that a sigmoid has; a shared source."""
    inputs = keras.Input(IMAGE, name="image")
    x = conv(inputs, 4, "stem")
    gate = KL.Conv2D(4, 1, activation="sigmoid", name="gate")(x)
    pooled = KL.AveragePooling2D(3, strides=1, padding="same", name="pooled")(x)
    x = KL.Concatenate(name="join")([x, gate, pooled])
    x = KL.UpSampling2D(interpolation="bilinear", name="up")(KL.MaxPooling2D(name="down")(x))
    return keras.Model(inputs, KL.Conv2D(2, 1, name="map")(x), name="concatenated")


def separable() -> keras.Model:
    x = inputs = keras.Input(IMAGE, name="image")
    x = KL.ZeroPadding2D(1, name="pad")(x)
    x = KL.DepthwiseConv2D(3, depth_multiplier=2, activation="relu6", name="deep")(x)
    x = KL.SeparableConv2D(5, 3, padding="same", name="separable")(x)
    x = KL.LeakyReLU(0.1, name="leaky")(KL.BatchNormalization(name="separable_norm")(x))
    x = KL.Conv2DTranspose(3, 2, strides=2, use_bias=False, name="larger")(x)
    x = KL.Activation("hard_silu", name="swish")(KL.BatchNormalization(name="larger_norm")(x))
    return keras.Model(inputs, KL.GlobalMaxPooling2D(name="top")(x), name="separable")


def sequence() -> keras.Model:
    layers = [
        KL.Normalization(mean=[1.0, -1.0, 0.5], variance=[2.0, 0.5, 1.0], name="scale"),
        KL.Conv1D(6, 3, padding="causal", dilation_rate=2, name="causal"),
        KL.BatchNormalization(name="causal_norm"),
        KL.Activation("relu", name="relu"),
        KL.Conv1D(4, 3, strides=2, activation="tanh", name="strided"),
        KL.Flatten(name="flat"),
        KL.BatchNormalization(name="alone"),
        KL.Dense(4, activation="leaky_relu", name="hidden"),
        KL.Dense(3, activation="softmax", name="head"),
    ]
    return keras.Sequential([keras.Input((10, 3), name="signal"), *layers], name="sequence")


def tiny() -> keras.Model:
    x = inputs = keras.Input(IMAGE, name="image")
    x = KL.GlobalAveragePooling2D(name="pool")(conv(x, 4, "stem"))
    return keras.Model(inputs, KL.Dense(3, name="logits")(x), name="tiny")


def nested() -> keras.Model:
    """A nested model with the same layer names as the model around it; dicts in and out."""
    image = keras.Input(IMAGE)
    inner = keras.Model(image, KL.Conv2D(4, 3, use_bias=False, name="conv")(image), name="inner")
    inputs = {name: keras.Input(IMAGE, name=name) for name in ("left", "right")}
    x = KL.BatchNormalization(name="norm")(inner(inputs["left"], training=False))
    y = KL.Conv2D(4, 3, activation="silu", name="conv")(inputs["right"])
    total = KL.Add(name="total")([KL.ReLU(name="positive")(x), y, x])
    total = keras.ops.relu(total - y) + x
    outputs = {"total": KL.Flatten(name="flat")(total), "map": KL.Multiply(name="map")([x, y])}
    return keras.Model(inputs, outputs, name="nested")


PATTERNS = [residual, concatenated, separable, sequence, nested]


def batch(model: keras.Model, rows: int = 16):
    rng = np.random.default_rng(3)
    return keras.tree.map_structure(
        lambda tensor: rng.uniform(-1, 1, (rows, *tensor.shape[1:])).astype("float32"),
        model._functional._inputs_struct if isinstance(model, keras.Sequential) else model.input,
    )


def shaken(model: keras.Model) -> keras.Model:
    """Give a model statistics and biases like a trained one's."""
    rng = np.random.default_rng(4)
    for layer in layers_of(model):
        if isinstance(layer, KL.BatchNormalization):
            layer.moving_mean.assign(rng.normal(size=layer.moving_mean.shape) * 0.1)
            layer.moving_variance.assign(rng.uniform(0.3, 2, layer.moving_variance.shape))
            layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape))
        elif getattr(layer, "bias", None) is not None:
            layer.bias.assign(rng.normal(size=layer.bias.shape) * 0.2)
    return model


def flat(outputs) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in keras.tree.flatten(outputs)])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_is_close_to_the_float_student_and_leads_back_to_it(pattern) -> None:
    student = shaken(pattern())
    x, weights, config = batch(student), student.get_weights(), student.to_json()
    expected = flat(student(x))
    model = quantization_aware(student, data=x)
    answer = flat(model(x))
    largest = np.abs(expected).max()
    assert 0 < np.abs(answer - expected).max() < 0.06 * largest
    coarse = flat(quantization_aware(student, 4, data=x)(x))
    assert np.abs(coarse - expected).mean() > 2 * np.abs(answer - expected).mean()
    plain = float_student(model)
    np.testing.assert_allclose(flat(plain(x)), expected, atol=1e-5 * max(1, largest))
    assert plain.name == model.name == student.name
    names = taps.output_names(student) or ["head"]  # a Sequential does not say
    assert plain.output_names == model.output_names == names
    before = {layer.name for layer in layers_of(student)}
    assert pattern is nested or {layer.name for layer in layers_of(plain)} == before
    assert all(type(layer).__module__.startswith("keras.") for layer in layers_of(plain)[1:])
    for value, before in zip(student.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(value, before)
    assert student.to_json() == config


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_trains_and_comes_back_from_a_file(pattern, tmp_path) -> None:
    student = shaken(pattern())
    x = batch(student)
    model = quantization_aware(student, ranges="learned", warm_up_steps=1, batch_statistics=True)
    model.compile(keras.optimizers.SGD(0.01), loss="mse")
    y = keras.tree.map_structure(lambda z: np.asarray(z) + 0.1, student(x))
    model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    assert all(np.isfinite(w).all() for w in model.get_weights())
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(flat(again(x)), flat(model(x)))
    assert [layer.name for layer in again.layers] == [layer.name for layer in model.layers]
    np.testing.assert_allclose(flat(float_student(again)(x)), flat(float_student(model)(x)))


def kinds(model: keras.Model) -> dict[str, str]:
    return {layer.name: type(layer).__name__ for layer in model.layers}


def test_what_is_one_operation_in_the_file_is_rounded_once() -> None:
    assert kinds(quantization_aware(residual())) == {
        "image": "InputLayer",
        "image_range": "ActivationRange",
        "scale": "QuantizedScaling",
        "scale_range": "ActivationRange",
        "stem_conv": "QuantizedConv2D",
        "stem_norm": "FoldedInto",
        "stem_relu": "ReLU",
        "stem_relu_range": "ActivationRange",
        "way": "QuantizedConv2D",
        "way_range": "ActivationRange",
        "inner": "QuantizedConv2D",
        "inner_norm": "FoldedInto",
        "inner_norm_range": "ActivationRange",
        "joined": "Add",
        "joined_relu": "ReLU",
        "joined_relu_range": "ActivationRange",
        "pool": "GlobalAveragePooling2D",
        "pool_range": "ActivationRange",
        "dropout": "Dropout",
        "logits_raw": "QuantizedDense",
        "logits_range": "ActivationRange",
        "logits": "Rounded",
    }


def test_what_is_concatenated_shares_one_range() -> None:
    model = quantization_aware(concatenated())
    ranges = [layer.name for layer in model.layers if isinstance(layer, ActivationRange)]
    assert ranges == ["image_range", "stem_relu_range", "map_range"]
    shared = model.get_layer("stem_relu_range")
    assert shared.sites == 2  # the stem and the gate; averages of the stem are inside it


def test_scaled_inputs_have_their_zero_on_the_grid() -> None:
    model = quantization_aware(residual(), data=batch(residual()))
    rooms = {x.name: x.headroom for x in model.layers if isinstance(x, ActivationRange)}
    assert rooms.pop("scale_range") == 128 / 127 and set(rooms.values()) == {1.0}


def channel_ends(kernel: np.ndarray, axis: int | None) -> np.ndarray:
    others = tuple(i for i in range(kernel.ndim) if axis is None or i != axis)
    return np.abs(kernel).max(axis=others)


@pytest.mark.parametrize(
    ("layer", "axis"),
    [
        (KL.Dense(3), None),
        (KL.Conv2D(3, 2), 3),
        (KL.Conv1D(3, 2), 2),
        (KL.DepthwiseConv2D(2), 2),
        (KL.Conv2DTranspose(3, 2), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_sums_are_whole_numbers_of_the_steps_that_the_file_has(layer, axis, rng) -> None:
    """Jacob et al. 2018, equation 7: sums of products, and the bias, in steps of both scales."""
    inputs = keras.Input((5, 4) if isinstance(layer, KL.Conv1D) else (5, 5, 4))
    student = shaken(keras.Model(inputs, type(layer).from_config(layer.get_config())(inputs)))
    x = rng.uniform(-1, 1, (8, *inputs.shape[1:])).astype("float32")
    model = quantization_aware(student, 4, data=x)
    raw = next(found for found in model.layers if found.name.endswith("_raw"))
    sums = np.asarray(keras.Model(model.input, raw.output)(x), "float64")
    kernel = student.layers[-1].kernel.numpy()
    step = (x.max() - x.min()) / 255 * channel_ends(kernel, axis) / 7
    np.testing.assert_allclose(sums / step, np.round(sums / step), atol=5e-3)


def test_a_normalisation_that_was_called_frozen_stays_frozen() -> None:
    inputs = keras.Input(IMAGE)
    x = KL.BatchNormalization(name="norm")(KL.Conv2D(3, 1, name="conv")(inputs), training=False)
    model = quantization_aware(keras.Model(inputs, x), batch_statistics=True)
    assert [v.path for v in model.trainable_variables] == ["conv/kernel", "conv/bias"]


def test_sigmoids_that_stand_alone_have_the_grid_of_their_kernel() -> None:
    model = quantization_aware(sequence())
    ends = [(x.name, x.low, x.high) for x in model.layers if isinstance(x, FixedRange)]
    assert ends == [("strided_range", -1.0, 127 / 128), ("head_range", 0.0, 255 / 256)]
    assert model.get_layer("strided").before is not None  # tanh is an operation of its own


def test_a_normalisation_that_others_see_before_it_is_not_folded() -> None:
    inputs = keras.Input(IMAGE)
    x = KL.Conv2D(3, 1, name="conv")(inputs)
    y = KL.BatchNormalization(name="norm")(x)
    model = quantization_aware(keras.Model(inputs, [x, y]))
    assert kinds(model)["norm_raw"] == "QuantizedScaling"
    assert model.get_layer("conv_raw").norm is None
    model = quantization_aware(keras.Model(inputs, y))
    assert isinstance(model.get_layer("norm_raw"), FoldedInto)


def test_bits_are_those_of_the_layer() -> None:
    model = quantization_aware(residual(), 4, eight_bit_layers=["stem_conv", "logits"])
    bits = {name: model.get_layer(name).weight_bits for name in ("stem_conv", "way", "logits_raw")}
    assert bits == {"stem_conv": 8, "way": 4, "logits_raw": 8}
    with pytest.raises(ValueError, match=r"no layer with weights to round 'wey'[^?]*'way'\?"):
        quantization_aware(residual(), 4, eight_bit_layers=["wey"])


def test_what_is_not_trained_in_the_student_is_not_trained_here() -> None:
    student = residual()
    for name in ("stem_norm", "way"):
        student.get_layer(name).trainable = False
    trained = {v.path for v in quantization_aware(student).trainable_variables}
    assert trained == {
        *("stem_conv/kernel", "inner/kernel", "inner/bias", "logits_raw/kernel", "logits_raw/bias"),
        *("inner/inner_norm/gamma", "inner/inner_norm/beta"),
    }


def test_a_mixed_precision_student_computes_in_float32() -> None:
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        student = residual()
        model = quantization_aware(student)
        assert {layer.compute_dtype for layer in layers_of(student)} >= {"float16"}
        assert {layer.compute_dtype for layer in layers_of(model)} == {"float32"}
        assert {layer.compute_dtype for layer in layers_of(float_student(model))} == {"float32"}
    finally:
        keras.config.set_dtype_policy(policy)


@pytest.fixture
def images(rng) -> tuple[np.ndarray, np.ndarray]:
    return rng.uniform(0, 255, (32, *IMAGE)).astype("float32"), rng.integers(0, 3, 32)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_the_distiller_trains_it_unchanged(jit, images, tmp_path) -> None:
    teacher = tiny()
    model = quantization_aware(teacher, 4, data=images, freeze_after=3)
    hint = kd.FeatureDistillation(teacher_layer_name="stem_relu", student_layer_name="stem_relu")
    distiller = kd.Distiller(teacher, model, [kd.LogitsDistillation(), hint])
    distiller.compile("adam", LOGITS, steps_per_execution=2, jit_compile=jit)
    before, expected = model.get_weights(), flat(model(images[0]))
    distiller.evaluate(*images, batch_size=8, verbose=0)
    distiller.predict(images[0], verbose=0)
    for value, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)
    distiller.fit(*images, batch_size=8, verbose=0)
    assert not np.allclose(flat(model(images[0])), expected)
    watched = model.get_layer("stem_relu_range")
    assert int(watched.steps) == 4 and bool(watched.frozen)
    assert int(watched.seen[0]) == 1 + 3  # one batch of calibration, three before the freeze
    distiller.save(tmp_path / "distiller.keras")
    again = kd.load_distiller(tmp_path / "distiller.keras", teacher=teacher)
    np.testing.assert_allclose(flat(again.student(images[0])), flat(model(images[0])), atol=1e-6)


def test_training_the_rounded_weights_mends_what_rounding_broke(rng) -> None:
    layers = [KL.Dense(16, activation="relu"), KL.Dense(16, activation="relu"), KL.Dense(3)]
    teacher = keras.Sequential([keras.Input((6,)), *layers])
    x = rng.normal(size=(256, 6)).astype("float32")
    model = quantization_aware(teacher, 4, data=x)

    def gap() -> float:
        return float(np.square(flat(model(x)) - flat(teacher(x))).mean())

    broken = gap()
    distiller = kd.Distiller(teacher, model, [kd.losses.LogitMatching()], student_loss_weight=0.0)
    rate = keras.optimizers.schedules.CosineDecay(3e-4, 400)
    distiller.compile(keras.optimizers.Adam(rate), loss=None, steps_per_execution=8)
    distiller.fit(x, epochs=50, verbose=0, callbacks=[FreezeRanges(epoch=25)])
    assert gap() < 0.75 * broken


def test_the_callback_freezes_at_its_epoch(images) -> None:
    model = quantization_aware(tiny(), data=images, batch_statistics=True)
    model.compile("sgd", LOGITS)
    layer, norm = model.get_layer("logits_range"), model.get_layer("stem_conv").norm
    model.fit(*images, epochs=1, verbose=0, callbacks=[FreezeRanges(epoch=1)])
    assert not bool(layer.frozen) and not bool(norm.frozen)
    model.fit(*images, initial_epoch=1, epochs=2, verbose=0, callbacks=[FreezeRanges(epoch=1)])
    assert bool(layer.frozen) and bool(norm.frozen)


@pytest.mark.parametrize("data", ["arrays", "pairs", "dataset", "py_dataset"])
def test_calibration_takes_what_training_takes(data, images) -> None:
    import tensorflow as tf

    class Batches(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int):
            return images[0][8 * index : 8 * index + 8], images[1][8 * index : 8 * index + 8]

    given = {
        "arrays": images[0],
        "pairs": images,
        "dataset": tf.data.Dataset.from_tensor_slices(images).batch(8),
        "py_dataset": Batches(),
    }[data]
    layer = quantization_aware(residual(), data=given, calibration_batches=3).get_layer(
        "image_range"
    )
    rows = images[0].reshape(4, -1).max(axis=1)[:3].mean() if "dataset" in data else images[0].max()
    np.testing.assert_allclose(float(layer.ends()[1]), rows, rtol=1e-6)
    assert layer.warm_up_steps == 0
    assert quantization_aware(residual()).get_layer("image_range").warm_up_steps == 100


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"weight_bits": 5}, "`weight_bits` must be 8 or 4"),
        ({"activation_bits": 16}, "(?s)`activation_bits` must be 8.*tflite_int16x8"),
        ({"ranges": "lerned"}, "no kind of ranges 'lerned'"),
        ({"freeze_after": -1}, "`freeze_after` must be a whole number"),
        ({"warm_up_steps": 1.5}, "`warm_up_steps` must be a whole number"),
        ({"momentum": 2}, "`momentum` must be between 0 and 1"),
        ({"data": np.zeros((0, *IMAGE))}, "no data to calibrate on"),
        ({"data": []}, "no data to calibrate on"),
    ],
)
def test_wrong_arguments_are_refused(kwargs, words) -> None:
    with pytest.raises(ValueError, match=words):
        quantization_aware(residual(), **kwargs)


def troubled() -> keras.Model:
    inputs = [keras.Input((6, 4), name="x"), keras.Input((6, 4), dtype="int32", name="ids")]
    shared = KL.Dense(4, name="shared")
    x = KL.LayerNormalization(name="layer_norm")(shared(inputs[0]) + shared(inputs[0]))
    x = keras.ops.sqrt(x + 1)
    x = KL.Dense(4, activation="elu", name="bent")(x)
    x = KL.LSTM(4, return_sequences=True, name="lstm")(x)
    x = KL.BatchNormalization(axis=1, name="other_axis")(x)
    x = KL.BatchNormalization(name="loud")(x, training=True)
    x = KL.ReLU(max_value=3, name="clipped")(x)
    x = KL.Conv1D(3, 1, data_format="channels_first", name="first")(x)
    return keras.Model(inputs, [x, KL.Embedding(5, 2, name="lookup")(inputs[1])], name="troubled")


@pytest.mark.parametrize(
    "part",
    [
        "'ids' \\(an input of type int32\\)",
        "'add_?\\d*' \\(Add: no integer kernel",
        "'sqrt_?\\d*' \\(Sqrt: no integer kernel",
        "'layer_norm' \\(LayerNormalization: no",
        "'bent' \\(Dense: activation 'elu'\\)",
        "'lstm' \\(LSTM: no",
        "'other_axis' \\(BatchNormalization: axis=1, which is not the last",
        "'loud' \\(BatchNormalization: called with training=True",
        "'clipped' \\(ReLU: activation 'ReLU\\(max_value=3",
        "'first' \\(Conv1D: data_format='channels_first'",
        "'shared' \\(called 2 times\\)",
        "'lookup' \\(Embedding",
        "expected: layers that LiteRT computes in integers",
        "fix:      replace these layers",
    ],
)
def test_layers_that_no_integer_kernel_has_are_all_named(part, refusal=[]) -> None:  # noqa: B006
    if not refusal:
        with pytest.raises(
            ValueError, match="'troubled' cannot be made quantisation-aware"
        ) as error:
            quantization_aware(troubled())
        refusal.append(error)
    refusal[0].match(part)


def test_a_volume_is_not_scaled() -> None:
    inputs = keras.Input((2, 2, 2, 1))
    with pytest.raises(ValueError, match="an input of 5 axes"):
        quantization_aware(keras.Model(inputs, KL.Rescaling(2.0)(inputs)))


def test_a_call_with_further_arguments_is_refused() -> None:
    x = keras.Input((4, 2))
    y = KL.Softmax(name="masked")(x, mask=keras.ops.ones((4, 2), dtype="bool"))
    with pytest.raises(ValueError, match="'masked' \\(Softmax: called with further arguments"):
        quantization_aware(keras.Model(x, y))


def test_only_quantisation_aware_models_lead_back() -> None:
    with pytest.raises(ValueError, match="'residual' is not quantisation-aware"):
        float_student(residual())
    with pytest.raises(ValueError, match="no ranges to freeze"):
        callback = FreezeRanges(epoch=0)
        callback.set_model(residual())
        callback.on_epoch_begin(0)
    with pytest.raises(ValueError, match="`epoch` must be a whole number"):
        FreezeRanges(epoch=-1)


@pytest.mark.parametrize("function", [quantization_aware, float_student])
def test_what_has_no_graph_is_refused(function) -> None:
    with pytest.raises(ValueError, match="The student is no model"):
        function("student")
    with pytest.raises(ValueError, match="is not built"):
        function(keras.Sequential([KL.Dense(2)]))
