"""SSD where only the last step of each segment is read: the output there, without a state.

    y = sum_t w[t] dt[t] (C . B[t]) x[t]  +  D x[last],      w[t] = exp(sum of dt[r] A over all r after t)

with C at the last step. It is `ssd` (same source) unrolled, in O(T (n + p)) per head: no state, no triangle of a chunk.

Shape letters:    T tokens    S segments    h heads    p head size    g groups    n state size
"""

from __future__ import annotations

from torch import Tensor

from .packing import Segments
from .segment_cumsum import segment_cumsum, segment_total, spread_first


def ssd_last(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    cu_seqlens: Tensor | Segments,
    reverse: bool = False,
) -> Tensor:
    """What `ssd` gives at the last token of every segment, or with `reverse` at the last of every flipped segment.

    Args:
        x: (T, h, p).
        dt: (T, h), >= 0 (after the softplus).
        A: (h,), the decay rates.
        B: (T, g, n).
        C: (S, g, n), at the token that is read: the last of a segment, with `reverse` the first.
        D: (h,) or (h, p), the skip connection; None leaves it out.
        cu_seqlens: (S + 1,) borders of the segments, or a `Segments`.
        reverse: the scan runs from a segment's end to its beginning.

    Returns:
        y: (S, h, p).

    Raises:
        ValueError: when C has not one row a segment.
    """
    segments = Segments.of(cu_seqlens)
    if len(C) != len(segments):
        raise ValueError(f"C must have a row for each of the {len(segments)} segments, got {tuple(C.shape)}")
    a = dt.double() * A.double()
    w = (segment_cumsum(a, segments, reverse=not reverse) - a).exp()  # (T, h)
    CB = (B * spread_first(C, segments)).sum(-1)  # (T, g)
    weight = (w * dt).to(x.dtype) * CB.repeat_interleave(x.shape[1] // CB.shape[1], dim=-1)
    y = segment_total(x * weight[..., None], segments)
    if D is None:
        return y
    return y + x.index_select(0, segments.first if reverse else segments.last) * D.view(x.shape[1], -1)
