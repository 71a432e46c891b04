"""The backward of `ssd.py`: all gradients of a segment, chunk by chunk from its end. Letters as there."""

from __future__ import annotations

import numpy as np
from numba import prange

from .jit import kernel, loop, parallel_kernel
from .matrices import add, add_multiply, clear, multiply, transpose
from .ssd_chunk import CHUNK, columns, decay, fade, rows_of, scale, state_row, triangle, weigh
from .ssd_values import enter, leave


@parallel_kernel
def backward(rows, layout, dt, A, D, taps, bias, groups, states, dy, grads, ddt, dA, dD, dfilter, work):
    borders, blocks, order, workers = work
    for worker in prange(len(workers) - 1):
        for b in order[workers[worker] : workers[worker + 1]]:
            for s in range(blocks[b], blocks[b + 1]):
                inputs, outputs = (dt, A, D, states, dy), (ddt, dA[b], dD[b])
                span, sources, filter_ = (borders[s], borders[s + 1], groups), (rows, layout), (taps, bias)
                _gradients(span, sources, filter_, inputs, outputs, grads, dfilter[b])


@kernel
def _gradients(span, sources, filter_, inputs, outputs, grads, dfilter):
    """All gradients of a segment; those of A, D and the filter are added to their block's."""
    (begin, end, groups), (taps, bias) = span, filter_
    (h, p), (width, c), q, dtype = inputs[2].shape, taps.shape, rows_of(begin, end), bias.dtype
    heads, n = h // groups, (c - h * p) // (2 * groups)
    values, slopes = np.empty((q, c), dtype), np.empty((q if width else 0, c), dtype)
    dvalues = np.zeros((q + max(width - 1, 0), c), dtype)
    Bs, Cs, product = np.empty((q, n), dtype), np.empty((q, n), dtype), np.empty((q, q), dtype)
    dBs, dCs, dproduct = np.empty((q, n), dtype), np.empty((q, n), dtype), np.empty((q, q), dtype)
    squares = np.empty((q, q), dtype), np.empty((q, q), dtype), np.empty((q, q), dtype), np.empty((q, q), dtype)
    rows = np.empty((q, p), dtype), np.empty((q, p), dtype), np.empty((q, p), dtype), np.empty((q, p), dtype)
    dstate = np.zeros((h, n, p), dtype)
    sums = np.empty((2, q), dtype), np.empty(p, dtype), np.empty(q + 1)
    others = np.empty((3, q), dtype), *sums, np.empty((q, n), dtype)
    turned = np.empty((n, q), dtype), np.empty((p, q), dtype), np.empty((p, n), dtype)
    for behind in range((end - begin + CHUNK - 1) // CHUNK):
        first = begin + ((end - begin - 1) // CHUNK - behind) * CHUNK
        place = begin, first, min(first + CHUNK, end), end
        enter(sources, place, taps, bias, values, slopes)
        for group in range(groups):
            left = h * p + group * n, h * p + (groups + group) * n
            columns(values, left[0], Bs)
            columns(values, left[1], Cs)
            transpose(Bs, turned[0])
            multiply(Cs, turned[0], product)
            clear(dBs)
            clear(dCs)
            clear(dproduct)
            for head in range(group * heads, (group + 1) * heads):
                shared = values, Bs, Cs, product, dvalues, dBs, dCs, dproduct, dstate[head]
                _head(place, head, inputs, shared, outputs, squares, rows, turned[1:], others)
            add_multiply(dproduct, Bs, dCs)
            add_multiply(dproduct.T, Cs, dBs)
            _store(dBs, left[0], dvalues)
            _store(dCs, left[1], dvalues)
        leave(sources, place, taps, slopes, dvalues, grads, dfilter)


@kernel
def _head(place, head, inputs, shared, outputs, squares, rows, turned, others):
    """A head's share of a chunk: its x in dvalues, ddt, dA, dD, and what is added to dB, dC and Z, the state's."""
    begin, first, last, end = place
    dt, A, D, states, dy = inputs
    values, Bs, Cs, product, dvalues, dBs, dCs, dproduct, Z = shared
    ddt, dA, dD = outputs
    (L, M, dM, flows), (u, du, v, dout), (uT, ZT), (decays, sums, row, flow, part) = squares, rows, turned, others
    decay(dt, A, place, head, decays)
    triangle(product, decays, sums[0], L, M)
    weigh(values, dt, place, head, u)
    _load(dy, place, head, dout)
    multiply(M.T, dout, du)
    transpose(u, uT)
    multiply(dout, uT, dM)
    _suffixes(L, M, dM, sums[0], flows, dproduct)
    transpose(flows, dM)  # which has been read
    _before(dM, sums[1])
    for i in range(len(flow)):
        flow[i] = 0
    if last < end:
        multiply(Bs, Z, v)
        _to_later(decays, u, v, du, flow)
        transpose(Z, ZT)
        add_multiply(u, ZT, dBs)
    if first > begin:
        ST, whole = states[state_row(begin, first), head], decays[1, len(u) - 1]
        if last < end:
            flow[len(u)] += whole * _inner(ST, ZT)
            fade(whole, Z)
        scale(decays[1], dout)
        multiply(dout, ST, part)
        _from_earlier(Cs, part, flow)
        add(part, dCs)
        add_multiply(Cs.T, dout, Z)
    dA[head] += _finish(place, head, A, dt, values, du, sums[1], flow, ddt)
    _skip(place, head, dt, D, values, dy, du, row, dvalues, dD)


@loop
def _load(rows, place, head, out):
    """A chunk of dy; zeros after the segment's end."""
    _, first, last, _ = place
    for i in range(last - first):
        for k in range(out.shape[1]):
            out[i, k] = rows[first + i, head, k]
    clear(out, last - first)


@loop
def _suffixes(L, M, dM, row, flows, dproduct):
    """Adds dM * L to the gradient of C B^T; flows[t, j]: from j to all tokens from t on, within the chunk."""
    for j in range(len(row)):
        row[j] = 0
    for behind in range(len(L)):
        t = len(L) - 1 - behind
        for j in range(len(row)):
            dproduct[t, j] += L[t, j] * dM[t, j]
            row[j] += M[t, j] * dM[t, j]
            flows[t, j] = row[j]


@loop
def _before(turned, inside):
    """inside[t]: what flows over the border before t, from all j < t; `turned` is flows^T."""
    zero = inside.dtype.type(0)
    for t in range(len(inside)):
        inside[t] = 0
    for j in range(len(turned)):
        for t in range(len(inside)):
            inside[t] += turned[j, t] if j < t else zero


@loop
def _to_later(decays, u, v, du, flow):
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
def _from_earlier(Cs, part, flow):
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
def _finish(place, head, A, dt, values, du, inside, flow, ddt):
    """ddt of a chunk and head, and its share of dA: what flows over each border, and what passes du."""
    _, first, last, _ = place
    total, dA, rate = flow[len(du)], 0.0, float(A[head])
    left = np.uint64(head * du.shape[1])
    for behind in range(last - first):
        i = last - first - 1 - behind
        total += flow[i]
        step, direct = dt[first + i, head], du.dtype.type(0)
        for k in range(np.uint64(du.shape[1])):
            direct += du[i, k] * values[i, left + k]
        dA += (total + inside[i]) * step
        ddt[first + i, head] = (total + inside[i]) * rate + direct
    return dA


@loop
def _skip(place, head, dt, D, values, dy, du, row, dvalues, dD):
    """The gradient of a chunk's x, and a head's share of dD; `row` is scratch, (p,)."""
    _, first, last, _ = place
    left = np.uint64(head * len(row))
    for k in range(len(row)):
        row[k] = 0
    for i in range(last - first):
        step = dt[first + i, head]
        for k in range(np.uint64(len(row))):
            given = dy[first + i, head, k]
            dvalues[i, left + k] = step * du[i, k] + D[head, k] * given
            row[k] += given * values[i, left + k]
    for k in range(len(row)):
        dD[head, k] += row[k]


@loop
def _store(rows, left, dvalues):
    """A chunk's dB or dC."""
    left = np.uint64(left)
    for i in range(len(rows)):
        for k in range(np.uint64(rows.shape[1])):
            dvalues[i, left + k] = rows[i, k]
