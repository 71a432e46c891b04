"""The short causal convolution of `ops.causal_conv1d` on a CPU: one pass forward, one backward.

    pre[t] = bias + sum_{k<K} w[k] * x[t-k],    y[t] = silu(pre[t]),    w[k] = weight[:, K-1-k]
    d[t] = dy[t] * silu'(pre[t])
    dx[t] = sum_k w[k] * d[t+k],    dw[k] = sum_t d[t+k] * x[t],    dbias = sum_t d[t]

t-k and t+k only as far as they lie in t's segment. With `reverse` a segment is walked from its end. The backward
computes pre anew, which costs less than to write it and read it back. d lies where dx will: when d[t+K-1] has come,
dx[t] takes the place of d[t].

Four taps at once, the usual width, are a loop of their own, one store for four products. Streams are one long row of
numbers each, and unsigned places in it are free of numba's arithmetic for negative ones.

Shape letters:    T tokens    c channels    K width of the filter
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..packing import Segments
from .jit import FEW, Work, bare, flat, kernel, launch, loop, over_blocks, parallel_kernel, sigmoid
from .matrices import add, clear
from .vectors import put


def causal_conv1d_numba(
    x: Tensor, weight: Tensor, bias: Tensor | None, segments: Segments, reverse: bool, silu: bool
) -> Tensor:
    """See `ops.causal_conv1d.causal_conv1d`; x is (T, c), float32 or float64, and a slice of columns is not copied."""
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return _CausalConv.apply(x, weight, bias, segments, reverse, silu)


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, segments, reverse, silu):
        ctx.save_for_backward(x, weight, bias)
        ctx.segments, ctx.reverse, ctx.silu = segments, reverse, silu
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        inputs, work = (flat(x), taps_of(weight), bias.contiguous()), Work.of(segments)
        launch(_forward, *inputs, reverse, silu, y.view(-1), work.arrays)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (x, weight, bias), work = ctx.saved_tensors, Work.of(ctx.segments)
        dx, taps = torch.empty_like(x, memory_format=torch.contiguous_format), taps_of(weight)
        sums = taps.new_zeros(work.n_blocks, len(taps) + 1, len(weight), dtype=torch.float64)  # of dw, then of dbias
        inputs = flat(dy), flat(x), taps, bias.contiguous()
        launch(_backward, *inputs, ctx.reverse, ctx.silu, dx.view(-1), sums, work.arrays)
        total = over_blocks(sums, x.dtype)
        return dx, total[:-1].flip(0).t(), total[-1], None, None, None


def taps_of(weight: Tensor) -> Tensor:
    """(K, c): row k meets the token k steps away."""
    return weight.flip(1).t().contiguous()


@parallel_kernel
def _forward(x, taps, bias, reverse, silu, y, work):
    for worker in prange(len(work[-1]) - 1):
        _forward_share(x, taps, bias, reverse, silu, y, work, worker)


@bare
def _forward_share(x, taps, bias, reverse, silu, y, work, worker):
    borders, blocks, order, workers = work
    (x, stride), (width, channels), step = x, taps.shape, -1 if reverse else 1
    for b in order[workers[worker] : workers[worker + 1]]:
        for s in range(blocks[b], blocks[b + 1]):
            begin, end = borders[s], borders[s + 1]
            t = end - 1 if reverse else begin
            for i in range(end - begin):
                convolve(x, t * stride, -step * stride, taps, min(i + 1, width), bias, silu, y, t * channels)
                t += step


@loop
def convolve(x, here, away, taps, count, base, silu, y, out):
    """y[out:] = base + sum_{k<count} taps[k] * x[here + k * away:], and its SiLU."""
    here, away, out, channels = np.uint64(here), np.uint64(away), np.uint64(out), np.uint64(len(base))
    if count == 4:
        x1, x2, x3 = here + away, here + away + away, here + away + away + away
        for c in range(channels):
            near = base[c] + taps[0, c] * x[here + c] + taps[1, c] * x[x1 + c]
            pre = near + taps[2, c] * x[x2 + c] + taps[3, c] * x[x3 + c]
            y[out + c] = pre * sigmoid(pre) if silu else pre
        return
    for c in range(channels):
        y[out + c] = base[c]
    for k in range(count):
        for c in range(channels):
            y[out + c] += taps[k, c] * x[here + c]
        here += away
    if silu:
        for c in range(channels):
            y[out + c] *= sigmoid(y[out + c])


@parallel_kernel
def _backward(dy, x, taps, bias, reverse, silu, dx, sums, work):
    for worker in prange(len(work[-1]) - 1):
        _backward_share(dy, x, taps, bias, reverse, silu, dx, sums, work, worker)


@kernel
def _backward_share(dy, x, taps, bias, reverse, silu, dx, sums, work, worker):
    borders, blocks, order, workers = work
    for b in order[workers[worker] : workers[worker + 1]]:
        for s in range(blocks[b], blocks[b + 1]):
            first, step = (borders[s + 1] - 1, -1) if reverse else (borders[s], 1)
            _segment_backward(dy, x, taps, bias, silu, (first, step, borders[s + 1] - borders[s]), dx, sums[b])


@kernel
def _segment_backward(dy, x, taps, bias, silu, walk, dx, sums):
    """Fills dx of one segment, adds to the sums of its block."""
    (dy, dy_stride), (x, stride), (first, step, length), (width, channels) = dy, x, walk, taps.shape
    row, nothing, part = np.empty_like(bias), np.zeros_like(bias), np.zeros(sums.shape, x.dtype)
    for i in range(length + width - 1):
        t = first + step * i
        if i < length:
            if silu:
                convolve(x, t * stride, -step * stride, taps, min(i + 1, width), bias, False, row, 0)
            _derive(dy, t * dy_stride, row, silu, dx, t * channels, part[width])
        i -= width - 1  # the token whose followers are all known now
        if i >= 0:
            t, count = first + step * i, min(length - i, width)
            convolve(dx, t * channels, step * channels, taps, count, nothing, False, row, 0)
            collect(x, t * stride, dx, t * channels, step * channels, count, part)
            put(row, dx[t * channels : (t + 1) * channels])
            if (i + 1) % FEW == 0 or i == length - 1:
                add(part, sums)
                clear(part)


@loop
def _derive(dy, there, pre, silu, d, here, dbias):
    """d of a token."""
    there, here, channels = np.uint64(there), np.uint64(here), np.uint64(len(pre))
    one = pre.dtype.type(1)
    for c in range(channels):
        gate = sigmoid(pre[c])
        d_c = dy[there + c] * gate * (one + pre[c] * (one - gate)) if silu else dy[there + c]
        d[here + c] = d_c
        dbias[c] += d_c


@loop
def collect(x, there, d, here, away, count, dtaps):
    """dtaps[k] += d[here + k * away:] * x[there:], a token's share of dw, for k < count."""
    there, here, away = np.uint64(there), np.uint64(here), np.uint64(away)
    channels = np.uint64(dtaps.shape[1])
    if count == 4:
        d1, d2, d3 = here + away, here + away + away, here + away + away + away
        for c in range(channels):
            x_c = x[there + c]
            dtaps[0, c] += d[here + c] * x_c
            dtaps[1, c] += d[d1 + c] * x_c
            dtaps[2, c] += d[d2 + c] * x_c
            dtaps[3, c] += d[d3 + c] * x_c
        return
    for k in range(count):
        place = here + np.uint64(k) * away
        for c in range(channels):
            dtaps[k, c] += d[place + c] * x[there + c]
