"""The projections of `ops.linear` on a CPU: a block of rows at a time, which the cache holds with what becomes of it.

    y = x W^T + b        dx = sum over all W of dy W        dW = dy^T x        db = sum_t dy

The backward cuts the rows into stripes, as many whatever the number of threads, each with its own sums for the
parameters' gradients.

Shape letters:    T tokens    d, e sizes before and after    s stripes
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from .jit import kernel, launch, over_blocks, parallel_kernel
from .matrices import ROWS, clear, multiply, product, stripe, stripes
from .vectors import add


def linear_numba(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """See `ops.linear.linear`; x (T, d), float32 or float64."""
    return _Linear.apply(x, len(weights), *weights, *biases)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, parts, *parameters):
        x, weights = x.contiguous(), [weight.contiguous() for weight in parameters[:parts]]
        out = tuple(x.new_empty(len(x), len(weight)) for weight in weights)
        for weight, bias, y in zip(weights, parameters[parts:], out):
            launch(_forward, x, weight.t().contiguous(), x[:0, 0] if bias is None else bias, y)
        ctx.save_for_backward(x, *weights)
        ctx.biased = [bias is not None for bias in parameters[parts:]]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        x, *weights = ctx.saved_tensors
        dx, dweights, dbiases = torch.empty_like(x), [], []
        for part, (weight, dy, biased) in enumerate(zip(weights, gradients, ctx.biased)):
            dweight = weight.new_empty(stripes(len(x)), *weight.shape)
            dbias = weight.new_zeros(len(dweight), len(weight) if biased else 0)
            launch(_backward, x, weight, dy.contiguous(), part > 0, dx, dweight, dbias)
            dweights.append(over_blocks(dweight, x.dtype))
            dbiases.append(over_blocks(dbias, x.dtype) if biased else None)
        return dx, None, *dweights, *dbiases


@parallel_kernel
def _forward(x, turned, bias, y):
    for block in prange((len(x) + ROWS - 1) // ROWS):
        first, last = block * ROWS, min((block + 1) * ROWS, len(x))
        multiply(x[first:last], turned, y[first:last])
        if len(bias):
            for t in range(first, last):
                add(bias, y[t])


@parallel_kernel
def _backward(x, weight, dy, more, dx, dweight, dbias):
    for s in prange(len(dweight)):
        _backward_stripe(stripe(s, len(dweight), len(x)), x, weight, dy, more, dx, dweight[s], dbias[s])


@kernel
def _backward_stripe(rows, x, weight, dy, more, dx, dweight, dbias):
    """Fills some rows of dx, or adds to them if there is `more` in them, and the parameters' gradients of a stripe."""
    if rows[0] == rows[1]:  # there are none at all
        clear(dweight)
    for first in range(rows[0], rows[1], ROWS):
        here = slice(first, min(first + ROWS, rows[1]))
        product(dy[here], weight, dx[here], more)
        product(dy[here].T, x[here], dweight, first > rows[0])
    if len(dbias):
        for t in range(rows[0], rows[1]):
            add(dy[t], dbias)
