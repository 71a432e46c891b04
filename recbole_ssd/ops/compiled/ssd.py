"""SSD over a packed stream, for CPUs: matrix products of one small shape, and all else in the cache around them.

A segment is gone through in chunks of q = CHUNK tokens, the last one filled up with zeros. Within a chunk, with decays
a[t] = exp(dt[t] A), u = dt x, S the state (n, p) before the chunk, and L[i, j] = a[j+1] ... a[i] for j <= i:

    y = (C B^T * L) u  +  L0 C S  +  D x               S' = L0[q] S  +  B^T (R u)

L0[i] = a[1] ... a[i] and R[j] = a[j+1] ... a[q]. Row i of L is a[i] times the row before it: decays are multiplied up
and never divided by, so steep ones are as exact as gentle ones. The backward mirrors this, with Z the gradient of S':

    dM = dy u^T        du = (C B^T * L)^T dy  +  R (B Z)          dC = (dM * L) B  +  (L0 dy) S^T
    dS = L0[q] Z  +  C^T (L0 dy)                                  dB = (dM * L)^T C  +  (R u) Z^T

The gradient of log a[t] is what flows over the border before t: from every j < t to every i >= t within the chunk, from
S to the tokens from t on, from those before t to S', and from S to S'. Sums over all tokens before t or from t on are
float64: where one is the whole less the other part, the same numbers are added and subtracted.

x, B and C come from the short convolution and its SiLU (`causal_conv1d.py`), made a chunk at a time on the way in, and
anew in the backward: they are never written to memory. Without a filter they are what was given.

Every segment is worked on alone, and a product's shape does not depend on how full the chunk is: neither a neighbour
nor a token's future reaches a result, not by a bit.

Dao and Gu, ICML 2024, https://arxiv.org/abs/2405.21060, section 6, has the chunks; the schedule is ours.

Shape letters:    T tokens    h heads    p head size    g groups    n state size    q tokens of a chunk
                  c = h p + 2 g n    K width of the filter    m chunks with a state before them, at most
                  b blocks of segments
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..packing import Segments
from .causal_conv1d import taps_of
from .jit import Work, flat, kernel, launch, loop, over_blocks, parallel_kernel
from .matrices import add_multiply, multiply, transpose
from .ssd_backward import backward
from .ssd_chunk import CHUNK, columns, decay, fade, rows_of, scale, state_row, triangle, weigh
from .ssd_values import enter


def ssd_numba(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, segments: Segments) -> Tensor:
    """The scan over a stream. Shapes as in `ssd_reference`; float32 or float64. Its chunks are its own."""
    (h, p), groups = x.shape[1:], B.shape[1]
    D = x.new_zeros(h, p) if D is None else D.view(h, -1).expand(h, p)
    x, B, C = parts = [t.flatten(1) for t in (x, B, C)]
    no_filter = [x.new_empty(sum(t.shape[1] for t in parts), *width) for width in ((0,), ())]
    return _SSD.apply(x, B, C, dt, A, D, *no_filter, groups, segments, torch.is_grad_enabled())


def conv_ssd_numba(
    xBC: Tensor,
    dt: Tensor,
    A: Tensor,
    D: Tensor,
    weight: Tensor,
    bias: Tensor,
    headdim: int,
    ngroups: int,
    segments: Segments,
) -> Tensor:
    """See `ops.conv_ssd.conv_ssd`; float32 or float64."""
    D, nothing = D.view(len(A), -1).expand(len(A), headdim), xBC.new_empty(len(xBC), 0)
    return _SSD.apply(xBC, nothing, nothing, dt, A, D, weight, bias, ngroups, segments, torch.is_grad_enabled())


class _SSD(torch.autograd.Function):
    """With a filter x is all of xBC, and B and C have no columns."""

    @staticmethod
    def forward(ctx, x, B, C, dt, A, D, weight, bias, ngroups, segments, grad_enabled):
        inputs = *(t.contiguous() for t in (dt, A, D)), taps_of(weight), bias.contiguous()
        y = x.new_empty(len(x), *D.shape)
        kept = len(x) // CHUNK if grad_enabled and any(ctx.needs_input_grad) else 0
        states = x.new_empty(kept, *D.shape, (len(bias) - D.numel()) // (2 * ngroups))  # (m, h, p, n)
        launch(_forward, *_sources(x, B, C), *inputs, ngroups, y, states, Work.of(segments).arrays)
        ctx.save_for_backward(x, B, C, *inputs, states)
        ctx.ngroups, ctx.segments = ngroups, segments
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, B, C, *inputs, states = ctx.saved_tensors
        work = Work.of(ctx.segments)
        dt, A, D, taps, bias = inputs
        dx, dB, dC = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, B, C))
        ddt, sums = torch.empty_like(dt), (A.shape, D.shape, (len(taps) + 1, len(bias)))
        # dfilter: of the taps, then of the bias
        dA, dD, dfilter = (A.new_zeros(work.n_blocks, *shape, dtype=torch.float64) for shape in sums)
        grads = (dx, dB, dC), ddt, dA, dD, dfilter
        launch(backward, *_sources(x, B, C), *inputs, ctx.ngroups, states, dy.contiguous(), *grads, work.arrays)
        dA, dD, dfilter = (over_blocks(t, dy.dtype) for t in (dA, dD, dfilter))
        dweight, dbias = (dfilter[:-1].flip(0).t(), dfilter[-1]) if len(taps) else (None, None)
        return dx, dB, dC, ddt, dA, dD, dweight, dbias, None, None, None


def _sources(*tensors: Tensor) -> tuple:
    """Those of `ssd_values.py`."""
    rows, strides = zip(*map(flat, tensors))
    return rows, np.array([strides, [t.shape[1] for t in tensors]]).T.copy()


@parallel_kernel
def _forward(rows, layout, dt, A, D, taps, bias, groups, y, states, work):
    borders, blocks, order, workers = work
    for worker in prange(len(workers) - 1):
        for b in order[workers[worker] : workers[worker + 1]]:
            for s in range(blocks[b], blocks[b + 1]):
                _outputs(borders[s], borders[s + 1], ((rows, layout), dt, A, D, taps, bias), groups, y, states)


@kernel
def _outputs(begin, end, inputs, groups, y, states):
    """y of a segment, and the states before its chunks."""
    sources, dt, A, D, taps, bias = inputs
    (h, p), q, dtype = D.shape, rows_of(begin, end), bias.dtype
    heads, n = h // groups, (len(bias) - h * p) // (2 * groups)
    values, Bs, Cs = np.empty((q, len(bias)), dtype), np.empty((q, n), dtype), np.empty((q, n), dtype)
    product, turned = np.empty((q, q), dtype), np.empty((n, q), dtype)
    L, M, decays = np.empty((q, q), dtype), np.empty((q, q), dtype), np.empty((3, q), dtype)
    row, u, out = np.empty(q, dtype), np.empty((q, p), dtype), np.empty((q, p), dtype)
    state = np.zeros((h, n, p), dtype)
    for first in range(begin, end, CHUNK):
        last = min(first + CHUNK, end)
        place = begin, first, last, end
        enter(sources, place, taps, bias, values, values[:0])
        for head in range(h):
            if head % heads == 0:
                columns(values, h * p + head // heads * n, Bs)
                columns(values, h * p + (groups + head // heads) * n, Cs)
                transpose(Bs, turned)
                multiply(Cs, turned, product)
            S = state[head]
            decay(dt, A, place, head, decays)
            triangle(product, decays, row, L, M)
            weigh(values, dt, place, head, u)
            multiply(M, u, out)
            _write(values, D, place, head, out, y)
            if first > begin:
                multiply(Cs, S, out)
                _add_to(decays, place, head, out, y)
                if len(states):
                    transpose(S, states[state_row(begin, first), head])
            if last < end:
                scale(decays[2], u)
                fade(decays[1, q - 1], S)
                add_multiply(Bs.T, u, S)


@loop
def _write(values, D, place, head, out, y):
    """y = out + D x."""
    _, first, last, _ = place
    left = np.uint64(head * out.shape[1])
    for i in range(last - first):
        for k in range(np.uint64(out.shape[1])):
            y[first + i, head, k] = out[i, k] + D[head, k] * values[i, left + k]


@loop
def _add_to(decays, place, head, out, y):
    """y += L0 out."""
    _, first, last, _ = place
    for i in range(last - first):
        since = decays[1, i]
        for k in range(out.shape[1]):
            y[first + i, head, k] += since * out[i, k]
