"""mamba-ssm's SSD on packed streams.

`mamba_chunk_scan_combined` of https://github.com/state-spaces/mamba, mamba_ssm/ops/triton/ssd_combined.py. Only its
`seq_idx` starts a state anew; its `cu_seqlens` returns final states and resets nothing: alone it would let one user's
history run into the next. The numbers in `seq_idx` must not be negative (those mean padding) nor come back later.

Its chunks lie on a grid over the whole stream, so a segment's rounding depends on its neighbours: small chunks waste
less on short segments. Its float32 products are TF32 on a GPU, unless the environment says TRITON_F32_DEFAULT=ieee.

Shape letters:    T tokens    h heads    p head size    g groups    n state size    q tokens of a chunk
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from .packing import Segments

CHUNK = 64  # its own default is 256, for texts; the median history is shorter than this
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OFFSETS = 2**31  # it counts numbers in signed 32 bits, without a check
MOST_CHUNKS = 65535  # of all groups: a dimension of CUDA's grid


def ssd_mamba(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    segments: Segments,
    chunk_size: int | None = None,
) -> Tensor:
    """The scan over a stream by mamba-ssm's kernels.

    Args:
        x: (T, h, p), float32 or half precision.
        dt: (T, h), after the softplus.
        A: (h,).
        B: (T, g, n).  C: (T, g, n), in the dtype of x.
        D: (h,) or (h, p) or None.
        segments: the borders.
        chunk_size: q, None for `CHUNK`.

    Returns:
        y: (T, h, p), in the dtype of x.
    """
    kernel, _ = load_kernel()
    y = kernel(x[None], dt[None], A, B[None], C[None], chunk_size or CHUNK, D=D, seq_idx=segments.seq_idx)
    return y.squeeze(0)  # y[0] would copy the gradient


def refusal(x: Tensor, B: Tensor, C: Tensor, chunk_size: int | None = None) -> str | None:
    """Why the kernels cannot scan x (..., h, p) with B and C (..., g, n), or None."""
    if not x.is_cuda:
        return f"it needs a CUDA device and the tensors are on {x.device}"
    if x.dtype not in DTYPES:
        return f"it computes in float32, bfloat16 or float16 and x is {x.dtype}"
    tokens, most = x.shape[:-2].numel(), most_tokens(x, B, C, chunk_size or CHUNK)
    if tokens > most:
        return f"its 32-bit offsets reach {most} tokens of this width and x has {tokens}"
    return load_kernel()[1]


def most_tokens(x: Tensor, B: Tensor, C: Tensor, chunk_size: int) -> int:
    """How long a stream the kernels can address: by the widest row of what they read and write.

    Rows are those of x, B and C as they lie in memory (slices of a wider tensor count it whole), those of y, and a
    token's share of the chunks' states (h, p, n) and of their C.B^T (g, q, q).

    >>> x, B, C, _ = torch.empty(9, 1160).split([1024, 64, 64, 8], dim=1)
    >>> most_tokens(x.view(9, 16, 64), B.view(9, 1, 64), C.view(9, 1, 64), 256)
    1851278
    """
    (heads, size), (groups, state) = x.shape[-2:], B.shape[-2:]
    rows = [t.stride(-3) for t in (x, B, C)]
    rows += [heads * size, groups * chunk_size, -(-heads * size * state // chunk_size)]
    return min(OFFSETS // max(rows) - 1, MOST_CHUNKS // groups * chunk_size)


@cache
def load_kernel() -> tuple[Callable | None, str | None]:
    """The kernels, or why they cannot be had. Imported on the first call: it brings half of the Hugging Face stack."""
    if find_spec("mamba_ssm") is None:
        return None, "the package mamba-ssm is not installed (pip install 'recbole-ssd[mamba]')"
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except (ImportError, OSError) as error:  # built for another torch, or without its CUDA part
        return None, f"importing mamba_ssm fails: {error}"
    return mamba_chunk_scan_combined, None
