"""One source of data a file: the folder is the list.

Each file says `USAGE` (how its name is written), `EXAMPLE` (a name that fits), `USES_DATA_DIR`,
and has `read(argument, data_dir) -> Source`, where `argument` is what follows the colon.
"""
