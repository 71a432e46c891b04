"""The backward of `ssd.py`: all gradients of a segment, chunk by chunk from its end. Letters as there."""

from __future__ import annotations

import numpy as np
from numba import prange

from .jit import kernel, loop, parallel_kernel
from .matrices import add, add_multiply, clear, multiply, transpose
from .ssd_chunk import CHUNK, decay, enter, fade, load, rows_of, scale, state_row, triangle


@parallel_kernel
def backward(x, dt, A, B, C, D, states, dy, dx, ddt, dA, dB, dC, dD, borders, blocks, order, workers):
    for worker in prange(len(workers) - 1):
        for b in order[workers[worker] : workers[worker + 1]]:
            for s in range(blocks[b], blocks[b + 1]):
                for group in range(B.shape[1]):
                    span = borders[s], borders[s + 1], group
                    outputs = dx, ddt, dA[b], dD[b]
                    _gradients(span, (x, dt, A, D, states, dy), B, C, outputs, dB, dC)


@kernel
def _gradients(span, inputs, B, C, outputs, dB, dC):
    """All gradients of a segment and group; those of A and D are added to their block's."""
    begin, end, group = span
    (h, p), n, dtype, q = inputs[0].shape[1:], B.shape[2], B.dtype, rows_of(begin, end)
    heads = h // B.shape[1]
    Bs, Cs, product = np.empty((q, n), dtype), np.empty((q, n), dtype), np.empty((q, q), dtype)
    dBs, dCs, dproduct = np.empty((q, n), dtype), np.empty((q, n), dtype), np.empty((q, q), dtype)
    squares = np.empty((q, q), dtype), np.empty((q, q), dtype), np.empty((q, q), dtype)
    rows = np.empty((q, p), dtype), np.empty((q, p), dtype), np.empty((q, p), dtype), np.empty((q, p), dtype)
    dstate = np.zeros((heads, n, p), dtype)
    others = np.empty((3, q), dtype), np.empty(q, dtype), np.empty(q + 1), np.empty((q, n), dtype)
    turned = np.empty((n, q), dtype), np.empty((p, q), dtype), np.empty((p, n), dtype)
    for behind in range((end - begin + CHUNK - 1) // CHUNK):
        first = begin + ((end - begin - 1) // CHUNK - behind) * CHUNK
        place = begin, first, min(first + CHUNK, end), end
        load(B, first, place[2], group, Bs)
        load(C, first, place[2], group, Cs)
        transpose(Bs, turned[0])
        multiply(Cs, turned[0], product)
        clear(dBs)
        clear(dCs)
        clear(dproduct)
        for local in range(heads):
            shared = Bs, Cs, product, dBs, dCs, dproduct, dstate[local]
            _head(place, group * heads + local, inputs, shared, outputs, squares, rows, turned[1:], others)
        add_multiply(dproduct, Bs, dCs)
        add_multiply(dproduct.T, Cs, dBs)
        _store(dBs, first, place[2], group, dB)
        _store(dCs, first, place[2], group, dC)


@kernel
def _head(place, head, inputs, shared, outputs, squares, rows, turned, others):
    """A head's share of a chunk: dx, ddt, dA and dD, and what is added to dB, dC and the gradient Z of the state."""
    begin, first, last, end = place
    x, dt, A, D, states, dy = inputs
    Bs, Cs, product, dBs, dCs, dproduct, Z = shared
    dx, ddt, dA, dD = outputs
    (L, M, dM), (u, du, v, dout), (uT, ZT), (decays, inside, flow, part) = squares, rows, turned, others
    decay(dt, A, first, last, head, decays)
    triangle(product, decays, L, M)
    enter(x, dt, first, last, head, u)
    load(dy, first, last, head, dout)
    multiply(M.T, dout, du)
    transpose(u, uT)
    multiply(dout, uT, dM)
    _within(L, M, dM, dproduct, inside)
    for i in range(len(flow)):
        flow[i] = 0
    if last < end:
        multiply(Bs, Z, v)
        _leaving(decays, u, v, du, flow)
        transpose(Z, ZT)
        add_multiply(u, ZT, dBs)
    if first > begin:
        ST, over = states[state_row(begin, first), head], decays[1, len(u) - 1]
        if last < end:
            flow[len(u)] += over * _inner(ST, ZT)
            fade(over, Z)
        scale(decays[1], dout)
        multiply(dout, ST, part)
        _entering(Cs, part, flow)
        add(part, dCs)
        add_multiply(Cs.T, dout, Z)
    dA[head] += _finish(first, last, head, A, dt, x, du, inside, flow, ddt)
    _skip(first, last, head, dt, D, dy, du, dx)
    _skipped(first, last, head, x, dy, dD)


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


@loop
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


@loop
def _entering(Cs, part, flow):
    """flow gains what tokens read of S."""
    for i in range(len(part)):
        gained = Cs.dtype.type(0)
        for k in range(Cs.shape[1]):
            gained += Cs[i, k] * part[i, k]
        flow[i] += gained


@loop
def _inner(a, b):
    """The sum of a * b, that over rows in float64."""
    total = 0.0
    for i in range(len(a)):
        row = a.dtype.type(0)
        for k in range(a.shape[1]):
            row += a[i, k] * b[i, k]
        total += row
    return total


@loop
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


@loop
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


@loop
def _store(rows, first, last, group, out):
    """A chunk's rows of dB or dC."""
    for i in range(last - first):
        for k in range(rows.shape[1]):
            out[first + i, group, k] = rows[i, k]
