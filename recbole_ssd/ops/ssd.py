"""SSD, the state space dual scan of Mamba-2: the one door to every backend.

    h[t] = exp(dt[t] * A) * h[t-1]  +  dt[t] * x[t] (outer) B[t],    h = 0 before each segment
    y[t] = h[t] . C[t]  +  D * x[t]

Dao and Gu, "Transformers are SSMs", ICML 2024, https://arxiv.org/abs/2405.21060.

Shape letters, here and in every file above this one:
    b batch    l length    h heads    p head size    g groups    n state size    d model size
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import ssd_mamba
from .backends import choose
from .compiled import support as on_cpu
from .kernels import support
from .packing import Segments
from .ssd_reference import ssd_reference
from .ssd_torch import ssd_torch

WIDEST = 128  # head and state size that the kernels' tiles have room for


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    cu_seqlens: Tensor | Segments | None = None,
    chunk_size: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """The scan over a dense batch, or over a packed stream whose state starts again at every segment.

    A backend changes rounding and speed, never the function.

    Args:
        x: (b, l, h, p), float32 or float64; for `triton` and `mamba_ssm` float32 or bfloat16.
        dt: (b, l, h), the step sizes, >= 0 (after the softplus).
        A: (h,), the decay rates, usually < 0.
        B: (b, l, g, n).  C: (b, l, g, n).  h must be a multiple of g.  Where x is bfloat16, dt, A and D are float32.
        D: (h,) or (h, p), the skip connection; None leaves it out.
        cu_seqlens: (S + 1,) borders of the segments of a stream (then b is 1), or a `Segments`.
        chunk_size: tokens of a chunk, None for the backend's own choice; `numba` takes None only, `reference` has none.
        backend: `torch` (chunked, any device), `triton` (our kernels), `numba` (our kernels for CPUs), `mamba_ssm`
            (that package's kernels), `reference` (the recurrence), or `auto`: on a CPU `numba` and on a GPU `triton`
            where they can run, else `torch`.

    Returns:
        y: (b, l, h, p), in the dtype of x.

    Raises:
        ValueError: on a wrong shape, dtype or backend.
        RuntimeError: when the backend asked for cannot run on this machine or these tensors.
    """
    _check(x, dt, A, B, C, D, chunk_size)
    refusals = {
        "triton": lambda: support.refusal(x) or _too_wide(x.shape[3], B.shape[3]),
        "numba": lambda: on_cpu.refusal(x) or _own_chunks(chunk_size) or on_cpu.mixed(x, dt, A, B, C, D),
        "mamba_ssm": lambda: ssd_mamba.refusal(x, B, C, chunk_size),
        "reference": lambda: None,
    }
    name = choose("ssd", backend, x, refusals)
    if name in ("torch", "reference") and x.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"ssd's backend '{name}' computes in float32 or float64, got {x.dtype}: cast before calling it"
        )
    segments = Segments.of_batch(x, cu_seqlens)
    stream = [t.flatten(0, 1) for t in (x, dt)] + [A] + [t.flatten(0, 1) for t in (B, C)] + [D, segments]
    return _backend(name)(*stream, chunk_size).view(x.shape)


def _backend(name: str) -> Callable:
    if name == "triton":
        from .kernels.ssd import ssd_triton

        return ssd_triton
    if name == "numba":
        from .compiled.ssd import ssd_numba

        return lambda *stream: ssd_numba(*stream[:-1])  # it has chunks of its own
    if name == "reference":
        return lambda *stream: ssd_reference(*stream[:-1])  # it has none
    return ssd_mamba.ssd_mamba if name == "mamba_ssm" else ssd_torch


def _own_chunks(chunk_size: int | None) -> str | None:
    return None if chunk_size is None else f"its kernels have chunks of their own, and chunk_size is {chunk_size}"


def _too_wide(p: int, n: int) -> str | None:
    if max(p, n) > WIDEST:
        return f"its kernels have room for heads and states of {WIDEST} and these have {p} and {n}"
    return None


def _check(x, dt, A, B, C, D, chunk_size) -> None:
    if x.dim() != 4 or B.dim() != 4:
        raise ValueError(f"x must be (b, l, h, p) and B (b, l, g, n), got {tuple(x.shape)} and {tuple(B.shape)}")
    b, length, h, p = x.shape
    g, n = B.shape[2:]
    expected = {"dt": (b, length, h), "A": (h,), "B": (b, length, g, n), "C": (b, length, g, n)}
    for name, t in zip(expected, (dt, A, B, C)):
        if tuple(t.shape) != expected[name]:
            raise ValueError(
                f"{name} must have shape {expected[name]} to go with x {tuple(x.shape)}, got {tuple(t.shape)}"
            )
    if h % g:
        raise ValueError(f"the {h} heads of x must be a multiple of the {g} groups of B and C")
    if D is not None and tuple(D.shape) not in ((h,), (h, p)):
        raise ValueError(f"D must have shape {(h,)} or {(h, p)}, got {tuple(D.shape)}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
