"""The gated RMSNorm of `ops.gated_rms_norm` on a CPU: one pass forward, one backward.

    v = y * silu(z);   s = 1 / sqrt(mean(v^2) + eps);   out = weight * s * v
    dv = s * (weight * dout  -  s^2 * v * mean(weight * dout * v));   dy = dv * silu(z);   dz = dv * y * silu'(z)
    dweight = sum_t dout * s * v

A row and its intermediate results stay in a core's nearest cache. Rows are shared out in blocks of a fixed size, each
with its own sum for dweight.

Shape letters:    T tokens    i channels    k groups
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from .jit import BLOCK, flat, kernel, launch, over_blocks, parallel_kernel, sigmoid


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
        _forward_block(y, z, weight, eps, out, scales, block)


@kernel
def _forward_block(y, z, weight, eps, out, scales, block):
    (y, y_stride), (z, z_stride), (tokens, groups), channels = y, z, scales.shape, len(weight)
    for t in range(block * BLOCK, min(tokens, (block + 1) * BLOCK)):
        for k in range(groups):
            g = k * channels // groups
            here = weight[g : g + channels // groups]
            scales[t, k] = _norm(y, t * y_stride + g, z, t * z_stride + g, here, eps, out, t * channels + g)


@kernel
def _norm(y, y_here, z, z_here, weight, eps, out, here):
    """Fills out of one token and group, and returns its scale."""
    y_here, z_here, here, channels = np.uint64(y_here), np.uint64(z_here), np.uint64(here), np.uint64(len(weight))
    squares = out.dtype.type(0)
    for c in range(channels):
        v = y[y_here + c] * z[z_here + c] * sigmoid(z[z_here + c])
        out[here + c] = v
        squares += v * v
    scale = out.dtype.type(1 / np.sqrt(squares / len(weight) + eps))
    for c in range(channels):
        out[here + c] *= scale * weight[c]
    return scale


@parallel_kernel
def _backward(dout, y, z, weight, scales, dy, dz, dweight):
    for block in prange(len(dweight)):
        _backward_block(dout, y, z, weight, scales, dy, dz, dweight[block], block)


@kernel
def _backward_block(dout, y, z, weight, scales, dy, dz, dweight, block):
    (dout, dout_stride), (y, y_stride), (z, z_stride) = dout, y, z
    (tokens, groups), channels = scales.shape, len(weight)
    gates = np.empty_like(weight)
    for t in range(block * BLOCK, min(tokens, (block + 1) * BLOCK)):
        for k in range(groups):
            g = k * channels // groups
            inputs = dout, t * dout_stride + g, y, t * y_stride + g, z, t * z_stride + g
            here = slice(g, g + channels // groups)
            _norm_backward(inputs, weight[here], scales[t, k], gates, dy, dz, t * channels + g, dweight[here])


@kernel
def _norm_backward(inputs, weight, scale, gates, dy, dz, here, dweight):
    """Fills dy and dz of one token and group, adds to dweight."""
    dout, dout_here, y, y_here, z, z_here = inputs
    dout_here, y_here, z_here = np.uint64(dout_here), np.uint64(y_here), np.uint64(z_here)
    here, channels = np.uint64(here), np.uint64(len(weight))
    one, product = dy.dtype.type(1), dy.dtype.type(0)
    for c in range(channels):
        gates[c] = sigmoid(z[z_here + c])
        product += weight[c] * dout[dout_here + c] * y[y_here + c] * z[z_here + c] * gates[c]
    mean = dy.dtype.type(product / len(weight)) * scale * scale
    for c in range(channels):
        gate, z_c, y_c = gates[c], z[z_here + c], y[y_here + c]
        v = y_c * z_c * gate
        dv = scale * (weight[c] * dout[dout_here + c] - v * mean)
        dweight[c] += dout[dout_here + c] * scale * v
        dy[here + c] = dv * z_c * gate
        dz[here + c] = dv * y_c * gate * (one + z_c * (one - gate))
