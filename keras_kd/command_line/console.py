"""What a run says to the person in front of it: bars on a terminal, plain lines elsewhere.

`rich` is loaded when something is shown, and not before.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from keras_kd.running import records
from keras_kd.running.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from keras_kd.command_line.catalogue import LossRow

COLUMNS = {
    "accuracy": ("accuracy %", 100.0, 2),
    "binary_accuracy": ("accuracy %", 100.0, 2),
    "mean_iou": ("mean IoU %", 100.0, 2),
    "mean_average_precision": ("mAP %", 100.0, 2),
    "log_loss": ("log loss", 1.0, 3),
    "bits_per_character": ("bits/character", 1.0, 3),
    "mse": ("MSE", 1.0, 4),
    "mean_absolute_error": ("MAE", 1.0, 3),
    "agreement": ("agrees %", 100.0, 2),
    "teacher_kl": ("KL", 1.0, 3),
    "teacher_mse": ("MSE to teacher", 1.0, 4),
    "calibration_error": ("ECE %", 100.0, 2),
    "parameters": ("parameters", 1.0, 0),
}
"""Measurement -> its title in the table, the factor and the number of decimals to show it with."""


QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "GLOG_minloglevel": "2", "GRPC_VERBOSITY": "ERROR"}
"""Environment variables that keep TensorFlow's banner away; a person's own values stay."""


class Lines(Progress):
    """Plain lines, one a stage, for files and pipes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._stages: dict[str, int] = {}

    def begin(self, stages: Mapping[str, int]) -> None:
        """Remember how many epochs each stage has."""
        self._stages = dict(stages)

    def epoch(self, stage: str, done: int, logs: Mapping[str, float]) -> None:
        """Write one line when a stage's last epoch is done."""
        if done == self._stages.get(stage):
            self.say(f"{stage}: {done} epochs, {measured(logs)}")

    def say(self, text: str) -> None:
        """Write the sentence."""
        print(text, file=self._stream, flush=True)


class Bars(Progress):
    """Bars for a terminal: all stages with the time left, and the stage at work."""

    def __init__(self, console: Console) -> None:
        from rich import progress

        self._console = console
        self._stages: dict[str, int] = {}
        self._bars = progress.Progress(
            progress.TextColumn("{task.description:<18}"),
            progress.BarColumn(bar_width=28),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[measured]}"),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, progress.TaskID] = {}

    def begin(self, stages: Mapping[str, int]) -> None:
        """Draw the bar over all epochs of all stages."""
        self._stages = dict(stages)
        self._bars.start()
        self._tasks["all"] = self._bars.add_task(
            "all epochs", total=sum(stages.values()), measured=""
        )

    def epoch(self, stage: str, done: int, logs: Mapping[str, float]) -> None:
        """Move the bar of the stage and the bar over all."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(
                stage, total=self._stages.get(stage), measured=""
            )
        self._bars.update(self._tasks[stage], completed=done, measured=measured(logs))
        self._bars.advance(self._tasks["all"])
        if done == self._stages.get(stage):
            self._bars.remove_task(self._tasks[stage])
            self.say(f"{stage}: {measured(logs)}")

    def say(self, text: str) -> None:
        """Print the sentence above the bars."""
        self._console.print(text, highlight=False, markup=False)

    def end(self) -> None:
        """Take the bars away."""
        self._bars.stop()


def for_stream(stream: TextIO | None = None) -> Progress:
    """Choose bars where the stream is a terminal, and lines elsewhere."""
    from rich.console import Console

    console = Console(file=stream)
    return Bars(console) if console.is_terminal else Lines(stream)


def measured(logs: Mapping[str, float]) -> str:
    """Say in a few words what an epoch measured: the validation numbers where there are some."""
    chosen = {k: v for k, v in logs.items() if k.startswith("val_")} or dict(logs)
    first = [name for name in chosen if not name.endswith("loss")][:1] or list(chosen)[:1]
    return ", ".join(f"{name} {chosen[name]:.4f}" for name in first)


def results_table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    """Lay out teacher, alone and distilled side by side.

    Args:
        rows: row name -> metric -> {"mean": number, "sd": number or None}.

    Returns:
        A table for `rich.print`; a column for each metric that a row has.
    """
    from rich import box
    from rich.table import Table

    table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("")
    found = list(dict.fromkeys(name for row in rows.values() for name in row))
    names = sorted(found, key=lambda name: (_place(name), found.index(name)))
    for name in names:
        output, _, last = name.rpartition("/")
        title = COLUMNS.get(last, (last, 1.0, 4))[0]
        table.add_column(f"{output} {title}".strip(), justify="right")
    for row_name, row in rows.items():
        table.add_row(row_name, *(_cell(row.get(name), name) for name in names))
    return table


def print_results(record: Mapping[str, Any], path: Path, stream: TextIO | None = None) -> None:
    """Print a run's table and where to look.

    Args:
        record: what run.json holds.
        path: the run's folder.
        stream: where to print; None: standard output.
    """
    rows = {"teacher": {k: {"mean": v} for k, v in record["teacher"]["test"].items()}}
    rows |= {arm: found["test"] for arm, found in record["students"].items()}
    out = screen(stream)
    out.print(results_table(rows))
    seeds = len(record["seeds"])
    spread = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    chosen = record["chosen"]
    lines = [
        "agrees: decides as the teacher does. KL: to the teacher, in nats. ECE: calibration error.",
        f"Test data: {record['data']['name']}, {record['data']['test']} examples; {spread}.",
        f"Exported: seed {chosen['seed']} ({chosen['by']}), in {path}",
        *[about_file(made) for made in record["exports"].values() if "certificate" in made],
        f"Curves:   tensorboard --logdir {path / 'logs'}",
    ]
    for line in lines:
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def screen(stream: TextIO | None = None, width: int = 140) -> Console:
    """Open a terminal as wide as it is, and anything else so wide that tables stay whole."""
    from rich.console import Console

    found = Console(file=stream)
    return found if found.is_terminal else Console(file=stream, width=width)


def command() -> list[str]:
    """Return the command line as the person gave it."""
    return ["keras-kd", *sys.argv[1:]]


def print_losses(rows: Sequence[LossRow], stream: TextIO | None = None) -> None:
    """Print every loss with its paper, what it needs, its parameters and its trained parts.

    Args:
        rows: what `catalogue.losses()` gives.
        stream: where to print; None: standard output.
    """
    from rich import box
    from rich.table import Table

    table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("loss", "paper", "needs", "parameters", "trained with it"):
        table.add_column(title, no_wrap=title == "loss", overflow="fold")
    for row in rows:
        table.add_row(row.loss, row.paper, row.needs, row.parameters, row.trains)
    screen(stream, 200).print(table, markup=False, highlight=False)


def about_file(made: Mapping[str, Any]) -> str:
    """Say of an exported file how big it is and how near to the Keras model it answers."""
    certificate = made["certificate"]
    verified = certificate["verified"]
    largest = max(output["relative_difference"] for output in verified["outputs"].values())
    near = f"within {largest:.0e} of" if largest else "equal to"
    size, examples = f"{certificate['bytes'] / 1000:,.0f} kB", f"{verified['examples']:,} examples"
    return f"          {made['path']}, {size}: {near} the Keras model's outputs on {examples}"


def print_plan(title: str, plan: Mapping[str, Any]) -> None:
    """Print what would be done, a line a setting, in the form that --config reads.

    Args:
        title: the command.
        plan: setting -> value; None is left out.
    """
    print(f"# keras-kd {title}, as it would run; nothing is loaded or written.")
    for name, value in plan.items():
        if name not in ("dry_run", "summary") and value is not None:
            print(f"{name} = {json.dumps(records.plain(value), ensure_ascii=False)}")


def quiet() -> None:
    """Load TensorFlow without its banner; what it says when it fails to load is shown."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    with silent_stderr():
        import tensorflow as tf

        tf.config.list_physical_devices()
    tf.get_logger().setLevel("ERROR")


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """Keep what native code writes to standard error, and show it only when the block fails."""
    sys.stderr.flush()
    saved, done = os.dup(2), False
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
            done = True
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            if not done:
                kept.seek(0)
                os.write(2, kept.read())


def _place(name: str) -> int:
    """Say how far to the right a measurement stands."""
    known = [*COLUMNS]
    last = name.rpartition("/")[2]
    return known.index(last) if last in known else len(known)


def _cell(value: Mapping[str, float | None] | None, name: str) -> str:
    """Write a mean and its standard deviation, or a dash."""
    if value is None or value["mean"] is None:
        return "–"
    _, scale, digits = COLUMNS.get(name.rpartition("/")[2], (name, 1.0, 4))
    mean = f"{value['mean'] * scale:,.{digits}f}"
    sd = value.get("sd")
    return mean if sd is None or name == "parameters" else f"{mean} ± {sd * scale:.{digits}f}"
