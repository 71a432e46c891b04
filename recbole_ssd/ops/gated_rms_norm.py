"""RMSNorm of a gated tensor, groups of channels each for themselves, with a written-out backward.

    v = y * gate;   out = weight * v / sqrt(mean(v^2) + eps)

The norm of Mamba-2's block, Dao and Gu, https://arxiv.org/abs/2405.21060, section 7.1.

Shape letters:    T tokens    i channels    k groups
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def gated_rms_norm(y: Tensor, gate: Tensor, weight: Tensor, groups: int = 1, eps: float = 1e-5) -> Tensor:
    """Gates, norms and scales.

    Args:
        y: (T, i).
        gate: (T, i), after its activation.
        weight: (i,).
        groups: k, a divisor of i.
        eps: added to the mean square.

    Returns:
        (T, i).
    """
    return _GatedRMSNorm.apply(y, gate, weight, groups, eps)


class _GatedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, gate, weight, groups, eps):
        v = (y * gate).unflatten(1, (groups, -1))  # (T, k, i / k)
        scale = (v.square().mean(-1, keepdim=True) + eps).rsqrt_()  # (T, k, 1)
        ctx.save_for_backward(y, gate, weight, scale)
        return v.mul_(scale).flatten(1).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        y, gate, weight, scale = ctx.saved_tensors
        normed = (y * gate).view(len(y), *scale.shape[1:-1], -1).mul_(scale)  # (T, k, i / k)
        dweight = (dout * normed.flatten(1)).sum(0)
        dv = (dout * weight).view(normed.shape)
        dv.addcmul_(normed, (dv * normed).mean(-1, keepdim=True), value=-1).mul_(scale)
        dv = dv.flatten(1)
        return dv * gate, dv * y, dweight, None, None
