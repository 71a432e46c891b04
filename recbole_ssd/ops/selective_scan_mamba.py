"""mamba-ssm's selective scan, taught to pack.

Its kernel knows dense batches only. A stream is run as one row, with a separator token before every segment but the
first, whose x, B and C are 0 and whose dt is so large that exp(dt A) is 0, not nearly 0: the state after it is exactly
0, and no gradient goes through it. Its outputs are dropped. Segments of one length are a batch and need none.

`selective_scan_fn` of https://github.com/state-spaces/mamba, mamba_ssm/ops/selective_scan_interface.py.

Shape letters:    T tokens    S segments    b batch    l length    i inner size, the channels    n state size
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from .packing import Segments

MOST_STATES = 256  # n that the kernel has room for
UNDERFLOWS = 1000.0  # e^-1000 is 0, in float64 too
SLOWEST = 1e-27  # nothing beside a usual A; where A is 0 it keeps a separator's dt finite


def selective_scan_mamba(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, segments: Segments
) -> Tensor:
    """The scan over a stream by mamba-ssm's kernel. Shapes as in `selective_scan_reference`; float32."""
    lengths = segments.borders.diff()
    if bool((lengths == lengths[0]).all()):
        batch = [t.view(len(segments), -1, t.shape[1]) for t in (x, dt, B, C)]  # (b, l, ...)
        return _dense(*batch, A, D).flatten(0, 1)
    place = segments.number + torch.arange(segments.total, device=x.device)  # (T,) of the tokens among separators
    A = A - SLOWEST
    reset = UNDERFLOWS / A.detach().abs().amin(1)  # (i,) dt of a separator
    rows = segments.total + len(segments) - 1
    stream = [
        base.expand(rows, t.shape[1]).index_copy(0, place, t)[None]
        for base, t in ((x.new_zeros(1), x), (reset, dt), (x.new_zeros(1), B), (x.new_zeros(1), C))
    ]
    return _dense(*stream, A, D)[0].index_select(0, place)


def _dense(x: Tensor, dt: Tensor, B: Tensor, C: Tensor, A: Tensor, D: Tensor | None) -> Tensor:
    """(b, l, i)."""
    kernel, _ = load_kernel()
    x, dt, B, C = (t.transpose(1, 2).contiguous() for t in (x, dt, B, C))  # the length last
    return kernel(x, dt, A.contiguous(), B, C, D).transpose(1, 2)


def refusal(x: Tensor, A: Tensor) -> str | None:
    """Why the kernel cannot run on these tensors, or None."""
    if not x.is_cuda:
        return f"it needs a CUDA device and the tensors are on {x.device}"
    if x.dtype != torch.float32:
        return f"it computes in torch.float32 and the tensors are {x.dtype}"
    if A.shape[1] > MOST_STATES:
        return f"it has room for {MOST_STATES} states and A has {A.shape[1]}"
    return load_kernel()[1]


@cache
def load_kernel() -> tuple[Callable | None, str | None]:
    """The kernel, or why it cannot be had. Imported on the first call: it brings half of the Hugging Face stack."""
    if find_spec("mamba_ssm") is None:
        return None, "the package mamba-ssm is not installed (pip install 'recbole-ssd[mamba]')"
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except (ImportError, OSError) as error:  # built for another torch, or without its CUDA part
        return None, f"importing mamba_ssm fails: {error}"
    return selective_scan_fn, None
