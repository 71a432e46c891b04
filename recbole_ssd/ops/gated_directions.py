"""Both directions of SSD4Rec, each gated and normed, and their sum.

    out = norm(y, z) + beta norm(r, z[1]),    norm(y, z) = RMSNorm(y * silu(z))        (`gated_rms_norm.py`)

y is the scan's, r the readout's (`readout.py`): what the flipped prefix gives at its last step, which lies at item 1 of
the segment and so has the gate z[1].
"""

from __future__ import annotations

from torch import Tensor

from .backends import choose
from .compiled import support
from .gated_rms_norm import gated_rms_norm
from .packing import Segments
from .segment_cumsum import spread_first


def gated_directions(
    y: Tensor,
    r: Tensor,
    z: Tensor,
    weight: Tensor,
    beta: float,
    cu_seqlens: Tensor | Segments,
    groups: int = 1,
    eps: float = 1e-5,
    *,
    backend: str = "auto",
) -> Tensor:
    """Gates, norms and scales both, and adds them.

    Args:
        y: (T, i), forward.
        r: (T, i), backward, read out at every prefix.
        z: (T, i), the gate before its SiLU.
        weight: (i,), of the norm.
        beta: weight of the backward direction.
        cu_seqlens: (S + 1,) borders of the segments, or a `Segments`.
        groups: of the norm, a divisor of i.
        eps: added to the mean square.
        backend: `torch` (any device: `gated_rms_norm` twice), `numba` (our kernel for CPUs), or `auto`: `numba` where
            it can run.

    Returns:
        (T, i).

    Raises:
        ValueError: on a wrong shape or backend.
        RuntimeError: when the backend asked for cannot run on this machine or these tensors.
    """
    segments = Segments.of(cu_seqlens)
    if not y.shape == r.shape == z.shape == (segments.total, *weight.shape) or y.shape[1] % groups:
        shapes = ", ".join(str(tuple(t.shape)) for t in (y, r, z, weight))
        raise ValueError(
            f"y, r and z must be ({segments.total}, i) for these cu_seqlens, weight (i,) and i a multiple of {groups} "
            f"groups, got {shapes}"
        )
    refusals = {"numba": lambda: support.refusal(y) or support.refusal(r) or support.refusal(z)}
    if choose("gated_directions", backend, y, refusals) == "numba":
        from .compiled.gated_directions import gated_directions_numba  # late: it imports numba

        return gated_directions_numba(y, r, z, weight, beta, segments, groups, eps)
    first = spread_first(z.index_select(0, segments.first), segments)
    return gated_rms_norm(y, z.to(y.dtype), weight, groups, eps) + beta * gated_rms_norm(r, first, weight, groups, eps)
