"""What a person reads at the end of a run."""

from __future__ import annotations

import io
import pathlib

from keras_kd.command_line import console

CERTIFICATE = {
    "bytes": 48_320,
    "verified": {"examples": 1000, "outputs": {"logits": {"relative_difference": 4.2e-07}}},
}
RECORD = {
    "seeds": [0, 1],
    "teacher": {"test": {"parameters": 900, "accuracy": 0.978}},
    "students": {
        "alone": {"test": {"accuracy": {"mean": 0.9427, "sd": 0.01}}},
        "distilled": {"test": {"accuracy": {"mean": 0.962, "sd": 0.0066}}},
    },
    "data": {"name": "mnist1d", "test": 1000},
    "chosen": {"seed": 1, "by": "highest validation accuracy"},
    "exports": {
        "tflite": {"path": "student.tflite", "certificate": CERTIFICATE},
        "saved_model": {"refused": "the words"},
    },
}


def test_the_end_of_a_run_shows_the_control_the_spread_and_the_files() -> None:
    stream = io.StringIO()
    console.print_results(RECORD, pathlib.Path("saved_models/mnist1d/one"), stream)
    shown = stream.getvalue()
    for words in (
        "94.27 ± 1.00",
        "96.20 ± 0.66",
        "97.80",
        "over 2 seeds",
        "Exported: seed 1 (highest validation accuracy), in saved_models/mnist1d/one",
        "student.tflite, 48 kB: within 4e-07 of the Keras model's outputs on 1,000 examples",
        "tensorboard --logdir saved_models/mnist1d/one/logs",
    ):
        assert words in shown
    assert "the words" not in shown


def test_a_file_that_answers_alike_to_the_bit_is_equal() -> None:
    same = {"examples": 10, "outputs": {"logits": {"relative_difference": 0.0}}}
    made = {"path": "saved_model", "certificate": {**CERTIFICATE, "verified": same}}
    assert "equal to the Keras model's outputs on 10 examples" in console.about_file(made)


def test_plain_lines_say_one_thing_a_stage() -> None:
    stream = io.StringIO()
    lines = console.Lines(stream)
    lines.begin({"teacher": 2})
    lines.epoch("teacher", 1, {"loss": 1.0, "val_accuracy": 0.5})
    lines.epoch("teacher", 2, {"loss": 0.5, "val_accuracy": 0.75})
    assert stream.getvalue() == "teacher: 2 epochs, val_accuracy 0.7500\n"
