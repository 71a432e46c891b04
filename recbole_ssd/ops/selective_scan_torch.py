"""The selective scan in plain torch: a step for many chunks at a time, on any device.

    h[t] = exp(dt[t] (outer) A) * h[t-1]  +  (dt[t] * x[t]) (outer) B[t],    h = 0 before each segment
    y[t] = h[t] . C[t]  +  D * x[t]

Every channel and state has a decay of its own, so there is no product of matrices as in SSD: the work is passes over
(tokens, n, i). Segments are cut into chunks, and chunks of one rank (place in their segment) and of like length share a
block, which lies time-major: step k of all its chunks is one slice, and no slot is padding. In order of time run one
`addcmul` a step forward and one backward; all else is one call a block, and a block fits in the cache. No tensor has
T n i numbers: saved are the inputs and the state before each chunk, and the backward, which is written out, runs a
block's recurrence again. No chunk spans two segments and no arithmetic mixes chunks: neither the future nor a neighbour
reaches a result, not even in rounding.

Tried and dropped: all chunks of a segment at once, first from zero, then from the states that this gives. Only a
stream of one segment took less time, and little.

Gu and Dao, "Mamba", https://arxiv.org/abs/2312.00752, equation (2), is the recurrence; the schedule is ours.

Shape letters:    T tokens    i inner size, the channels    n state size    c chunks    r rows, the tokens of a block
                  m chunks that do not begin a segment, each of which has a state before it
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .packing import Segments, moved

CHUNK = 16  # tokens; 8 is no faster and keeps twice the states, 32 is slower
ROOM = 2**17  # numbers of a block's (r, n, i): three such tensors stay in a core's cache
ROOM_ON_GPU = 2**24  # there a launch costs more than memory (a guess, not measured)


def selective_scan_torch(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, segments: Segments
) -> Tensor:
    """The scan over a stream, block by block. Shapes as in `selective_scan_reference`; float32 or float64."""
    return _SelectiveScan.apply(x, dt, A, B, C, x.new_zeros(x.shape[1]) if D is None else D, segments)


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, segments):
        ctx.blocks = _blocks(segments, (ROOM if x.device.type == "cpu" else ROOM_ON_GPU) // A.numel())
        y, states = _Forward(ctx.blocks, x, dt, A, B, C).run()
        ctx.save_for_backward(x, dt, A, B, C, D, states)
        return y.addcmul_(x, D)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, dt, A, B, C, D, states = ctx.saved_tensors
        dx, ddt, dA, dB, dC = _Backward(ctx.blocks, x, dt, A, B, C, states, dy).run()
        return dx.addcmul_(dy, D), ddt, dA, dB, dC, (dy * x).sum(0), None


@dataclass
class _Block:
    """Chunks of one rank that are run together, the longest first."""

    index: Tensor  # (r,) stream positions, time-major: the first token of every chunk, then the second ones, ...
    counts: tuple[int, ...]  # chunks that have a first token, a second one, ...; the sum is r
    enter: slice | None  # rows of the states before its chunks; None where they begin a segment
    leave: slice | None  # rows of the states after its first chunks, those that go on; None where none does


def _blocks(segments: Segments, rows: int) -> list[_Block]:
    """The blocks of a stream, of at most `rows` tokens or one chunk each, every one after those it continues."""
    key = "selective_scan", CHUNK, rows
    if key not in segments.layouts:
        first, size, alive = _chunks(segments)
        widths = torch.tensor(_widths(size.tolist(), alive, rows))
        number = torch.arange(len(widths)).repeat_interleave(widths)  # (c,) the block of each chunk
        place = torch.arange(len(size)) - (widths.cumsum(0) - widths)[number]
        owner = torch.arange(len(size)).repeat_interleave(size)  # (T,) the chunk of each token
        step = torch.arange(len(owner)) - (size.cumsum(0) - size)[owner]
        cell = number[owner] * CHUNK + step
        counts = torch.bincount(cell, minlength=len(widths) * CHUNK)
        index = torch.empty_like(owner)
        index[(counts.cumsum(0) - counts)[cell] + place[owner]] = first[owner] + step
        counts = counts.view(-1, CHUNK)
        indices = moved(index, segments.device).split(counts.sum(1).tolist())
        counts = [tuple(filter(None, steps)) for steps in counts.tolist()]
        segments.layouts[key] = list(map(_Block, indices, counts, *_state_rows(widths.tolist(), alive)))
    return segments.layouts[key]


def _chunks(segments: Segments) -> tuple[Tensor, Tensor, list[int]]:
    """(position of each chunk's first token, its tokens, number of chunks of each rank).

    The chunks are numbered rank by rank, in every rank the longest segment first, so that those of rank k + 1 continue
    the first ones of rank k.
    """
    lengths, order = torch.sort(segments.borders.diff(), descending=True, stable=True)
    count = -(-lengths // CHUNK)  # chunks in each segment
    alive = (count[None] > torch.arange(int(count[0]))[:, None]).sum(1)
    rank = torch.arange(len(alive)).repeat_interleave(alive)  # (c,)
    segment = torch.arange(len(rank)) - (alive.cumsum(0) - alive)[rank]
    first = segments.borders[:-1][order][segment] + rank * CHUNK
    return first, (lengths[segment] - rank * CHUNK).clamp(max=CHUNK), alive.tolist()


def _widths(sizes: list[int], alive: list[int], rows: int) -> list[int]:
    """Chunks in each block.

    >>> _widths([16, 16, 9, 2, 16, 3], alive=[4, 2], rows=32)
    [2, 2, 2]
    """
    widths, begin, end = [], 0, 0
    for chunks in alive:
        end += chunks
        while begin < end:
            widths.append(min(max(1, rows // sizes[begin]), end - begin))
            begin += widths[-1]
    return widths


def _state_rows(widths: list[int], alive: list[int]) -> tuple[list[slice | None], list[slice | None]]:
    """For each block the rows of the states (m, n, i) before and after its chunks.

    >>> _state_rows([2, 2, 2], alive=[4, 2])
    ([None, None, slice(0, 2, None)], [slice(0, 2, None), None, None])
    """
    going = [chunk < then for now, then in zip(alive, [*alive[1:], 0]) for chunk in range(now)]
    enter, leave, begin, after = [], [], 0, 0
    for width in widths:
        row = begin - alive[0]
        enter.append(None if row < 0 else slice(row, row + width))
        on = sum(going[begin : begin + width])
        leave.append(slice(after, after + on) if on else None)
        begin, after = begin + width, after + on
    return enter, leave


class _Slab:
    """Scratch (r, n, i) of a block: all of it, by step, and to every step but the first the rows that come before."""

    def __init__(self, buffer: Tensor, counts: tuple[int, ...]):
        self.all = buffer[: sum(counts)]
        self.at = self.all.split(counts)
        self.before = [rows if len(rows) == count else rows[:count] for rows, count in zip(self.at, counts[1:])]


def _followers(counts: tuple[int, ...]) -> list[tuple[slice, slice]]:
    """Rows of a block and those one step before them, as many steps at once as lie equally far behind.

    >>> _followers((3, 3, 3, 1, 1))
    [(slice(3, 10, None), slice(0, 7, None)), (slice(10, 11, None), slice(9, 10, None))]
    """
    pairs, begin, end = [], counts[0], counts[0]
    for k, (shift, count) in enumerate(zip(counts, counts[1:]), start=1):
        end += count
        if k + 1 == len(counts) or count != shift:
            pairs.append((slice(begin, end), slice(begin - shift, end - shift)))
            begin = end
    return pairs


class _Run:
    """One block at a time: its rows of the inputs, and in scratch its decays a, states h and adjoints g."""

    def __init__(self, blocks: list[_Block], x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, slabs: int):
        self.blocks, self.stream = blocks, (x, dt, B, C)
        self.A = A.t().contiguous()  # (n, i): the channels are many, and side by side
        rows = max(len(block.index) for block in blocks)
        self.scratch = [x.new_empty(rows, *self.A.shape) for _ in range(slabs)]
        self.slabs: dict[tuple[int, ...], list[_Slab]] = {}

    def load(self, block: _Block) -> list[_Slab]:
        """Reads a block's rows and decays, and gives its a, h (and g)."""
        if block.counts not in self.slabs:
            self.slabs[block.counts] = [_Slab(buffer, block.counts) for buffer in self.scratch]
        slabs = self.slabs[block.counts]
        self.x, self.dt, self.B, self.C = (t.index_select(0, block.index) for t in self.stream)  # (r, ...)
        self.u = self.dt * self.x
        torch.mul(self.dt[:, None], self.A, out=slabs[0].all).exp_()
        return slabs

    def recur(self, a: _Slab, h: _Slab, state: Tensor | None) -> None:
        """Fills h, from the states (c, n, i) before the chunks."""
        torch.mul(self.u[:, None], self.B[:, :, None], out=h.all)
        if state is not None:
            h.at[0].addcmul_(a.at[0], state)
        for now, decay, before in zip(h.at[1:], a.at[1:], h.before):
            now.addcmul_(decay, before)


class _Forward(_Run):
    def __init__(self, blocks, x, dt, A, B, C):
        super().__init__(blocks, x, dt, A, B, C, slabs=2)
        self.y = torch.empty_like(x, memory_format=torch.contiguous_format)
        self.states = x.new_empty(max(block.enter.stop if block.enter else 0 for block in blocks), *self.A.shape)

    def run(self) -> tuple[Tensor, Tensor]:
        """y without D, (T, i), and the states, (m, n, i)."""
        for block in self.blocks:
            a, h = self.load(block)
            self.recur(a, h, block.enter and self.states[block.enter])
            if block.leave:
                self.states[block.leave] = h.at[-1][: block.leave.stop - block.leave.start]
            y = torch.bmm(self.C[:, None], h.all)  # (r, 1, i)
            self.y.index_copy_(0, block.index, y[:, 0])
        return self.y, self.states


class _Backward(_Run):
    def __init__(self, blocks, x, dt, A, B, C, states, dy):
        super().__init__(blocks, x, dt, A, B, C, slabs=3)
        self.states, self.dstates, self.dy = states, torch.empty_like(states), dy
        self.grads = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in self.stream]
        self.dA = torch.zeros_like(self.A)

    def run(self) -> tuple[Tensor, ...]:
        """dx without D's part, ddt, dA, dB, dC."""
        for block in reversed(self.blocks):
            a, h, g = self.load(block)
            self.recur(a, h, block.enter and self.states[block.enter])
            dy = self.dy.index_select(0, block.index)
            dC = torch.bmm(dy[:, None], h.all.transpose(1, 2))  # (r, 1, n)
            self._recur_back(a, g, dy, block.leave and self.dstates[block.leave])
            dB = torch.bmm(self.u[:, None], g.all.transpose(1, 2))
            du = torch.bmm(self.B[:, None], g.all)[:, 0]  # (r, i)
            flow = self._flow(block, a, h, g)
            ddt = torch.mul(flow, self.A, out=g.all).sum(1).addcmul_(du, self.x)
            self.dA += flow.mul_(self.dt[:, None]).sum(0)
            for grad, rows in zip(self.grads, (du.mul_(self.dt), ddt, dB[:, 0], dC[:, 0])):
                grad.index_copy_(0, block.index, rows)
        dx, ddt, dB, dC = self.grads
        return dx, ddt, self.dA.t(), dB, dC

    def _recur_back(self, a: _Slab, g: _Slab, dy: Tensor, dstate: Tensor | None) -> None:
        """Fills g, the gradient of h, from that of the states (c, n, i) after the chunks that go on."""
        torch.mul(dy[:, None], self.C[:, :, None], out=g.all)
        if dstate is not None:
            g.at[-1][: len(dstate)].add_(dstate)
        for now, decay, before in zip(reversed(g.at[1:]), reversed(a.at[1:]), reversed(g.before)):
            before.addcmul_(decay, now)

    def _flow(self, block: _Block, a: _Slab, h: _Slab, g: _Slab) -> Tensor:
        """The gradient g[t] * a[t] * h[t-1] of dt A, (r, n, i), in place of a; on the way that of the states before."""
        flow = a.all.mul_(g.all)
        if block.enter:
            self.dstates[block.enter] = a.at[0]
            a.at[0].mul_(self.states[block.enter])
        else:
            a.at[0].zero_()
        for rows, before in _followers(block.counts):
            flow[rows].mul_(h.all[before])
        return flow
