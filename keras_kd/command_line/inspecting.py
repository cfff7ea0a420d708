"""`keras-kd inspect`: what is in a TFLite file, and where it came from. Loads no TensorFlow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from keras_kd.command_line.options import Flag

if TYPE_CHECKING:
    from keras_kd.litert.files import File, Tensor

WIDTH = 12


def inspect(file: Path, /, *, json_: Annotated[bool, Flag] = False) -> None:
    """Say what a .tflite file holds and where it came from.

    Operators, types and bytes; inputs and outputs with their quantisation; multiply-accumulates,
    parameters and working memory; the provenance that the export wrote into the file; and whether
    the certificate beside it is this file's. Where it is not, the exit code is 1.

    Parameters
    ----------
    file
        The .tflite file.
    json_
        As JSON.
    """
    found = look(file)
    print(json.dumps(found, indent=2, ensure_ascii=False) if json_ else "\n".join(_lines(found)))
    certificate = found["certificate"]
    if certificate is not None and not certificate["fits"]:
        raise SystemExit(1)


def look(path: Path) -> dict[str, Any]:
    """Gather what `keras-kd inspect` says of a file, ready for JSON.

    Args:
        path: The `.tflite` file.

    Returns:
        file, bytes, sha256, inputs, outputs, audit, counts, arena_bytes (or `None`, and "arena"
        says why), provenance (or `None`), certificate (or `None`).

    Raises:
        ValueError: "is not a TFLite file", "is damaged".
    """
    from keras_kd.litert import auditing, counting, files, provenance

    file = files.read(path)
    try:
        arena, why = counting.arena_bytes(path), None
    except ValueError as error:  # a file that does not run can still be looked into
        arena, why = None, _given(error)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return {
        "file": str(path),
        "bytes": file.bytes,
        "sha256": sha256,
        "inputs": _ends(file, "inputs"),
        "outputs": _ends(file, "outputs"),
        "audit": auditing.of_file(file).to_dict(),
        "counts": counting.count_file(file).to_dict(),
        "arena_bytes": arena,
        **({} if why is None else {"arena": why}),
        "provenance": provenance.of_file(file),
        "certificate": _certificate(path, sha256),
    }


def _certificate(path: Path, sha256: str) -> dict[str, Any] | None:
    """Find the certificate beside a file, and compare the checksums."""
    beside = path.with_name(f"{path.name}.json")
    if not beside.is_file():
        return None
    try:
        written = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError:
        written = None
    said = written.get("sha256") if isinstance(written, dict) else None
    return {"file": str(beside), "sha256": said, "fits": said == sha256}


def _ends(file: File, which: str) -> dict[str, dict[str, Any]]:
    """Describe inputs or outputs, by the names of the signature where there is one."""
    if not file.graphs:
        return {}
    graph = file.graphs[0]
    numbers = graph.inputs if which == "inputs" else graph.outputs
    named = {graph.tensors[number].name: number for number in numbers}
    for signature in file.signatures.values():
        if signature["graph"] == 0:
            named = signature[which]
            break
    return {name: _end(graph.tensors[number]) for name, number in sorted(named.items())}


def _end(tensor: Tensor) -> dict[str, Any]:
    told: dict[str, Any] = {"shape": list(tensor.shape), "dtype": tensor.dtype}
    if tensor.is_quantised:
        told |= {"scale": float(tensor.scales[0]), "zero_point": int(tensor.zero_points[0])}
    return told


def _given(error: ValueError) -> str:
    """Take the part of an error that names what was met."""
    lines = [line.strip() for line in str(error).splitlines()]
    given = [line.removeprefix("given:").strip() for line in lines if line.startswith("given:")]
    return (given or lines)[0]


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    audit, counts = found["audit"], found["counts"]
    yield _line("file", f"{found['file']}, {found['bytes']:,} bytes")
    yield _line("sha256", found["sha256"])
    for which in ("inputs", "outputs"):
        for title, (name, told) in zip(_once(which), found[which].items(), strict=False):
            yield _line(title, _end_in_words(name, told))
    ops = sum(audit["ops"].values())
    yield _line("operators", f"{ops}: " + _counted(audit["ops"], " × "))
    if audit["custom"]:
        yield _line("custom", f"{', '.join(audit['custom'])}: LiteRT alone cannot run this file")
    yield _line("computes in", _counted(audit["types"], " × ", "tensors of "))
    for title, island in zip(_once("islands"), audit["islands"], strict=False):
        layers = ", ".join(island["layers"]) or "unnamed"
        yield _line(title, f"float between whole numbers: {layers} ({', '.join(island['ops'])})")
    sizes = [f"{dtype} {size:,} bytes" for dtype, size in audit["weights"].items()]
    yield _line("constants", ", ".join(sizes) or "none")
    yield _line(
        "", f"scales {audit['scale_bytes']:,} bytes, the rest {audit['other_bytes']:,} bytes"
    )
    yield _line("work", work_in_words(counts))
    yield _line("memory", memory_in_words(found))
    yield _line("certificate", _certificate_in_words(found["certificate"]))
    if found["provenance"] is None:
        yield _line("provenance", "none in the file")
    else:
        yield _line("provenance", "")
        told = json.dumps(found["provenance"], indent=2, ensure_ascii=False)
        yield from (f"  {line}" for line in told.splitlines()[1:-1])


def _line(title: str, text: str) -> str:
    return f"{title:<{WIDTH}} {text}".rstrip()


def _once(title: str) -> Iterator[str]:
    """Yield a title for the first line, and nothing for those below it."""
    yield title
    while True:
        yield ""


def _end_in_words(name: str, told: Mapping[str, Any]) -> str:
    shape = ", ".join("open" if size is None else str(size) for size in told["shape"])
    text = f"{name}: {told['dtype']} ({shape})"
    if "scale" in told:
        zero = told["zero_point"]
        stored = f"(stored {'+' if zero < 0 else '−'} {abs(zero)})" if zero else "stored"
        text += f", real = {told['scale']:.6g} · {stored}"
    return text


def _counted(found: Mapping[str, int], between: str, what: str = "") -> str:
    ordered = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{number}{between}{what}{name}" for name, number in ordered) or "none"


def work_in_words(counts: Mapping[str, Any]) -> str:
    """Say how many multiply-accumulates and parameters a file has.

    Args:
        counts: What `counting.Counts.to_dict()` gives.
    """
    least = "at least " if counts["open_axes"] else ""
    text = f"{least}{counts['macs']:,} multiply-accumulates"
    if counts["loop_macs"]:
        text += f" and {counts['loop_macs']:,} a turn of its loops"
    text += f", {counts['parameters']:,} parameters"
    if counts["uncounted"]:
        text += f"; {', '.join(counts['uncounted'])} not counted"
    return text


def memory_in_words(found: Mapping[str, Any]) -> str:
    """Say how much working memory a file takes, or why that is not known.

    Args:
        found: What `look` gives.
    """
    if found["arena_bytes"] is None:
        return f"not known, since the file does not run: {found['arena']}"
    return f"{found['arena_bytes']:,} bytes (LiteRT's own kernels, measured)"


def _certificate_in_words(certificate: Mapping[str, Any] | None) -> str:
    if certificate is None:
        return "none beside the file"
    if certificate["fits"]:
        return f"{certificate['file']} is this file's"
    return f"{certificate['file']} IS NOT THIS FILE'S: it names sha256 {certificate['sha256']}"
