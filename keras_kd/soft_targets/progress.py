"""How a build tells where it is: a bar on a terminal, one line at its end elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def in_bytes(size: int) -> str:
    """Say how many bytes, in the unit that suits: `"76.0 MB"`."""
    for factor, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size} bytes"


class Told:
    """Say how far a build is; in a `with` block.

    Args:
        what: what is done, for the bar: `"soft targets"`.
        total: the number of rows to come, as far as it is known.
        verbose: whether to say anything.
    """

    def __init__(self, what: str, total: int | None, verbose: bool) -> None:
        self._what, self._total, self._verbose = what, total, verbose
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self.rows = 0
        self.kept = 0

    def __enter__(self) -> Told:
        self._start = time.perf_counter()
        if self._verbose:
            self._draw()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, rows: int, *, kept: bool) -> None:
        """Hear that so many more rows are done, or were there already."""
        self.rows += rows
        self.kept += rows if kept else 0
        if self._bar is not None and self._task is not None:
            seconds = time.perf_counter() - self._start
            speed = (self.rows - self.kept) / max(seconds, 1e-9)
            total = None if self._total is None else max(self._total, self.rows)
            self._bar.update(
                self._task, completed=self.rows, total=total, speed=f"{speed:,.0f} examples/s"
            )

    def total_in_words(self, *, sure: bool) -> str:
        """Say how many rows there will be, and whether it is about so many."""
        if self._total is None:
            return "an unknown number of"
        return f"{self._total:,}" if sure else f"about {self._total:,}"

    def say(self, text: str) -> None:
        """Say one sentence."""
        if self._verbose:
            print(text, flush=True)

    def end(self, directory: object, size: int) -> None:
        """Say what was made."""
        seconds = time.perf_counter() - self._start
        speed = (self.rows - self.kept) / max(seconds, 1e-9)
        kept = f", {self.kept:,} of them from a build that was broken off" if self.kept else ""
        self.say(
            f"{directory}: {self.rows:,} examples{kept}, {in_bytes(size)}, "
            f"{seconds:,.1f} s ({speed:,.0f} examples/s)"
        )

    def _draw(self) -> None:
        from rich import progress
        from rich.console import Console

        console = Console()
        if not console.is_terminal:
            return
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(bar_width=28),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[speed]}"),
            progress.TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(self._what, total=self._total, speed="")
