"""What the C library does with memory that a step has freed: keep it for the next step."""

from __future__ import annotations

import ctypes
import functools
import os

MEGABYTE = 1 << 20
SETTINGS = {-2: 64 * MEGABYTE, -3: 32 * MEGABYTE}  # M_TOP_PAD, M_MMAP_THRESHOLD of malloc.h
NAMES = ("MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


@functools.cache
def keep() -> bool:
    """Let the process keep up to 64 MB of freed memory in each arena, once; say whether it does.

    Each step frees its intermediates and asks for as much again. glibc hands them back to the
    system in between, and the page faults of the next step take up to half of it. Called when
    keras_kd is imported. Only where the C library is glibc, and where nobody has set it otherwise:
    by one of `NAMES` in the environment, or by another allocator that is loaded. What TensorFlow
    sets later, for data from generators (see `keras_kd.numbered`), is left as it is.

    Reference:
        The GNU C Library, "Malloc Tunable Parameters": `mallopt`.
    """
    if any(os.environ.get(name) for name in (*NAMES, "LD_PRELOAD")):
        return False
    library = ctypes.CDLL(None)
    try:
        library.gnu_get_libc_version  # noqa: B018  (another C library has none)
    except AttributeError:
        return False
    return all(library.mallopt(name, value) == 1 for name, value in SETTINGS.items())
