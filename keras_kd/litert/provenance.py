"""Where a TFLite file comes from, written in the file itself, so that it cannot get lost.

The facts travel as JSON in a metadata buffer named "keras_kd". LiteRT does not look at it: the
file runs as it did. The file is written again as a whole, with every constant on a boundary of 16
bytes, as the schema asks for.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_kd import checks
from keras_kd.litert import files

NAME = "keras_kd"
_ALIGNMENT = 16  # of the constants, in the TFLite schema


def stamp(path: str | Path, facts: Mapping[str, Any]) -> None:
    """Write facts into a TFLite file, in the place of those that it has.

    Use it to tell a file's teacher, data, metrics, labels and versions to whoever finds it on a
    device. The file is replaced in one step; where anything fails, it stays as it was.

    Args:
        path: The `.tflite` file.
        facts: What JSON can hold: dicts, lists, strings, finite numbers, True, False and None.

    Raises:
        ValueError: "is not a TFLite file", "is damaged", "cannot be written as JSON".
        TypeError: "`facts` must be a dict".

    Example:
        ```python
        import tempfile

        import keras
        import numpy as np

        import keras_kd as kd
        from keras_kd.litert import provenance

        student = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3)])
        x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
        with tempfile.TemporaryDirectory() as folder:
            made = kd.export_student(student, folder, ["tflite"], verification_data=x)
            provenance.stamp(made["tflite"].path, {"labels": ["cat", "dog", "bird"]})
            print(provenance.read(made["tflite"].path))  # {'labels': ['cat', 'dog', 'bird']}
        ```
    """
    path = Path(path)
    content = np.frombuffer(_encoded(facts), "uint8")
    model = files.read_model(path)
    model.metadata = model.metadata or []
    entry = next((entry for entry in model.metadata if _is_ours(entry)), None)
    if entry is None:
        entry = schema.MetadataT(name=NAME.encode(), buffer=len(model.buffers))
        model.metadata.append(entry)
        model.buffers.append(schema.BufferT())
    model.buffers[entry.buffer].data = content
    builder = _Aligned(content.size + path.stat().st_size)
    builder.Finish(model.Pack(builder), file_identifier=files.MAGIC)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(builder.Output())
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, path.stat().st_mode & 0o777)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def read(path: str | Path) -> dict[str, Any] | None:
    """Read back what `stamp` wrote.

    Args:
        path: The `.tflite` file.

    Returns:
        The facts, or `None` where the file has none.

    Raises:
        ValueError: "is not a TFLite file", "is damaged", "cannot be read".
    """
    return of_file(files.read(path))


def of_file(file: files.File) -> dict[str, Any] | None:
    """Read the facts of a file that was read already."""
    if NAME not in file.metadata:
        return None
    content = file.metadata[NAME]
    try:
        facts = json.loads(content.decode("utf-8"))
    except ValueError as error:
        raise checks.bad_value(
            f"The provenance in {str(file.path)!r} cannot be read.",
            given=f"{len(content)} bytes of metadata {NAME!r} that are no JSON: {error}",
            expected="JSON in UTF-8",
            fix="export the student again.",
        ) from error
    return facts


class _Aligned(flatbuffers.Builder):
    """A builder that puts bytes where the schema wants constants: on boundaries of 16."""

    def StartVector(self, elemSize: int, numElems: int, alignment: int) -> int:
        wanted = _ALIGNMENT if elemSize == 1 else alignment
        return super().StartVector(elemSize, numElems, wanted)


def _is_ours(entry: schema.MetadataT) -> bool:
    return entry.name in (NAME, NAME.encode())


def _encoded(facts: Mapping[str, Any]) -> bytes:
    if not isinstance(facts, Mapping):
        raise checks.bad_type(
            "`facts` must be a dict.",
            given=f"{facts!r:.80} ({type(facts).__name__})",
            expected="a dict of what JSON can hold",
            fix='write for example {"labels": ["cat", "dog"]}.',
        )
    try:
        return json.dumps(dict(facts), allow_nan=False, ensure_ascii=False).encode("utf-8")
    except (TypeError, ValueError) as error:
        raise checks.bad_value(
            "The facts cannot be written as JSON.",
            given=str(error),
            expected="dicts, lists, strings, finite numbers, True, False and None",
            fix="turn arrays into lists and NumPy numbers into int and float first.",
        ) from error
