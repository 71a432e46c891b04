"""Whether numba's kernels can run here. Importable without numba."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

NEEDED = ("numba", "scipy", "threadpoolctl")  # SciPy for its BLAS, which threadpoolctl keeps to one thread
DTYPES = (torch.float32, torch.float64)


def refusal(x: Tensor) -> str | None:
    """Why no kernel can run on tensors like this one; None when one can."""
    if x.device.type != "cpu":
        return f"it runs on CPUs and the tensors are on '{x.device}'"
    if x.dtype not in DTYPES:
        return f"its kernels compute in float32 or float64, not in {x.dtype}"
    return _missing()


@cache
def _missing() -> str | None:
    """Why numba cannot be had, or None. Imported on the first call: it takes a second."""
    for name in NEEDED:
        if find_spec(name) is None:
            return f"the package '{name}' is not installed (pip install {name})"
    try:
        import numba  # noqa: F401
    except ImportError as error:  # it refuses a NumPy that is newer than it knows
        return f"importing numba fails: {error}"
    return None
