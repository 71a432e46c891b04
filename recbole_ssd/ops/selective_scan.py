"""The selective scan of Mamba-1: the one door to every backend.

    h[t] = exp(dt[t] (outer) A) * h[t-1]  +  (dt[t] * x[t]) (outer) B[t],    h = 0 before each segment
    y[t] = h[t] . C[t]  +  D * x[t]

Gu and Dao, "Mamba", https://arxiv.org/abs/2312.00752, equation (2). mamba-ssm has no packing for it; every backend here
does.

Shape letters:    b batch    l length    i inner size, the channels    n state size    T = b * l tokens
"""

from __future__ import annotations

from functools import cache
from logging import getLogger

import torch
from torch import Tensor

from . import selective_scan_mamba
from .kernels import support
from .packing import Segments
from .selective_scan_reference import selective_scan_reference
from .selective_scan_torch import selective_scan_torch

MOST_STATES = 256  # n that our Triton kernels have room for


def _triton(*tensors) -> Tensor:
    from .kernels.selective_scan import selective_scan_triton  # late: it imports triton

    return selective_scan_triton(*tensors)


BACKENDS = {
    "torch": selective_scan_torch,
    "triton": _triton,
    "reference": selective_scan_reference,
    "mamba_ssm": selective_scan_mamba.selective_scan_mamba,
}
KERNELS = {"mamba_ssm": "mamba-ssm's kernel", "triton": "our Triton kernels"}  # for `auto`, the first choice first


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    cu_seqlens: Tensor | Segments | None = None,
    backend: str = "auto",
) -> Tensor:
    """The scan over a dense batch, or over a packed stream whose state starts again at every segment.

    A backend changes rounding and speed, never the function.

    Args:
        x: (b, l, i), float32 or float64.
        dt: (b, l, i), the step sizes, >= 0 (after the softplus).
        A: (i, n), the decay rates, < 0.
        B: (b, l, n).  C: (b, l, n).
        D: (i,), the skip connection; None leaves it out.
        cu_seqlens: (S + 1,) borders of the segments of a stream (then b is 1), or a `Segments`.
        backend: `torch` (blocks of chunks, any device), `triton` (our CUDA kernels, float32), `mamba_ssm` (that
            package's CUDA kernel, float32), `reference` (the recurrence), or `auto`: on a GPU `mamba_ssm` where it can
            run, else `triton` where it can, else `torch`.

    Returns:
        y: (b, l, i), in the dtype of x.

    Raises:
        ValueError: on a wrong shape, dtype or backend.
        RuntimeError: when the backend asked for cannot run on this machine or these tensors.
    """
    _check(x, dt, A, B, C, D, backend)
    segments = Segments.of_batch(x, cu_seqlens)
    scan = BACKENDS[_choose(x, A) if backend == "auto" else backend]
    y = scan(x.flatten(0, 1), dt.flatten(0, 1), A, B.flatten(0, 1), C.flatten(0, 1), D, segments)
    return y.view(x.shape)


def _check(x, dt, A, B, C, D, backend) -> None:
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"selective_scan has the backends auto, {', '.join(BACKENDS)}; got '{backend}'")
    if x.dim() != 3 or A.dim() != 2:
        raise ValueError(f"x must be (b, l, i) and A (i, n), got {tuple(x.shape)} and {tuple(A.shape)}")
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"selective_scan computes in float32 or float64, got {x.dtype}: cast before calling it")
    (b, length, i), n = x.shape, A.shape[1]
    expected = {"dt": (b, length, i), "A": (i, n), "B": (b, length, n), "C": (b, length, n)}
    if D is not None:
        expected["D"] = (i,)
    for name, t in zip(expected, (dt, A, B, C, D)):
        if tuple(t.shape) != expected[name]:
            raise ValueError(
                f"{name} must have shape {expected[name]} to go with x {tuple(x.shape)} and A {tuple(A.shape)}, "
                f"got {tuple(t.shape)}"
            )
        if t.dtype != x.dtype:
            raise ValueError(f"{name} must be {x.dtype} as x is, got {t.dtype}")
    if reason := _refusal(backend, x, A):
        raise RuntimeError(f"selective_scan cannot use the backend '{backend}': {reason}; 'torch' runs anywhere")


def _refusal(backend: str, x: Tensor, A: Tensor) -> str | None:
    """Why a backend cannot run here, or None."""
    if backend == "mamba_ssm":
        return selective_scan_mamba.refusal(x, A)
    if backend == "triton":
        too_many = f"its kernels have room for {MOST_STATES} states and A has {A.shape[1]}"
        return too_many if A.shape[1] > MOST_STATES else support.refusal(x)
    return None


def _choose(x: Tensor, A: Tensor) -> str:
    if not x.is_cuda:
        return "torch"
    missed = ""
    for backend, name in KERNELS.items():
        reason = _refusal(backend, x, A)
        if reason is None:
            _log_once(f"selective_scan runs on {name}{missed}")
            return backend
        missed += f"; not on {name}: {reason}"
    _log_once(f"selective_scan runs in plain torch{missed}")
    return "torch"


@cache
def _log_once(sentence: str) -> None:
    getLogger().info(sentence)
