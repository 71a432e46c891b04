"""The tokens of `ssd_torch` whose decay is too steep to be factored: the mask comes before the exponential.

    y[i] = sum_{j<=i} (C[i] . B[j]) e^(c[i] - c[j]) dt[j] x[j]  +  e^(c[i]) C[i] . S

It is done for whole (chunk, head) pairs that hold such a token.

Shape letters:    r pairs of one head    q tokens of a chunk    p head size    n state size
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Pair:
    """One head's chunks: x (r, q, p), dt (r, q), B and C (r, q, n), c (r, q) float64, state (r, n, p) or None."""

    x: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor
    c: Tensor
    state: Tensor | None

    def within(self) -> Tensor:
        """Decay from token j to token i, zero above the diagonal, (r, q, q)."""
        q = self.c.shape[1]
        future = torch.ones(q, q, dtype=torch.bool, device=self.c.device).triu(1)
        gap = (self.c[:, :, None] - self.c[:, None, :]).masked_fill(future, float("-inf"))
        return gap.exp().to(self.x.dtype)

    def since_start(self) -> Tensor:
        return self.c.exp().to(self.x.dtype)[..., None]  # (r, q, 1)


@dataclass
class Grads:
    dx: Tensor
    ddt: Tensor
    dc: Tensor
    dB: Tensor
    dC: Tensor


def pairs(steep: Tensor) -> list[tuple[int, Tensor, Tensor]]:
    """(head, its chunks r with a steep token, which tokens (r, q, 1) are steep) from bool (c, q, h)."""
    if not bool(steep.any()):
        return []
    hit = steep.any(1)  # (c, h)
    rows = {h: hit[:, h].nonzero()[:, 0] for h in hit.any(0).nonzero()[:, 0].tolist()}
    return [(h, r, steep[r, :, h, None]) for h, r in rows.items()]


def forward(s: Pair) -> Tensor:
    """y, (r, q, p)."""
    y = (s.C @ s.B.transpose(1, 2) * s.within()) @ (s.x * s.dt[..., None])
    return y if s.state is None else y + s.since_start() * (s.C @ s.state)


def state_grad(s: Pair, dy: Tensor) -> Tensor:
    """Gradient of the state before the chunk, (r, n, p)."""
    return s.C.transpose(1, 2) @ (s.since_start() * dy)


def backward(s: Pair, dy: Tensor) -> Grads:
    """Gradients of `forward` but for the state's."""
    within, product, xd = s.within(), s.C @ s.B.transpose(1, 2), s.x * s.dt[..., None]
    dproduct = dy @ xd.transpose(1, 2) * within
    flow = (dproduct * product).tril(-1).double()  # a token does not decay on its way to itself
    dxd = (product * within).transpose(1, 2) @ dy
    dB, dC = dproduct.transpose(1, 2) @ s.C, dproduct @ s.B
    dc = flow.sum(2) - flow.sum(1)
    if s.state is not None:
        up = s.since_start() * dy
        dC = dC + up @ s.state.transpose(1, 2)
        dc = dc + (up * (s.C @ s.state)).sum(-1)
    return Grads(dx=dxd * s.dt[..., None], ddt=(dxd * s.x).sum(-1), dc=dc, dB=dB, dC=dC)
