"""The values of a chunk of `ssd.py`: where they come from, and where their gradients go.

Values are rows of x of all heads, B of all groups and C of all groups, side by side; those beyond the segment's end are
zeros. With a filter they are silu(conv(xBC)), made here (`causal_conv1d.py`); without one they were given as three
tensors. In the backward d[t], the gradient before the SiLU, reaches dx[t-K+1] to dx[t], so that the K-1 first rows of a
chunk are kept for the one before it, which is gone through next.

    sources    the numbers of xBC, or of x, B and C, as `jit.flat` has them, and (3, 2) how far apart two tokens are in
               each, and how many columns it has
    place      where a segment begins, its chunk begins and ends, and the segment ends

Shape letters:    q rows    c columns    K width of the filter
"""

from __future__ import annotations

import numpy as np

from .causal_conv1d import collect, convolve
from .jit import kernel
from .matrices import add, clear
from .vectors import add as add_row
from .vectors import put, silu_and_slope, times


@kernel
def enter(sources, place, taps, bias, values, slopes):
    """Fills values, (q, c), and with a filter slopes, those of the SiLU, unless they have no rows."""
    if len(taps):
        _convolved(sources, place, taps, bias, values, slopes)
    else:
        _given(sources, place, values)
    clear(values, place[2] - place[1])


@kernel
def _given(sources, place, values):
    (_, first, last, _), (rows, layout), flat = place, sources, values.reshape(-1)
    for t in range(first, last):
        here = (t - first) * values.shape[1]
        for k, row in enumerate(rows):
            stride, size = layout[k, 0], layout[k, 1]
            put(row[t * stride : t * stride + size], flat[here : here + size])
            here += size


@kernel
def _convolved(sources, place, taps, bias, values, slopes):
    (begin, first, last, _), (rows, layout), flat = place, sources, values.reshape(-1)
    x, stride, pre = rows[0], layout[0, 0], np.empty_like(bias)
    for t in range(first, last):
        i, count = t - first, min(t - begin + 1, len(taps))
        if len(slopes):
            convolve(x, t * stride, -stride, taps, count, bias, False, pre, 0)
            silu_and_slope(pre, values[i], slopes[i])
        else:
            convolve(x, t * stride, -stride, taps, count, bias, True, flat, i * len(bias))


@kernel
def leave(sources, place, taps, slopes, dvalues, grads, dfilter):
    """Fills a chunk's rows of the sources' gradients, and adds to dfilter, (K + 1, c): of the taps, then of the bias.

    dvalues has K-1 rows more than a chunk, for d of the chunk behind this one; d of this one is left there.
    """
    if len(taps):
        _through_filter(sources, place, taps, slopes, dvalues, grads[0], dfilter)
    else:
        _as_they_are(place, dvalues, grads)


@kernel
def _as_they_are(place, dvalues, grads):
    (_, first, last, _), flat = place, dvalues.reshape(-1)
    for t in range(first, last):
        here = (t - first) * dvalues.shape[1]
        for grad in grads:
            put(flat[here : here + grad.shape[1]], grad[t])
            here += grad.shape[1]


@kernel
def _through_filter(sources, place, taps, slopes, dvalues, grad, dfilter):
    (_, first, last, _), (rows, layout), (width, channels) = place, sources, taps.shape
    x, stride, d, dx = rows[0], layout[0, 0], dvalues.reshape(-1), grad.reshape(-1)
    part, nothing = np.zeros(dfilter.shape, taps.dtype), np.zeros(channels, taps.dtype)
    for i in range(last - first):
        times(slopes[i], dvalues[i])
        add_row(dvalues[i], part[width])
    clear(dvalues[: len(slopes)], last - first)
    for t in range(first, last):
        here = (t - first) * channels
        convolve(d, here, channels, taps, width, nothing, False, dx, t * channels)
        collect(x, t * stride, d, here, channels, width, part)
    add(part, dfilter)
    for behind in range(1, width):  # from the last: where the filter is longer than a chunk, rows move on
        put(dvalues[width - 1 - behind], dvalues[len(dvalues) - behind])
