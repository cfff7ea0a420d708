"""`keras-kd compress`: what it refuses, what it would do, and what a person reads at its end."""

from __future__ import annotations

import io

import pytest

from keras_kd import cli
from keras_kd.command_line import compressing


def call(*words):
    """Run the command line, and return its exit code."""
    with pytest.raises(SystemExit) as left:
        cli.main(["compress", *words])
    return left.value.code


@pytest.fixture
def student(tmp_path):
    path = tmp_path / "student.keras"
    path.write_bytes(b"PK")
    return str(path)


def test_a_plan_without_anything_loaded(capsys):
    assert call("mnist1d", "--keep", "0.75", "--weight-bits", "4", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"keep = 0.75", "weight_bits = 4", 'importance = "taylor"'} <= set(lines)
    assert 'data = "mnist1d"' in lines


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--teacher", "t.keras"], "A teacher needs a student to teach."),
        (["mnist1d", "--student", "{}"], "What belongs to a recipe cannot stand beside --student."),
        (["--student", "{}", "--smoke"], "given:    --smoke"),
        (["--student", "{}", "--teacher-epochs", "3"], "given:    --teacher-epochs"),
        (["--student", "{}"], "A student needs data to be compressed on."),
        (["mnist1d", "--keep", "2"], "`keep` must be"),
        (["mnist1d", "--formats", "tflight"], "There is no export format 'tflight'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused_before_anything_loads(capsys, student, words, said):
    assert call(*[word.format(student) for word in words]) == 2
    assert said in capsys.readouterr().err


def test_the_end_says_what_each_file_is_and_what_there_is_not(tmp_path):
    certificate = {
        "bytes": 4976,
        "verified": {
            "outputs": {"logits": {"steps": {"max": 1.0}}},
            "metrics": {"accuracy": {"file": 0.9443, "keras": 0.9443, "teacher": 0.9526}},
        },
        "audit": {"islands": []},
    }
    record = {
        "teacher": {"test": {"accuracy": 0.9526, "parameters": 19002}},
        "stages": {"pruned": {"test": {"accuracy": 0.9276, "parameters": 1302}}},
        "exports": {
            "tflite_int8": {"stage": "pruned", "certificate": certificate},
            "onnx": {"stage": "pruned", "refused": "the words"},
        },
        "data": {"name": "digits", "test": 359},
    }
    printed = io.StringIO()
    compressing.print_compressed(record, tmp_path, printed)
    text = printed.getvalue()
    assert "95.26" in text and "1,302" in text
    (line,) = [line for line in text.splitlines() if line.startswith("tflite_int8")]
    assert line.split()[1:] == ["5.0", "0.9443", "0.9443", "0.9526", "1.0", "0"]
    assert "There is no onnx file: the words" in text
    assert f"tensorboard --logdir {tmp_path / 'logs'}" in text.replace("\n", "")
