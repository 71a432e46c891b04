"""SSD, the state space dual scan of Mamba-2: the one door to every backend.

    h[t] = exp(dt[t] * A) * h[t-1]  +  dt[t] * x[t] (outer) B[t],    h = 0 before each segment
    y[t] = h[t] . C[t]  +  D * x[t]

Dao and Gu, "Transformers are SSMs", ICML 2024, https://arxiv.org/abs/2405.21060.

Shape letters, here and in every file above this one:
    b batch    l length    h heads    p head size    g groups    n state size    d model size
"""

from __future__ import annotations

import torch
from torch import Tensor

from .packing import Segments
from .ssd_reference import ssd_reference
from .ssd_torch import ssd_torch

BACKENDS = ("auto", "torch", "reference")


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
        x: (b, l, h, p), float32 or float64.
        dt: (b, l, h), the step sizes, >= 0 (after the softplus).
        A: (h,), the decay rates, usually < 0.
        B: (b, l, g, n).  C: (b, l, g, n).  h must be a multiple of g.
        D: (h,) or (h, p), the skip connection; None leaves it out.
        cu_seqlens: (S + 1,) borders of the segments of a stream (then b is 1), or a `Segments`.
        chunk_size: tokens of a chunk in `torch`, None for its own choice.
        backend: `torch` (chunked, any device), `reference` (the recurrence) or `auto` (which is `torch`).

    Returns:
        y: (b, l, h, p), in the dtype of x.

    Raises:
        ValueError: on a wrong shape, dtype or backend.
    """
    _check(x, dt, A, B, C, D, chunk_size, backend)
    segments = Segments.of_batch(x, cu_seqlens)
    stream = [t.flatten(0, 1) for t in (x, dt)] + [A] + [t.flatten(0, 1) for t in (B, C)] + [D, segments]
    y = ssd_reference(*stream) if backend == "reference" else ssd_torch(*stream, chunk_size)
    return y.view(x.shape)


def _check(x, dt, A, B, C, D, chunk_size, backend) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"ssd has the backends {', '.join(BACKENDS)}; got '{backend}'")
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
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"ssd computes in float32 or float64, got {x.dtype}: cast before, as layers.Mamba2 does")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
