"""`keras-kd soft-targets`: keep a teacher's answers on the disk, check them, merge them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import cyclopts

from keras_kd.command_line import console
from keras_kd.command_line.options import Flag, Imports, Storing
from keras_kd.running import records, soft_stores, user_models

app = cyclopts.App(
    name="soft-targets",
    help="Keep a teacher's answers to a data set on the disk, so that it is asked once.",
)


@app.command
def build(*, storing: Storing, import_: Imports = ()) -> None:
    """Ask a teacher for every example of a data set, once, and keep the answers.

    Broken off, the same command goes on where it stopped.

    Parameters
    ----------
    import_
        A module to import first, which registers custom classes with Keras. Repeatable.
    """
    settings = dict(vars(storing))
    dry_run, teachers = settings.pop("dry_run"), settings.pop("teacher")
    numbers = ("top_k", "temperatures", "batch_size", "validation", "shard")
    shard = soft_stores.check_build(**{name: settings[name] for name in numbers})
    for source in teachers:
        user_models.check_source("teacher", source)
    if dry_run:
        plan = {"teacher": teachers, **settings, "import": import_}
        console.print_plan("soft-targets build", plan)
        return
    console.quiet()
    for module in import_:
        user_models.import_module(module)
    soft_stores.build(teachers, **settings | {"shard": shard})


@app.command
def verify(folder: Path, /) -> None:
    """Read every byte of a store and compare it with its checksum.

    The exit code is 1 where a byte is not as it was written.

    Parameters
    ----------
    folder
        The folder of the store.
    """
    soft_stores.check_folders([folder])
    console.quiet()
    print(soft_stores.info(folder, every_byte=True))
    print("Every byte is as it was written.")


@app.command
def info(folder: Path, /, *, json_: Annotated[bool, Flag] = False) -> None:
    """Say what a store holds and where it came from.

    Parameters
    ----------
    folder
        The folder of the store.
    json_
        As JSON.
    """
    soft_stores.check_folders([folder])
    console.quiet()
    found = soft_stores.info(folder)
    print(json.dumps(records.plain(found), indent=2, ensure_ascii=False) if json_ else found)


@app.command
def merge(folders: list[Path], /, *, out: Path) -> None:
    """Put the shards of one build together, or stores of one teacher one after the other.

    Parameters
    ----------
    folders
        The folders of the stores; shards may come in any order.
    out
        Folder of the new store.
    """
    soft_stores.check_folders(folders)
    console.quiet()
    from keras_kd.soft_targets import SoftTargets

    records.writable(out.parent)
    SoftTargets.merge(folders, out)
