"""Both directions of `ops.gated_directions` on a CPU: two gated norms and their sum in one pass, segment by segment.

    out = norm(y, z) + beta norm(r, z[1]),    norm as in `gated_rms_norm.py`

z[1] is of the segment's first token: its gate is made once, and what all tokens owe it is added up on the way.

Shape letters:    T tokens    i channels    k groups
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..packing import Segments
from . import matrices
from .gated_rms_norm import norm, norm_backward
from .jit import FEW, Work, bare, kernel, launch, over_blocks, parallel_kernel
from .vectors import add, add_product, add_scaled, put_scaled, silu, silu_and_slope, times


def gated_directions_numba(
    y: Tensor, r: Tensor, z: Tensor, weight: Tensor, beta: float, segments: Segments, groups: int, eps: float
) -> Tensor:
    """See `ops.gated_directions.gated_directions`; float32 or float64."""
    return _GatedDirections.apply(y, r, z, weight, beta, segments, groups, eps)


class _GatedDirections(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, r, z, weight, beta, segments, groups, eps):
        y, r, z, weight = inputs = tuple(t.contiguous() for t in (y, r, z, weight))
        out, scales = torch.empty_like(y), y.new_empty(len(y), 2, groups)
        launch(_forward, *inputs, beta, eps, out, scales, Work.of(segments).arrays)
        ctx.save_for_backward(*inputs, scales)
        ctx.beta, ctx.segments = beta, segments
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        y, r, z, weight, scales = ctx.saved_tensors
        work = Work.of(ctx.segments)
        dy, dr, dz = grads = [torch.empty_like(y) for _ in range(3)]
        dweight = weight.new_zeros(work.n_blocks, len(weight), dtype=torch.float64)
        inputs = y, r, z, weight, ctx.beta, scales, dout.contiguous()
        launch(_backward, *inputs, *grads, dweight, work.arrays)
        return dy, dr, dz, over_blocks(dweight, weight.dtype), None, None, None, None


@parallel_kernel
def _forward(y, r, z, weight, beta, eps, out, scales, work):
    borders, blocks, order, workers = work
    for worker in prange(len(workers) - 1):
        scratch = np.empty_like(weight), np.empty_like(weight), np.empty_like(weight)
        for b in order[workers[worker] : workers[worker + 1]]:
            for s in range(blocks[b], blocks[b + 1]):
                here = slice(borders[s], borders[s + 1])
                _segment(y[here], r[here], z[here], weight, beta, eps, scratch, out[here], scales[here])


@bare
def _segment(y, r, z, weight, beta, eps, scratch, out, scales):
    first_gate, gate, backward = scratch
    beta = weight.dtype.type(beta)
    silu(z[0], first_gate)
    for t in range(len(y)):
        silu(z[t], gate)
        norm(y[t], gate, weight, eps, out[t], scales[t, 0])
        norm(r[t], first_gate, weight, eps, backward, scales[t, 1])
        add_scaled(beta, backward, out[t])


@parallel_kernel
def _backward(y, r, z, weight, beta, scales, dout, dy, dr, dz, dweight, work):
    borders, blocks, order, workers = work
    for worker in prange(len(workers) - 1):
        for b in order[workers[worker] : workers[worker + 1]]:
            for s in range(blocks[b], blocks[b + 1]):
                here = slice(borders[s], borders[s + 1])
                inputs = y[here], r[here], z[here], weight, beta, scales[here], dout[here]
                _segment_backward(inputs, (dy[here], dr[here], dz[here], dweight[b]))


@kernel
def _segment_backward(inputs, grads):
    """Fills dy, dr and dz of one segment, and adds to dweight of its block."""
    weight = inputs[3]
    rows = np.empty((6, len(weight)), weight.dtype)  # of one token
    part, sums = np.zeros((2, len(weight)), weight.dtype), np.zeros((2, len(weight)))  # of few tokens, and of all
    _tokens_backward(inputs, grads, (rows[0], rows[1], rows[2], rows[3], rows[4], rows[5]), part, sums)


@bare
def _tokens_backward(inputs, grads, rows, part, sums):
    (y, r, z, weight, beta, scales, dout), (dy, dr, dz, dweight) = inputs, grads
    first_gate, first_slope, gate, slope, dback, dgate = rows
    beta = weight.dtype.type(beta)
    silu_and_slope(z[0], first_gate, first_slope)
    for t in range(len(y)):
        silu_and_slope(z[t], gate, slope)
        norm_backward(dout[t], y[t], gate, weight, scales[t, 0], dy[t], dz[t], part[0])
        times(slope, dz[t])
        put_scaled(beta, dout[t], dback)
        norm_backward(dback, r[t], first_gate, weight, scales[t, 1], dr[t], dgate, part[0])
        add(dgate, part[1])
        if t % FEW == FEW - 1 or t == len(y) - 1:
            matrices.add(part, sums)
            matrices.clear(part)
    add(sums[0], dweight)
    add_product(first_slope, sums[1], dz[0])
