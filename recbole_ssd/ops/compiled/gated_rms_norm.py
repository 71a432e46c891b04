"""The gated RMSNorm of `ops.gated_rms_norm` on a CPU: one pass forward, one backward.

    v = y * silu(z);   s = 1 / sqrt(mean(v^2) + eps);   out = weight * s * v
    dv = s * (weight * dout  -  s^2 * v * mean(weight * dout * v));   dy = dv * silu(z);   dz = dv * y * silu'(z)
    dweight = sum_t dout * s * v

A row and its intermediate results stay in a core's nearest cache. Rows are shared out in blocks of a fixed size, each
with its own sum for dweight.

Shape letters:    T tokens    i channels    k groups
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from .jit import BLOCK, bare, flat, launch, loop, over_blocks, parallel_kernel
from .vectors import dot, put_product, silu, silu_and_slope, times


def gated_rms_norm_numba(y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
    """Gates, norms and scales.

    Args:
        y: (T, i), float32 or float64.
        z: (T, i), before its SiLU. Both may be slices of the columns of a wider tensor, which is not copied.
        weight: (i,).
        groups: k, a divisor of i.
        eps: added to the mean square.

    Returns:
        (T, i) in the dtype of y.
    """
    return _GatedRMSNorm.apply(y, z, weight, groups, eps)


class _GatedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, z, weight, groups, eps):
        out, scales = torch.empty_like(y, memory_format=torch.contiguous_format), y.new_empty(len(y), groups)
        ctx.save_for_backward(y, z, weight, scales)
        launch(_forward, flat(y), flat(z), weight.contiguous(), eps, out.view(-1), scales)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        y, z, weight, scales = ctx.saved_tensors
        dy, dz = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (y, z))
        sums = weight.new_zeros(-(-len(y) // BLOCK), len(weight))  # a block's tokens are few: float32 will do
        inputs = flat(dout), flat(y), flat(z), weight.contiguous(), scales
        launch(_backward, *inputs, dy.view(-1), dz.view(-1), sums)
        return dy, dz, over_blocks(sums, weight.dtype), None, None


@parallel_kernel
def _forward(y, z, weight, eps, out, scales):
    for block in prange((len(scales) + BLOCK - 1) // BLOCK):
        _forward_block(y, z, weight, eps, out, scales, np.empty_like(weight), block)


@bare
def _forward_block(y, z, weight, eps, out, scales, gate, block):
    (y, y_stride), (z, z_stride), channels = y, z, len(weight)
    for t in range(block * BLOCK, min(len(scales), (block + 1) * BLOCK)):
        silu(z[t * z_stride : t * z_stride + channels], gate)
        row = y[t * y_stride : t * y_stride + channels]
        norm(row, gate, weight, eps, out[t * channels : (t + 1) * channels], scales[t])


@parallel_kernel
def _backward(dout, y, z, weight, scales, dy, dz, dweight):
    for block in prange(len(dweight)):
        scratch = np.empty_like(weight), np.empty_like(weight)
        _backward_block(dout, y, z, weight, scales, dy, dz, dweight[block], scratch, block)


@bare
def _backward_block(dout, y, z, weight, scales, dy, dz, dweight, scratch, block):
    (dout, dout_stride), (y, y_stride), (z, z_stride) = dout, y, z
    (gate, slope), channels = scratch, len(weight)
    for t in range(block * BLOCK, min(len(scales), (block + 1) * BLOCK)):
        silu_and_slope(z[t * z_stride : t * z_stride + channels], gate, slope)
        given = dout[t * dout_stride : t * dout_stride + channels]
        row, here = y[t * y_stride : t * y_stride + channels], slice(t * channels, (t + 1) * channels)
        norm_backward(given, row, gate, weight, scales[t], dy[here], dz[here], dweight)
        times(slope, dz[here])


@bare
def norm(y, gate, weight, eps, out, scales):
    """Fills out, (i,), and scales, (k,), of one token; gate is silu(z)."""
    put_product(y, gate, out)
    groups, count = len(scales), out.dtype.type(len(out) // len(scales))
    for k in range(groups):
        here = slice(k * len(out) // groups, (k + 1) * len(out) // groups)
        scales[k] = 1 / math.sqrt(dot(out[here], out[here]) / count + out.dtype.type(eps))
        _scale(scales[k], weight[here], out[here])


@loop
def _scale(scale, weight, out):
    for c in range(len(out)):
        out[c] *= scale * weight[c]


@bare
def norm_backward(dout, y, gate, weight, scales, dy, dgate, dweight):
    """Fills dy and dgate of one token, (i,) each, and adds to dweight."""
    groups, count = len(scales), y.dtype.type(len(y) // len(scales))
    for k in range(groups):
        here = slice(k * len(y) // groups, (k + 1) * len(y) // groups)
        rows = dout[here], y[here], gate[here], weight[here]
        mean = _along(*rows) / count * scales[k] * scales[k]
        _derive(*rows, scales[k], mean, dy[here], dgate[here], dweight[here])


@loop
def _along(dout, y, gate, weight):
    total = y.dtype.type(0)
    for c in range(len(y)):
        total += weight[c] * dout[c] * y[c] * gate[c]
    return total


@loop
def _derive(dout, y, gate, weight, scale, mean, dy, dgate, dweight):
    for c in range(len(y)):
        v = y[c] * gate[c]
        dv = scale * (weight[c] * dout[c] - v * mean)
        dweight[c] += dout[c] * scale * v
        dy[c] = dv * gate[c]
        dgate[c] = dv * y[c]
