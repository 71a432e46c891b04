"""What a training step frees stays with the process, for the next step.

The C library of Linux gives large pieces of memory back to the system when they are freed, and asks for them anew at
the next step; the system then clears them page by page: 500 to 2,300 pages in every step of SSD4Rec on ml-100k, which
takes 1 to 4 of its 41 ms. What is kept is at most MOST at the heap's end, and the holes between pieces in use.
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt's in malloc.h
LARGEST = 2**25  # bytes of a piece that is kept: older libraries take no more
MOST = 2**29  # bytes that are free, before some are given back
CHOICES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


@cache
def keep_freed_memory() -> bool:
    """Tells the C library so, once for this process. See mallopt(3).

    Returns:
        False where it is not glibc, where it refuses, or where one of CHOICES stands in the environment.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in CHOICES):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST) and mallopt(_TRIM_THRESHOLD, MOST))
