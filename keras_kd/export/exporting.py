"""A student on its way into files: prepared once; each file written, verified, put in place."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_kd import checks
from keras_kd.export import (
    base,
    certificates,
    examples,
    float32,
    judging,
    placing,
    scoring,
    verify,
)
from keras_kd.litert import auditing, counting, timing
from keras_kd.litert import provenance as stamps

SECONDS, WARM_UP = 0.1, 0.02
"""How long the latency of a file is measured, with one thread."""
LOOK = 8
"""Examples on which the file with its provenance is seen to answer as without."""


class Subject:
    """A student, and all that its files are held against.

    Args:
        student: The student.
        data: The verification data.
        limit: How many of its examples to take; `None`: all.
        options: What `base.Student` takes: outputs, scaling, labels, names.
    """

    def __init__(
        self, student: keras.Model, data: Any, limit: int | None, options: Mapping[str, Any]
    ) -> None:
        """Look at the data, and refuse what cannot be gone through."""
        self._model, self._options = student, options
        self._examples = examples.Examples(data, limit)
        self._first = self._examples.first()

    def prepare(
        self,
        targets: Mapping[str, base.Target],
        *,
        representative_data: Any,
        calibration_examples: int,
        teacher: keras.Model | Mapping[str, float] | None,
        metrics: Sequence[keras.metrics.Metric] | None,
        provenance: Mapping[str, Any],
    ) -> None:
        """Do what is done once for all files, and refuse formats that are not for this student."""
        scoring.check_teacher(teacher)
        self._given, self._metrics = provenance, metrics
        self._student, self._about = self._in_float32()
        scoring.Metrics(metrics, self._student, self._first)  # refuses what is no metric
        for target in targets.values():
            refused = target.refuses(self._student)
            if refused is not None:
                raise ValueError(refused)
        self._calibrate(targets, representative_data, calibration_examples)
        self._teacher, self._teacher_facts = self._ask(teacher)

    def export(
        self, target: base.Target, final: Path, bounds: base.Bounds, asked: Collection[str]
    ) -> dict[str, Any]:
        """Write one file out of sight, verify it there, put it in its place, and certify it.

        Args:
            target: The format.
            final: Where the file goes.
            bounds: What it must keep.
            asked: The bounds that the caller named.
        """
        needed = target.needs_calibration(self._student)
        calibration = self._calibration if needed else None
        judge = judging.Judge(
            bounds,
            what=f"The {target.format} file",
            format=target.format,
            quantised=target.quantised,
            asked=asked,
            hint=None if calibration is None else calibration.warning,
        )
        with tempfile.TemporaryDirectory(prefix=".export-", dir=final.parent) as scratch:
            new = Path(scratch) / final.name
            target.write(self._student, new, calibration)
            opened = target.open(new)
            contents = self._contents(new)
            judge.contents(placing.size_of(new), contents["audit"], contents["arena_bytes"])
            seen, covered, report = self._verify(target, opened)
            judge.answers(report, first_alone=bool(self._metrics))
            facts = self._facts(target, report, seen)
            if new.suffix == ".tflite":
                stamps.stamp(new, facts)
                self._check_same(target, opened, new)
                judge.contents(placing.size_of(new), contents["audit"], contents["arena_bytes"])
            latency = self._latency(new)
            judge.latency(latency)
            certificate = {
                "format": target.format,
                "file": final.name,
                "bytes": placing.size_of(new),
                "sha256": placing.sha256(new),
                "student": self._about,
                "inputs": opened.inputs,
                "outputs": opened.outputs,
                "ops": opened.ops,
                "audit": contents["audit"],
                "calibration": covered,
                "bounds": bounds.stated(),
                "verified": report,
                "arena_bytes": contents["arena_bytes"],
                "latency": latency,
                "provenance": facts,
                "versions": certificates.versions(),
            }
            note = Path(scratch) / f"{final.name}.json"
            told = json.dumps(certificate, indent=2, ensure_ascii=False)
            note.write_text(told + "\n", encoding="utf-8")
            placing.put(new, final, scratch)
            placing.put(note, final.with_name(note.name), scratch)
        return certificate

    def _in_float32(self) -> tuple[base.Student, dict[str, Any]]:
        """See the student as named tensors, in float32, and say who it is."""
        student, first, options = self._model, self._first, self._options
        as_trained = base.Student(student, first, **options)
        about = _about(student)
        clone = float32.clone_of(student, first)
        if clone is None:
            return as_trained, about
        seen = base.Student(clone, first, named_by=student, **options)
        report = verify.compare(seen.run, as_trained.run, seen, self._examples)
        judging.Judge(
            float32.bounds(student),
            what="The float32 form of the student",
            fix="build the student in float32, load its weights into it, and export that.",
        ).answers(report)
        return seen, about | {"rebuilt_in_float32_from": sorted(float32.types(student)), **report}

    def _calibrate(self, targets: Mapping[str, base.Target], data: Any, wanted: int) -> None:
        """Take the calibration examples, where a format needs some."""
        self._calibration: base.Calibration | None = None
        self._coverage: dict[str, Any] = {}
        needing = [f for f, target in targets.items() if target.needs_calibration(self._student)]
        if not needing:
            return
        if data is None:
            raise checks.bad_value(
                f"The {needing[0]} format needs examples to take its ranges from.",
                given=f"no representative data, and {self._model.name!r} carries no ranges of its "
                "own",
                expected="100 or more examples of training data, better 300",
                fix="pass representative_data=..., or train the student with "
                "keras_kd.compress.quantization_aware(student) first.",
            )
        self._calibration = base.Calibration(self._student, data, wanted)
        self._coverage = self._calibration.coverage()

    def _ask(self, teacher: Any) -> tuple[dict[str, float] | None, dict[str, Any] | None]:
        """Measure the teacher, or take its measures; return them, and who it is."""
        if teacher is None or isinstance(teacher, Mapping):
            if teacher is None:
                return None, None
            measures = {name: float(value) for name, value in teacher.items()}
            return measures, {"measures": measures}
        own = {key: self._options[key] for key in ("outputs", "scaling")}
        own = {key: value for key, value in own.items() if not isinstance(value, Mapping)}
        view = scoring.TeacherView(base.Student(teacher, self._first, **own), self._student)
        counted = scoring.Metrics(self._metrics, view, self._first)
        report = verify.compare(
            view.run, view.run, view, self._examples, observers=[counted], who="The teacher"
        )
        metrics = scoring.metrics_of(report, counted.results())
        return {name: found["file"] for name, found in metrics.items()}, _about(teacher)

    def _verify(self, target: base.Target, opened: base.Opened) -> tuple[str, Any, dict[str, Any]]:
        """Run the file on all of the verification data, and measure what it answers.

        Returns:
            The fingerprint of the data, what the calibration saw of it, and the report.
        """
        counted = scoring.Metrics(self._metrics, self._student, self._first)
        named = certificates.Fingerprint()
        needed = target.needs_calibration(self._student)
        covered = certificates.Coverage(self._coverage if needed else {})
        report = verify.compare(
            opened.run,
            self._student.run,
            self._student,
            self._examples,
            spans=opened.outputs,
            observers=[counted, named, covered],
        )
        metrics = scoring.metrics_of(report, counted.results())
        report["metrics"] = scoring.with_teacher(metrics, self._teacher)
        calibration = {"from": "representative_data", **covered.result()} if needed else None
        if target.quantised and not needed:
            calibration = {"from": "the student", "examples": 0}
        return named.result(), calibration, report

    def _facts(self, target: base.Target, report: Mapping, seen: str) -> dict[str, Any]:
        """Gather what the file is to say about where it comes from."""
        options = dict(self._student.options)
        data: dict[str, Any] = {
            "verification": {"examples": report["examples"], "fingerprint": seen}
        }
        if target.needs_calibration(self._student) and self._calibration is not None:
            data["calibration"] = {"examples": self._calibration.count}
        values = {
            label: {key: found[key] for key in ("file", "keras", "teacher")}
            for label, found in report["metrics"].items()
        }
        facts = {
            "format": target.format,
            "student": {key: self._about[key] for key in _about(self._model)},
            "teacher": self._teacher_facts,
            "data": data,
            "metrics": values,
            "labels": options.pop("labels", None),
            "preprocessing": {"scaling": options.pop("scaling", None)},
            **options,
            "versions": certificates.versions(),
        }
        return certificates.merged(facts, self._given)

    def _contents(self, path: Path) -> dict[str, Any]:
        if path.suffix != ".tflite":
            return {"audit": None, "arena_bytes": None}
        # Keras has no public walk that reaches the layers inside layers.
        layers = {layer.name for layer in self._student.model._flatten_layers()}
        return {
            "audit": auditing.audit(path, layers).to_dict(),
            "arena_bytes": counting.arena_bytes(path, open_axes=self._open_axes()),
        }

    def _latency(self, path: Path) -> dict[str, Any] | None:
        if path.suffix != ".tflite":
            return None
        size = self._open_axes()
        timed = timing.benchmark(
            path, threads=(1,), xnnpack=(True,), seconds=SECONDS, warm_up=WARM_UP, open_axes=size
        )
        return {**dataclasses.asdict(timed.of(1)), "open_axes": size}

    def _open_axes(self) -> int:
        """Return the largest size that an open axis has in the first batch."""
        arrays = self._student.flatten(self._first)
        return max(
            (
                size
                for tensor in self._student.inputs
                for size, known in zip(arrays[tensor.name].shape[1:], tensor.shape[1:], strict=True)
                if known is None
            ),
            default=1,
        )

    def _check_same(self, target: base.Target, before: base.Opened, path: Path) -> None:
        """See that the provenance changed no answer."""
        arrays = {n: v[:LOOK] for n, v in self._student.flatten(self._first).items()}
        old, new = before.run(arrays), target.open(path).run(arrays)
        different = [name for name in old if not np.array_equal(old[name], new[name])]
        if different:
            raise checks.bad_value(
                "The file answers otherwise with its provenance in it, so it was not kept.",
                given=f"output {different[0]!r} on the first {LOOK} examples",
                expected="the same answers, to the bit",
                fix="report it with the student; formats=['saved_model'] holds no provenance.",
            )


def _about(model: keras.Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "class": type(model).__name__,
        "parameters": model.count_params(),
        "weights_sha256": scoring.fingerprint(model),
    }
