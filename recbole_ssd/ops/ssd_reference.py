"""SSD by its definition: one step after the other. The truth that every other backend is held against.

    h[t] = exp(dt[t] * A) * h[t-1]  +  dt[t] * x[t] (outer) B[t]
    y[t] = h[t] . C[t]  +  D * x[t]

Dao and Gu, "Transformers are SSMs", ICML 2024, https://arxiv.org/abs/2405.21060, equation (1) and section 7.

Shape letters, here and in every file above this one:
    b batch    l length    h heads    p head size    g groups    n state size    T tokens of a stream
"""

from __future__ import annotations

import torch
from torch import Tensor

from .packing import Segments


def ssd_reference(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, segments: Segments
) -> Tensor:
    """The recurrence over a stream, in the dtype of its inputs, differentiable by autograd.

    Args:
        x: (T, h, p).  dt: (T, h).  A: (h,).  B, C: (T, g, n).  D: (h,) or (h, p) or None.
        segments: the borders at which the state starts again from zero.

    Returns:
        y, (T, h, p).
    """
    heads_per_group = x.shape[1] // B.shape[1]
    B = B.repeat_interleave(heads_per_group, dim=1)  # (T, h, n)
    C = C.repeat_interleave(heads_per_group, dim=1)
    decay = torch.exp(dt * A)[..., None, None]  # (T, h, 1, 1)
    added = (dt[..., None] * x)[..., None] * B[:, :, None, :]  # (T, h, p, n)
    is_first = set(segments.first.tolist())

    ys, state = [], None
    for t in range(segments.total):
        state = added[t] if t in is_first else decay[t] * state + added[t]
        ys.append((state * C[t, :, None, :]).sum(-1))
    y = torch.stack(ys)  # (T, h, p)
    return y if D is None else y + D.view(x.shape[1], -1) * x
