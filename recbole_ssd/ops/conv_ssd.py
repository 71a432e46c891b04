"""The forward direction of Mamba-2: convolution, SiLU and SSD in one door.

    x, B, C = silu(conv(xBC));   y = ssd(x, dt, A, B, C, D)

On a CPU they are one kernel, which makes x, B and C a chunk at a time: they never reach memory, nor do their gradients.
Elsewhere it is `causal_conv1d`, then `ssd`.

Dao and Gu, "Transformers are SSMs", ICML 2024, https://arxiv.org/abs/2405.21060, figure 6.

Shape letters:    T tokens    h heads    p head size    g groups    n state size    c = h p + 2 g n
                  K width of the filter
"""

from __future__ import annotations

from torch import Tensor

from .backends import log_once
from .causal_conv1d import causal_conv1d
from .compiled import support as on_cpu
from .packing import Segments
from .ssd import ssd


def conv_ssd(
    xBC: Tensor,
    dt: Tensor,
    A: Tensor,
    D: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    headdim: int,
    ngroups: int,
    cu_seqlens: Tensor | Segments,
    chunk_size: int | None = None,
    backend: str = "auto",
    conv_backend: str = "auto",
) -> Tensor:
    """Convolves a packed stream and scans it, segment by segment.

    Args:
        xBC: (T, c): x, B and C before convolution and SiLU.
        dt: (T, h), after the softplus.
        A: (h,).  D: (h,) or (h, p).
        weight: (c, K); weight[:, K-1] meets the token itself.  bias: (c,).
        headdim: p.
        ngroups: g.
        cu_seqlens: (S + 1,) borders of the segments, or a `Segments`.
        chunk_size, backend: of `ssd`.
        conv_backend: of `causal_conv1d`.

    Returns:
        y: (T, h, p), in the dtype of xBC.

    Raises:
        ValueError, RuntimeError: those of the two ops.
    """
    segments = Segments.of(cu_seqlens)
    check(xBC, dt, A, D, weight, bias, headdim, ngroups, segments)
    inputs = xBC, dt, A, D, weight, bias
    as_one = {backend, conv_backend} <= {"auto", "numba"} and chunk_size is None
    if as_one and (on_cpu.refusal(xBC) or on_cpu.mixed(*inputs)) is None:
        from .compiled.ssd import conv_ssd_numba  # late: it imports numba

        log_once("causal_conv1d and ssd run as one on the backend 'numba'")
        return conv_ssd_numba(*inputs, headdim, ngroups, segments)
    xBC = causal_conv1d(xBC[None], weight, bias, cu_seqlens=segments, backend=conv_backend)
    x, B, C = split_columns(xBC, headdim, ngroups, len(A))
    return ssd(x, dt[None], A, B, C, D, cu_seqlens=segments, chunk_size=chunk_size, backend=backend).squeeze(0)


def split_columns(xBC: Tensor, headdim: int, ngroups: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (..., h, p), B and C (..., g, n) of (..., c)."""
    state = (xBC.shape[-1] - heads * headdim) // 2
    x, B, C = xBC.split([heads * headdim, state, state], dim=-1)
    return x.unflatten(-1, (heads, headdim)), *(t.unflatten(-1, (ngroups, -1)) for t in (B, C))


def check(xBC, dt, A, D, weight, bias, headdim: int, ngroups: int, segments: Segments) -> None:
    """Raises a ValueError where shapes do not go together; of `prefix_readout` too."""
    tokens, channels = xBC.shape
    heads, states = len(A), channels - len(A) * headdim
    if segments.total != tokens or tuple(dt.shape) != (tokens, heads):
        raise ValueError(
            f"xBC must be ({segments.total}, channels) and dt ({segments.total}, {heads}) for these cu_seqlens and A, "
            f"got {tuple(xBC.shape)} and {tuple(dt.shape)}"
        )
    if states < 0 or states % (2 * ngroups) or heads % ngroups:
        raise ValueError(
            f"xBC must have h * headdim + 2 * ngroups * n channels and h be a multiple of ngroups, "
            f"got {channels} channels, h = {heads}, headdim = {headdim}, ngroups = {ngroups}"
        )
    if tuple(D.shape) not in ((heads,), (heads, headdim)):
        raise ValueError(f"D must have shape {(heads,)} or {(heads, headdim)}, got {tuple(D.shape)}")
    if weight.dim() != 2 or len(weight) != channels or not weight.shape[1] or tuple(bias.shape) != (channels,):
        shapes = tuple(weight.shape), tuple(bias.shape)
        raise ValueError(f"weight must be ({channels}, K) and bias ({channels},), got {shapes[0]} and {shapes[1]}")
