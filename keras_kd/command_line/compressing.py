"""`keras-kd compress`: from a recipe or a trained student to certified files, in one command."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

from keras_kd import checks, recipes
from keras_kd.command_line import console
from keras_kd.command_line.options import (
    NO_CHANGES,
    NO_STUDENT,
    PLACE,
    SQUEEZED,
    Changes,
    Flag,
    Imports,
    OwnStudent,
    Place,
    Squeezed,
)
from keras_kd.running import plans, user_models

if TYPE_CHECKING:
    from keras_kd.running.squeezing import Squeeze

OF_A_STUDENT = (
    "validation",
    "epochs",
    "batch_size",
    "learning_rate",
    "temperature",
    "student_loss_weight",
)
"""The changes that `--student` takes; the others are a recipe's."""


def compress(
    recipe: str | None = None,
    /,
    *,
    own: OwnStudent = NO_STUDENT,
    squeezed: Squeezed = SQUEEZED,
    smoke: Annotated[bool, Flag] = False,
    place: Place = PLACE,
    changes: Changes = NO_CHANGES,
    import_: Imports = (),
) -> None:
    """Distil, prune, distil back, quantise and distil, export every format, certify each file.

    Parameters
    ----------
    recipe
        A name from `keras-kd list`; or give --student FILE --data NAME.
    smoke
        The recipe at its smallest: one seed, two epochs, a few hundred examples.
    import_
        A module to import first, which registers custom classes with Keras. Repeatable.
    """
    from keras_kd import edge
    from keras_kd.running.squeezing import Squeeze

    squeeze = Squeeze(**squeezed.given())
    settings = changes.given()
    _check(recipe, own, smoke, settings)
    if own.student is None:
        plan = recipes.load(recipe or recipes.DEFAULT)
        plan = plan.smoke() if smoke else plan
        settings = plans.config_of(_resolved(plan, settings))
    if place.dry_run:
        shown = {**vars(place), **vars(own), **settings, **_shown(squeeze), "import": import_}
        console.print_plan("compress", shown)
        return
    console.quiet()
    for module in import_:
        user_models.import_module(module)
    words: dict[str, Any] = {
        "out": place.out,
        "name": place.name,
        "data_dir": place.data_dir,
        "progress": console.for_stream(),
        "command": console.command(),
    }
    if own.student is None:
        path = edge.compress(plan, squeeze, **words, **changes.given())
    else:
        data = settings.pop("data")
        path = edge.compress_student(
            own.student, data, squeeze, teacher=own.teacher, **words, **settings
        )
    record = json.loads((path / "compress.json").read_text(encoding="utf-8"))
    print_compressed(record, path)
    if any("refused" in made for made in record["exports"].values()):
        raise SystemExit(1)


def print_compressed(record: Mapping[str, Any], path: Path, stream: TextIO | None = None) -> None:
    """Print the stages, the certificates, and where to look.

    Args:
        record: what compress.json holds.
        path: the run's folder.
        stream: where to print; None: standard output.
    """
    from keras_kd.export import certificates

    rows = {"teacher": record["teacher"]["test"]}
    rows |= {stage: about["test"] for stage, about in record["stages"].items()}
    out = console.screen(stream)
    out.print(
        console.results_table(
            {row: {k: {"mean": v} for k, v in found.items()} for row, found in rows.items()}
        )
    )
    files = {
        form: made["certificate"]
        for form, made in record["exports"].items()
        if "certificate" in made
    }
    out.print(certificates.table(files))
    lines = [
        f"Test data: {record['data']['name']}, {record['data']['test']} examples; one seed.",
        *(
            f"There is no {form} file: {made['refused']}"
            for form, made in record["exports"].items()
            if "refused" in made
        ),
        f"Files:    {path}, each with its certificate (FILE.json)",
        f"Curves:   tensorboard --logdir {path / 'logs'}",
    ]
    for line in lines:
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def _check(recipe: str | None, own: OwnStudent, smoke: bool, settings: Mapping[str, Any]) -> None:
    """Refuse what belongs to the other way of saying what to compress."""
    if own.student is None:
        if own.teacher is not None:
            raise checks.bad_value(
                "A teacher needs a student to teach.",
                given=f"--teacher {own.teacher}",
                expected="--student FILE.keras beside it; a recipe has a teacher of its own",
                fix="add --student, or leave --teacher out.",
            )
        return
    user_models.check_source("student", own.student)
    if own.teacher is not None:
        user_models.check_source("teacher", own.teacher)
    foreign = [name for name in settings if name not in ("data", *OF_A_STUDENT)]
    foreign += ["smoke"] if smoke else []
    if recipe is not None or foreign:
        said = [recipe] if recipe is not None else []
        said += [f"--{name.replace('_', '-')}" for name in foreign]
        raise checks.bad_value(
            "What belongs to a recipe cannot stand beside --student.",
            given=" ".join(said),
            expected=f"--data and, if you like, {', '.join(OF_A_STUDENT)}",
            fix="leave that out, or leave --student out.",
        )
    if "data" not in settings:
        raise checks.bad_value(
            "A student needs data to be compressed on.",
            given=f"--student {own.student}",
            expected="--data npz:FILE, tfds:NAME, idx:FOLDER or a name from `keras-kd list data`",
            fix="say which data it was trained for.",
        )


def _resolved(plan: Any, settings: Mapping[str, Any]) -> Any:
    from keras_kd import run

    return run.resolve(plan, settings)[1]


def _shown(squeeze: Squeeze) -> dict[str, Any]:
    return dict(vars(squeeze))
