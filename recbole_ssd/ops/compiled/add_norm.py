"""A residual and its LayerNorm on a CPU, of `ops.add_norm`: one pass forward, one backward.

    r = drop(branch) + x;    n = s * (r - mean(r)),  s = 1 / sqrt(var(r) + eps);    y = gain * n + shift
    dr = s * (gain * dy - mean(gain * dy) - n * mean(gain * dy * n));    dx = dr;    dbranch = drop(dr)
    dgain = sum_t dy * n;    dshift = sum_t dy

n and s are kept for the backward. Rows are shared out in blocks of a fixed size, each with its own sums for
the parameters' gradients.

Shape letters:    T tokens    d model size
"""

from __future__ import annotations

import math

import torch
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dropout import drop, new_draw
from .jit import BLOCK, bare, launch, loop, over_blocks, parallel_kernel
from .vectors import add, add_number, add_product, dot, put, put_product, total


def add_norm_numba(branch: Tensor, x: Tensor, gain: Tensor, shift: Tensor, p: float, eps: float) -> Tensor:
    """See `ops.add_norm.add_norm`; branch and x (T, d), float32 or float64."""
    return _AddNorm.apply(branch, x, gain, shift, new_draw(p), eps)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, branch, x, gain, shift, draw, eps):
        branch, x, gain, shift = (t.contiguous() for t in (branch, x, gain, shift))
        n, scale, y = torch.empty_like(x), x.new_empty(len(x)), torch.empty_like(x)
        launch(_forward, branch, x, gain, shift, draw, eps, n, scale, y)
        ctx.save_for_backward(n, scale, gain)
        ctx.draw = draw
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        n, scale, gain = ctx.saved_tensors
        dbranch, dx, blocks = torch.empty_like(n), torch.empty_like(n), -(-len(n) // BLOCK)
        dgain, dshift = gain.new_zeros(blocks, len(gain)), gain.new_zeros(blocks, len(gain))
        launch(_backward, n, scale, gain, ctx.draw, dy.contiguous(), dbranch, dx, dgain, dshift)
        return dbranch, dx, over_blocks(dgain, gain.dtype), over_blocks(dshift, gain.dtype), None, None


@parallel_kernel
def _forward(branch, x, gain, shift, draw, eps, n, scale, y):
    for block in prange((len(x) + BLOCK - 1) // BLOCK):
        for t in range(block * BLOCK, min(len(x), (block + 1) * BLOCK)):
            put(branch[t], n[t])
            scale[t] = add_norm(t, x[t], gain, shift, draw, eps, n[t], y[t])


@parallel_kernel
def _backward(n, scale, gain, draw, dy, dbranch, dx, dgain, dshift):
    for block in prange(len(dgain)):
        for t in range(block * BLOCK, min(len(n), (block + 1) * BLOCK)):
            add_norm_backward(t, n[t], scale[t], gain, draw, dy[t], dbranch[t], dx[t], dgain[block], dshift[block])


@bare
def add_norm(t, x, gain, shift, draw, eps, n, y):
    """Of token t, (d,) each: n, which comes as the branch, and y are filled, and s is returned."""
    count = n.dtype.type(len(n))
    drop(n, t * len(n), draw)
    add(x, n)
    add_number(-total(n) / count, n)
    scale = n.dtype.type(1) / n.dtype.type(math.sqrt(dot(n, n) / count + n.dtype.type(eps)))
    _finish(scale, gain, shift, n, y)
    return scale


@loop
def _finish(scale, gain, shift, n, y):
    for k in range(len(n)):
        n[k] *= scale
        y[k] = n[k] * gain[k] + shift[k]


@bare
def add_norm_backward(t, n, scale, gain, draw, dy, dbranch, dx, dgain, dshift):
    """Of token t, (d,) each: fills dbranch and dx, and adds to dgain and dshift."""
    count = n.dtype.type(len(n))
    add_product(dy, n, dgain)
    add(dy, dshift)
    put_product(dy, gain, dx)
    mean, along = total(dx) / count, dot(dx, n) / count
    _finish_backward(scale, mean, along, n, dx, dbranch)
    drop(dbranch, t * len(n), draw)


@loop
def _finish_backward(scale, mean, along, n, dx, dbranch):
    for k in range(len(n)):
        dx[k] = scale * (dx[k] - mean - n[k] * along)
        dbranch[k] = dx[k]
