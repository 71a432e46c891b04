"""The selective scan of Mamba-1 by its definition: one step after the other. The truth for every other backend.

    h[t] = exp(dt[t] (outer) A) * h[t-1]  +  (dt[t] * x[t]) (outer) B[t],    h = 0 before each segment
    y[t] = h[t] . C[t]  +  D * x[t]

Gu and Dao, "Mamba", https://arxiv.org/abs/2312.00752, equation (2) with the discretization of section 3.2: as in their
code, exp for A and a plain product with dt for B.

Shape letters:    T tokens of a stream    i inner size, the channels    n state size
"""

from __future__ import annotations

import torch
from torch import Tensor

from .packing import Segments


def selective_scan_reference(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, segments: Segments
) -> Tensor:
    """The recurrence over a stream, in the dtype of its inputs, differentiable by autograd.

    Args:
        x, dt: (T, i).  A: (i, n).  B, C: (T, n).  D: (i,) or None.
        segments: the borders at which the state starts again from zero.

    Returns:
        y, (T, i).
    """
    decay = torch.exp(dt[..., None] * A)  # (T, i, n)
    added = (dt * x)[..., None] * B[:, None, :]
    is_first = set(segments.first.tolist())

    ys, state = [], None
    for t in range(segments.total):
        state = added[t] if t in is_first else decay[t] * state + added[t]
        ys.append((state * C[t]).sum(-1))
    y = torch.stack(ys)  # (T, i)
    return y if D is None else y + D * x
