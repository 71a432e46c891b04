"""The projections of `ops.linear` on a CPU: a block of rows at a time, which the cache holds with what becomes of it.

    y = x W^T + b        dx = sum over all W of dy W        dW = dy^T x        db = sum_t dy

Weights share a pass over x, PARTS at a time; where there are fewer, empty ones fill up, so that one kernel does.

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

PARTS = 3


def linear_numba(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """See `ops.linear.linear`; x (T, d), float32 or float64."""
    out = []
    for first in range(0, len(weights), PARTS):
        some, others = weights[first : first + PARTS], biases[first : first + PARTS]
        spare = PARTS - len(some)
        empty = [x.new_empty(0, x.shape[1])] * spare
        out += _Linear.apply(x, *some, *empty, *others, *[None] * spare)[: len(some)]
    return tuple(out)


class _Linear(torch.autograd.Function):
    """Of PARTS weights, and as many biases."""

    @staticmethod
    def forward(ctx, x, *parameters):
        x, weights = x.contiguous(), [weight.contiguous() for weight in parameters[:PARTS]]
        out = tuple(x.new_empty(len(x), len(weight)) for weight in weights)
        biases = tuple(x.new_empty(0) if bias is None else bias.contiguous() for bias in parameters[PARTS:])
        launch(_forward, x, tuple(weight.t().contiguous() for weight in weights), biases, out)
        ctx.save_for_backward(x, *weights)
        ctx.biased = [bias is not None for bias in parameters[PARTS:]]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):
        x, *weights = ctx.saved_tensors
        dx, count = torch.empty_like(x), stripes(len(x))
        dweights = tuple(weight.new_empty(count, *weight.shape) for weight in weights)
        dbiases = tuple(w.new_zeros(count, len(w) if biased else 0) for w, biased in zip(weights, ctx.biased))
        launch(_backward, x, tuple(weights), tuple(dy.contiguous() for dy in gradients), dx, dweights, dbiases)
        of_biases = (over_blocks(t, x.dtype) if biased else None for t, biased in zip(dbiases, ctx.biased))
        return dx, *(over_blocks(t, x.dtype) for t in dweights), *of_biases


@parallel_kernel
def _forward(x, turned, biases, ys):
    for block in prange((len(x) + ROWS - 1) // ROWS):
        _forward_block(block * ROWS, min((block + 1) * ROWS, len(x)), x, turned, biases, ys)


@kernel
def _forward_block(first, last, x, turned, biases, ys):
    """Fills some rows."""
    for weight, bias, y in zip(turned, biases, ys):
        multiply(x[first:last], weight, y[first:last])
        if len(bias):
            for t in range(first, last):
                add(bias, y[t])


@parallel_kernel
def _backward(x, weights, dys, dx, dweights, dbiases):
    for s in prange(len(dweights[0])):
        _backward_stripe(s, stripe(s, len(dweights[0]), len(x)), x, weights, dys, dx, dweights, dbiases)


@kernel
def _backward_stripe(s, rows, x, weights, dys, dx, dweights, dbiases):
    """Fills some rows of dx, and the parameters' gradients of a stripe."""
    if rows[0] == rows[1]:  # there are none at all
        for dweight in dweights:
            clear(dweight[s])
    for first in range(rows[0], rows[1], ROWS):
        here = slice(first, min(first + ROWS, rows[1]))
        for k in range(PARTS):
            if k > 0 and not len(weights[k]):
                continue
            dy, dbias = dys[k][here], dbiases[k][s]
            product(dy, weights[k], dx[here], k > 0)
            product(dy.T, x[here], dweights[k][s], first > rows[0])
            if len(dbias):
                for t in range(len(dy)):
                    add(dy[t], dbias)
