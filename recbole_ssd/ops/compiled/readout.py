"""The readout of every prefix (`ops.readout`) on a CPU: as prefixes grow, item by item, in one pass.

When item t of a segment arrives, the flipped convolution at each of the last K items s = t-j gets its tap j. With it

    term = w[s] dt[s] (C~[1] . B~[s]) x~[s]

is new. While j < K-1 another tap will come, and the term counts for the prefix that ends with t alone; with j = K-1 the
filter is full and the term goes into the running sum. C~ and x~ of item 1 fill in the same way over the first K items.
The backward goes through the items from the end, with the sum of all later dy as the gradient of the running sum.

Shape letters:    T tokens    K width of the filter    h heads    p head size    i = h * p    g groups    n state size
                  e = i + g * n, the channels of x and B    c = e + g * n
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..packing import Segments
from . import matrices
from .causal_conv1d import taps_of
from .jit import FEW, Work, bare, kernel, launch, over_blocks, parallel_kernel
from .vectors import add, add_product, add_scaled, clear, dot, put, put_scaled, silu, silu_and_slope


def readout_numba(
    xBC: Tensor, dt: Tensor, A: Tensor, D: Tensor, weight: Tensor, bias: Tensor, ngroups: int, segments: Segments
) -> Tensor:
    """`ops.readout.prefix_readout` with D as (h, p); (T, h, p), float32 or float64."""
    y = _Readout.apply(xBC, dt, A, D.flatten(), weight, bias, ngroups, segments)
    return y.view(len(xBC), *D.shape)


class _Readout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, xBC, dt, A, D, weight, bias, ngroups, segments):
        xBC, dt = xBC.contiguous(), dt.contiguous()
        taps = taps_of(weight)  # here taps[j] meets the item j places ahead
        ctx.save_for_backward(xBC, dt, A, D, taps, bias)
        ctx.ngroups, ctx.segments = ngroups, segments
        y = xBC.new_empty(len(xBC), len(D))
        launch(_forward, xBC, dt, A, D, taps, bias, ngroups, y, Work.of(segments).arrays)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        xBC, dt, A, D, taps, bias = inputs = ctx.saved_tensors
        work = Work.of(ctx.segments)
        dxBC, ddt = torch.empty_like(xBC), torch.empty_like(dt)
        sums = A.shape, D.shape, (len(taps) + 1, len(bias))  # the last of the taps, then of the bias
        # float64: a history of 50,000 items would round what it adds away
        dA, dD, dfilter = (A.new_zeros(work.n_blocks, *shape, dtype=torch.float64) for shape in sums)
        launch(_backward, *inputs, ctx.ngroups, dy.contiguous(), dxBC, ddt, dA, dD, dfilter, work.arrays)
        dA, dD, dfilter = (over_blocks(t, dy.dtype) for t in (dA, dD, dfilter))
        return dxBC, ddt, dA, dD, dfilter[:-1].flip(0).t(), dfilter[-1], None, None


@parallel_kernel
def _forward(xBC, dt, A, D, taps, bias, groups, y, work):
    borders, blocks, order, workers = work
    for worker in prange(len(workers) - 1):
        for block in order[workers[worker] : workers[worker + 1]]:
            for s in range(blocks[block], blocks[block + 1]):
                here = slice(borders[s], borders[s + 1])
                _segment(xBC[here], dt[here], A, D, taps, bias, groups, y[here])


@kernel
def _segment(xBC, dt, A, D, taps, bias, groups, y):
    """Fills y, (l, i), of one segment of l items."""
    K, h, i = len(taps), len(A), len(D)
    e = (i + len(bias)) // 2
    pre, wdt = np.empty((K, e), y.dtype), np.empty((K, h), y.dtype)  # of the last K items, item s in row s % K
    activation, C, C_pre = np.empty(e, y.dtype), np.empty(len(bias) - e, y.dtype), bias[e:].copy()
    total, skip, log_w = np.zeros(i), np.empty(i, y.dtype), np.zeros(h)  # sums over the history are float64
    scratch = pre, wdt, activation, C, C_pre, total, skip, log_w
    _prefixes((xBC, dt, A, D, taps, bias), groups, scratch, y)


@bare
def _prefixes(inputs, groups, scratch, y):
    (xBC, dt, A, D, taps, bias), (pre, wdt, activation, C, C_pre, total, skip, log_w) = inputs, scratch
    (K, e), i = pre.shape, len(D)
    for t in range(len(y)):
        row, out = xBC[t], y[t]
        clear(out)
        if t < K:
            _one_more_tap(C_pre, taps[t][e:], row[e:], C)
        put(bias[:e], pre[t % K])
        _weigh(dt[t], A, log_w, wdt[t % K])
        for j in range(min(t, K - 1) + 1):
            s = t - j
            _one_more_tap(pre[s % K], taps[j][:e], row[:e], activation)
            if j < K - 1:
                _add_term(activation, C, wdt[s % K], groups, out)
            else:
                _add_term(activation, C, wdt[s % K], groups, total)
            if s == 0:
                put(activation[:i], skip)
        add(total, out)
        add_product(D, skip, out)


@bare
def _one_more_tap(pre, tap, row, activation):
    add_product(tap, row, pre)
    silu(pre, activation)


@bare
def _weigh(dt, A, log_w, wdt):
    """w dt of an item, and log w of the next one: float64, for it is a sum over the history."""
    for j in range(len(A)):
        wdt[j] = np.exp(log_w[j]) * dt[j]
        log_w[j] += dt[j] * A[j]


@bare
def _add_term(activation, C, wdt, groups, out):
    i, heads, n = len(out), len(wdt), len(C) // groups
    p = i // heads
    for g in range(groups):
        B, C_g = activation[i + g * n : i + (g + 1) * n], C[g * n : (g + 1) * n]
        CB = dot(B, C_g)
        for j in range(g * heads // groups, (g + 1) * heads // groups):
            add_scaled(wdt[j] * CB, activation[j * p : (j + 1) * p], out[j * p : (j + 1) * p])


@parallel_kernel
def _backward(xBC, dt, A, D, taps, bias, groups, dy, dxBC, ddt, dA, dD, dfilter, work):
    borders, blocks, order, workers = work
    for worker in prange(len(workers) - 1):
        for b in order[workers[worker] : workers[worker + 1]]:
            for s in range(blocks[b], blocks[b + 1]):
                here = slice(borders[s], borders[s + 1])
                inputs = xBC[here], dt[here], A, D, taps, bias
                _segment_backward(inputs, groups, dy[here], (dxBC[here], ddt[here], dA[b], dD[b], dfilter[b]))


@kernel
def _segment_backward(inputs, groups, dy, grads):
    """Fills dxBC and ddt of one segment, and adds to dA, dD and dfilter of its block."""
    xBC, dt, A, _, taps, bias = inputs
    dxBC, dfilter = grads[0], grads[-1]
    (K, c), h, i, dtype = taps.shape, len(A), dy.shape[1], dy.dtype
    e = (i + c) // 2
    C_slope, C, dC = np.empty((K, c - e), dtype), np.empty((K, c - e), dtype), np.zeros((K, c - e))
    xB_slope, xB, dxB = np.empty((K, e), dtype), np.empty((K, e), dtype), np.empty((K, e), dtype)
    later, dtotal = np.zeros(i), np.empty(i, dtype)  # the sum of later dy, and the same rounded once
    w, log_w, flow = np.empty_like(dt), np.zeros(h), np.zeros(h)
    wdt, dwdt = np.empty(h, dtype), np.empty(h, dtype)
    pre, part = np.empty(max(e, c - e), dtype), np.zeros(dfilter.shape, dtype)  # part: of few items
    _weights(dt, A, log_w, w)
    _levels(xBC, taps, bias, 0, e, C, C_slope, pre[: c - e])
    scratch = (w, wdt, dwdt, flow), (C, dC, xB, xB_slope, dxB), (later, dtotal, pre[:e], part)
    _items_backward(inputs, groups, dy, scratch, grads)
    _levels_backward(xBC, taps, 0, e, C_slope, dC.astype(dtype), pre[: c - e], dxBC, part)
    matrices.add(part, dfilter)


@bare
def _items_backward(inputs, groups, dy, scratch, grads):
    """All but what comes of C, from the last item to the first."""
    (xBC, dt, A, D, taps, bias), (dxBC, ddt, dA, dD, dfilter) = inputs, grads
    (w, wdt, dwdt, flow), (C, dC, xB, slope, dxB), (later, dtotal, pre, part) = scratch
    (length, i), K = dy.shape, len(taps)
    for seen in range(length):
        s = length - 1 - seen
        clear(dxBC[s])  # no later item has reached it
        if s + K - 1 < length:  # what enters the running sum here is in all later prefixes
            add(dy[s + K - 1], later)
            put(later, dtotal)
        _levels(xBC, taps, bias, s, 0, xB, slope, pre)
        for j in range(len(A)):
            wdt[j], dwdt[j] = w[s, j] * dt[s, j], 0
        for j in range(min(K, length - s)):
            dterm, level = dy[s + j] if j < K - 1 else dtotal, min(s + j, K - 1)
            _term_backward(xB[j], C[level], wdt, groups, dterm, dxB[j], dC[level], dwdt)
            if s == 0:
                _skip_backward(xB[j][:i], D, dterm, dxB[j][:i], dD)
        _levels_backward(xBC, taps, s, 0, slope, dxB, pre, dxBC, part)
        if seen % FEW == FEW - 1:
            matrices.add(part, dfilter)
            matrices.clear(part)
        for j in range(len(A)):
            ddt[s, j] = w[s, j] * dwdt[j] + A[j] * flow[j]
            dA[j] += dt[s, j] * flow[j]
            flow[j] += wdt[j] * dwdt[j]


@bare
def _weights(dt, A, log_w, w):
    """w of every item, (l, h)."""
    for t in range(len(dt)):
        for j in range(len(A)):
            w[t, j] = np.exp(log_w[j])
            log_w[j] += dt[t, j] * A[j]


@bare
def _levels(xBC, taps, bias, s, first, activation, slope, pre):
    """SiLU of the flipped convolution at item s with 1, 2, ... taps, of the channels from `first`; and its slope."""
    end = first + len(pre)
    put(bias[first:end], pre)
    for j in range(min(len(taps), len(xBC) - s)):
        add_product(taps[j][first:end], xBC[s + j][first:end], pre)
        silu_and_slope(pre, activation[j], slope[j])


@bare
def _levels_backward(xBC, taps, s, first, slope, dactivation, above, dxBC, dfilter):
    """Adds to dxBC and dfilter. A tap is in the sums of its own level and of all above, which `above` adds up."""
    end = first + len(above)
    clear(above)
    full = min(len(taps), len(xBC) - s)
    for seen in range(full):
        j = full - 1 - seen
        add_product(slope[j], dactivation[j], above)
        add_product(taps[j][first:end], above, dxBC[s + j][first:end])
        add_product(xBC[s + j][first:end], above, dfilter[j][first:end])
    add(above, dfilter[len(taps)][first:end])


@bare
def _term_backward(xB, C, wdt, groups, dterm, dxB, dC, dwdt):
    """Fills dxB, adds to dC and dwdt."""
    i, heads, n = len(dterm), len(wdt), len(C) // groups
    p = i // heads
    for g in range(groups):
        B, dB = xB[i + g * n : i + (g + 1) * n], dxB[i + g * n : i + (g + 1) * n]
        C_g, dC_g = C[g * n : (g + 1) * n], dC[g * n : (g + 1) * n]
        CB, dCB = dot(B, C_g), C.dtype.type(0)
        for j in range(g * heads // groups, (g + 1) * heads // groups):
            here = slice(j * p, (j + 1) * p)
            dscale = dot(dterm[here], xB[here])
            dwdt[j] += dscale * CB
            dCB += dscale * wdt[j]
            put_scaled(wdt[j] * CB, dterm[here], dxB[here])
        put_scaled(dCB, C_g, dB)
        add_scaled(dCB, B, dC_g)


@bare
def _skip_backward(x, D, dterm, dx, dD):
    """Of D x~[1], which is there once for every prefix."""
    add_product(D, dterm, dx)
    add_product(x, dterm, dD)
