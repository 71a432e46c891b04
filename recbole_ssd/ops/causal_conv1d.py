"""A short causal convolution, one filter a channel, that stops at segment borders: the one door to every backend.

    y[t] = silu( bias + sum_{k<K} weight[K-1-k] * x[t-k] ),    k only as far as t-k is in t's own segment

It is mamba-ssm's and causal-conv1d's op of that name, for packed streams. With `reverse` the same filter runs from
each segment's end to its beginning: the convolution of the flipped segment. The plain form below makes K shifted sums
over the whole stream, then computes the K-1 first tokens of every segment, which saw a neighbour, anew (an exact
replacement, nothing is subtracted).

Shape letters:    T tokens    c channels    K width of the filter
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import causal_conv1d_package
from .backends import choose
from .compiled import support as on_cpu
from .kernels import support
from .packing import Segments

WIDEST_FILTER = 8  # taps that the kernels' walk can keep in registers


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    cu_seqlens: Tensor | Segments | None = None,
    activation: str | None = "silu",
    reverse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Convolves a dense batch, or a packed stream segment by segment.

    A backend changes rounding and speed, never the function.

    Args:
        x: (b, l, c).
        weight: (c, K); weight[:, K-1] meets the token itself.
        bias: (c,) or None.
        cu_seqlens: (S + 1,) borders of a stream's segments (then b is 1), or a `Segments`.
        activation: "silu" or None.
        reverse: True looks at the tokens that follow instead of those before.
        backend: `torch` (any device), `triton` (our kernels), `numba` (our kernels for CPUs), `causal_conv1d` (that
            package's CUDA kernel), or `auto`: on a CPU `numba` and on a GPU `triton` where they can run, else `torch`.

    Returns:
        (b, l, c), in the dtype of x.

    Raises:
        ValueError: on a wrong shape, activation or backend.
        RuntimeError: when the backend asked for cannot run on this machine or these tensors.
    """
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[0] != x.shape[2]:
        raise ValueError(f"x must be (b, l, c) and weight (c, K), got {tuple(x.shape)} and {tuple(weight.shape)}")
    if activation not in ("silu", None):
        raise ValueError(f"activation must be 'silu' or None, got '{activation}'")
    segments = Segments.of_batch(x, cu_seqlens)
    refusals = {
        "triton": lambda: support.refusal(x) or _too_wide(weight),
        "numba": lambda: on_cpu.refusal(x),
        "causal_conv1d": lambda: causal_conv1d_package.refusal(x, weight),
    }
    convolve = _backend(choose("causal_conv1d", backend, x, refusals))
    return convolve(x.flatten(0, 1), weight, bias, segments, reverse, activation == "silu").view(x.shape)


def _backend(name: str) -> Callable:
    if name == "triton":
        from .kernels.causal_conv1d import causal_conv1d_triton

        return causal_conv1d_triton
    if name == "numba":
        from .compiled.causal_conv1d import causal_conv1d_numba

        return causal_conv1d_numba
    return causal_conv1d_package.causal_conv1d_package if name == "causal_conv1d" else causal_conv1d_torch


def _too_wide(weight: Tensor) -> str | None:
    if weight.shape[1] > WIDEST_FILTER:
        return f"its kernels have room for filters of {WIDEST_FILTER} taps and this one has {weight.shape[1]}"
    return None


def causal_conv1d_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None, segments: Segments, reverse: bool, silu: bool
) -> Tensor:
    """The convolution of a stream in plain torch, (T, c) -> (T, c)."""
    bias = x.new_zeros(x.shape[1]) if bias is None else bias
    return _CausalConv.apply(x, weight, bias, segments, reverse, silu)


class _CausalConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, segments, reverse, silu):
        ctx.segments, ctx.reverse, ctx.silu = segments, reverse, silu
        y = _shifted_sum(x, weight, bias, segments, reverse)
        ctx.save_for_backward(x, weight, y)
        return F.silu(y) if silu else y.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, y = ctx.saved_tensors
        dy = torch.ops.aten.silu_backward(dy.contiguous(), y) if ctx.silu else dy.contiguous()
        dx = _shifted_sum(dy, weight, None, ctx.segments, not ctx.reverse)
        return dx, _weight_grad(dy, x, weight.shape[1], ctx), dy.sum(0), None, None, None


def _shifted_sum(x: Tensor, weight: Tensor, bias: Tensor | None, segments: Segments, reverse: bool) -> Tensor:
    """bias + sum_k weight[:, K-1-k] * x[t-k], or x[t+k] with `reverse`, inside segments. (T, c)."""
    taps = weight.flip(1).t().contiguous()  # (K, c), taps[k] meets the token k steps away
    y = x * taps[0] if bias is None else torch.addcmul(bias, x, taps[0])
    for k in range(1, min(len(taps), len(x))):
        near, far = (slice(None, -k), slice(k, None)) if reverse else (slice(k, None), slice(None, -k))
        y[near].addcmul_(x[far], taps[k])
    border, step = (segments.tail, 1) if reverse else (segments.head, -1)
    for j in range(len(taps) - 1):  # tokens with only j others before them
        rows = border(j)[0]
        if len(rows):
            y[rows] = sum((x[rows + step * k] * taps[k] for k in range(j + 1)), 0 if bias is None else bias)
    return y


def _weight_grad(dy: Tensor, x: Tensor, width: int, ctx) -> Tensor:
    """(c, K): for every tap the sum of dy times the token it met."""
    border, step = (ctx.segments.tail, 1) if ctx.reverse else (ctx.segments.head, -1)
    product = dy * x
    grads = [product.sum(0)]
    for k in range(1, width):
        if k >= len(x):
            grads.append(torch.zeros_like(grads[0]))
            continue
        near, far = (slice(None, -k), slice(k, None)) if ctx.reverse else (slice(k, None), slice(None, -k))
        grad = torch.mul(dy[near], x[far], out=product[k:]).sum(0)
        for j in range(k):  # the first token of the stream has nobody before it: it was not in the sum
            rows = border(j)[0]
            rows = rows[(rows + step * k >= 0) & (rows + step * k < len(x))]
            grad -= (dy[rows] * x[rows + step * k]).sum(0)
        grads.append(grad)
    return torch.stack(grads[::-1], dim=1)
