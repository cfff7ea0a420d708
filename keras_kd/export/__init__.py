"""Ship a trained student: one file a target, each verified against the Keras model.

A target is one file of this folder and one line of `TARGETS`; TensorFlow is loaded by the first
export, not by this import.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_kd import checks
from keras_kd.export.bounds import Bounds

if TYPE_CHECKING:
    import keras

__all__ = ["TARGETS", "Artifact", "Artifacts", "Bounds", "export_student"]

TARGETS = {
    "saved_model": "keras_kd.export.saved_model",
    "tflite": "keras_kd.export.tflite",
    "tflite_float16": "keras_kd.export.tflite_float16",
    "tflite_dynamic": "keras_kd.export.tflite_dynamic",
    "tflite_int8": "keras_kd.export.tflite_int8",
    "tflite_uint8": "keras_kd.export.tflite_uint8",
    "tflite_int16x8": "keras_kd.export.tflite_int16x8",
    "onnx": "keras_kd.export.onnx",
}


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A file (or folder) that was verified, and what was seen of it.

    Attributes:
        path: The file, or the folder of a SavedModel. The certificate lies beside it, as
            `<name>.json`.
        certificate: What was seen, fit for JSON:

            - format, file, bytes, sha256, student, inputs, outputs, ops, versions
            - audit: operators, types, bytes of weights, float islands (`None`: no TFLite file)
            - calibration: where ranges come from, and how much of the verification data they
              cover (`None` for float formats)
            - bounds: those that the file was held to
            - verified: "examples"; "outputs", for each its max_difference, largest_output,
              relative_difference, agreement, ties, metric, and the difference split into
              "rounding" and "saturation" (in "steps" where the output holds whole numbers);
              "metrics": label to the value of "file", "keras" and "teacher", and "retention"
            - arena_bytes, latency (`None` where LiteRT does not run the format)
            - provenance: what stands in the `.tflite` file itself
    """

    path: Path
    certificate: dict[str, Any]


class Artifacts(dict[str, Artifact]):
    """Format to `Artifact`; prints as a table of the certificates."""

    def __str__(self) -> str:
        """Return the table of `keras_kd.export.certificates.table`."""
        from keras_kd.export import certificates

        return certificates.table(self)


def export_student(
    student: keras.Model,
    directory: str | os.PathLike,
    formats: Iterable[str] = ("saved_model", "tflite"),
    *,
    representative_data: Any = None,
    calibration_examples: int = 300,
    verification_data: Any,
    verification_examples: int | None = None,
    bounds: Bounds | Mapping[str, Bounds | Mapping[str, Any]] | None = None,
    teacher: keras.Model | Mapping[str, float] | None = None,
    metrics: Sequence[keras.metrics.Metric] | None = None,
    outputs: str | Mapping[str, str] | None = None,
    scaling: Any = None,
    labels: Any = None,
    names: Mapping[str, str] | None = None,
    provenance: Mapping[str, Any] | None = None,
    name: str = "student",
) -> Artifacts:
    """Write the student in each format, run every file, and keep those that keep their bounds.

    Use it when training is over. Each file is written under a temporary name, read back with
    the runtime of its users (`tf.saved_model.load`, LiteRT, ONNX Runtime), run on the verification
    data and compared with the Keras model; only then does it take its place, with a certificate
    beside it. A file that is refused is removed, and an earlier good one stays as it was.

    A mixed-precision student is rebuilt in float32 first, and that form is compared with the
    student as trained. A TFLite file takes one example at a time; other open axes (`None`) stay
    open. Names are those of dict keys, `keras.Input(name=...)` and output layers; names that Keras
    made by counting become "input" and "output" ("input_0", "input_1" where there are several).

    What is off in a quantised file is told apart: where the Keras answer lies beyond the range of
    the output it is saturation, everywhere else rounding, counted in steps of the output. Default
    bounds (every target states its own, and why):

        saved_model, tflite, onnx   max_difference 1e-4, agreement 0.999
        tflite_float16              max_difference 0.01, agreement 0.99, accuracy_drop 0.005
        tflite_dynamic              max_difference 0.1, agreement 0.97, accuracy_drop 0.01
        tflite_int8, tflite_uint8   agreement 0.95, accuracy_drop 0.02, steps 20, saturation 0.01,
                                    no float island
        tflite_int16x8              as tflite_int8, with 257 times as many steps, which are finer

    Args:
        student: A built `keras.Model`; it is not changed.
        directory: Where to write `saved_model/`, `<name>.tflite`, `<name>_int8.tflite`, … and
            `<file>.json` beside each. Made with its parents where it does not exist.
        formats: Names out of `keras_kd.export.TARGETS`. Default "saved_model" and "tflite".
        representative_data: Training data, in any form of `verification_data`. Formats of whole
            numbers take the ranges of all values from it, unless the student carries its own
            (`keras_kd.compress.quantization_aware`); other formats do not need it.
        calibration_examples: How many of its examples to take, spread over it. Default 300.
        verification_data: A `tf.data.Dataset` (or `PyDataset`) of batches of `x`, `(x, y)` or
            `(x, y, sample_weight)`, or such arrays. `x` and `y` may be dicts or lists. With labels
            the certificate also holds the task metric of the file and of the Keras model. A
            subclassed student takes its input shapes and types from here.
        verification_examples: Verify on so many examples, the first ones. Default `None`: all.
        bounds: What a file must keep. A dict of format to `Bounds`, or to a dict of those that
            differ from the format's own: `{"tflite_int8": {"accuracy_drop": 0.01}}`; `None` lifts
            one. A bound named here that cannot be judged is an error. One `Bounds` for all
            formats judges each by what it has.
        teacher: The teacher's model, or what you measured of it, such as `{"accuracy": 0.93}`;
            the certificate says how much of its task metric the file keeps.
        metrics: `keras.metrics` objects for a task that is not accuracy, the deciding one first:
            `accuracy_drop` bounds that one. They see the labels and the answers of the file as
            Keras would show them, and are reset before and after. Default `None`: accuracy, binary
            accuracy or mean absolute error of every output, as its labels make possible.
        outputs: "logits", "probabilities" or "sigmoid" out of the file, or a dict of output name
            to one of these. Default `None`: as the student gives them.
        scaling: (scale, offset) where the file takes raw values and the student sees
            raw * scale + offset; a dict of input name to such pairs for several inputs. All data
            that is passed here is then raw, and the teacher sees it scaled as well.
        labels: Names of the classes, a list (or a dict of output name to a list).
        names: Other names for inputs and outputs, {old: new}.
        provenance: Facts of your own for the TFLite files (run, fingerprint of the training data,
            …), fit for JSON. Where they name what is known here, yours count.
        name: Name of the single-file formats, without an ending. Default "student".

    Returns:
        `Artifacts`: a dict of format to `Artifact` that prints as a table.

    Raises:
        ValueError: "does not answer as the student does", "does not decide as the student does",
            "is worse at the task than the student", "answers too many output steps beside the
            student", "cannot express too many of the student's answers", "computes in float in
            places", "is too large", "needs too much working memory", "is too slow", "There is
            nothing to judge the bound", "answers NaN or infinity", "cannot be expressed in
            TFLite's builtin operators", "needs examples to take its ranges from", "cannot be
            written to", "no export format", "has not been built", "is not a Keras model", and
            others for data that does not fit.
        TypeError: "`formats` must be a list of names", "`bounds` must be", "`teacher` must be",
            "`metrics` must be", "`provenance` must be".

    Example:
        ```python
        import tempfile

        import keras
        import numpy as np

        import keras_kd as kd

        x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
        student = keras.Sequential([keras.Input((4,), name="features"), keras.layers.Dense(3)])
        with tempfile.TemporaryDirectory() as folder:
            artifacts = kd.export_student(student, folder, ["tflite"], verification_data=x)
            print(artifacts["tflite"].certificate["verified"]["outputs"]["output"]["agreement"])
        ```
    """
    from keras_kd.export import exporting, placing
    from keras_kd.litert import converting

    targets = _targets(formats)
    held = _bounds(bounds, targets)
    _check_student(student)
    if provenance is not None and not isinstance(provenance, Mapping):
        raise checks.bad_type(
            "`provenance` must be a dict.",
            given=f"{provenance!r:.80} ({type(provenance).__name__})",
            expected="a dict of what JSON can hold",
            fix='write for example provenance={"run": "2025-01-31"}.',
        )
    options = {"outputs": outputs, "scaling": scaling, "labels": labels, "names": names}
    subject = exporting.Subject(student, verification_data, verification_examples, options)
    folder = placing.folder_of(directory)
    finals = {form: placing.free(folder, target.file, name) for form, target in targets.items()}
    with converting.converter():
        subject.prepare(
            targets,
            representative_data=representative_data,
            calibration_examples=calibration_examples,
            teacher=teacher,
            metrics=metrics,
            provenance=dict(provenance or {}),
        )
        return Artifacts(
            (form, Artifact(finals[form], subject.export(target, finals[form], *held[form])))
            for form, target in targets.items()
        )


def _targets(formats: Iterable[str]) -> dict[str, Any]:
    if isinstance(formats, str) or not isinstance(formats, Iterable):
        raise checks.bad_type(
            "`formats` must be a list of names.",
            given=repr(formats),
            expected=f"a list out of {', '.join(TARGETS)}",
            fix=f"write formats=[{formats!r}].",
        )
    names = list(dict.fromkeys(formats))
    for name in names:
        if name not in TARGETS:
            raise checks.unknown_name("export format", name, TARGETS)
    if not names:
        raise checks.bad_value(
            "`formats` is empty.",
            given="no format",
            expected=f"one or more of {', '.join(TARGETS)}",
            fix='leave it out for "saved_model" and "tflite".',
        )
    return {name: importlib.import_module(TARGETS[name]).TARGET for name in names}


def _bounds(bounds: Any, targets: Mapping[str, Any]) -> dict[str, tuple[Bounds, tuple[str, ...]]]:
    """Return the bounds of every format, and those of them that the caller named for it."""
    if isinstance(bounds, Bounds):
        return dict.fromkeys(targets, (bounds, ()))
    if bounds is not None and not isinstance(bounds, Mapping):
        raise checks.bad_type(
            "`bounds` must be a dict of format to bounds, or a Bounds.",
            given=repr(bounds),
            expected='for example {"tflite_int8": {"accuracy_drop": 0.01}}',
            fix="write bounds=keras_kd.export.Bounds(...) to hold all formats to the same.",
        )
    given = bounds or {}
    for format in given:
        if format not in targets:
            raise checks.unknown_name("format to write with the bounds", format, targets)
    held = {}
    for format, target in targets.items():
        own = given.get(format)
        named = own.stated() if isinstance(own, Bounds) else own or {}
        changed = target.bounds.changed(own)
        held[format] = changed, tuple(name for name in named if name in changed.stated())
    return held


def _check_student(student: Any) -> None:
    import keras

    if not isinstance(student, keras.Model):
        raise checks.bad_value(
            "`student` is not a Keras model.",
            given=f"{student!r} ({type(student).__name__})",
            expected="a keras.Model: Functional, Sequential or subclassed",
            fix="pass the model itself, for example distiller.student.",
        )
    if not student.built:
        raise checks.bad_value(
            "The student has not been built, so it has no weights to export.",
            given=f"{type(student).__name__} {student.name!r}, never called",
            expected="a trained model",
            fix="fit it, load its weights, or call it once on a batch.",
        )
