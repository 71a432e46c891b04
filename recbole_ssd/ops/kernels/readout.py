"""The read-out of `ops.readout` in Triton: what autograd sees of it.

In memory it moves rows of x and y, B once, and what is as small as (T, h); the backward reads x and dy and writes dx,
each once. Of what is left to plain torch, `_first_item` costs most: its backward adds a zeroed (T, channels) gradient.

Shape letters:    T tokens    S segments    K width of the filter    h heads    p head size    g groups    n state size
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..packing import Segments
from .readout_backward import gradients
from .readout_forward import outputs
from .spans import spans_of

CHUNK = 64  # tokens: a token is little work, and programs are few where the stream is short


def readout_triton(
    xBC: Tensor, wdt: Tensor, C_first: Tensor, skip: Tensor, weight: Tensor, bias: Tensor, segments: Segments
) -> Tensor:
    """The sums over a stream, which is what `prefix_readout` does beside the first item and the decays.

    Args:
        xBC: (T, h * p + 2 * g * n), before the convolution. Float32 or bfloat16; all else is float32.
        wdt: (T, h), the decay from item 1 to each item, times its step.
        C_first: (S, K, g, n), C at item 1 when the filter sees 1, 2, ..., K items.
        skip: (S, K, h, p), likewise D x.
        weight: (h * p + 2 * g * n, K).  bias: (h * p + 2 * g * n,).
        segments: the borders.

    Returns:
        y, (T, h, p), in the dtype of xBC.
    """
    return _Readout.apply(xBC, wdt.float(), C_first.float(), skip.float(), weight, bias, segments)


class _Readout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, xBC, wdt, C_first, skip, weight, bias, segments):
        xBC = xBC if xBC.stride(1) == 1 else xBC.contiguous()
        tensors = xBC, *(t.contiguous() for t in (wdt, C_first, weight, bias))
        ctx.spans = spans_of(segments, xBC.device, CHUNK)
        with torch.cuda.device_of(xBC):
            y, products = outputs(*tensors, skip.contiguous(), ctx.spans)
        ctx.save_for_backward(*tensors, products)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        with torch.cuda.device_of(dy):
            return *gradients(*ctx.saved_tensors, dy.contiguous(), ctx.spans), None
