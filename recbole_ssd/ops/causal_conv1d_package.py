"""causal-conv1d's convolution on packed streams.

`causal_conv1d_fn` of https://github.com/Dao-AILab/causal-conv1d, version 1.7.0 or later: earlier ones read the table
of segments beyond its end. With a table it wants the channels side by side, and rows that begin at multiples of 16
bytes; a slice of a wider tensor whose rows do not is copied. It knows one direction: a reversed convolution flips every
segment, there and back.

Shape letters:    T tokens    c channels    K width of the filter
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec

import torch
from torch import Tensor

from .packing import Segments, flipped

OLDEST = (1, 7)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDTHS = range(2, 5)
EIGHT = 8  # the channels, and the numbers from row to row, must be multiples of it
OFFSETS = 2**32  # it counts numbers in unsigned 32 bits, without a check
MOST_TOKENS = 64 * 65535  # blocks of 64 tokens along a dimension of CUDA's grid that ends at 65535


def causal_conv1d_package(
    x: Tensor, weight: Tensor, bias: Tensor | None, segments: Segments, reverse: bool, silu: bool
) -> Tensor:
    """The convolution of a stream by causal-conv1d's kernel, (T, c) -> (T, c)."""
    kernel, _ = load_kernel()
    x = flipped(x, segments) if reverse else _aligned(x)
    y = kernel(x.mT[None], weight, bias, seq_idx=segments.seq_idx, activation="silu" if silu else None)
    y = y.squeeze(0).mT  # y[0] would copy the gradient, and lose its layout
    if y.requires_grad:  # its backward checks the strides of the gradient and stops the run where they do not suit
        y.register_hook(_aligned)
    return flipped(y, segments) if reverse else y


def _aligned(x: Tensor) -> Tensor:
    suits = x.stride(1) == 1 and x.stride(0) % EIGHT == 0 and x.data_ptr() % 16 == 0
    return x if suits else x.clone(memory_format=torch.contiguous_format)


def refusal(x: Tensor, weight: Tensor) -> str | None:
    """Why the kernel cannot convolve x (..., c) with weight (c, K), or None."""
    (channels, width), tokens = weight.shape, x.numel() // weight.shape[0]
    if not x.is_cuda:
        return f"it needs a CUDA device and the tensors are on {x.device}"
    if x.dtype not in DTYPES:
        return f"it computes in float32, bfloat16 or float16 and x is {x.dtype}"
    if width not in WIDTHS:
        return f"it has filters of {WIDTHS[0]} to {WIDTHS[-1]} taps and this one has {width}"
    if channels % EIGHT:
        return f"it needs a multiple of {EIGHT} channels and x has {channels}"
    most = min(MOST_TOKENS, OFFSETS // max(channels, x.stride(-2)) - 1)
    if tokens > most:
        return f"its 32-bit offsets reach {most} tokens of this width and x has {tokens}"
    return load_kernel()[1]


@cache
def load_kernel() -> tuple[Callable | None, str | None]:
    """The kernel, or why it cannot be had. Imported on the first call."""
    if find_spec("causal_conv1d") is None:
        return None, "the package causal-conv1d is not installed (pip install 'recbole-ssd[mamba]')"
    try:
        installed = version("causal-conv1d")
        if tuple(int(part) for part in installed.split(".")[:2]) < OLDEST:
            return None, f"causal-conv1d {installed} reads seq_idx out of bounds: install 1.7.0 or later"
        from causal_conv1d import causal_conv1d_fn
    except (ImportError, OSError) as error:  # built for another torch, or without its CUDA part
        return None, f"importing causal_conv1d fails: {error}"
    return causal_conv1d_fn, None
