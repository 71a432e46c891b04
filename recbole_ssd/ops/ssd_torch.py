"""SSD in plain torch, chunk by chunk: matrix products instead of a step per token, on any device.

Within a chunk, with c[i] = dt[1] A + ... + dt[i] A and S the state before the chunk,

    y[i] = e^(c[i]) * ( sum_{j<i} (C[i] . B[j]) e^(-c[j]) dt[j] x[j]  +  C[i] . S )  +  (dt[i] C[i] . B[i] + D) x[i]
    S'   = e^(c[q]) * ( S  +  sum_j e^(-c[j]) dt[j] B[j] (outer) x[j] )

so one lower triangle of C B^T serves all heads and no (heads, q, q) tensor exists. The decays are summed in float64,
and both exponentials are moved by a constant (S with them), so that c may reach -2 LIMIT; tokens beyond that take the
plain form (`ssd_steep`). Both choices look at a token's past only, and chunks are aligned to segments (`chunking`):
neither the future nor a neighbour reaches a result, not even in rounding.

The backward is written out. Saved are the inputs, the decays and the states; all else is computed again, a block of
chunks at a time, in scratch that stays in a core's cache.

Section 6 of Dao and Gu, ICML 2024, https://arxiv.org/abs/2405.21060, is the algorithm; the factored decay is ours.

Shape letters:    T tokens    h heads    p head size    g groups    n state size    w = h * p    R slots of all blocks
                  c chunks of a block    q tokens of a chunk    r = c * q    m chunks that do not begin a segment
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import ssd_steep
from .chunking import Block, Blocks, blocks, coarse
from .packing import Segments

CHUNK = 64
ROOM = 2**17  # numbers of a block's x; half of it takes more calls, twice as much leaves the cache, neither is faster
ROOM_ON_GPU = 2**26  # there a launch costs more than memory (a guess, not measured)
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
    (_, h, p), g = x.shape, B.shape[1]
    D = x.new_zeros(h, 1) if D is None else D.view(h, -1)
    if g > 1:  # groups share nothing
        by_group = zip(*(t.chunk(g, dim) for t, dim in ((x, 1), (dt, 1), (A, 0), (B, 1), (C, 1), (D, 0))))
        return torch.cat([ssd_torch(*inputs, segments, chunk_size) for inputs in by_group], dim=1)
    room = ROOM if x.device.type == "cpu" else ROOM_ON_GPU
    layout = blocks(segments, chunk_size or CHUNK, room // (h * p))
    return _SSD.apply(x, dt, A, B.squeeze(1), C.squeeze(1), D, layout)


class _SSD(torch.autograd.Function):
    """The heads of one group, which share B and C, (T, n)."""

    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, layout):
        ctx.layout, ctx.decays = layout, _Decays(dt, A, layout)
        y, CB, states = _Forward(x, B, C, D, layout, ctx.decays).run()
        ctx.save_for_backward(x, A, B, C, D, CB, states)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, A, B, C, D, CB, states = ctx.saved_tensors
        return *_Backward(x, B, C, D, ctx.layout, ctx.decays, states, dy).run(A, CB), None


class _Decays:
    """What becomes of dt and A, slot by slot: (R, h, 1) each."""

    def __init__(self, dt: Tensor, A: Tensor, layout: Blocks):
        limit = LIMIT[dt.dtype]
        self.moved = math.exp(-limit)
        zero = dt.new_zeros(1, dt.shape[1])  # in padding: nothing enters, nothing decays
        self.dt = torch.cat([dt, zero]).index_select(0, layout.target)[..., None]
        self.c = self.dt * A.double()[:, None]  # the log decay since the chunk began, once it is summed
        for c in layout.by_class(self.c):
            c.cumsum_(1)
        exponent = self.c + limit
        low, high = exponent.aminmax()
        self.any_steep = bool(torch.maximum(-low, high) > limit)
        if self.any_steep:
            steep = exponent.abs() > limit
            exponent.masked_fill_(steep, 0)
        self.up = exponent.exp().to(dt.dtype)  # e^c, moved
        self.down = exponent.neg_().exp_().to(dt.dtype)  # e^-c, moved back
        self.up.index_fill_(0, layout.padding, 0)  # no gradient comes from there
        if self.any_steep:
            self.up.masked_fill_(steep, 0)
            self.down.masked_fill_(steep, 0)
            self.steep = steep.index_fill_(0, layout.padding, False)
        self.enter = self.down * self.dt


class _Run:
    """What forward and backward do with a block: rows (r, h, p) or (r, n), chunks (c, q, w) or (c, q, n)."""

    def __init__(self, x, B, C, D, layout: Blocks, decays: _Decays, states: Tensor, slabs: int):
        self.x, self.B, self.C, self.D = x, B, C, D
        self.layout, self.decays, self.w = layout, decays, x.shape[1] * x.shape[2]
        self.states = states  # before every chunk that continues another, (m, n, h, p), moved as e^c is
        self.scratch = [x.new_empty(max(layout.sizes), *x.shape[1:]) for _ in range(slabs)]

    def products(self, block: Block) -> tuple[Tensor, Tensor, Tensor]:
        """B and C, (c, q, n), and C B^T, (c, q, q)."""
        B, C = (t.index_select(0, block.index).view(-1, block.width, t.shape[1]) for t in (self.B, self.C))
        return B, C, torch.bmm(C, B.mT)

    def mix(self, block: Block, triangle: Tensor, C: Tensor, xs: Tensor, out: Tensor) -> None:
        """y before it is scaled by e^c, without its own token's part."""
        torch.bmm(triangle, xs, out=out)
        if block.enter:
            out.baddbmm_(C, self.states[block.enter].flatten(2))

    def over(self, block: Block, states: Tensor, out: Tensor) -> Tensor:
        """out = states (on, n, h, p) times the decay over each of the chunks that go on.

        By its root, twice: float32 may have no number for the decay, and one for its product with a moved state.
        """
        root = (block.chunks(self.decays.c[block.slots])[: len(states), -1:] / 2).exp().to(self.x.dtype)
        return torch.mul(states, root, out=out).mul_(root)

    def steep(self, block: Block, x: Tensor, B: Tensor, C: Tensor) -> list[ssd_steep.Pairs]:
        """The heads of a block with tokens that are too steep."""
        if not self.decays.any_steep:
            return []
        dt, c, steep = (block.chunks(t[block.slots]) for t in (self.decays.dt, self.decays.c, self.decays.steep))
        state = self.states[block.enter] if block.enter else None
        return ssd_steep.pairs(block.chunks(x), dt, B, C, c, steep, state, self.decays.moved)


class _Forward(_Run):
    def __init__(self, x, B, C, D, layout: Blocks, decays: _Decays):
        states = x.new_empty(layout.states, B.shape[1], *x.shape[1:])
        super().__init__(x, B, C, D, layout, decays, states, slabs=3)

    def run(self) -> tuple[Tensor, Tensor, Tensor]:
        """y, (T, h, p); C . B of every token, (R, 1, 1); the states."""
        out = self.x.new_empty(len(self.x) + 1, *self.x.shape[1:])  # the last row takes the padding
        target, decays, diagonals = coarse(out), self.decays, []
        for block, enter, up, dt in self.layout.split(decays.enter, decays.up, decays.dt):
            x, xs, y = (t[: len(dt)] for t in self.scratch)
            xs_chunks, y_chunks = (t.view(-1, block.width, self.w) for t in (xs, y))
            torch.index_select(self.x, 0, block.index, out=x)
            torch.mul(x, enter, out=xs)
            B, C, triangle = self.products(block)
            diagonals.append(torch.diagonal_copy(triangle, 0, 1, 2).view(-1, 1, 1))
            self.mix(block, triangle.tril_(-1), C, xs_chunks, out=y_chunks)
            y.mul_(up)
            steep = self.steep(block, x, B, C)
            for pairs in steep:
                pairs.put(block.chunks(y), pairs.forward())
            y.addcmul_(x, torch.addcmul(self.D, dt, diagonals[-1]))
            target.index_copy_(0, block.target, coarse(y))
            if block.leave:
                self._leave(block, B, xs_chunks, steep)
        return out[:-1], torch.cat(diagonals), self.states

    def _leave(self, block: Block, B: Tensor, xs: Tensor, steep: list[ssd_steep.Pairs]) -> None:
        """Fills the states after the chunks that go on."""
        after = self.states[block.leave]
        on = len(after)
        torch.bmm(B[:on].mT, xs[:on], out=after.flatten(2))
        if block.enter:
            after += self.states[block.enter][:on]
        self.over(block, after, out=after)
        for pairs in steep:
            pairs.first(on).leave(after)


class _Backward(_Run):
    def __init__(self, x, B, C, D, layout: Blocks, decays: _Decays, states: Tensor, dy: Tensor):
        super().__init__(x, B, C, D, layout, decays, states, slabs=5)
        self.dy, self.dstates = dy, torch.empty_like(states)
        self.dx = x.new_empty(len(x) + 1, *x.shape[1:])  # the last row takes the padding, here and in dB | dC
        self.dBC = B.new_empty(len(B) + 1, 2 * B.shape[1])
        self.targets = coarse(self.dx), coarse(self.dBC)
        # Slot by slot, (R, h): sums over p of dy y and dx x as far as they pass e^c, and of dy x.
        self.into, self.out, self.dyx = (torch.empty_like(decays.dt[..., 0]) for _ in range(3))
        # What states and steep tokens add to the gradients of c, and of dt where that does not pass c.
        self.dc, self.ddt = torch.zeros_like(decays.c[..., 0]), torch.zeros_like(self.out)

    def run(self, A: Tensor, CB: Tensor) -> tuple[Tensor, ...]:
        """dx, ddt, dA, dB, dC, dD."""
        decays, layout = self.decays, self.layout
        own = torch.addcmul(self.D, decays.dt, CB)  # what y takes of its own token's x
        kept = layout.split(decays.enter, decays.up, own, self.into, self.out, self.dyx)
        for block, *views in reversed(list(kept)):
            self._block(block, *views)
        dc = self.dc.add_(torch.addcmul(self.into, self.out, decays.enter[..., 0], value=-1).double())
        parts = [part.flip(1).cumsum(1).flip(1) for part in layout.by_class(dc)]
        da = torch.cat([part.flatten(0, 1) for part in parts])  # of dt A
        # Over a token that keeps less than a rounding nothing flows: what the sums leave there would meet its large dt.
        da.masked_fill_(decays.dt[..., 0] * A < 2 * math.log(torch.finfo(A.dtype).eps), 0)
        dA = (da * decays.dt[..., 0]).sum(0).to(A.dtype)
        self.ddt.addcmul_(self.out, decays.down[..., 0]).addcmul_(self.dyx, CB[..., 0]).add_((da * A).to(A.dtype))
        ddt = self.dx.new_empty(len(self.dx), len(A))
        coarse(ddt).index_copy_(0, layout.target, coarse(self.ddt))
        if self.D.shape[1] == 1:
            dD = self.dyx.index_fill_(0, layout.padding, 0).sum(0)[:, None]
        else:
            dD = (self.dy * self.x).sum(0)
        return self.dx[:-1], ddt[:-1], dA, *self.dBC[:-1].chunk(2, 1), dD

    def _block(self, block: Block, enter, up, own, into, out, dyx) -> None:
        x, xs, dy, dz, work = (t[: len(up)] for t in self.scratch)
        xs_chunks, dz_chunks, dxs = (t.view(-1, block.width, self.w) for t in (xs, dz, work))
        torch.index_select(self.x, 0, block.index, out=x)
        B, C, triangle = self.products(block)
        torch.index_select(self.dy, 0, block.index, out=dy)
        torch.sum(torch.mul(dy, x, out=work), -1, out=dyx)
        torch.mul(x, enter, out=xs)
        torch.mul(dy, up, out=dz)
        steep = self.steep(block, x, B, C)

        self.mix(block, triangle.tril_(-1), C, xs_chunks, out=dxs)
        torch.sum(work.mul_(dz), -1, out=into)
        dtriangle = torch.bmm(dz_chunks, xs_chunks.mT).tril_()
        dB, dC = torch.bmm(dtriangle.mT, C), torch.bmm(dtriangle, B)
        torch.bmm(triangle.mT, dz_chunks, out=dxs)
        self._states(block, B, C, xs_chunks, dz_chunks, dxs, dB, dC, steep)

        torch.sum(torch.mul(work, x, out=xs), -1, out=out)
        work.mul_(enter).addcmul_(dy, own)
        if steep:
            self._steep(block, steep, dy, work, dB, dC)
        for target, rows in zip(self.targets, (work, torch.cat([dB, dC], 2).flatten(0, 1))):
            target.index_copy_(0, block.target, coarse(rows))

    def _states(self, block, B, C, xs, dz, dxs, dB, dC, steep) -> None:
        """The gradients of the states before and after the chunks, and what these add to the other gradients."""
        if block.enter:
            dC.baddbmm_(dz, self.states[block.enter].flatten(2).mT)
            torch.bmm(C.mT, dz, out=self.dstates[block.enter].flatten(2))
        if block.leave:
            after, dafter = self.states[block.leave], self.dstates[block.leave]
            on = len(after)
            flow = after * dafter
            block.chunks(self.dc[block.slots])[:on, -1] += flow.sum(1).sum(-1)
            dsum = self.over(block, dafter, out=flow)  # of the state before, and of what the chunk adds
            if block.enter:
                self.dstates[block.enter][:on] += dsum
            for pairs in steep:
                dsum[pairs.first(on).rows, :, pairs.head] = 0
            dsum = dsum.flatten(2)
            dxs[:on].baddbmm_(B[:on], dsum)
            dB[:on].baddbmm_(xs[:on], dsum.mT)

    def _steep(self, block, steep, dy, dx, dB, dC) -> None:
        """Adds the gradients of the steep tokens, and of what chunks that hold one add to the states."""
        totals = *(block.chunks(t) for t in (dx, self.ddt[block.slots], self.dc[block.slots])), dB, dC
        for pairs in steep:
            pairs.backward(block.chunks(dy)).add_to(*totals)
            if block.enter:
                pairs.state_grad(block.chunks(dy), self.dstates[block.enter])
            if block.leave:
                dafter = self.dstates[block.leave]
                pairs.first(len(dafter)).backward_leave(dafter).add_to(*totals)
