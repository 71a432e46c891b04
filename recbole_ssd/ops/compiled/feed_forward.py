"""The feed-forward network of `ops.feed_forward` on a CPU, a few rows at a time.

    u = x W1^T + b1;    g = drop(activation(u));    y = add_norm(g W2^T + b2, x)        (`add_norm.py`)

A block of rows goes through all of it while a core has it in its cache: u and g, four times as wide as x, are not
written to memory. The backward computes them again: a sixth more products, and still less time.

The backward cuts the rows into stripes, as many whatever the number of threads, each with its own sums for the
parameters' gradients.

Shape letters:    T tokens    d model size    f inner size    s stripes
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import matrices
from .activations import NUMBERS, activate, activate_and_slope
from .add_norm import add_norm, add_norm_backward
from .dropout import drop, new_draw
from .jit import kernel, launch, over_blocks, parallel_kernel
from .matrices import ROWS, add_multiply, multiply, product, stripe, stripes
from .vectors import add, clear, times


def feed_forward_numba(x: Tensor, parameters: tuple, activation: str, inner_p: float, p: float, eps: float) -> Tensor:
    """See `ops.feed_forward.feed_forward`; x (T, d), float32 or float64, and W1, b1, W2, b2, gain, shift."""
    return _FeedForward.apply(x, *parameters, (NUMBERS[activation], new_draw(inner_p), new_draw(p)), eps)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *parameters_and_options):
        *parameters, options, eps = parameters_and_options
        x, *parameters = (t.contiguous() for t in (x, *parameters))
        n, scale, y = torch.empty_like(x), x.new_empty(len(x)), torch.empty_like(x)
        w1, b1, w2, *others = parameters
        launch(_forward, x, w1.t().contiguous(), b1, w2.t().contiguous(), *others, *options, eps, n, scale, y)
        ctx.save_for_backward(x, n, scale, *parameters)
        ctx.options = options
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, n, scale, *parameters = ctx.saved_tensors
        w1, b1, w2, _, gain, _ = parameters
        dx, grads = torch.empty_like(x), [p.new_empty(stripes(len(x)), *p.shape) for p in parameters]
        launch(_backward, x, w1, w1.t().contiguous(), b1, w2, gain, *ctx.options, n, scale, dy.contiguous(), dx, *grads)
        return dx, *(over_blocks(grad, dy.dtype) for grad in grads), None, None


@parallel_kernel
def _forward(x, w1t, b1, w2t, b2, gain, shift, activation, inner_draw, draw, eps, n, scale, y):
    for block in prange((len(x) + ROWS - 1) // ROWS):
        parameters, options = (w1t, b1, w2t, b2, gain, shift), (activation, inner_draw, draw, eps)
        _forward_block(block * ROWS, x, parameters, options, n, scale, y)


@kernel
def _forward_block(first, x, parameters, options, n, scale, y):
    (w1t, b1, w2t, b2, gain, shift), (activation, inner_draw, draw, eps) = parameters, options
    last = min(first + ROWS, len(x))
    u, g = np.empty((last - first, len(b1)), x.dtype), np.empty((last - first, len(b1)), x.dtype)
    multiply(x[first:last], w1t, u)
    for t in range(len(u)):
        add(b1, u[t])
        activate(activation, u[t], g[t])
        drop(g[t], (first + t) * len(b1), inner_draw)
    multiply(g, w2t, n[first:last])
    for t in range(first, last):
        add(b2, n[t])
        scale[t] = add_norm(t, x[t], gain, shift, draw, eps, n[t], y[t])


@parallel_kernel
def _backward(
    x, w1, w1t, b1, w2, gain, activation, inner_draw, draw, n, scale, dy, dx, dw1, db1, dw2, db2, dgain, dshift
):
    for s in prange(len(dw1)):
        rows = stripe(s, len(dw1), len(x))
        parameters, options = (w1, w1t, b1, w2, gain), (activation, inner_draw, draw)
        grads = dw1[s], db1[s], dw2[s], db2[s], dgain[s], dshift[s]
        _backward_stripe(rows, x, parameters, options, n, scale, dy, dx, grads)


@kernel
def _backward_stripe(rows, x, parameters, options, n, scale, dy, dx, grads):
    """Fills some rows of dx, and the parameters' gradients of a stripe."""
    (w1, w1t, b1, w2, gain), (activation, inner_draw, draw) = parameters, options
    dw1, db1, dw2, db2, dgain, dshift = grads
    (f, d), count = w1.shape, max(1, min(ROWS, rows[1] - rows[0]))
    u, g = np.empty((count, f), x.dtype), np.empty((count, f), x.dtype)
    slope, dbranch = np.empty((count, f), x.dtype), np.empty((count, d), x.dtype)
    inner_sum, sums = np.empty(f, x.dtype), np.empty((3, d), x.dtype)  # of a block
    for grad in (db1, db2, dgain, dshift):
        clear(grad)
    if rows[0] == rows[1]:  # there are none at all
        matrices.clear(dw1)
        matrices.clear(dw2)
    for first in range(rows[0], rows[1], count):
        last = min(first + count, rows[1])
        size, here = last - first, x[first:last]
        clear(inner_sum)
        matrices.clear(sums)
        multiply(here, w1t, u[:size])
        for i in range(size):
            t = first + i
            add(b1, u[i])
            activate_and_slope(activation, u[i], g[i], slope[i])
            drop(g[i], t * f, inner_draw)
            add_norm_backward(t, n[t], scale[t], gain, draw, dy[t], dbranch[i], dx[t], sums[0], sums[1])
            add(dbranch[i], sums[2])
        product(dbranch[:size].T, g[:size], dw2, first > rows[0])
        multiply(dbranch[:size], w2, u[:size])  # of g, and with its slope of u
        for i in range(size):
            drop(u[i], (first + i) * f, inner_draw)
            times(slope[i], u[i])
            add(u[i], inner_sum)
        product(u[:size].T, here, dw1, first > rows[0])
        add_multiply(u[:size], w1, dx[first:last])
        add(inner_sum, db1)
        for total, grad in zip(sums, (dgain, dshift, db2)):
            add(total, grad)
