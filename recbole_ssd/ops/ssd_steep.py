"""The tokens of `ssd_torch` whose decay is too steep to be factored: the mask comes before the exponential.

    y[i] = sum_{j<i} (C[i] . B[j]) e^(c[i] - c[j]) dt[j] x[j]  +  e^(c[i]) C[i] . S
    S'   = e^(c[q]) S  +  sum_j e^(c[q] - c[j]) dt[j] B[j] (outer) x[j]

What a token gives to itself does not decay, and only what B and C owe to it is a matter of this file. It is done for
whole (chunk, head) pairs that hold such a token. States and their gradients outside are those of S times `moved`.

Shape letters:    c chunks    r those of them in the pairs of one head    q tokens of a chunk
                  h heads    p head size    n state size
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass
class Grads:
    """Of the pairs' x, dt (but not through c), c, B and C."""

    head: int
    rows: Tensor
    dx: Tensor
    ddt: Tensor
    dc: Tensor
    dB: Tensor
    dC: Tensor | None = None

    def add_to(self, dx: Tensor, ddt: Tensor, dc: Tensor, dB: Tensor, dC: Tensor) -> None:
        """dx (c, q, h, p), ddt and dc (c, q, h), dB and dC (c, q, n)."""
        for total, grad in ((dx, self.dx), (ddt, self.ddt), (dc, self.dc)):
            total[self.rows, :, self.head] += grad
        dB[self.rows] += self.dB
        if self.dC is not None:
            dC[self.rows] += self.dC


@dataclass
class Pairs:
    """All chunks of a block with a steep token of one head."""

    head: int
    rows: Tensor  # (r,) the chunks
    beyond: Tensor  # (r, q, 1) the tokens
    x: Tensor  # (r, q, p)
    dt: Tensor  # (r, q, 1)
    B: Tensor  # (r, q, n)
    C: Tensor  # (r, q, n)
    c: Tensor  # (r, q, 1) float64
    state: Tensor | None  # S, (r, n, p)
    moved: float

    def first(self, chunks: int) -> Pairs:
        """Those in the first chunks of the block."""
        here = self.rows < chunks
        names = ("rows", "beyond", "x", "dt", "B", "C", "c", "state")
        return replace(self, **{name: t[here] for name in names if (t := getattr(self, name)) is not None})

    def forward(self) -> Tensor:
        """y, (r, q, p)."""
        y = (self.C @ self.B.mT * self._within()) @ (self.x * self.dt)
        return y if self.state is None else y + self._since_start() * (self.C @ self.state)

    def put(self, y: Tensor, mine: Tensor) -> None:
        """Replaces the steep tokens' rows of y, (c, q, h, p)."""
        y[self.rows, :, self.head] = torch.where(self.beyond, mine, y[self.rows, :, self.head])

    def leave(self, after: Tensor) -> None:
        """Replaces the states after the chunks, (c, n, h, p)."""
        state = self.B.mT @ (self._until_end() * self.dt * self.x)
        if self.state is not None:
            state += self._since_start()[:, -1:] * self.state
        after[self.rows, :, self.head] = state * self.moved

    def backward(self, dy: Tensor) -> Grads:
        """Gradients of `forward` but for the state's, from dy (c, q, h, p)."""
        dy = self._mine(dy)
        within, product = self._within(), self.C @ self.B.mT
        dproduct = dy @ (self.x * self.dt).mT * (within + torch.eye(within.shape[1]).to(within))
        flow = (dproduct * product).tril(-1).double()
        dxd = (product * within).mT @ dy
        dB, dC, dc = dproduct.mT @ self.C, dproduct @ self.B, flow.sum(2) - flow.sum(1)
        if self.state is not None:
            up = self._since_start() * dy
            dC += up @ self.state.mT
            dc += (up * (self.C @ self.state)).sum(-1)
        return Grads(self.head, self.rows, dxd * self.dt, (dxd * self.x).sum(-1), dc, dB, dC)

    def state_grad(self, dy: Tensor, dstate: Tensor) -> None:
        """Adds to the gradient of the states before the chunks, (c, n, h, p)."""
        dstate[self.rows, :, self.head] += self.C.mT @ (self._since_start() * self._mine(dy)) / self.moved

    def backward_leave(self, dafter: Tensor) -> Grads:
        """Gradients of `leave` but for the state's and c[q]'s, which are those of any chunk."""
        dadded = dafter[self.rows, :, self.head] * self.moved
        dxd = self._until_end() * (self.B @ dadded)
        ddt = (dxd * self.x).sum(-1)
        dB = (self._until_end() * self.dt * self.x) @ dadded.mT
        return Grads(self.head, self.rows, dxd * self.dt, ddt, -(ddt * self.dt[..., 0]).double(), dB)

    def _mine(self, dy: Tensor) -> Tensor:
        return torch.where(self.beyond, dy[self.rows, :, self.head], 0.0)

    def _within(self) -> Tensor:
        """Decay from token j to a later token i, zero on and above the diagonal, (r, q, q)."""
        q = self.c.shape[1]
        not_later = torch.ones(q, q, dtype=torch.bool, device=self.c.device).triu()
        return (self.c - self.c.mT).masked_fill(not_later, float("-inf")).exp().to(self.x.dtype)

    def _since_start(self) -> Tensor:
        return self.c.exp().to(self.x.dtype)  # (r, q, 1)

    def _until_end(self) -> Tensor:
        return (self.c[:, -1:] - self.c).exp().to(self.x.dtype)  # (r, q, 1)


def pairs(
    x: Tensor, dt: Tensor, B: Tensor, C: Tensor, c: Tensor, steep: Tensor, state: Tensor | None, moved: float
) -> list[Pairs]:
    """Of every head with a steep token: x (c, q, h, p), dt, c and steep (c, q, h, 1), state (c, n, h, p)."""
    hit = steep.any(1)[..., 0]  # (c, h)
    found = []
    for head in hit.any(0).nonzero()[:, 0].tolist():
        rows = hit[:, head].nonzero()[:, 0]
        mine = [t[rows, :, head] for t in (steep, x, dt, c)]
        before = None if state is None else state[rows, :, head] / moved
        found.append(Pairs(head, rows, *mine[:3], B[rows], C[rows], mine[3], before, moved))
    return found
