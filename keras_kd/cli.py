"""The command line: read the options, say what will happen, call one function.

Nothing here loads TensorFlow before there is something to train, export or evaluate, so that
`--help`, `list` and `--dry-run` answer at once.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
from cyclopts import Parameter

from keras_kd import __version__, checks, recipes
from keras_kd.command_line import (
    benchmarking,
    catalogue,
    compressing,
    console,
    inspecting,
    soft_targets,
)
from keras_kd.command_line.options import (
    NO_CHANGES,
    PLACE,
    Changes,
    Distillation,
    Flag,
    Imports,
    Place,
    Repeated,
    Several,
)
from keras_kd.running import plans, records, soft_stores, user_models

DEFAULT = recipes.DEFAULT

app = cyclopts.App(
    name="keras-kd",
    help="Distil a big Keras model into a small one, compare both honestly, ship the small one.",
    version=__version__,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,  # main() says how to go on
)
app.meta.suppress_keyboard_interrupt = False
app.command(soft_targets.app)
app.command(compressing.compress)
app.command(inspecting.inspect)
app.command(benchmarking.benchmark)


@app.command(name="list")
def list_(
    what: Literal["recipes", "data", "losses", "exports"] = "recipes",
    /,
    *,
    markdown: Annotated[bool, Flag] = False,
) -> None:
    """List what can be named on the command line.

    Parameters
    ----------
    what
        recipes, data, losses or exports. Losses come with their paper, what they need (logits,
        values, features, labels), their parameters and what is trained with them.
    markdown
        The losses as a Markdown table.
    """
    if what == "losses":
        if markdown:
            print(catalogue.markdown())
        else:
            console.print_losses(catalogue.losses())
        return
    rows = catalogue.rows(what)
    width = max(map(len, rows), default=0)
    for name, line in rows.items():
        print(f"{name:<{width}}  {line}".rstrip())


@app.command
def run(
    recipe: str = DEFAULT,
    /,
    *,
    smoke: Annotated[bool, Flag] = False,
    place: Place = PLACE,
    changes: Changes = NO_CHANGES,
) -> None:
    """Train a recipe's teacher, its student alone and distilled; compare; export.

    Parameters
    ----------
    recipe
        A name from `keras-kd list`.
    smoke
        The recipe at its smallest: one seed, two epochs, a few hundred examples.
    """
    from keras_kd import run as story

    plan = recipes.load(recipe)
    plan = plan.smoke() if smoke else plan
    name, plan = story.resolve(plan, changes.given())
    if place.dry_run:
        console.print_plan(f"run {name}", {**vars(place), **plans.config_of(plan)})
        return
    console.quiet()
    path = story.run(
        plan,
        out=place.out,
        name=place.name,
        data_dir=place.data_dir,
        progress=console.for_stream(),
        command=console.command(),
    )
    _finish(path)


@app.command
def distill(
    *,
    distillation: Distillation,
    place: Place = PLACE,
    import_: Imports = (),
) -> None:
    """Distil your own teacher into your own student on named data.

    Parameters
    ----------
    import_
        A module to import first, which registers custom classes with Keras. Repeatable.
    """
    from keras_kd import run as story

    settings = vars(distillation)
    numbers = {key: settings[key] for key in story.SETTINGS}
    plans.check_settings(**numbers)
    for role in ("teacher", "student"):
        user_models.check_source(role, settings[role])
    if place.dry_run:
        console.print_plan("distill", {**vars(place), "import": import_, **settings})
        return
    console.quiet()
    for module in import_:
        user_models.import_module(module)
    path = story.distill(
        **settings,
        out=place.out,
        name=place.name,
        data_dir=place.data_dir,
        progress=console.for_stream(),
        command=console.command(),
    )
    _finish(path)


@app.command
def export(
    model: str,
    /,
    *,
    data: str,
    out: Path,
    formats: Annotated[tuple[str, ...], Several] = ("saved_model", "tflite"),
    data_dir: Path | None = None,
    import_: Imports = (),
) -> None:
    """Export a model; calibrate on the data's training split, verify each file on its test split.

    Parameters
    ----------
    model
        FILE.keras or module:function.
    data
        The data set: npz:FILE, tfds:NAME, idx:FOLDER, or a name from
        `keras-kd list data`.
    out
        Folder for the files.
    formats
        Names from `keras-kd list exports`.
    data_dir
        Folder of prepared TensorFlow Datasets. Default: TFDS's own.
    import_
        A module to import first, which registers custom classes with Keras. Repeatable.
    """
    from keras_kd.export import certificates
    from keras_kd.running import errands

    for form in formats:
        if form not in catalogue.rows("exports"):
            raise checks.unknown_name("export format", form, catalogue.rows("exports"))
    user_models.check_source("model", model)
    console.quiet()
    for module in import_:
        user_models.import_module(module)
    artifacts = errands.export(model, data, out, formats=formats, data_dir=data_dir)
    for form, artifact in artifacts.items():
        print(f"{form}: {artifact.path}")
    print(certificates.table(artifacts))


@app.command
def evaluate(
    *,
    teacher: str,
    student: Annotated[tuple[str, ...], Repeated],
    data: str,
    data_dir: Path | None = None,
    import_: Imports = (),
) -> None:
    """Compare students with their teacher on the data's test split.

    Parameters
    ----------
    teacher
        FILE.keras or module:function.
    student
        NAME=FILE.keras or NAME=module:function. Repeatable.
    data
        The data set: npz:FILE, tfds:NAME, idx:FOLDER, or a name from `keras-kd list data`.
    data_dir
        Folder of prepared TensorFlow Datasets. Default: TFDS's own.
    import_
        A module to import first, which registers custom classes with Keras. Repeatable.
    """
    from keras_kd.running import errands

    students = dict(_named_source(text) for text in student)
    for role, source in {"teacher": teacher, **students}.items():
        user_models.check_source(role, source)
    console.quiet()
    for module in import_:
        user_models.import_module(module)
    print(errands.evaluate(teacher, students, data, data_dir=data_dir))


@app.command
def env() -> None:
    """Print versions and devices, for a report of a bug."""
    console.quiet()
    for name, value in {**records.versions(), **records.machine()}.items():
        print(f"{name}: {value}")


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Path | None = None,
    debug: Annotated[bool, Flag] = False,
) -> None:
    """Read the options that every command has, then the command.

    Parameters
    ----------
    config
        A TOML file with options of the command, one `name = value` a line; options on the command
        line win.
    debug
        Show where in the program an error arose.
    """
    del debug  # main() looks at it where the error arrives
    if config is not None:
        if not config.is_file():
            raise checks.bad_value(
                f"The configuration {str(config)!r} is not a file that can be read.",
                given=str(config),
                expected="a TOML file with options of the command",
                fix="check the path.",
            )
        app.config = cyclopts.config.Toml(config, use_commands_as_keys=False)
    app(tokens, exit_on_error=False, print_error=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code.

    Args:
        arguments: the words after `keras-kd`; None: those that the process was started with.

    Raises:
        SystemExit: 0 when all went well, 1 for an export that was refused and for a damaged
            store, 2 for what the person can mend, 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a person's modules lie where they stand
    try:
        app.meta(words, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        command = " ".join(["keras-kd", *words[:1]]) if words[:1] in _commands() else "keras-kd"
        said = checks.message(
            f"{error}",
            given=" ".join(["keras-kd", *words]),
            expected=f"the options of `{command} --help`",
            fix=f"run `{command} --help`, which lists them with their defaults.",
        )
        _fail(said, debug)
    except (ValueError, TypeError) as error:
        code = 1 if isinstance(error, soft_stores.Damaged) else 2
        _fail(_in_three_parts(error, words), debug, code)
    except OSError as error:
        said = checks.message(
            "The system refused to read or write.",
            given=str(error),
            expected="files that this user may read, and a disk with room",
            fix="mend that and start the same command again; no half-written run is left.",
        )
        _fail(said, debug)
    except KeyboardInterrupt:
        print(
            "\nStopped. No half-written run is left. A trained teacher and its stored answers are "
            "kept: the same command goes on from there.",
            file=sys.stderr,
        )
        raise SystemExit(130) from None
    finally:
        app.config = ()


def _finish(path: Path) -> None:
    """Print the table of results, and where to look."""
    record = json.loads((path / "run.json").read_text(encoding="utf-8"))
    console.print_results(record, path)
    if any("refused" in made for made in record["exports"].values()):
        raise SystemExit(1)


def _commands() -> list[list[str]]:
    """Return the names of the commands, each as the first word of a command line."""
    return [[name] for name in app if not name.startswith("-")]


def _named_source(text: str) -> tuple[str, str]:
    """Read NAME=SOURCE."""
    name, equals, source = text.partition("=")
    if not (name and equals and source):
        raise checks.bad_value(
            f"The student {text!r} has no name.",
            given=text,
            expected="NAME=FILE.keras or NAME=module:function",
            fix=f"write, for example, --student small={text}.",
        )
    return name, source


def _in_three_parts(error: ValueError | TypeError, words: Sequence[str]) -> str:
    """Return an error's words, laid out for a person where they come from elsewhere."""
    if "\n  fix:" in str(error):
        return str(error)
    return checks.message(
        " ".join(str(error).split()) or type(error).__name__,
        given=" ".join(["keras-kd", *words]),
        expected="models and data that Keras can train",
        fix="add --debug to see where in the program this arose.",
    )


def _fail(words: str, debug: bool, code: int = 2) -> None:
    """Leave with the words for a person, or with the whole traceback."""
    if debug:
        raise
    print(words, file=sys.stderr)
    raise SystemExit(code) from None


if __name__ == "__main__":
    main()
