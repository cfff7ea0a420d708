"""Students that need care: each gets a right file, or an error with the fix."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_kd import export

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 12)).astype("float32")
STEPS = RNG.normal(size=(120, 6, 4)).astype("float32")


def _chain(shape, *layers):
    inputs = x = keras.Input(shape, name="x")
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x, name="student")


def _export(model, folder, format, x, **options):
    kinds = {"representative_data": x, "calibration_examples": len(x)} | options
    return export.export_student(model, folder, [format], verification_data=x, **kinds)[format]


@pytest.mark.parametrize(
    ("layer", "name"),
    [(lambda: L.ELU(name="bend"), "bend"), (lambda: L.LayerNormalization(name="level"), "level")],
    ids=["elu", "layer_normalisation"],
)
def test_float_islands_are_refused_by_the_layers_name_unless_allowed(tmp_path, layer, name):
    keras.utils.set_random_seed(1)
    model = _chain((12,), L.Dense(8), layer(), L.Dense(3))
    with pytest.raises(ValueError, match=rf"(?s)computes in float in places.*{name}.*fix:"):
        _export(model, tmp_path / "a", "tflite_int8", X)
    assert list((tmp_path / "a").iterdir()) == []
    allowed = {"tflite_int8": {"float_islands": 1, "steps": 60, "agreement": 0.5}}
    made = _export(model, tmp_path / "b", "tflite_int8", X, bounds=allowed)
    (island,) = made.certificate["audit"]["islands"]
    assert island["layers"] == [name]


def test_an_lstm_with_open_batch_and_time_ships_in_float_and_is_refused_in_int8(tmp_path):
    model = _chain((None, 4), L.LSTM(5, return_sequences=True, name="memory"), L.Dense(3))
    for format in ("tflite_float16", "tflite_dynamic"):
        told = _export(model, tmp_path, format, STEPS).certificate
        assert told["inputs"]["x"]["shape"] == [1, None, 4]
    words = r"(?s)tflite_int8 format cannot hold the loops.*'memory' \(LSTM\).*fix:.*unroll=True"
    with pytest.raises(ValueError, match=words):
        _export(model, tmp_path / "int8", "tflite_int8", STEPS)


def test_a_gru_is_refused_in_int8_and_ships_where_it_is_unrolled(tmp_path):
    keras.utils.set_random_seed(2)
    biased = {"bias_initializer": "random_normal"}  # zeros have no range, and stay float
    looping = _chain((6, 4), L.GRU(5, name="memory", **biased), L.Dense(3))
    with pytest.raises(ValueError, match=r"(?s)cannot hold the loops.*'memory' \(GRU\)"):
        _export(looping, tmp_path / "a", "tflite_int8", STEPS)
    unrolled = _chain((6, 4), L.GRU(5, unroll=True), L.Dense(3))
    unrolled.set_weights(looping.get_weights())  # the fix that the error names
    told = _export(unrolled, tmp_path, "tflite_int8", STEPS).certificate
    assert told["inputs"]["x"]["dtype"] == "int8"
    assert told["audit"]["islands"] == []


def test_a_mixed_precision_student_with_a_lambda_ships_where_it_can_be_rebuilt(tmp_path):
    keras.utils.set_random_seed(3)
    half = {"dtype": "mixed_float16"}
    model = _chain((12,), L.Dense(8, "relu", **half), L.Dense(3, **half))
    told = _export(model, tmp_path, "tflite_int8", X).certificate
    assert told["student"]["rebuilt_in_float32_from"] == ["float16", "float32"]
    assert told["audit"]["islands"] == []
    shifted = _chain((12,), L.Dense(8, **half), L.Lambda(lambda x: x + 1, **half), L.Dense(3))
    with pytest.raises(ValueError, match=r"(?s)cannot be rebuilt in float32.*fix:"):
        _export(shifted, tmp_path / "b", "tflite_int8", X)


def test_a_lambda_ships_in_int8(tmp_path):
    keras.utils.set_random_seed(4)
    model = _chain((12,), L.Dense(8, "relu"), L.Lambda(lambda x: x * 2 + 1), L.Dense(3))
    assert _export(model, tmp_path, "tflite_int8", X).certificate["audit"]["islands"] == []


def test_three_examples_are_too_few_unless_three_were_asked_for(tmp_path):
    keras.utils.set_random_seed(5)
    model = _chain((12,), L.Dense(3))
    given = {"representative_data": X[:3]}
    words = r"(?s)too few to calibrate with.*3 examples.*1855.*calibration_examples=3"
    with pytest.raises(ValueError, match=words):
        _export(model, tmp_path, "tflite_int8", X, **given, calibration_examples=300)
    with pytest.raises(ValueError, match=r"(?s)cannot express too many.*more calibration data"):
        _export(model, tmp_path, "tflite_int8", X, **given, calibration_examples=3)
    lifted = {"tflite_int8": {"saturation": None, "agreement": None, "steps": None}}
    made = _export(
        model, tmp_path, "tflite_int8", X, **given, calibration_examples=3, bounds=lifted
    )
    told = made.certificate["calibration"]
    assert told["examples"] == 3
    assert "calibrated with 3 examples; in a trial" in told["warning"]
