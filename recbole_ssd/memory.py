"""Freed memory that stays with the process, so that the next batch finds it.

glibc gives large freed blocks back to the system, and every batch pays for fresh pages again: on a virtual machine that
was a third of a training step. Two of its own settings end that.
"""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
LARGEST_HEAP_BLOCK = 32 * 2**20  # glibc's upper limit of M_MMAP_THRESHOLD on 64-bit machines
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed. Where the C library is another one, nothing is done.

    Returns:
        Whether glibc took the settings.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {M_MMAP_THRESHOLD: LARGEST_HEAP_BLOCK, M_TRIM_THRESHOLD: NEVER, M_TOP_PAD: 64 * 2**20}
    return all(mallopt(name, value) == 1 for name, value in settings.items())
