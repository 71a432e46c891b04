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

Every segment is worked on alone, and a product's shape does not depend on how full the chunk is: neither a neighbour
nor a token's future reaches a result, not by a bit.

Dao and Gu, ICML 2024, https://arxiv.org/abs/2405.21060, section 6, has the chunks; the schedule is ours.

Shape letters:    T tokens    h heads    p head size    g groups    n state size    q tokens of a chunk
                  m chunks with a state before them, at most    b blocks of segments
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..packing import Segments
from .jit import Work, kernel, launch, loop, over_blocks, parallel_kernel
from .matrices import add_multiply, multiply, transpose
from .ssd_backward import backward
from .ssd_chunk import CHUNK, decay, enter, fade, load, rows_of, scale, state_row, triangle


def ssd_numba(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, segments: Segments) -> Tensor:
    """The scan over a stream. Shapes as in `ssd_reference`; float32 or float64. Its chunks are its own."""
    h, p = x.shape[1:]
    D = (x.new_zeros(h, 1) if D is None else D.view(h, -1)).expand(h, p)
    return _SSD.apply(x, dt, A, B, C, D, segments, torch.is_grad_enabled())


class _SSD(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, segments, grad_enabled):
        inputs = [t.contiguous() for t in (x, dt, A, B, C, D)]
        y = torch.empty_like(inputs[0])
        kept = len(x) // CHUNK if grad_enabled and any(ctx.needs_input_grad) else 0
        states = x.new_empty(kept, *x.shape[1:], B.shape[2])  # (m, h, p, n)
        launch(_forward, *inputs, y, states, *Work.of(segments).arrays)
        ctx.save_for_backward(*inputs, states)
        ctx.segments = segments
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        *inputs, states = ctx.saved_tensors
        work = Work.of(ctx.segments)
        x, dt, A, B, C, D = inputs
        dx, ddt, dB, dC = map(torch.empty_like, (x, dt, B, C))
        dA, dD = (t.new_zeros(work.n_blocks, *t.shape, dtype=torch.float64) for t in (A, D))  # (b, ...)
        launch(backward, *inputs, states, dy.contiguous(), dx, ddt, dA, dB, dC, dD, *work.arrays)
        return dx, ddt, over_blocks(dA, A.dtype), dB, dC, over_blocks(dD, D.dtype), None, None


@parallel_kernel
def _forward(x, dt, A, B, C, D, y, states, borders, blocks, order, workers):
    for worker in prange(len(workers) - 1):
        for b in order[workers[worker] : workers[worker + 1]]:
            for s in range(blocks[b], blocks[b + 1]):
                for group in range(B.shape[1]):
                    _outputs(borders[s], borders[s + 1], group, x, dt, A, B, C, D, y, states)


@kernel
def _outputs(begin, end, group, x, dt, A, B, C, D, y, states):
    """y of a segment and group, and the states before its chunks."""
    (h, p), n, dtype = x.shape[1:], B.shape[2], x.dtype
    heads, q = h // B.shape[1], rows_of(begin, end)
    Bs, Cs, product = np.empty((q, n), dtype), np.empty((q, n), dtype), np.empty((q, q), dtype)
    turned = np.empty((n, q), dtype)
    L, M, decays = np.empty((q, q), dtype), np.empty((q, q), dtype), np.empty((3, q), dtype)
    u, out = np.empty((q, p), dtype), np.empty((q, p), dtype)
    state = np.zeros((heads, n, p), dtype)
    for first in range(begin, end, CHUNK):
        last = min(first + CHUNK, end)
        load(B, first, last, group, Bs)
        load(C, first, last, group, Cs)
        transpose(Bs, turned)
        multiply(Cs, turned, product)
        for local in range(heads):
            head, S = group * heads + local, state[local]
            decay(dt, A, first, last, head, decays)
            triangle(product, decays, L, M)
            enter(x, dt, first, last, head, u)
            multiply(M, u, out)
            _leave(x, D, first, last, head, out, y)
            if first > begin:
                multiply(Cs, S, out)
                _add_to(decays, first, last, head, out, y)
                if len(states):
                    transpose(S, states[state_row(begin, first), head])
            if last < end:
                scale(decays[2], u)
                fade(decays[1, q - 1], S)
                add_multiply(Bs.T, u, S)


@loop
def _leave(x, D, first, last, head, out, y):
    """y = out + D x."""
    for i in range(last - first):
        for k in range(out.shape[1]):
            y[first + i, head, k] = out[i, k] + D[head, k] * x[first + i, head, k]


@loop
def _add_to(decays, first, last, head, out, y):
    """y += L0 out."""
    for i in range(last - first):
        since = decays[1, i]
        for k in range(out.shape[1]):
            y[first + i, head, k] += since * out[i, k]
