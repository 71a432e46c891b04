"""RMSNorm of a gated tensor, groups of channels each for themselves, with a written-out backward.

    v = y * silu(z);   out = weight * s * v,    s = 1 / sqrt(mean(v^2) + eps)

The norm of Mamba-2's block, Dao and Gu, https://arxiv.org/abs/2405.21060, section 7.1. The plain form goes through
blocks of rows whose intermediate results stay in the cache, and saves nothing but its inputs and s.

Shape letters:    T tokens    i channels    k groups
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .backends import choose
from .compiled import support as on_cpu
from .kernels import support

BLOCK = 2**17  # numbers of a block of rows on a CPU: half a megabyte in float32
WIDEST_GROUP = 4096  # channels that a kernel's block has room for


def gated_rms_norm(
    y: Tensor, z: Tensor, weight: Tensor, groups: int = 1, eps: float = 1e-5, *, backend: str = "auto"
) -> Tensor:
    """Gates, norms and scales.

    Args:
        y: (T, i).
        z: (T, i), the gate before its SiLU.
        weight: (i,).
        groups: k, a divisor of i.
        eps: added to the mean square.
        backend: `torch` (any device), `triton` (our kernels), `numba` (our kernels for CPUs), or `auto`: on a CPU
            `numba` and on a GPU `triton` where they can run, else `torch`.

    Returns:
        (T, i), in the dtype of y.

    Raises:
        ValueError: on a wrong shape or backend.
        RuntimeError: when the backend asked for cannot run on this machine or these tensors.
    """
    if y.dim() != 2 or y.shape != z.shape or weight.shape != y.shape[1:]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (y, z, weight))
        raise ValueError(f"y and z must be (T, i) and weight (i,), got {shapes}")
    if y.shape[1] % groups:
        raise ValueError(f"groups must divide the {y.shape[1]} channels of y, got {groups}")
    refusals = {
        "triton": lambda: support.refusal(y) or support.refusal(z) or _too_wide(y.shape[1] // groups),
        "numba": lambda: on_cpu.refusal(y) or on_cpu.refusal(z),
    }
    return _backend(choose("gated_rms_norm", backend, y, refusals))(y, z, weight, groups, eps)


def _backend(name: str) -> Callable:
    if name == "triton":
        from .kernels.gated_rms_norm import gated_rms_norm_triton

        return gated_rms_norm_triton
    if name == "numba":
        from .compiled.gated_rms_norm import gated_rms_norm_numba

        return gated_rms_norm_numba
    return _GatedRMSNorm.apply


def _too_wide(channels: int) -> str | None:
    if channels > WIDEST_GROUP:
        return f"its kernels have room for {WIDEST_GROUP} channels of a group and there are {channels}"
    return None


class _GatedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, z, weight, groups, eps):
        out, size = torch.empty_like(y, memory_format=torch.contiguous_format), y.shape[1] // groups
        scales = []
        for rows in _blocks(y):
            v = torch.ops.aten.silu.out(z[rows], out=out[rows]).mul_(y[rows])
            grouped = v.unflatten(1, (groups, size))
            scale = torch.linalg.vector_norm(grouped, dim=-1).square_().div_(size).add_(eps).rsqrt_()
            grouped.mul_(scale[..., None])
            v.mul_(weight)
            scales.append(scale)
        ctx.save_for_backward(y, z, weight, torch.cat(scales))  # (T, k)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        y, z, weight, scales = ctx.saved_tensors
        dy, dz = (torch.empty_like(y, memory_format=torch.contiguous_format) for _ in range(2))
        by_group = weight.view(scales.shape[1], -1, 1)  # (k, i / k, 1)
        dweight = torch.zeros_like(by_group).mT
        blocks = _blocks(y)
        scratch = y.new_empty(3, min(len(y), blocks[0].stop), y.shape[1])  # of one block
        for rows in blocks:
            y_, z_, dout_, scale = y[rows], z[rows], dout[rows], scales[rows]
            gate, v, product = scratch[:, : len(y_)]
            torch.ops.aten.silu.out(z_, out=gate)
            torch.mul(gate, y_, out=v)
            torch.mul(dout_, v, out=product)
            grouped = product.view(len(y_), *by_group.shape[:2]).transpose(0, 1)  # (k, rows, i / k)
            dweight.baddbmm_(scale.t()[:, None], grouped)
            mean = torch.bmm(grouped, by_group)[..., 0].t() / by_group.shape[1]  # of weight * dout * v, (rows, k)

            dv = torch.mul(dout_, weight, out=product).view(len(y_), *by_group.shape[:2])
            dv.addcmul_(v.view(dv.shape), (mean * scale.square())[..., None], value=-1).mul_(scale[..., None])
            torch.mul(product, gate, out=dy[rows])
            torch.ops.aten.silu_backward.grad_input(product.mul_(y_), z_, grad_input=dz[rows])
        return dy, dz, dweight.flatten(), None, None


def _blocks(y: Tensor) -> list[slice]:
    rows = len(y) if y.is_cuda else max(1, BLOCK // y.shape[1])  # a GPU would only wait for more launches
    return [slice(begin, begin + rows) for begin in range(0, len(y), rows)]
