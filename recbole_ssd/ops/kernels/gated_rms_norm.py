"""The gated RMSNorm of `ops.gated_rms_norm` as Triton kernels: one forward, one backward.

    v = y * silu(z);   s = 1 / sqrt(mean(v^2) + eps);   out = weight * s * v
    dv = s * (weight * dout  -  s * v * mean(weight * dout * s * v));   dy = dv * silu(z);   dz = dv * y * silu'(z)
    dweight = sum_t dout * s * v

Both are bound by memory: each number is read once and written once. A block is some tokens by one whole group of
channels. In the backward a program goes along many tokens and leaves one sum for dweight; torch adds these up, without
atomics, so the same numbers every time.

Shape letters:    T tokens    i channels    k groups
"""

from __future__ import annotations

from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 1024  # numbers of a block: 8 for every thread of its four warps; a wider group takes more warps
MOST_WARPS = 16
SHORT_WALK, LONG_WALK = 32, 128  # tokens of a program of the backward; see causal_conv1d.py
LONG = 2**24  # numbers in y from which on there are enough long walks for a GPU


def gated_rms_norm_triton(y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
    """Gates, norms and scales.

    Args:
        y: (T, i), float32 or bfloat16.
        z: (T, i), float32 or bfloat16, before its SiLU; may be a slice of the columns of a wider tensor.
        weight: (i,).
        groups: k, a divisor of i.
        eps: added to the mean square.

    Returns:
        (T, i) in the dtype of y; the arithmetic is float32.
    """
    return _GatedRMSNorm.apply(y, z, weight, groups, eps)


class _GatedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, z, weight, groups, eps):
        y, z, weight = _rows(y), _rows(z), weight.contiguous()
        tokens, out = len(y), y.new_empty(y.shape)
        scale = y.new_empty(tokens, groups, dtype=torch.float32)
        size, rows, warps = _block(y, groups)
        unit = gcd(y.stride(0), z.stride(0), 8)
        with torch.cuda.device_of(y):
            forward_kernel[triton.cdiv(tokens, rows), groups](
                *(y, z, weight, out, scale),
                *(tokens, y.stride(0) // unit, z.stride(0) // unit, eps),
                *(unit, groups, y.shape[1] // groups, rows, size),
                num_warps=warps,
            )
        ctx.save_for_backward(y, z, weight, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        y, z, weight, scale = ctx.saved_tensors
        dout, tokens, groups = _rows(dout), len(y), scale.shape[1]
        size, rows, warps = _block(y, groups)
        walk = max(rows, LONG_WALK if y.numel() > LONG else SHORT_WALK)
        walks = triton.cdiv(tokens, walk)
        dy, dz = y.new_empty(y.shape), z.new_empty(z.shape)
        sums = y.new_empty(walks, y.shape[1], dtype=torch.float32)
        unit = gcd(y.stride(0), z.stride(0), dout.stride(0), 8)
        with torch.cuda.device_of(y):
            backward_kernel[walks, groups](
                *(dout, y, z, weight, scale, dy, dz, sums),
                *(tokens, dout.stride(0) // unit, y.stride(0) // unit, z.stride(0) // unit),
                *(unit, groups, y.shape[1] // groups, walk, rows, size),
                num_warps=warps,
            )
        return dy, dz, sums.sum(0).to(weight.dtype), None, None


def _rows(x: Tensor) -> Tensor:
    """x with its channels side by side, copied only where they are not."""
    return x if x.stride(1) == 1 else x.contiguous()


def _block(y: Tensor, groups: int) -> tuple[int, int, int]:
    """Channels and tokens of a block, powers of two, and its warps."""
    size = triton.next_power_of_2(y.shape[1] // groups)
    return size, max(1, min(SHORT_WALK, BLOCK // size)), min(MOST_WARPS, max(4, 4 * size // BLOCK))


@triton.jit
def _block_of(ptr, token, row, column, mask):
    """(tokens, channels) in float32, 0 outside."""
    place = tl.cast(token, tl.int64)[:, None] * row + column[None, :]
    return tl.load(ptr + place, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["tokens"])
def forward_kernel(
    y_ptr, z_ptr, weight_ptr, out_ptr, scale_ptr,
    tokens, y_row, z_row, eps,  # the rows in units, so that the compiler knows what divides them
    UNIT: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, SIZE)
    mask = (token < tokens)[:, None] & (column < CHANNELS)[None, :]
    group = tl.program_id(1)
    y_ptr, z_ptr, out_ptr = y_ptr + group * CHANNELS, z_ptr + group * CHANNELS, out_ptr + group * CHANNELS
    y = _block_of(y_ptr, token, y_row * UNIT, column, mask)
    z = _block_of(z_ptr, token, z_row * UNIT, column, mask)
    weight = tl.load(weight_ptr + group * CHANNELS + column, mask=column < CHANNELS, other=0.0).to(tl.float32)
    v = y * z / (1.0 + tl.exp(-z))
    scale = 1.0 / tl.sqrt(tl.sum(v * v, axis=1) / CHANNELS + eps)
    place = tl.cast(token, tl.int64)[:, None] * (GROUPS * CHANNELS) + column[None, :]
    tl.store(out_ptr + place, v * scale[:, None] * weight[None, :], mask=mask)
    tl.store(scale_ptr + tl.cast(token, tl.int64) * GROUPS + group, scale, mask=token < tokens)


@triton.jit(do_not_specialize=["tokens"])
def backward_kernel(
    dout_ptr, y_ptr, z_ptr, weight_ptr, scale_ptr, dy_ptr, dz_ptr, sums_ptr,
    tokens, dout_row, y_row, z_row,  # the rows in units
    UNIT: tl.constexpr, GROUPS: tl.constexpr, CHANNELS: tl.constexpr, WALK: tl.constexpr, ROWS: tl.constexpr,
    SIZE: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, SIZE)
    group = tl.program_id(1)
    shift = group * CHANNELS
    weight = tl.load(weight_ptr + shift + column, mask=column < CHANNELS, other=0.0).to(tl.float32)
    total = tl.zeros([ROWS, SIZE], tl.float32)
    for block in range(0, WALK, ROWS):
        token = tl.program_id(0) * WALK + block + tl.arange(0, ROWS)
        mask = (token < tokens)[:, None] & (column < CHANNELS)[None, :]
        dout = _block_of(dout_ptr + shift, token, dout_row * UNIT, column, mask)
        y = _block_of(y_ptr + shift, token, y_row * UNIT, column, mask)
        z = _block_of(z_ptr + shift, token, z_row * UNIT, column, mask)
        scale = tl.load(scale_ptr + tl.cast(token, tl.int64) * GROUPS + group, mask=token < tokens, other=0.0)[:, None]
        gate = 1.0 / (1.0 + tl.exp(-z))
        normed = y * z * gate * scale
        total += dout * normed
        dv = dout * weight[None, :]
        dv = (dv - normed * (tl.sum(dv * normed, axis=1) / CHANNELS)[:, None]) * scale
        place = tl.cast(token, tl.int64)[:, None] * (GROUPS * CHANNELS) + column[None, :] + shift
        tl.store(dy_ptr + place, dv * z * gate, mask=mask)
        tl.store(dz_ptr + place, dv * y * gate * (1.0 + z * (1.0 - gate)), mask=mask)
    place = tl.cast(tl.program_id(0), tl.int64) * (GROUPS * CHANNELS) + shift + column
    tl.store(sums_ptr + place, tl.sum(total, axis=0), mask=column < CHANNELS)
