"""Mamba-1's selective scan over a packed stream, for CPUs.

    h[t] = exp(dt[t] (outer) A) * h[t-1]  +  (dt[t] * x[t]) (outer) B[t],    h = 0 before each segment
    y[t] = h[t] . C[t]  +  D * x[t]

A segment is gone through in chunks of tokens, and a chunk for four states at a time, so that a row of channels is read
once for four. The backward mirrors the forward in time, with g, the gradient of h:

    g[t] = dy[t] (outer) C[t] + exp(dt[t+1] A) * g[t+1]        dB[t] = sum_i g dt x      dC[t] = sum_i h dy
    flow[t] = g[t] * exp(dt[t] A) * h[t-1]                     dA = sum_t flow dt        ddt = sum_n flow A + x g B

It needs h in reverse. The forward keeps the state before every chunk but a segment's first, at most T n i / CHUNK
numbers; from those the backward makes a chunk's decays and states again, in the cache.

All that the innermost loops touch is scratch, TILE numbers a row, made in the function that their code is inlined
into: so LLVM sees that the rows lie TILE apart, and makes vectors. Of rows that may overlap it must check every pair,
or gives up; without the inlining both directions took several times as long. Gradients of A and D are summed in float64
over chunks and tokens, or a segment of 50,000 tokens would round them away.

Gu and Dao, "Mamba", https://arxiv.org/abs/2312.00752, equation (2), is the recurrence; the schedule is ours.

Shape letters:    T tokens    i inner size, the channels    n state size, with zeros up to a multiple of 4
                  m chunks with a state before them, at most    b blocks of segments
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from ..packing import Segments
from .jit import Work, exp, inlined, kernel, launch, over_blocks, parallel_kernel

CHUNK = 32  # tokens; 16 is no faster and keeps twice the states
TILE = 128  # channels; 256 is no faster


def selective_scan_numba(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, segments: Segments
) -> Tensor:
    """The scan over a stream. Shapes as in `selective_scan_reference`; float32 or float64."""
    D = x.new_zeros(x.shape[1]) if D is None else D
    return _SelectiveScan.apply(x, dt, A, B, C, D, segments, torch.is_grad_enabled())


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, segments, grad_enabled):
        ctx.segments, ctx.n = segments, A.shape[1]
        x, dt, D = (t.contiguous() for t in (x, dt, D))
        A, B, C = _fours(A).t().contiguous(), _fours(B), _fours(C)  # (n, i): the channels are many, and side by side
        y = torch.empty_like(x)
        kept = len(x) // CHUNK if grad_enabled and any(ctx.needs_input_grad) else 0
        states = x.new_empty(kept, *A.shape)  # (m, n, i)
        launch(_forward, x, dt, A, B, C, D, y, states, _tiles(len(D)), *Work.of(segments).arrays)
        ctx.save_for_backward(x, dt, A, B, C, D, states)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, dt, A, B, C, D, states = ctx.saved_tensors
        work, n = Work.of(ctx.segments), ctx.n
        dx, ddt = torch.empty_like(x), torch.empty_like(dt)
        dB, dC = torch.zeros_like(B), torch.zeros_like(C)
        dA, dD = (t.new_zeros(work.n_blocks, *t.shape, dtype=torch.float64) for t in (A, D))  # (b, ...)
        grads = dx, ddt, dA, dB, dC, dD
        launch(_backward, x, dt, A, B, C, D, states, dy.contiguous(), *grads, _tiles(len(D)), *work.arrays)
        dA, dD = (over_blocks(t, x.dtype) for t in (dA, dD))
        return dx, ddt, dA[:n].t(), dB[:, :n], dC[:, :n], dD, None, None


def _fours(t: Tensor) -> Tensor:
    """Columns of zeros up to a multiple of 4: a state with B = 0 stays 0."""
    return pad(t, (0, -t.shape[1] % 4)).contiguous()


def _tiles(channels: int) -> np.ndarray:
    """Borders of the tiles of channels, all of like width.

    >>> _tiles(300)
    array([  0, 100, 200, 300])
    """
    count = -(-channels // TILE)
    return np.arange(count + 1) * channels // count


@parallel_kernel
def _forward(x, dt, A, B, C, D, y, states, tiles, borders, blocks, order, workers):
    for worker in prange(len(workers) - 1):
        for b in order[workers[worker] : workers[worker + 1]]:
            for s in range(blocks[b], blocks[b + 1]):
                for tile in range(len(tiles) - 1):
                    span = borders[s], borders[s + 1], tiles[tile], tiles[tile + 1]
                    _outputs(span, x, dt, A, B, C, D, y, states)


@inlined
def _row(begin, chunk):
    """Where the state before a segment's chunk lies, chunk > 0: no two share a row, and T // CHUNK rows suffice."""
    return begin // CHUNK + chunk - 1


@kernel
def _outputs(span, x, dt, A, B, C, D, y, states):
    """y of a segment and a tile, and the states before its chunks."""
    begin, end, low, high = span
    width = high - low
    a, h = np.empty((len(A), TILE), x.dtype), np.zeros((len(A), TILE), x.dtype)
    rows = np.empty((CHUNK, 3, TILE), x.dtype)  # dt, dt x, y
    a[:, :width] = A[:, low:high]
    skip = D[low:high]
    for first in range(begin, end, CHUNK):
        last = min(first + CHUNK, end)
        if first > begin and len(states):
            states[_row(begin, (first - begin) // CHUNK), :, low:high] = h[:, :width]
        for t in range(first, last):
            rt, xt, dtt = rows[t - first], x[t, low:high], dt[t, low:high]
            for i in range(width):
                rt[0, i], rt[1, i], rt[2, i] = dtt[i], dtt[i] * xt[i], skip[i] * xt[i]
        for k in range(0, len(A), 4):
            _advance(first, last, width, k, rows, a, B, C, h)
        for t in range(first, last):
            y[t, low:high] = rows[t - first, 2, :width]


@inlined
def _advance(first, last, width, k, rows, a, B, C, h):
    """Four states through a chunk: adds to y, and leaves h after the chunk."""
    ak, hk = a[k : k + 4], h[k : k + 4]
    A0, A1, A2, A3 = ak[0], ak[1], ak[2], ak[3]
    h0, h1, h2, h3 = hk[0], hk[1], hk[2], hk[3]
    for t in range(first, last):
        rt, Bt, Ct = rows[t - first], B[t, k : k + 4], C[t, k : k + 4]
        dtt, ut, yt = rt[0], rt[1], rt[2]
        B0, B1, B2, B3 = Bt[0], Bt[1], Bt[2], Bt[3]
        C0, C1, C2, C3 = Ct[0], Ct[1], Ct[2], Ct[3]
        for i in range(width):
            step, u = dtt[i], ut[i]
            now0 = exp(step * A0[i]) * h0[i] + u * B0
            now1 = exp(step * A1[i]) * h1[i] + u * B1
            now2 = exp(step * A2[i]) * h2[i] + u * B2
            now3 = exp(step * A3[i]) * h3[i] + u * B3
            h0[i], h1[i], h2[i], h3[i] = now0, now1, now2, now3
            yt[i] += (now0 * C0 + now1 * C1) + (now2 * C2 + now3 * C3)


@parallel_kernel
def _backward(x, dt, A, B, C, D, states, dy, dx, ddt, dA, dB, dC, dD, tiles, borders, blocks, order, workers):
    for worker in prange(len(workers) - 1):
        for b in order[workers[worker] : workers[worker + 1]]:
            for s in range(blocks[b], blocks[b + 1]):
                for tile in range(len(tiles) - 1):
                    span = borders[s], borders[s + 1], tiles[tile], tiles[tile + 1]
                    _gradients(span, x, dt, A, B, C, D, states, dy, dx, ddt, dA[b], dB, dC, dD[b])


@kernel
def _gradients(span, x, dt, A, B, C, D, states, dy, dx, ddt, dA, dB, dC, dD):
    """All gradients of a segment and a tile, backwards in time; those of A and D are added to their block's."""
    begin, end, low, high = span
    width = high - low
    a, g = np.empty((len(A), TILE), x.dtype), np.zeros((len(A), TILE), x.dtype)
    h, part = np.empty((4, TILE), x.dtype), np.empty((4, TILE), x.dtype)
    rows = np.empty((CHUNK, 5, TILE), x.dtype)  # dt, dt x, dy, g B, flow A
    past = np.empty((CHUNK, 8, TILE), x.dtype)  # of four states the decays, and the decays times the states before
    a[:, :width] = A[:, low:high]
    for behind in range((end - begin + CHUNK - 1) // CHUNK):
        chunk = (end - begin - 1) // CHUNK - behind
        first = begin + chunk * CHUNK
        last = min(first + CHUNK, end)
        for t in range(first, last):
            rt, xt, dtt, dyt = rows[t - first], x[t, low:high], dt[t, low:high], dy[t, low:high]
            for i in range(width):
                rt[0, i], rt[1, i], rt[2, i], rt[3, i], rt[4, i] = dtt[i], dtt[i] * xt[i], dyt[i], 0, 0
        for k in range(0, len(A), 4):
            h[:] = 0
            if chunk:
                h[:, :width] = states[_row(begin, chunk), k : k + 4, low:high]
            _again(first, last, width, k, rows, a, B, dC, h, past)
            part[:] = 0
            _back(first, last, width, k, rows, a, B, C, dB, g, past, part)
            for j in range(4):
                dA[k + j, low:high] += part[j, :width]
        for t in range(first, last):
            _finish(rows[t - first], x[t, low:high], D[low:high], dx[t, low:high], ddt[t, low:high], dD[low:high])


@kernel
def _finish(rt, xt, skip, dxt, ddtt, dD):
    """A token's dx and ddt, and its share of dD."""
    dtt, dyt, dut, flow = rt[0], rt[2], rt[3], rt[4]
    for i in range(len(xt)):
        dxt[i] = dut[i] * dtt[i] + dyt[i] * skip[i]
        ddtt[i] = flow[i] + dut[i] * xt[i]
        dD[i] += dyt[i] * xt[i]


@inlined
def _again(first, last, width, k, rows, a, B, dC, h, past):
    """Four states through a chunk, from h before it: fills what is past and adds to dC."""
    ak = a[k : k + 4]
    A0, A1, A2, A3 = ak[0], ak[1], ak[2], ak[3]
    h0, h1, h2, h3 = h[0], h[1], h[2], h[3]
    for t in range(first, last):
        rt, pt, Bt = rows[t - first], past[t - first], B[t, k : k + 4]
        dtt, ut, dyt = rt[0], rt[1], rt[2]
        a0, a1, a2, a3 = pt[0], pt[1], pt[2], pt[3]
        p0, p1, p2, p3 = pt[4], pt[5], pt[6], pt[7]
        B0, B1, B2, B3 = Bt[0], Bt[1], Bt[2], Bt[3]
        s0 = s1 = s2 = s3 = h.dtype.type(0)
        for i in range(width):
            step, u, dyi = dtt[i], ut[i], dyt[i]
            e0, e1, e2, e3 = exp(step * A0[i]), exp(step * A1[i]), exp(step * A2[i]), exp(step * A3[i])
            kept0, kept1, kept2, kept3 = e0 * h0[i], e1 * h1[i], e2 * h2[i], e3 * h3[i]
            a0[i], a1[i], a2[i], a3[i] = e0, e1, e2, e3
            p0[i], p1[i], p2[i], p3[i] = kept0, kept1, kept2, kept3
            now0, now1, now2, now3 = kept0 + u * B0, kept1 + u * B1, kept2 + u * B2, kept3 + u * B3
            h0[i], h1[i], h2[i], h3[i] = now0, now1, now2, now3
            s0 += now0 * dyi
            s1 += now1 * dyi
            s2 += now2 * dyi
            s3 += now3 * dyi
        dCt = dC[t, k : k + 4]
        dCt[0] += s0
        dCt[1] += s1
        dCt[2] += s2
        dCt[3] += s3


@inlined
def _back(first, last, width, k, rows, a, B, C, dB, g, past, part):
    """Four states through a chunk in reverse: adds to g B, flow A, dB and dA's part, and leaves g before the chunk."""
    ak, gk = a[k : k + 4], g[k : k + 4]
    A0, A1, A2, A3 = ak[0], ak[1], ak[2], ak[3]
    g0, g1, g2, g3 = gk[0], gk[1], gk[2], gk[3]
    d0, d1, d2, d3 = part[0], part[1], part[2], part[3]
    for behind in range(last - first):  # a range that counts down makes no vectors: 2.5 times as long
        t = last - 1 - behind
        rt, pt, Bt, Ct = rows[t - first], past[t - first], B[t, k : k + 4], C[t, k : k + 4]
        dtt, ut, dyt, dut, ddtt = rt[0], rt[1], rt[2], rt[3], rt[4]
        a0, a1, a2, a3 = pt[0], pt[1], pt[2], pt[3]
        p0, p1, p2, p3 = pt[4], pt[5], pt[6], pt[7]
        B0, B1, B2, B3 = Bt[0], Bt[1], Bt[2], Bt[3]
        C0, C1, C2, C3 = Ct[0], Ct[1], Ct[2], Ct[3]
        s0 = s1 = s2 = s3 = g.dtype.type(0)
        for i in range(width):
            step, u, dyi = dtt[i], ut[i], dyt[i]
            now0, now1, now2, now3 = g0[i] + dyi * C0, g1[i] + dyi * C1, g2[i] + dyi * C2, g3[i] + dyi * C3
            s0 += now0 * u
            s1 += now1 * u
            s2 += now2 * u
            s3 += now3 * u
            dut[i] += (now0 * B0 + now1 * B1) + (now2 * B2 + now3 * B3)
            f0, f1, f2, f3 = now0 * p0[i], now1 * p1[i], now2 * p2[i], now3 * p3[i]
            ddtt[i] += (f0 * A0[i] + f1 * A1[i]) + (f2 * A2[i] + f3 * A3[i])
            d0[i] += f0 * step
            d1[i] += f1 * step
            d2[i] += f2 * step
            d3[i] += f3 * step
            g0[i], g1[i], g2[i], g3[i] = now0 * a0[i], now1 * a1[i], now2 * a2[i], now3 * a3[i]
        dBt = dB[t, k : k + 4]
        dBt[0] += s0
        dBt[1] += s1
        dBt[2] += s2
        dBt[3] += s3
