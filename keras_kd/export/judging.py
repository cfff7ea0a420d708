"""Judge a file by its bounds; a refusal says which bound, both numbers, and what usually helps."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from keras_kd import checks
from keras_kd.export import base

_WORDS = {
    "max_difference": "does not answer as the student does",
    "agreement": "does not decide as the student does",
    "accuracy_drop": "is worse at the task than the student",
    "steps": "answers too many output steps beside the student",
    "saturation": "cannot express too many of the student's answers",
    "float_islands": "computes in float in places",
    "bytes": "is too large",
    "arena_bytes": "needs too much working memory",
    "latency_ms": "is too slow",
}
_QUANTISED = (
    "more calibration data like the verification data (representative_data, calibration_examples), "
    "quantisation-aware distillation (keras_kd.compress.quantization_aware), or an activation that "
    "keeps ranges small (ReLU6)"
)
_FLOAT = "look for layers that compute differently there, or take a format of more bits"
_HELPS = {
    "float_islands": "another activation or layer there (ReLU, BatchNormalization), which LiteRT "
    "computes in whole numbers",
    "bytes": "a format of fewer bits, or fewer channels (keras_kd.compress.prune_channels)",
    "arena_bytes": "smaller inputs, or fewer channels (keras_kd.compress.prune_channels)",
    "latency_ms": "fewer channels (keras_kd.compress.prune_channels), or an idle machine",
}


class Judge:
    """Holds one file against its bounds, measure by measure.

    Args:
        bounds: What it must keep.
        what: How an error calls the file.
        format: Its format, for the line that fixes it. `None` where no bound can be passed.
        quantised: Whether it computes in whole numbers.
        asked: The bounds that the caller named: where nothing was measured for one of them, that
            is an error, not a pass.
        hint: What is known to be wrong already, to be said first.
        fix: What to do, in the place of what usually helps.
    """

    def __init__(
        self,
        bounds: base.Bounds,
        *,
        what: str,
        format: str | None = None,
        quantised: bool = False,
        asked: Collection[str] = (),
        hint: str | None = None,
        fix: str | None = None,
    ) -> None:
        """Keep what the file is held against."""
        self._bounds, self._what, self._format = bounds, what, format
        self._quantised, self._asked, self._fix = quantised, asked, fix
        self._hint = "" if hint is None else f"{hint}; "

    def contents(self, size: int, audit: Mapping[str, Any] | None, arena: int | None) -> None:
        """Judge what the file is, before it is run.

        Raises:
            ValueError: "has operators that LiteRT does not have", "computes in float in places",
                "is too large", "needs too much working memory".
        """
        if audit is not None and audit["custom"]:
            raise checks.bad_value(
                f"{self._what} has operators that LiteRT does not have, so it was not kept.",
                given=", ".join(audit["custom"]),
                expected="builtin operators only",
                fix="replace the layers that make them, or use formats=['saved_model'].",
            )
        islands = None if audit is None or not self._quantised else audit["islands"]
        named = "; ".join(
            f"{', '.join(map(repr, i['layers'])) or 'unnamed'} ({', '.join(i['ops'])})"
            for i in islands or ()
        )
        count = None if islands is None else len(islands)
        self._judge("float_islands", count, f"{count} float islands: {named}")
        self._judge("bytes", size, f"{size} bytes")
        self._judge("arena_bytes", arena, f"{arena} bytes of arena")

    def answers(self, report: Mapping[str, Any], first_alone: bool = False) -> None:
        """Judge what the file answers.

        Args:
            report: What `verify.compare` measured, and "metrics", label to metric.
            first_alone: Whether the first metric decides alone, else each of them.

        Raises:
            ValueError: "does not answer as the student does", "does not decide as the student
                does", "answers too many output steps beside the student", "cannot express too many
                of the student's answers", "is worse at the task than the student".
        """
        over = f"over {report['examples']} examples"
        for name, found in report["outputs"].items():
            self._difference(name, found, over)
            steps, saturation = found.get("steps"), found.get("saturation")
            most = steps and steps["max"]
            share = saturation and saturation["share"]
            agreement = found["agreement"]
            for bound, value, given in (
                ("saturation", share, f"a share of {_number(share)} beyond its range"),
                ("steps", most, f"{_number(most)} steps beside the student at most"),
                ("agreement", agreement, f"agreement {_number(agreement)}"),
            ):
                self._judge(bound, value, f"output {name!r}: {given}, {over}")
        metrics = list(report.get("metrics", {}).items())
        if not metrics:
            self._judge("accuracy_drop", None, "")
        for name, found in metrics[:1] if first_alone else metrics:
            drop = drop_of(found)
            self._judge(
                "accuracy_drop",
                drop,
                f"a drop of {_number(drop)}: {name} {_number(found['file'])} of the file, "
                f"{_number(found['keras'])} of the student, {over}",
            )

    def latency(self, latency: Mapping[str, Any] | None) -> None:
        """Judge how long the file takes.

        Raises:
            ValueError: "is too slow".
        """
        took, runs = (latency["p50_ms"], latency["runs"]) if latency else (None, 0)
        self._judge("latency_ms", took, f"{_number(took)} ms, the median of {runs} runs")

    def _difference(self, name: str, found: Mapping[str, Any], over: str) -> None:
        bound, largest = self._bounds.max_difference, found["largest_output"]
        if bound is not None and not found["max_difference"] <= bound * largest:
            raise self._refusal(
                "max_difference",
                f"output {name!r} differs by {found['max_difference']:.6g} at most, {over}",
                f"max_difference <= {bound * largest:.6g} ({bound:g} of the student's largest "
                f"output, {largest:.6g})",
                max(bound, found["relative_difference"]),
            )

    def _judge(self, name: str, value: float | None, given: str) -> None:
        bound = getattr(self._bounds, name)
        if bound is None:
            return
        if value is None:
            if name in self._asked:
                raise self._nothing_to_judge(name, bound)
            return
        lower = name == "agreement"
        if not (value >= bound if lower else value <= bound):
            expected = f"{name} {'>=' if lower else '<='} {bound:g}"
            raise self._refusal(name, given, expected, value)

    def _refusal(self, name: str, given: str, expected: str, value: float) -> ValueError:
        usual = _QUANTISED if self._quantised else _FLOAT
        helps = _HELPS.get(name, self._hint + usual)
        fix = self._fix or (
            f"{helps}; to keep the file as it is: "
            f"bounds={{{self._format!r}: {{{name!r}: {_generous(name, value)}}}}}."
        )
        return checks.bad_value(
            f"{self._what} {_WORDS[name]}, so it was not kept.",
            given=given,
            expected=expected,
            fix=fix,
        )

    def _nothing_to_judge(self, name: str, bound: float) -> ValueError:
        needs = {
            "accuracy_drop": "verification data with labels",
            "steps": "outputs of whole numbers (tflite_int8, tflite_uint8, tflite_int16x8)",
            "saturation": "outputs of whole numbers (tflite_int8, tflite_uint8, tflite_int16x8)",
            "agreement": "outputs that decide something: several classes, or yes and no",
            "float_islands": "a format of whole numbers",
        }.get(name, "a TFLite file")
        return checks.bad_value(
            f"There is nothing to judge the bound {name!r} by.",
            given=f"bounds={{{self._format!r}: {{{name!r}: {bound:g}}}}}",
            expected=needs,
            fix="leave this bound out here.",
        )


def drop_of(found: Mapping[str, Any]) -> float:
    """Return how much worse the file is at the task than the Keras model.

    Where higher is better: keras − file. Where lower is better: (file − keras) / keras, or the
    file's error where that of the Keras model is 0. Where the metric does not say: |file − keras|.
    """
    file, keras = found["file"], found["keras"]
    if found["better"] == "higher":
        return keras - file
    if found["better"] == "lower":
        return (file - keras) / abs(keras) if keras else file
    return abs(file - keras)


def _generous(name: str, value: float) -> str:
    """Round a measure to a bound that it keeps: two digits, outwards."""
    if isinstance(value, int):
        return str(value)
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 1) if value else 1.0
    outwards = math.floor if name == "agreement" else math.ceil
    return f"{outwards(value / unit) * unit:.6g}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"
