"""Bounds: each of them passes at its edge, refuses beyond it, and says so in three parts."""

from __future__ import annotations

import pytest

from keras_kd.export.bounds import Bounds
from keras_kd.export.judging import Judge, drop_of

OUTPUT = {
    "max_difference": 0.5,
    "largest_output": 10.0,
    "relative_difference": 0.05,
    "agreement": 0.9,
    "steps": {"max": 3.25, "mean": 1.0},
    "saturation": {"share": 0.02, "max_difference": 1.0},
}
ACCURACY = {"better": "higher", "file": 0.875, "keras": 0.90625}
REPORT = {"examples": 64, "outputs": {"logits": OUTPUT}, "metrics": {"accuracy": ACCURACY}}
AUDIT = {"custom": [], "islands": [{"layers": ["elu"], "ops": ["ELU"]}]}
LATENCY = {"p50_ms": 2.5, "runs": 40}


def _judge(bounds, **options):
    kinds = {"what": "The tflite_int8 file", "format": "tflite_int8", "quantised": True}
    judge = Judge(Bounds(**bounds), **{**kinds, **options})
    judge.contents(1000, AUDIT, 640)
    judge.answers(REPORT)
    judge.latency(LATENCY)


# bound, the loosest value that refuses, the tightest that passes, the words, given, expected
CASES = [
    ("max_difference", 0.0499, 0.05, "does not answer as the student does",
     "output 'logits' differs by 0.5 at most, over 64 examples",
     r"max_difference <= 0.499 \(0.0499 of the student's largest output, 10\)"),
    ("agreement", 0.901, 0.9, "does not decide as the student does",
     "output 'logits': agreement 0.9, over 64 examples", "agreement >= 0.901"),
    ("accuracy_drop", 0.03, 0.03125, "is worse at the task than the student",
     "a drop of 0.03125: accuracy 0.875 of the file, 0.90625 of the student",
     "accuracy_drop <= 0.03"),
    ("steps", 3, 3.25, "answers too many output steps beside the student",
     "output 'logits': 3.25 steps beside the student at most", "steps <= 3"),
    ("saturation", 0.01, 0.02, "cannot express too many of the student's answers",
     "output 'logits': a share of 0.02 beyond its range", "saturation <= 0.01"),
    ("float_islands", 0, 1, "computes in float in places",
     r"1 float islands: 'elu' \(ELU\)", "float_islands <= 0"),
    ("bytes", 999, 1000, "is too large", "1000 bytes", "bytes <= 999"),
    ("arena_bytes", 639, 640, "needs too much working memory", "640 bytes of arena",
     "arena_bytes <= 639"),
    ("latency_ms", 2.4, 2.5, "is too slow", "2.5 ms, the median of 40 runs", "latency_ms <= 2.4"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("bound", "tight", "edge", "words", "given", "expected"), CASES, ids=[c[0] for c in CASES]
)
def test_a_bound_refuses_beyond_its_edge(bound, tight, edge, words, given, expected):
    _judge({bound: edge})
    pattern = (
        rf"(?s)The tflite_int8 file {words}, so it was not kept.\n.*given: +{given}.*"
        rf"expected: +{expected}.*fix: .*bounds={{'tflite_int8': {{'{bound}': "
    )
    with pytest.raises(ValueError, match=pattern):
        _judge({bound: tight})


@pytest.mark.parametrize("bound", [case[0] for case in CASES])
def test_the_bound_that_the_fix_offers_is_kept(bound):
    tight = {case[0]: case[1] for case in CASES}[bound]
    with pytest.raises(ValueError, match="so it was not kept") as refused:
        _judge({bound: tight})
    offered = str(refused.value).split(f"'{bound}': ")[-1].split("}")[0]
    whole = bound in ("bytes", "arena_bytes", "float_islands")
    _judge({bound: int(offered) if whole else float(offered)})


def test_what_usually_helps_is_said():
    for bounds, help in (
        ({"steps": 1}, r"more calibration data.*quantization_aware.*activation"),
        ({"float_islands": 0}, "another activation or layer"),
        ({"bytes": 1}, "prune_channels"),
        ({"latency_ms": 1}, "prune_channels"),
    ):
        with pytest.raises(ValueError, match=f"(?s)fix: .*{help}"):
            _judge(bounds)
    with pytest.raises(ValueError, match=r"fix: +3 examples only; more calibration data"):
        _judge({"steps": 1}, hint="3 examples only")
    with pytest.raises(ValueError, match="layers that compute differently there"):
        _judge({"agreement": 1.0}, quantised=False)
    with pytest.raises(ValueError, match=r"fix: +do this\.$"):
        _judge({"agreement": 1.0}, fix="do this.")


def test_operators_without_a_kernel_are_always_refused():
    judge = Judge(Bounds(), what="The tflite file", format="tflite")
    with pytest.raises(ValueError, match=r"(?s)operators that LiteRT does not have.*FlexDigamma"):
        judge.contents(1, {"custom": ["FlexDigamma"], "islands": []}, 1)


def test_float_islands_are_no_matter_in_a_float_format():
    Judge(Bounds(float_islands=0), what="It", format="tflite").contents(1, AUDIT, 1)


@pytest.mark.parametrize(
    ("bound", "needs"),
    [
        ("accuracy_drop", "verification data with labels"),
        ("steps", "outputs of whole numbers"),
        ("saturation", "outputs of whole numbers"),
        ("agreement", "outputs that decide something"),
        ("float_islands", "a format of whole numbers"),
        ("arena_bytes", "a TFLite file"),
        ("latency_ms", "a TFLite file"),
    ],
)
def test_a_bound_that_was_asked_for_and_cannot_be_judged_is_refused(bound, needs):
    output = {**OUTPUT, "agreement": None, "steps": None, "saturation": None}
    report = {"examples": 1, "outputs": {"logits": output}, "metrics": {}}

    def judge(asked):
        one = Judge(Bounds(**{bound: 1}), what="It", format="saved_model", asked=asked)
        one.contents(1, None, None)
        one.answers(report)
        one.latency(None)

    judge(())
    words = f"(?s)nothing to judge the bound '{bound}' by.*'saved_model'.*{needs}.*leave this"
    with pytest.raises(ValueError, match=words):
        judge((bound,))


def test_the_drop_of_a_metric():
    assert drop_of({"better": "higher", "file": 0.5, "keras": 0.75}) == 0.25
    assert drop_of({"better": "higher", "file": 0.75, "keras": 0.5}) == -0.25
    assert drop_of({"better": "lower", "file": 3.0, "keras": 2.0}) == 0.5
    assert drop_of({"better": "lower", "file": 3.0, "keras": 0.0}) == 3.0
    assert drop_of({"better": None, "file": 1.0, "keras": 3.0}) == 2.0


def test_every_metric_and_every_output_is_judged():
    worse = {**ACCURACY, "file": 0.5}
    report = {**REPORT, "metrics": {"a": ACCURACY, "b": worse}}
    judge = Judge(Bounds(accuracy_drop=0.1), what="It", format="tflite")
    with pytest.raises(ValueError, match=r"a drop of 0.40625: b 0.5"):
        judge.answers(report)
    judge.answers(report, first_alone=True)
    report = {**REPORT, "outputs": {"a": OUTPUT, "b": {**OUTPUT, "agreement": 0.5}}}
    with pytest.raises(ValueError, match=r"output 'b': agreement 0\.5"):
        Judge(Bounds(agreement=0.8), what="It", format="tflite").answers(report)
