"""SSD in plain torch, chunk by chunk: matrix products instead of a step per token, on any device.

Within a chunk, with c[i] = dt[1] A + ... + dt[i] A and S the state before the chunk,

    y[i] = e^(c[i]) * ( sum_{j<=i} (C[i] . B[j]) e^(-c[j]) dt[j] x[j]  +  C[i] . S )

so one lower triangle of C B^T serves all heads of a group and no (heads, q, q) tensor exists. The decays are summed in
float64, and both exponentials are moved by a constant, so that c may reach -2 LIMIT; tokens beyond that take the plain
form (`ssd_steep`). Both choices look at a token's past only, and chunks are aligned to segments (`chunking`): neither
the future nor a neighbour reaches a result, not even in rounding. The backward is written out and recomputes the chunk.

Section 6 of Dao and Gu, ICML 2024, https://arxiv.org/abs/2405.21060, is the algorithm; the factored decay is ours.

Shape letters:    T tokens    h heads    p head size    g groups    n state size    c chunks    q tokens of a chunk
                  m = c * g    w = h / g * p
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import ssd_steep
from .chunking import Chunks, aligned_chunks
from .packing import Segments

CHUNK = 64
LIMIT = {
    torch.float32: 60.0,
    torch.float64: 300.0,
}  # e^LIMIT, times a small gradient, must stay a normal number


def ssd_torch(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    segments: Segments,
    chunk_size: int | None = None,
) -> Tensor:
    """The chunked form over a stream. Shapes as in `ssd_reference`; float32 or float64."""
    D = x.new_zeros(x.shape[1], 1) if D is None else D.view(x.shape[1], -1)
    return _SSD.apply(x, dt, A, B, C, D, segments, chunk_size or CHUNK)


class _SSD(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, segments, size):
        ctx.save_for_backward(x, dt, A, B, C, D)
        ctx.layout = aligned_chunks(segments, size)
        ctx.states = []
        y = x.new_empty(x.shape[0] + 1, *x.shape[1:])
        for chunks in ctx.layout:
            block = _Block(chunks, x, dt, A, B, C)
            out, state = block.forward()
            ctx.states.append(state)
            chunks.scatter(torch.addcmul(out, block.x, D), y)
        return y[:-1]

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, dt, A, B, C, D = ctx.saved_tensors
        dx, ddt, dB, dC = (v.new_empty(v.shape[0] + 1, *v.shape[1:]) for v in (x, dt, B, C))
        dA = torch.zeros_like(A, dtype=torch.float64)
        for chunks, state in zip(ctx.layout, ctx.states):
            block = _Block(chunks, x, dt, A, B, C)
            dy_block = chunks.zero_padding(chunks.gather(dy.reshape(len(dy), -1))).view(block.x.shape)
            dx_block, ddt_block, da, dB_block, dC_block = block.backward(dy_block, state)
            dA += (da * block.dt.double()).sum((0, 1))
            chunks.scatter(dx_block.addcmul_(dy_block, D), dx)
            chunks.scatter(ddt_block + (da * A.double()).to(dt.dtype), ddt)
            chunks.scatter(dB_block, dB)
            chunks.scatter(dC_block, dC)
        dD = (dy * x).sum(0)  # (h, p)
        dD = dD if D.shape == dD.shape else dD.sum(1, keepdim=True)
        return dx[:-1], ddt[:-1], dA.to(A.dtype), dB[:-1], dC[:-1], dD, None, None


class _Block:
    """All chunks of one width: their tensors, and the forward and backward over them."""

    def __init__(self, chunks: Chunks, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor):
        self.chunks, self.g = chunks, B.shape[1]
        self.x = chunks.gather(x)  # (c, q, h, p)
        self.dt = chunks.zero_padding(chunks.gather(dt))  # (c, q, h), 0 in padding: nothing enters, nothing decays
        self.B, self.C = self._by_group(chunks.gather(B)), self._by_group(chunks.gather(C))  # (m, q, n)

        self.c = (self.dt.double() * A.double()).cumsum(1)  # (c, q, h) log decay since the chunk began
        limit = LIMIT[x.dtype]
        moved = self.c + limit
        gentle = moved.abs() <= limit
        self.steep = ssd_steep.pairs(~gentle)
        moved = torch.where(gentle, moved, 0.0)
        self.up = (moved.exp() * gentle).to(x.dtype)  # (c, q, h) e^c, moved
        self.moved = math.exp(-limit)
        self.down = (-moved).exp() * gentle  # e^-c, moved back, float64
        self.enter = (self.down * self.dt).to(x.dtype)
        self.down = self.down.to(x.dtype)
        self.xs = self._by_group(self.x * self.enter[..., None])  # (m, q, w)
        self.multi = len(chunks.alive) > 1
        if self.multi:
            self.over = self._per_state(self.c[:, -1].exp().to(x.dtype))  # (m, 1, w) decay over the whole chunk
            self.leave = (self.c[:, -1:] - self.c).exp().to(x.dtype)  # (c, q, h) decay to the end of the chunk
            self.leaving = self._by_group(self.x * (self.leave * self.dt)[..., None])  # (m, q, w)

    def _by_group(self, t: Tensor) -> Tensor:
        """(c, q, h, p) or (c, q, g, n) -> (m, q, ...)."""
        c, q = t.shape[:2]
        return t.reshape(c, q, self.g, -1).transpose(1, 2).reshape(c * self.g, q, -1)

    def _by_head(self, t: Tensor) -> Tensor:
        """(m, q, w) -> (c, q, h, p)."""
        c, q, h, p = self.x.shape
        return t.view(c, self.g, q, -1).transpose(1, 2).reshape(c, q, h, p)

    def _per_state(self, t: Tensor) -> Tensor:
        """A number per (c, h) -> (m, 1, w), to scale states (m, n, w)."""
        c, h = t.shape
        return t[..., None].expand(c, h, self.x.shape[3]).reshape(c * self.g, 1, -1)

    def _triangle(self) -> Tensor:
        return torch.bmm(self.C, self.B.transpose(1, 2)).tril_()  # (m, q, q)

    def forward(self) -> tuple[Tensor, Tensor | None]:
        """y without D, (c, q, h, p), and the states (m, n, w) before each chunk (None: all segments are one chunk)."""
        state = self._states() if self.multi else None
        y = self._by_head(self._mixed(self._triangle(), state)) * self.up[..., None]
        for head, rows, beyond in self.steep:
            plain = ssd_steep.forward(self._pair(head, rows, state))
            y[rows, :, head] = torch.where(beyond, plain, y[rows, :, head])
        return y, state

    def _mixed(self, triangle: Tensor, state: Tensor | None) -> Tensor:
        """y before it is scaled by e^c, (m, q, w)."""
        z = torch.bmm(triangle, self.xs)
        if state is not None:
            later = self._later()
            z[later].baddbmm_(self.C[later], state[later], alpha=self.moved)
        return z

    def _later(self) -> slice:
        """The chunks that a state comes into."""
        return slice(self.chunks.alive[0] * self.g, None)

    def _states(self) -> Tensor:
        added = torch.bmm(self.B.transpose(1, 2), self.leaving)  # (m, n, w)
        state = torch.empty_like(added)
        state[: self._later().start] = 0
        for here, there in self._steps():
            torch.addcmul(added[here], self.over[here], state[here], out=state[there])
        return state

    def _steps(self) -> list[tuple[slice, slice]]:
        """`Chunks.steps` in rows of (m, ...)."""
        g = self.g
        return [
            (slice(here.start * g, here.stop * g), slice(there.start * g, there.stop * g))
            for here, there in self.chunks.steps()
        ]

    def _pair(self, head: int, rows: Tensor, state: Tensor | None) -> ssd_steep.Pair:
        return ssd_steep.Pair(
            x=self.x[rows, :, head],
            dt=self.dt[rows, :, head],
            B=self.B[self._group(head, rows)],
            C=self.C[self._group(head, rows)],
            c=self.c[rows, :, head],
            state=None if state is None else self._head_of(state, head)[rows],
        )

    def _head_of(self, states: Tensor, head: int) -> Tensor:
        """View (c, n, p) of one head's states in (m, n, w)."""
        c, _, h, p = self.x.shape
        group, within = divmod(head, h // self.g)
        return states.view(c, self.g, -1, h // self.g, p)[:, group, :, within]

    def _group(self, head: int, rows: Tensor) -> Tensor:
        """Rows of (m, ...) of the head's group in these chunks."""
        return rows * self.g + head * self.g // self.x.shape[2]

    def backward(self, dy: Tensor, state: Tensor | None):
        """dx, ddt (direct), da (float64; a = dt * A), dB, dC from dy, all (c, q, ...)."""
        triangle = self._triangle()
        diagonal = triangle.diagonal(dim1=1, dim2=2).unsqueeze(-1).clone()  # (m, q, 1) no decay: no part of dc
        triangle.tril_(-1)
        dz = self._by_group(dy * self.up[..., None])  # (m, q, w)
        dc = self._by_head(self._mixed(triangle, state).mul_(dz)).sum(-1).double()  # (c, q, h)
        dtriangle = torch.bmm(dz, self.xs.transpose(1, 2)).tril_()
        dxs = self._by_head(torch.bmm(triangle.transpose(1, 2), dz))  # (c, q, h, p) without the diagonal
        dB, dC = torch.bmm(dtriangle.transpose(1, 2), self.C), torch.bmm(dtriangle, self.B)

        ddt = (dxs * self.x).sum(-1) * self.down  # (c, q, h)
        dc -= (ddt * self.dt).double()
        own = self._by_head(dz * diagonal)
        dx = dxs.add_(own).mul_(self.enter[..., None])
        ddt += own.mul_(self.x).sum(-1) * self.down

        dstate = torch.bmm(self.C.transpose(1, 2), dz).mul_(self.moved) if self.multi else None
        for head, rows, beyond in self.steep:
            self._backward_steep(
                head, rows, torch.where(beyond, dy[rows, :, head], 0.0), state, (dx, ddt, dc, dB, dC, dstate)
            )
        if self.multi:
            later = self._later()
            dC[later].baddbmm_(dz[later], state[later].transpose(1, 2), alpha=self.moved)
            self._backward_states(dstate, state, dx, ddt, dc, dB)
        da = self.chunks.zero_padding(dc.flip(1).cumsum(1).flip(1))
        shape = (len(self.chunks), self.g, self.chunks.width, -1)
        return (
            dx,
            self.chunks.zero_padding(ddt),
            da,
            dB.view(shape).transpose(1, 2),
            dC.view(shape).transpose(1, 2),
        )

    def _backward_steep(self, head: int, rows: Tensor, dy: Tensor, state: Tensor | None, totals: tuple) -> None:
        """Adds the gradients of one head's steep tokens, dy (r, q, p), to the totals."""
        dx, ddt, dc, dB, dC, dstate = totals
        pair = self._pair(head, rows, state)
        grads = ssd_steep.backward(pair, dy)
        for total, grad in ((dx, grads.dx), (ddt, grads.ddt), (dc, grads.dc)):
            total[rows, :, head] += grad
        dB[self._group(head, rows)] += grads.dB
        dC[self._group(head, rows)] += grads.dC
        if dstate is not None:
            self._head_of(dstate, head)[rows] += ssd_steep.state_grad(pair, dy)

    def _backward_states(self, dstate: Tensor, state: Tensor, dx: Tensor, ddt: Tensor, dc: Tensor, dB: Tensor) -> None:
        """Runs the scan over chunks backwards and adds its part to the gradients."""
        dadded = torch.zeros_like(dstate)
        for here, there in reversed(self._steps()):
            dadded[here] = dstate[there]
            dstate[here].addcmul_(self.over[here], dstate[there])
            flow = (dstate[there] * state[there]).sum(1)  # (m, w)
            c = slice(here.start // self.g, here.stop // self.g)
            dc[c, -1] += flow.view(c.stop - c.start, self.x.shape[2], -1).sum(-1)
        dleaving = self._by_head(torch.bmm(self.B, dadded))  # (c, q, h, p)
        dB.baddbmm_(self.leaving, dadded.transpose(1, 2))
        flow = (dleaving * self.x).sum(-1) * self.leave
        ddt += flow
        dc -= (flow * self.dt).double()
        dx.addcmul_(dleaving, (self.leave * self.dt)[..., None])
