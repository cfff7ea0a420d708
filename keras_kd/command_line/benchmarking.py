"""`keras-kd benchmark`: how long TFLite files take on this machine. Loads no TensorFlow."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

from keras_kd.command_line.options import Flag, Several

if TYPE_CHECKING:
    from rich.table import Table

    from keras_kd.litert.timing import Benchmark

PEER_RUNS = (50, 5000)
"""The fewest and the most runs that litert-benchmark is asked for."""


def benchmark(
    files: list[Path],
    /,
    *,
    threads: Annotated[tuple[int, ...], Several] = (1, 2),
    seconds: float = 1.0,
    warm_up: float = 0.2,
    open_axes: int = 1,
    peer: Annotated[bool, Flag] = False,
    json_: Annotated[bool, Flag] = False,
) -> None:
    """Time .tflite files side by side on this machine.

    The files take turns, so that what slows the machine slows all of them. Each is timed with
    XNNPACK, as LiteRT runs it by default, and without. Only the run itself is timed. The times are
    this machine's and no phone's; let nothing else run beside them.

    Parameters
    ----------
    files
        The .tflite files; ratios are to the first.
    threads
        Numbers of threads.
    seconds
        How long each file is timed with each setting.
    warm_up
        How many seconds each file runs before that.
    open_axes
        Size of the axes that a file leaves open.
    peer
        Ask litert-benchmark as well, the tool that comes with ai-edge-litert; it runs the files by
        another road and rounds to 0.01 ms.
    json_
        As JSON.
    """
    found = measure(
        files, threads=threads, seconds=seconds, warm_up=warm_up, open_axes=open_axes, peer=peer
    )
    if json_:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        show(found)


def measure(
    paths: Sequence[Path],
    *,
    threads: Sequence[int] = (1, 2),
    seconds: float = 1.0,
    warm_up: float = 0.2,
    open_axes: int = 1,
    peer: bool = False,
) -> list[dict[str, Any]]:
    """Time files in alternation, and count what they hold.

    Args:
        paths: The `.tflite` files.
        threads: Numbers of threads.
        seconds: How long each file is timed with each setting.
        warm_up: How many seconds each file runs before that.
        open_axes: Size of the axes that a file leaves open.
        peer: Whether litert-benchmark is asked as well.

    Returns:
        One dict a file, ready for JSON: file, bytes, counts, arena_bytes, inputs, latencies, and
        "peer" (one entry a number of threads) where it was asked.

    Raises:
        ValueError: As `keras_kd.litert.timing.benchmark` does.
    """
    from keras_kd.litert import counting, timing

    timed = timing.benchmark_together(
        paths, threads=threads, seconds=seconds, warm_up=warm_up, open_axes=open_axes
    )
    found = []
    for one in timed:
        told: dict[str, Any] = {
            "file": str(one.path),
            "bytes": one.path.stat().st_size,
            "counts": counting.count(one.path).to_dict(),
            "arena_bytes": counting.arena_bytes(one.path, open_axes=open_axes),
        }
        told |= {name: value for name, value in one.to_dict().items() if name != "file"}
        if peer:
            told["peer"] = [_asked(one, count, seconds) for count in threads]
        found.append(told)
    return found


def _asked(one: Benchmark, threads: int, seconds: float) -> dict[str, Any]:
    """Ask litert-benchmark for as many runs as fill the seconds, or keep why it failed."""
    from keras_kd.litert import timing

    fewest, most = PEER_RUNS
    runs = min(max(int(seconds * 1000 / one.of(threads).p50_ms), fewest), most)
    try:
        latency = timing.peer(one.path, threads=threads, runs=runs)["latency"]
    except ValueError as error:
        return {"threads": threads, "failed": str(error)}
    return {"threads": threads, **{k: latency[k] for k in ("median_ms", "min_ms", "num_runs")}}


def show(found: Sequence[Mapping[str, Any]], stream: TextIO | None = None) -> None:
    """Print the files, and their times, setting by setting.

    Args:
        found: What `measure` gives.
        stream: Where to print; None: standard output.
    """
    from rich.console import Console

    screen = Console(file=stream)
    out = Console(file=stream, width=None if screen.is_terminal else 160)
    out.print(_files_table(found))
    out.print(_times_table(found))
    for line in _notes(found):
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def _files_table(found: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("file", "bytes", "×", "MACs", "×", "parameters", "memory bytes", "×")
    first = found[0]
    for one in found:
        counts = one["counts"]
        least = "≥ " if counts["open_axes"] or counts["uncounted"] else ""
        loops = f" + {counts['loop_macs']:,} a turn" if counts["loop_macs"] else ""
        table.add_row(
            one["file"],
            f"{one['bytes']:,}",
            _ratio(one["bytes"], first["bytes"]),
            f"{least}{counts['macs']:,}{loops}",
            _ratio(counts["macs"], first["counts"]["macs"]),
            f"{counts['parameters']:,}",
            f"{one['arena_bytes']:,}",
            _ratio(one["arena_bytes"], first["arena_bytes"]),
        )
    return table


def _times_table(found: Sequence[Mapping[str, Any]]) -> Table:
    peers = "peer" in found[0]
    titles = ["file", "threads", "XNNPACK", "p50 ms", "×", "p90 ms", "min ms", "runs"]
    table = _table(*titles, *(["litert-benchmark p50 ms"] if peers else []))
    first = found[0]["latencies"]
    for at, start in enumerate(first):
        for one in found:
            latency = one["latencies"][at]
            cells = [
                one["file"],
                str(latency["threads"]),
                _delegate(latency),
                _milliseconds(latency["p50_ms"]),
                _ratio(latency["p50_ms"], start["p50_ms"]),
                _milliseconds(latency["p90_ms"]),
                _milliseconds(latency["min_ms"]),
                f"{latency['runs']:,}",
            ]
            table.add_row(*cells, *([_peer_cell(one, latency)] if peers else []))
        table.add_section()
    return table


def _table(*titles: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in titles:
        left = title == "file"
        table.add_column(title, justify="left" if left else "right", overflow="fold")
    return table


def _delegate(latency: Mapping[str, Any]) -> str:
    if not latency["xnnpack"]:
        return "off"
    return f"{latency['delegated']} of {latency['operators']} operators"


def _peer_cell(one: Mapping[str, Any], latency: Mapping[str, Any]) -> str:
    """Give the peer's median in the row whose setting is its own: XNNPACK on."""
    if not latency["xnnpack"]:
        return ""
    said = next(peer for peer in one["peer"] if peer["threads"] == latency["threads"])
    return "failed" if "failed" in said else f"{said['median_ms']:.2f}"


def _ratio(value: float, first: float) -> str:
    return f"{value / first:.2f}" if first else "–"


def _milliseconds(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _notes(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "×: times as much as the first file. Times are of invoke() alone, on this machine."
    yield "MACs: multiply-accumulates of one run. memory: LiteRT's own kernels, measured."
    shapes = {f"{name} {tuple(shape)}" for one in found for name, shape in one["inputs"].items()}
    yield f"Inputs, random: {', '.join(sorted(shapes))}."
    for one in found:
        for peer in one.get("peer", ()):
            if "failed" in peer:
                yield f"{one['file']}, {peer['threads']} threads: {peer['failed']}"
