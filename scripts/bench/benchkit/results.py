"""What is written: the machine, ratios with their quartiles, JSON and Markdown."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchkit import environment, networks

PACKAGES = ("keras", "tensorflow", "numpy")


def machine() -> dict[str, Any]:
    """Say what it ran on; neither paths nor the name of the machine."""
    import tensorflow as tf

    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return {
        "cpu": (found or [platform.processor() or platform.machine()])[0],
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "accelerators": [detail.get("device_name", "GPU") for detail in details],
        "load_before": round(os.getloadavg()[0], 2),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def head(script: str, arguments: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Begin the results: the command, the day, the machine."""
    arguments = list(arguments)
    at = arguments.index("--out") if "--out" in arguments else len(arguments)
    return {
        "command": shlex.join([f"scripts/bench/{script}", *arguments[:at], *arguments[at + 2 :]]),
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "rounds": options.rounds,
    }


def parser(script: str, words: str, batch: Sequence[int]) -> argparse.ArgumentParser:
    """Make the parser with the options that every benchmark has."""
    made = argparse.ArgumentParser(prog=f"scripts/bench/{script}", description=words.split("\n")[0])
    names = list(networks.PAIRS)
    made.add_argument("--models", nargs="+", default=names, choices=names)
    made.add_argument("--batch", nargs="+", type=int, default=list(batch), metavar="N")
    made.add_argument("--rounds", type=int, default=9)
    made.add_argument("--seconds", type=float, default=0.3, help="of one stretch of steps")
    made.add_argument("--smoke", action="store_true", help="tiny sizes: it runs, and says nothing")
    made.add_argument("--out", type=pathlib.Path, default=environment.RESULTS)
    return made


def smoke(options: argparse.Namespace, **changes: Any) -> argparse.Namespace:
    """Make the sizes tiny, where `--smoke` asks for it."""
    if options.smoke:
        tiny = {"models": ["mlp"], "batch": [4], "rounds": 1, "seconds": 0.001, **changes}
        for name, value in tiny.items():
            setattr(options, name, value)
    return options


def ratio(own: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """Return the median of the rounds' ratios, with the quartiles."""
    ratios = [a / b for a, b in zip(own, base, strict=True)]
    low, middle, high = quartiles(ratios)
    return {"ratio": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)]}


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile, as NumPy has them."""
    if len(values) == 1:
        return (values[0],) * 3
    return tuple(statistics.quantiles(values, n=4, method="inclusive"))


def cell(numbers: dict[str, Any] | None, limit: float | None = None) -> str:
    """Write a ratio with its quartiles, bold where it is over the limit."""
    if numbers is None:
        return "–"
    low, high = numbers["quartiles"]
    shown = f"{numbers['ratio']:.2f}"
    shown = f"**{shown}**" if limit is not None and numbers["ratio"] > limit else shown
    return f"{shown} ({low:.2f}–{high:.2f})"


def written_by(results: dict[str, Any]) -> str:
    """Say by what, when and on what the results were made."""
    on = results["machine"]
    devices = [f"{on['cpu']}, {on['cores']} cores", *on["accelerators"]]
    versions = f"Python {on['python']}, Keras {on['keras']}, TensorFlow {on['tensorflow']}"
    versions += f", PyTorch {on['torch']}" if "torch" in on else ""
    return (
        f"Written by `{results['command']}` on {results['date']}: {'; '.join(devices)}; {versions}."
    )


def rows(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Write a Markdown table."""
    return [
        f"| {' | '.join(header)} |",
        "|" + "---|" * len(header),
        *(f"| {' | '.join(line)} |" for line in lines),
    ]


def save(
    name: str,
    results: dict[str, Any],
    table: Callable[[dict[str, Any]], str],
    folder: pathlib.Path,
) -> None:
    """Write NAME.json and NAME.md, whole, and print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    for file, words in ((f"{name}.json", text), (f"{name}.md", table(results))):
        new = folder / f"{file}.new"
        new.write_text(words, encoding="utf-8")
        new.replace(folder / file)
    print(table(results))
