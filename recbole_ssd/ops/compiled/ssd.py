"""SSD over a packed stream, for CPUs: matrix products of one small shape, and all else in the cache around them.

A segment is gone through in chunks of q = CHUNK tokens, the last one filled up with zeros. Within a chunk, with decays
a[t] = exp(dt[t] A), u = dt x, S the state (n, p) before the chunk, and L[i, j] = a[j+1] ... a[i] for j <= i:

    y = (C B^T * L) u  +  L0 C S  +  D x               S' = L0[q] S  +  B^T (R u)

L0[i] = a[1] ... a[i] and R[j] = a[j+1] ... a[q]. Row i of L is a[i] times the row before it: decays are multiplied up
and never divided by, so steep ones are as exact as gentle ones. The backward mirrors this, with Z the gradient of S':

    dM = dy u^T        du = (C B^T * L)^T dy  +  R (B Z)          dC = (dM * L) B  +  (L0 dy) S^T
    dS = L0[q] Z  +  C^T (L0 dy)                                  dB = (dM * L)^T C  +  (R u) Z^T

The gradient of log a[t] is what flows over the border before t: from every j < t to every i >= t within the chunk, from
S to the tokens from t on, from those before t to S', and from S to S'. Nothing else is summed, so nothing cancels.

Every segment is worked on alone, and a product's shape does not depend on how full the chunk is: neither a neighbour
nor a token's future reaches a result, not even through the kernel that BLAS chooses. (A segment of up to SHORT tokens
takes half a chunk.) numba calls SciPy's BLAS: at these sizes 100 GFLOP/s on a core that does 55 to 75 in torch.bmm.

Dao and Gu, ICML 2024, https://arxiv.org/abs/2405.21060, section 6, has the chunks; the schedule is ours.

Shape letters:    T tokens    h heads    p head size    g groups    n state size    q tokens of a chunk
                  m chunks with a state before them, at most    b blocks of segments
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..packing import Segments
from .jit import Work, kernel, launch, over_blocks, parallel_kernel
from .matrices import add, clear, copy, multiply

CHUNK = 32  # tokens; twice as many cost more in the triangle than they save in states
SHORT = 16  # tokens of a segment that takes half a chunk


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
        states = x.new_empty(kept, x.shape[1], B.shape[2], x.shape[2])  # (m, h, n, p)
        launch(_forward, *inputs, y, states, *Work.of(segments).arrays)
        ctx.save_for_backward(*inputs, states)
        ctx.segments = segments
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        *inputs, states = ctx.saved_tensors
        work = Work.of(ctx.segments)
        dx, ddt, A, dB, dC, D = map(torch.empty_like, inputs)
        dA, dD = (t.new_zeros(work.n_blocks, *t.shape, dtype=torch.float64) for t in (A, D))  # (b, ...)
        launch(_backward, *inputs, states, dy.contiguous(), dx, ddt, dA, dB, dC, dD, *work.arrays)
        return dx, ddt, over_blocks(dA, A.dtype), dB, dC, over_blocks(dD, D.dtype), None, None


@parallel_kernel
def _forward(x, dt, A, B, C, D, y, states, borders, blocks, order, workers):
    for worker in prange(len(workers) - 1):
        for b in order[workers[worker] : workers[worker + 1]]:
            for s in range(blocks[b], blocks[b + 1]):
                for group in range(B.shape[1]):
                    _outputs(borders[s], borders[s + 1], group, x, dt, A, B, C, D, y, states)


@kernel
def _row(begin, first):
    """Where the state before a segment's chunk lies, but its first: no two share a row, and T // CHUNK rows suffice."""
    return begin // CHUNK + (first - begin) // CHUNK - 1


@kernel
def _outputs(begin, end, group, x, dt, A, B, C, D, y, states):
    """y of a segment and group, and the states before its chunks."""
    (h, p), n, dtype = x.shape[1:], B.shape[2], x.dtype
    heads, q = h // B.shape[1], SHORT if end - begin <= SHORT else CHUNK
    Bs, Cs, product = np.empty((q, n), dtype), np.empty((q, n), dtype), np.empty((q, q), dtype)
    L, M, decays = np.empty((q, q), dtype), np.empty((q, q), dtype), np.empty((3, q), dtype)
    u, out = np.empty((q, p), dtype), np.empty((q, p), dtype)
    state, added = np.zeros((heads, n, p), dtype), np.empty((n, p), dtype)
    for first in range(begin, end, CHUNK):
        last = min(first + CHUNK, end)
        _load(B, first, last, group, Bs)
        _load(C, first, last, group, Cs)
        multiply(Cs, Bs.T, product)
        for local in range(heads):
            head, S = group * heads + local, state[local]
            _decay(dt, A, first, last, head, decays)
            _triangle(product, decays, L, M)
            _enter(x, dt, first, last, head, u)
            multiply(M, u, out)
            _leave(x, D, first, last, head, out, y)
            if first > begin:
                multiply(Cs, S, out)
                _add_to(decays, first, last, head, out, y)
                if len(states):
                    copy(S, states[_row(begin, first), head])
            if last < end:
                _scale(decays[2], u)
                multiply(Bs.T, u, added)
                _advance(decays[1, q - 1], added, S)


@kernel
def _load(rows, first, last, group, out):
    """A chunk of B or C; zeros after the segment's end."""
    for i in range(last - first):
        for k in range(out.shape[1]):
            out[i, k] = rows[first + i, group, k]
    clear(out, last - first)


@kernel
def _enter(x, dt, first, last, head, u):
    """u = dt x of a chunk; zeros after the segment's end."""
    for i in range(last - first):
        step = dt[first + i, head]
        for k in range(u.shape[1]):
            u[i, k] = step * x[first + i, head, k]
    clear(u, last - first)


@kernel
def _leave(x, D, first, last, head, out, y):
    """y = out + D x."""
    for i in range(last - first):
        for k in range(out.shape[1]):
            y[first + i, head, k] = out[i, k] + D[head, k] * x[first + i, head, k]


@kernel
def _add_to(decays, first, last, head, out, y):
    """y += L0 out."""
    for i in range(last - first):
        since = decays[1, i]
        for k in range(out.shape[1]):
            y[first + i, head, k] += since * out[i, k]


@kernel
def _scale(scale, rows):
    """Each row times its number."""
    for i in range(len(rows)):
        for k in range(rows.shape[1]):
            rows[i, k] *= scale[i]


@kernel
def _advance(decay, added, state):
    """state = decay * state + added."""
    for k in range(len(state)):
        for j in range(state.shape[1]):
            state[k, j] = decay * state[k, j] + added[k, j]


@kernel
def _decay(dt, A, first, last, head, decays):
    """a, and the products of a up to each token and after it."""
    count, rate, passed = last - first, float(A[head]), 1.0
    for i in range(count):
        decays[0, i] = a = math.exp(dt[first + i, head] * rate)
        passed *= a
        decays[1, i] = passed
    passed = 1.0
    for behind in range(count):
        i = count - 1 - behind
        decays[2, i] = passed
        passed *= decays[0, i]
    for i in range(count, decays.shape[1]):
        decays[0, i] = decays[1, i] = decays[2, i] = 0


@kernel
def _triangle(product, decays, L, M):
    """L, and M = C B^T * L, from C B^T."""
    row = np.zeros(len(L), L.dtype)
    for i in range(len(L)):
        a = decays[0, i]
        for j in range(len(row)):
            row[j] *= a
        row[i] = 1
        for j in range(len(row)):
            L[i, j] = row[j]
            M[i, j] = product[i, j] * row[j]


@parallel_kernel
def _backward(x, dt, A, B, C, D, states, dy, dx, ddt, dA, dB, dC, dD, borders, blocks, order, workers):
    for worker in prange(len(workers) - 1):
        for b in order[workers[worker] : workers[worker + 1]]:
            for s in range(blocks[b], blocks[b + 1]):
                for group in range(B.shape[1]):
                    span = borders[s], borders[s + 1], group
                    _gradients(span, x, dt, A, B, C, D, states, dy, dx, ddt, dA[b], dB, dC, dD[b])


@kernel
def _gradients(span, x, dt, A, B, C, D, states, dy, dx, ddt, dA, dB, dC, dD):
    """All gradients of a segment and group, backwards in time; those of A and D are added to their block's."""
    begin, end, group = span
    (h, p), n, dtype = x.shape[1:], B.shape[2], x.dtype
    heads, q = h // B.shape[1], SHORT if end - begin <= SHORT else CHUNK
    Bs, Cs, product = np.empty((q, n), dtype), np.empty((q, n), dtype), np.empty((q, q), dtype)
    dBs, dCs, dproduct = np.empty((q, n), dtype), np.empty((q, n), dtype), np.empty((q, q), dtype)
    L, M, dM = np.empty((q, q), dtype), np.empty((q, q), dtype), np.empty((q, q), dtype)
    u, du = np.empty((q, p), dtype), np.empty((q, p), dtype)
    v, dout = np.empty((q, p), dtype), np.empty((q, p), dtype)
    decays, inside, flow = np.empty((3, q), dtype), np.empty(q, dtype), np.empty(q + 1)
    dstate, added, part = np.zeros((heads, n, p), dtype), np.empty((n, p), dtype), np.empty((q, n), dtype)
    for behind in range((end - begin + CHUNK - 1) // CHUNK):
        first = begin + ((end - begin - 1) // CHUNK - behind) * CHUNK
        last = min(first + CHUNK, end)
        _load(B, first, last, group, Bs)
        _load(C, first, last, group, Cs)
        multiply(Cs, Bs.T, product)
        clear(dBs)
        clear(dCs)
        clear(dproduct)
        for local in range(heads):
            head, Z = group * heads + local, dstate[local]
            _decay(dt, A, first, last, head, decays)
            _triangle(product, decays, L, M)
            _enter(x, dt, first, last, head, u)
            _load(dy, first, last, head, dout)
            multiply(M.T, dout, du)
            multiply(dout, u.T, dM)
            _within(L, M, dM, dproduct, inside)
            for i in range(q + 1):
                flow[i] = 0
            if last < end:
                multiply(Bs, Z, v)
                _leaving(decays, u, v, du, flow)
                multiply(u, Z.T, part)
                add(part, dBs)
            if first > begin:
                S, decay = states[_row(begin, first), head], decays[1, q - 1]  # 0 in the last chunk, as Z is
                flow[q] += decay * _inner(S, Z)
                _scale(decays[1], dout)
                multiply(dout, S.T, part)
                _entering(Cs, part, flow)
                add(part, dCs)
                multiply(Cs.T, dout, added)
                _advance(decay, added, Z)
            dA[head] += _finish(first, last, head, A, dt, x, du, inside, flow, ddt)
            _skip(first, last, head, dt, D, dy, du, dx)
            _skipped(first, last, head, x, dy, dD)
        multiply(dproduct, Bs, part)
        add(part, dCs)
        multiply(dproduct.T, Cs, part)
        add(part, dBs)
        _store(dBs, first, last, group, dB)
        _store(dCs, first, last, group, dC)


@kernel
def _within(L, M, dM, dproduct, inside):
    """Adds dM * L to the gradient of C B^T; inside[t]: what flows over the border before t within the chunk."""
    over = np.zeros(len(L), L.dtype)  # from each j < t to all tokens from t on
    for behind in range(len(L)):
        t = len(L) - 1 - behind
        for j in range(len(over)):
            dproduct[t, j] += L[t, j] * dM[t, j]
        for j in range(len(over)):
            over[j] += M[t, j] * dM[t, j]
        over[t] = 0
        total = over[0]
        for j in range(1, len(over)):
            total += over[j]
        inside[t] = total


@kernel
def _leaving(decays, u, v, du, flow):
    """du += R v, and u becomes R u; flow loses what leaves for S', and flow[-1] gains it."""
    for i in range(len(u)):
        since, lost = decays[2, i], u.dtype.type(0)
        for k in range(u.shape[1]):
            u[i, k] *= since
            du[i, k] += since * v[i, k]
            lost += u[i, k] * v[i, k]
        flow[i] -= lost
        flow[len(u)] += lost


@kernel
def _entering(Cs, part, flow):
    """flow gains what tokens read of S."""
    for i in range(len(part)):
        gained = Cs.dtype.type(0)
        for k in range(Cs.shape[1]):
            gained += Cs[i, k] * part[i, k]
        flow[i] += gained


@kernel
def _inner(a, b):
    """The sum of a * b, that over rows in float64."""
    total = 0.0
    for i in range(len(a)):
        row = a.dtype.type(0)
        for k in range(a.shape[1]):
            row += a[i, k] * b[i, k]
        total += row
    return total


@kernel
def _finish(first, last, head, A, dt, x, du, inside, flow, ddt):
    """ddt of a chunk and head, and its share of dA: what flows over each border, and what passes du."""
    total, dA, rate = flow[len(du)], 0.0, float(A[head])
    for behind in range(last - first):
        i = last - first - 1 - behind
        total += flow[i]
        step, direct = dt[first + i, head], x.dtype.type(0)
        for k in range(du.shape[1]):
            direct += du[i, k] * x[first + i, head, k]
        dA += (total + inside[i]) * step
        ddt[first + i, head] = (total + inside[i]) * rate + direct
    return dA


@kernel
def _skip(first, last, head, dt, D, dy, du, dx):
    """dx of a chunk and head."""
    for i in range(last - first):
        step = dt[first + i, head]
        for k in range(du.shape[1]):
            dx[first + i, head, k] = step * du[i, k] + D[head, k] * dy[first + i, head, k]


@kernel
def _skipped(first, last, head, x, dy, dD):
    """A chunk's and head's share of dD."""
    total = np.zeros(x.shape[2], x.dtype)
    for t in range(first, last):
        for k in range(len(total)):
            total[k] += dy[t, head, k] * x[t, head, k]
    for k in range(len(total)):
        dD[head, k] += total[k]


@kernel
def _store(rows, first, last, group, out):
    """A chunk's rows of dB or dC."""
    for i in range(last - first):
        for k in range(rows.shape[1]):
            out[first + i, group, k] = rows[i, k]
