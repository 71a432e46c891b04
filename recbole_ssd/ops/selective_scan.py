"""The selective scan of Mamba-1: the one door to every backend.

    h[t] = exp(dt[t] (outer) A) * h[t-1]  +  (dt[t] * x[t]) (outer) B[t],    h = 0 before each segment
    y[t] = h[t] . C[t]  +  D * x[t]

Gu and Dao, "Mamba", https://arxiv.org/abs/2312.00752, equation (2). mamba-ssm has no packing for it; every backend here
does.

Shape letters:    b batch    l length    i inner size, the channels    n state size    T = b * l tokens
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import selective_scan_mamba
from .backends import choose
from .compiled import support as on_cpu
from .kernels import support
from .packing import Segments
from .selective_scan_reference import selective_scan_reference
from .selective_scan_torch import selective_scan_torch

MOST_STATES = 256  # n that our Triton kernels have room for


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
        x: (b, l, i), float32 or float64; for `triton` float32 or bfloat16.
        dt: (b, l, i), the step sizes, >= 0 (after the softplus).
        A: (i, n), the decay rates, < 0.
        B: (b, l, n).  C: (b, l, n).  Where x is bfloat16, dt, A and D are float32.
        D: (i,), the skip connection; None leaves it out.
        cu_seqlens: (S + 1,) borders of the segments of a stream (then b is 1), or a `Segments`.
        backend: `torch` (blocks of chunks, any device), `triton` (our kernels), `numba` (our kernels for CPUs),
            `mamba_ssm` (that package's CUDA kernel, float32), `reference` (the recurrence), or `auto`: on a CPU `numba`
            and on a GPU `mamba_ssm`, else `triton`, where they can run, else `torch`.

    Returns:
        y: (b, l, i), in the dtype of x.

    Raises:
        ValueError: on a wrong shape, dtype or backend.
        RuntimeError: when the backend asked for cannot run on this machine or these tensors.
    """
    _check(x, dt, A, B, C, D)
    name = _choose(backend, x, A)
    if name in ("torch", "reference") and x.dtype == torch.bfloat16:
        raise ValueError(
            f"selective_scan's backend '{name}' computes in float32 or float64, not in {x.dtype}: cast first"
        )
    segments = Segments.of_batch(x, cu_seqlens)
    y = _backend(name)(x.flatten(0, 1), dt.flatten(0, 1), A, B.flatten(0, 1), C.flatten(0, 1), D, segments)
    return y.view(x.shape)


def _choose(backend: str, x: Tensor, A: Tensor) -> str:
    refusals = {
        "mamba_ssm": lambda: selective_scan_mamba.refusal(x, A),
        "triton": lambda: support.refusal(x) or _too_many(A),
        "numba": lambda: on_cpu.refusal(x),
        "reference": lambda: None,
    }
    return choose("selective_scan", backend, x, refusals, on_gpu=("mamba_ssm", "triton"))


def _backend(name: str) -> Callable:
    if name == "triton":
        from .kernels.selective_scan import selective_scan_triton

        return selective_scan_triton
    if name == "numba":
        from .compiled.selective_scan import selective_scan_numba

        return selective_scan_numba
    if name == "mamba_ssm":
        return selective_scan_mamba.selective_scan_mamba
    return selective_scan_reference if name == "reference" else selective_scan_torch


def _too_many(A: Tensor) -> str | None:
    if A.shape[1] > MOST_STATES:
        return f"its kernels have room for {MOST_STATES} states and A has {A.shape[1]}"
    return None


def _check(x, dt, A, B, C, D) -> None:
    if x.dim() != 3 or A.dim() != 2:
        raise ValueError(f"x must be (b, l, i) and A (i, n), got {tuple(x.shape)} and {tuple(A.shape)}")
    if x.dtype not in (torch.float32, torch.float64, torch.bfloat16):
        raise ValueError(
            f"selective_scan computes in float32, float64 or bfloat16, got {x.dtype}: cast before calling it"
        )
    (b, length, i), n = x.shape, A.shape[1]
    expected = {"dt": (b, length, i), "A": (i, n), "B": (b, length, n), "C": (b, length, n)}
    if D is not None:
        expected["D"] = (i,)
    exact = torch.float32 if x.dtype == torch.bfloat16 else x.dtype  # of what decays and states are made of
    dtypes = {"B": x.dtype, "C": x.dtype}
    for name, t in zip(expected, (dt, A, B, C, D)):
        if tuple(t.shape) != expected[name]:
            raise ValueError(
                f"{name} must have shape {expected[name]} to go with x {tuple(x.shape)} and A {tuple(A.shape)}, "
                f"got {tuple(t.shape)}"
            )
        if t.dtype != dtypes.get(name, exact):
            raise ValueError(f"{name} must be {dtypes.get(name, exact)} to go with x in {x.dtype}, got {t.dtype}")
