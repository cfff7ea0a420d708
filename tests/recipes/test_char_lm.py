"""The character model: each place sees what came before it, and the file on the phone agrees."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from keras_kd import data, recipes
from keras_kd.data.sources import python_text
from keras_kd.recipes import char_lm
from keras_kd.run import run
from keras_kd.running import lessons


def test_the_networks_fit_the_data() -> None:
    source = python_text.read("", None)
    assert source.classes == char_lm.CHARACTERS
    assert source.train.x.shape[1] == char_lm.LENGTH


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_place_knows_nothing_of_what_follows_it(role: str) -> None:
    model = getattr(recipes.load("char_lm"), role)()
    one = np.random.default_rng(0).integers(0, char_lm.CHARACTERS, (2, char_lm.LENGTH))
    other = one.copy()
    other[:, 20:] = (other[:, 20:] + 1) % char_lm.CHARACTERS
    before, after = (np.asarray(model(x, training=False)) for x in (one, other))
    np.testing.assert_allclose(before[:, :20], after[:, :20], atol=1e-6)
    assert np.abs(before[:, 20:] - after[:, 20:]).max() > 1e-3


def test_bits_are_the_cross_entropy_in_base_2() -> None:
    (metric,) = recipes.load("char_lm").measures()
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(3, 5, 7)), rng.integers(0, 7, (3, 5))
    metric.update_state(y, logits.astype("float32"))
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_p, y[..., None], -1).mean() / np.log(2)
    assert float(metric.result()) == pytest.approx(expected, rel=1e-5)
    metric.reset_state()
    metric.update_state(y, np.zeros((3, 5, 8), "float32"))
    assert float(metric.result()) == pytest.approx(3.0)


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """Tell the whole story on 64 windows, and verify the files on a few."""
    with pytest.MonkeyPatch.context() as patch:
        whole = python_text.read("", None)
        short = dataclasses.replace(
            whole,
            validation=whole.validation.select(slice(20)),
            test=whole.test.select(slice(20)),
        )
        patch.setattr(python_text, "read", lambda argument, data_dir: short)
        recipe = dataclasses.replace(
            recipes.load("char_lm").smoke(), limit=64, batch_size=32, steps_per_execution=1
        )
        path = run(recipe, out=tmp_path_factory.mktemp("saved_models"), name="smoke")
    return path, json.loads((path / "run.json").read_text())


def test_the_rows_are_means_over_characters(story) -> None:
    _, record = story
    for arm in lessons.ARMS:
        row = record["students"][arm]["test"]
        assert {"accuracy", "agreement", "teacher_kl", "bits_per_character"} <= row.keys()
        assert 0 < row["bits_per_character"]["mean"] < np.log2(char_lm.CHARACTERS) + 1
    assert record["data"]["classes"] == char_lm.CHARACTERS
    history = record["students"]["distilled"]["per_seed"]["0"]["history"]
    assert "logits_distillation" in history


def test_the_file_answers_each_character_as_keras_does(story) -> None:
    import keras
    from ai_edge_litert.interpreter import Interpreter

    path, record = story
    certificate = record["exports"]["tflite"]["certificate"]
    assert certificate["verified"]["examples"] == 20
    interpreter = Interpreter(str(path / "student.tflite"))
    run_one = interpreter.get_signature_runner()
    (shape,) = (detail["shape"] for detail in run_one.get_input_details().values())
    assert tuple(shape) == (1, char_lm.LENGTH)
    window = data.load("python_text").test.x[:1]
    (answer,) = run_one(characters=window).values()
    student = keras.models.load_model(path / "student.keras")
    expected = student.predict(window, verbose=0)
    assert expected.shape == (1, char_lm.LENGTH, char_lm.CHARACTERS)
    np.testing.assert_allclose(answer, expected, atol=1e-4 * np.abs(expected).max())
