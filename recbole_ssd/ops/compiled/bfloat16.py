"""Pairs of bfloat16, two in an int32, which `matrices.multiply` takes for twice as many operations.

A product pairs what it sums over, so that a word of its left side has neighbours in a row, and of its right side
neighbours in a column:

    left  [m, k]  ->  [m, k / 2]        right  [k, n]  ->  [k / 2, n]

Where k is odd, the last one has a zero beside it. Numbers are rounded to the nearest, ties to the even one.

For a kernel of either precision `left_side` and `right_side` are the matrix itself where `like` holds no pairs.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numba import types
from numba.extending import overload
from torch import Tensor

from .jit import kernel, loop


def rows_in_pairs(x: Tensor) -> Tensor:
    """The left side of a product, (m, k) -> (m, ceil(k / 2)), int32."""
    return F.pad(x.bfloat16(), (0, x.shape[1] % 2)).view(torch.int32)


def columns_in_pairs(x: Tensor) -> Tensor:
    """The right side, (k, n) -> (ceil(k / 2), n), int32."""
    x = F.pad(x.bfloat16(), (0, 0, 0, len(x) % 2))
    return torch.stack([x[::2], x[1::2]], dim=-1).view(torch.int32).squeeze(-1)


def left_side(x, like):
    """The left side of a product inside a kernel."""


def right_side(x, like):
    """The right side of a product inside a kernel; turned round it is the left side of x^T."""


def some_rows(side, first, last):
    """Those of a right side that hold rows `first`, which is even, to `last` of its matrix; inside a kernel."""


@overload(left_side)
def _left(x, like):
    return (lambda x, like: _rows_in_pairs(x)) if like.dtype == types.int32 else (lambda x, like: x)


@overload(right_side)
def _right(x, like):
    return (lambda x, like: _columns_in_pairs(x)) if like.dtype == types.int32 else (lambda x, like: x)


@overload(some_rows)
def _some_rows(side, first, last):
    if side.dtype == types.int32:
        return lambda side, first, last: side[first // 2 : (last + 1) // 2]
    return lambda side, first, last: side[first:last]


@kernel
def _rows_in_pairs(x):
    m, k = x.shape
    out = np.empty((m, (k + 1) // 2), np.int32)
    halves = out.view(np.int16)
    for i in range(m):
        _put(x[i].view(np.int32), halves[i])
        if k % 2:
            halves[i, k] = 0
    return out


@kernel
def _columns_in_pairs(x):
    k, n = x.shape
    out = np.empty(((k + 1) // 2, n), np.int32)
    nothing = np.zeros(n, np.int32)
    for i in range(len(out)):
        below = x[2 * i + 1].view(np.int32) if 2 * i + 1 < k else nothing
        _put_pairs(x[2 * i].view(np.int32), below, out[i])
    return out


@loop
def _put(bits, out):
    for k in range(len(bits)):
        out[k] = _rounded(bits[k]) >> 16


@loop
def _put_pairs(bits, below, out):
    for k in range(len(out)):
        out[k] = ((_rounded(bits[k]) >> 16) & 0xFFFF) | (_rounded(below[k]) & -0x10000)


@loop
def _rounded(bits):
    """Of a float32, in whose upper half the bfloat16 then lies."""
    return np.int32(bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1)))
