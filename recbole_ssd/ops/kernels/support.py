"""Whether Triton kernels can run here. Importable without triton."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # triton reads it when a kernel is decorated
DTYPES = (torch.float32, torch.bfloat16)
OLDEST_GPU = (8, 0)  # the first with bfloat16 and tf32 products


def refusal(x: Tensor) -> str | None:
    """Why no kernel can run on tensors like this one; None when one can."""
    if find_spec("triton") is None:
        return "the package 'triton' is not installed (torch's CUDA builds bring it; pip install triton)"
    if x.dtype not in DTYPES:
        return f"its kernels compute in float32 or bfloat16, not in {x.dtype}"
    if INTERPRETED:
        return "Triton's interpreter has no bfloat16 arithmetic" if x.dtype == torch.bfloat16 else None
    if not x.is_cuda:
        return f"it needs a CUDA device and the tensors are on '{x.device}'"
    if torch.cuda.get_device_capability(x.device) < OLDEST_GPU:
        return f"{torch.cuda.get_device_name(x.device)} is older than Ampere (compute capability 8.0)"
    return None
