"""Whether numba's kernels can run here. Importable without numba."""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64)

started = False  # whether a kernel ran, and its threads are there
_lost = False  # whether this process was forked after that, without the threads


def _forked() -> None:
    global _lost
    _lost = started


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def refusal(x: Tensor) -> str | None:
    """Why no kernel can run on tensors like this one; None when one can."""
    if x.device.type != "cpu":
        return f"it runs on CPUs and the tensors are on '{x.device}'"
    if x.dtype not in DTYPES:
        return f"its kernels compute in float32 or float64, not in {x.dtype}"
    if _lost:  # GNU's OpenMP ends a process that tries
        return "this process was forked from one in which it had run: fork earlier, or spawn"
    return _missing()


def mixed(*tensors: Tensor | None) -> str | None:
    """Why no kernel can run on tensors of several dtypes; None when they have one."""
    dtypes = {str(t.dtype) for t in tensors if t is not None}
    return f"its kernels want one dtype, and these are {', '.join(sorted(dtypes))}" if len(dtypes) > 1 else None


@cache
def _missing() -> str | None:
    """Why numba cannot be had, or None. Imported on the first call: it takes a second."""
    if find_spec("numba") is None:
        return "the package 'numba' is not installed (pip install numba)"
    try:
        import_module("numba")
    except ImportError as error:  # it refuses a NumPy that is newer than it knows
        return f"importing numba fails: {error}"
    return None
