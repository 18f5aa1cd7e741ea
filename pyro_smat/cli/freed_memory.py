"""What a command frees stays with its process: fresh memory costs more than many an operation that fills it.

The C library of Linux gives freed memory back to the system, megabytes at a time, and the next result is written to
pages that the system has to make first. A command has its process to itself, so it may keep them; importing the package
changes nothing of the process. Tensors above :data:`~pyro_smat.networks.kept_memory.LARGE` are not concerned.
"""

from __future__ import annotations

import ctypes
import os
import sys

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of malloc.h
LARGEST = 32 * 2**20  # bytes of a piece that comes from memory that was used before
KEPT = 2**30  # bytes that are kept, at most
SAID = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")  # where users say it themselves


def keep_freed_memory() -> bool:
    """Whether the C library could be told so: glibc on Linux, unless the environment says something else."""
    if not sys.platform.startswith("linux") or any(name in os.environ for name in SAID):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    return set_option is not None and bool(set_option(MMAP_THRESHOLD, LARGEST) and set_option(TRIM_THRESHOLD, KEPT))
