"""Dropout on a CPU: which elements are kept is computed from their number and a seed, and never stored.

    out_i = x_i / (1 - p) if hash(i, seed) >= 2^32 p else 0

The gradient is the same function of the gradient that comes in, with the same seed.

The hash is MurmurHash3's last step, a bijection of 32 bits whose every bit depends on all (fmix32, Austin Appleby,
https://github.com/aappleby/smhasher), with half of the seed before and half inside, so that no two seeds drop alike.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from .jit import bare, launch, loop, parallel_kernel
from .vectors import put

BLOCK = 2**14  # numbers of a block
VALUES = 2**32  # of a hash


def dropout_numba(x: Tensor, p: float) -> Tensor:
    """x of any shape, float32 or float64, 0 < p < 1; the rate is kept to 2^-32."""
    return _Dropout.apply(x, p)


def new_draw(p: float) -> tuple:
    """What decides: both halves of a seed, and below which hash an element is dropped.

    The seed is drawn from torch's. Nothing is drawn, and nothing dropped, if p is 0.
    """
    seed = torch.randint(VALUES, (2,)).tolist() if p else (0, 0)
    return tuple(np.uint32(part) for part in (*seed, min(round(p * VALUES), VALUES - 1)))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, p):
        ctx.draw = new_draw(p)
        return _drop(x, ctx.draw)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        return _drop(dout, ctx.draw), None


def _drop(x: Tensor, draw: tuple) -> Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    launch(_drop_blocks, x.contiguous().view(-1), draw, out.view(-1))
    return out


@parallel_kernel
def _drop_blocks(x, draw, out):
    for block in prange((len(x) + BLOCK - 1) // BLOCK):
        first, last = block * BLOCK, min(len(x), (block + 1) * BLOCK)
        _drop_block(x[first:last], first, draw, out[first:last])


@bare
def _drop_block(x, first, draw, out):
    put(x, out)
    drop(out, first, draw)


@loop
def drop(row, number, draw):
    """Dropout in place; `number` is the first element's."""
    before, inside, dropped = draw
    zero, scale = row.dtype.type(0), row.dtype.type(VALUES / (VALUES - dropped))
    if dropped:
        for k in range(np.uint64(len(row))):
            row[k] = scale * row[k] if _hash(np.uint32(number + k), before, inside) >= dropped else zero


@loop
def _hash(i, before, inside):
    u32 = np.uint32  # numba makes 64 bits of every sum and product
    h = u32(i * u32(0x9E3779B1)) ^ before  # Knuth's multiplier, near 2^32 over the golden ratio
    h = u32((h ^ (h >> u32(16))) * u32(0x85EBCA6B))
    h = u32((h ^ (h >> u32(13))) + inside)
    h = u32(h * u32(0xC2B2AE35))
    return h ^ (h >> u32(16))
