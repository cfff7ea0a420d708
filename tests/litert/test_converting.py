"""Conversions in a child process: answers, crashes, hangs, and what is left of them."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_kd.export import base
from keras_kd.litert import converting
from keras_kd.litert.converting import Converter, Job

L = keras.layers
# A child that speaks the language of jobs, and does what the model's name says.
CHILD = """
import json, os, signal, sys, time
for line in sys.stdin:
    job = json.loads(line)
    what = job["model"]
    print("a word on stderr", file=sys.stderr, flush=True)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "leave":
        sys.exit(3)
    if what == "hang":
        time.sleep(600)
    print(json.dumps({"done": what != "fail", "error": job["file"]}), flush=True)
"""


def _job(what, said="", **changes):
    return Job(model=what, saved_model="", file=said, **changes)


@pytest.fixture
def fake():
    with Converter(limit=20, command=[sys.executable, "-c", CHILD]) as converter:
        yield converter


def _gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_one_child_serves_all_jobs_and_is_gone_at_the_end(fake):
    assert fake.running is None
    fake.convert(_job("fine"))
    first = fake.running
    fake.convert(_job("fine"))
    with pytest.raises(ValueError, match="failed on the student"):
        fake.convert(_job("fail", "no"))
    assert fake.running == first
    fake.close()
    assert fake.running is None
    assert _gone(first)


@pytest.mark.parametrize(
    ("what", "words"),
    [("kill", "ended by SIGKILL; it said: a word on stderr"), ("leave", "ended with status 3")],
)
def test_a_job_that_ends_its_child_is_refused_and_the_next_gets_a_new_one(fake, what, words):
    fake.convert(_job("fine"))
    first = fake.running
    with pytest.raises(ValueError, match=f"(?s)crashed on the student.*'{what}'.*{words}"):
        fake.convert(_job(what))
    assert fake.running is None
    fake.convert(_job("fine"))
    assert fake.running not in (None, first)


def test_a_job_that_hangs_is_ended_and_the_next_gets_a_new_child():
    with Converter(limit=1.5, command=[sys.executable, "-c", CHILD]) as converter:
        converter.start()
        first = converter.running
        words = r"(?s)did not finish.*'hang': no answer after 1.5 s.*fix:.*unroll"
        with pytest.raises(ValueError, match=words):
            converter.convert(_job("hang"))
        assert _gone(first)
        converter.convert(_job("fine"))


def test_what_a_conversion_prints_is_no_answer():
    code = (
        "from keras_kd.litert import converting\n"
        "def convert(job):\n"
        "    print('noise', flush=True)\n"
        "    if job.model == 'fail':\n"
        "        raise RuntimeError('no such kernel')\n"
        "    if job.model == 'crash':\n"
        "        raise KeyError('not foreseen')\n"
        "converting._convert = convert\n"
        "converting.serve()"
    )
    with Converter(limit=20, command=[sys.executable, "-c", code]) as converter:
        converter.convert(_job("fine"))
        with pytest.raises(ValueError, match=r"'fail': RuntimeError: no such kernel\n"):
            converter.convert(_job("fail"))
        converter.convert(_job("fine"))
        with pytest.raises(ValueError, match=r"(?s)crashed.*status 1; it said.*not foreseen"):
            converter.convert(_job("crash"))


def test_a_command_that_is_no_converter_is_a_crash():
    converter = Converter(command=[sys.executable, "-c", "raise SystemExit(9)"])
    with converter, pytest.raises(ValueError, match=r"(?s)crashed.*status 9"):
        converter.convert(_job("fine"))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "error: 'tf.Digamma' op is neither a custom op nor a flex op\nCustom ops: Fft, Lgamma",
            r"(?s)builtin operators.*uses Digamma, Fft, Lgamma\n.*fix:.*makes Digamma",
        ),
        ("x\nerror: loc(fused[1]): a shape is wrong\ny", r"given:    'fail': a shape is wrong\n"),
        ("ValueError: " + "long " * 200 + "end", r"given:    .fail.: .{497}end\n"),
    ],
    ids=["operators", "error", "end"],
)
def test_the_converters_words_are_in_the_refusal(fake, said, words):
    with pytest.raises(ValueError, match=words):
        fake.convert(_job("fail", said))


def test_the_fix_is_another_for_whole_numbers(fake):
    with pytest.raises(ValueError, match=r"fix:.*unroll=True.*tflite_float16"):
        fake.convert(_job("fail", "no", ends="int8"))
    with pytest.raises(ValueError, match=r"fix:.*unroll=True.*saved_model"):
        fake.convert(_job("fail", "no"))


@pytest.mark.parametrize(("limit", "error"), [(0, ValueError), ("1", TypeError)])
def test_a_limit_that_is_none_is_refused(limit, error):
    with pytest.raises(error, match="`limit` must be"):
        Converter(limit=limit)


def test_holders_share_a_converter_and_the_last_one_ends_it():
    with converting.converter() as outer:
        with converting.converter() as inner:
            assert inner is outer
        with pytest.raises(KeyError), converting.converter():
            raise KeyError
        with converting.converter() as again:
            assert again is outer


def test_the_child_ends_with_the_process_that_holds_it():
    code = (
        "import sys\n"
        "from keras_kd.litert import converting\n"
        f"held = converting.Converter(command=[sys.executable, '-c', {CHILD!r}])\n"
        "converting._Shared.converter = held\n"
        "held.start()\n"
        "print(held.running, {'tensorflow', 'keras'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pid, loaded = done.stdout.split(" ", 1)
    assert loaded.strip() == "set()"
    assert _gone(int(pid))


def test_examples_come_back_in_order_with_shapes_of_their_own(tmp_path):
    rng = np.random.default_rng(0)
    given = [
        {"a/b": rng.normal(size=(1, 2 + i)).astype("float32"), "ids": np.full((1, 1), i, "int32")}
        for i in range(12)
    ]
    converting.write_examples(tmp_path / "x.npz", given)
    found = list(converting.read_examples(tmp_path / "x.npz"))
    assert len(found) == 12
    for one, other in zip(given, found, strict=True):
        assert list(other) == ["a/b", "ids"]
        for name, value in one.items():
            assert other[name].dtype == value.dtype
            np.testing.assert_array_equal(other[name], value)


def _saved(folder, model, x):
    base.Student(model, x).write_saved_model(pathlib.Path(folder), batch=1)
    converting.write_examples(f"{folder}.npz", [{"input": x[i : i + 1]} for i in range(len(x))])
    return str(folder)


def test_the_real_converter_survives_a_loop_that_kills_it(tmp_path, capfd):
    """Quantising the WHILE loop of a GRU ends the process with SIGSEGV (TensorFlow 2.21)."""
    steps = np.random.default_rng(1).normal(size=(3, 6, 4)).astype("float32")
    inputs = keras.Input((6, 4))
    loop = _saved(tmp_path / "loop", keras.Model(inputs, L.Dense(3)(L.GRU(5)(inputs))), steps)
    flat = _saved(tmp_path / "flat", keras.Model(inputs, L.Dense(2)(inputs)), steps)
    with converting.converter() as converter:
        words = "(?s)converter crashed on the student.*'loop'.*SIG(SEGV|ABRT|BUS).*unroll=True"
        kinds = {"optimise": True, "ends": "int8"}
        with pytest.raises(ValueError, match=words):
            converter.convert(
                Job("loop", loop, str(tmp_path / "a.tflite"), examples=f"{loop}.npz", **kinds)
            )
        assert not (tmp_path / "a.tflite").exists()
        converter.convert(
            Job("flat", flat, str(tmp_path / "b.tflite"), examples=f"{flat}.npz", **kinds)
        )
        assert (tmp_path / "b.tflite").read_bytes()[4:8] == b"TFL3"
        with pytest.raises(ValueError, match=r"(?s)failed on the student.*not exist"):
            converter.convert(Job("none", str(tmp_path / "none"), str(tmp_path / "c.tflite")))
    assert capfd.readouterr() == ("", "")
