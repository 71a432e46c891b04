"""Whether numba's kernels can run here. Importable without numba."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64)


def refusal(x: Tensor) -> str | None:
    """Why no kernel can run on tensors like this one; None when one can."""
    if x.device.type != "cpu":
        return f"it runs on CPUs and the tensors are on '{x.device}'"
    if x.dtype not in DTYPES:
        return f"its kernels compute in float32 or float64, not in {x.dtype}"
    if find_spec("numba") is None:
        return "the package 'numba' is not installed (pip install numba)"
    return None
