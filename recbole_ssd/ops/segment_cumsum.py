"""Running sums that start again at every segment.

A cumulative sum over the whole stream minus its value at the border would let rounding travel from user to user and
grow with the stream (25 % wrong at a million tokens in float32). Here the sum runs inside aligned chunks, as a product
with a triangle of ones, and is carried from chunk to chunk of the same segment only.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .chunking import Chunks, aligned_chunks
from .packing import Segments

CHUNK = 32


def segment_cumsum(x: Tensor, segments: Segments, reverse: bool = False) -> Tensor:
    """Sum of all tokens of the segment up to and including each one, or from it to the end with `reverse`.

    Args:
        x: (T, ...).
        segments: the borders.

    Returns:
        (T, ...).

    >>> segment_cumsum(torch.tensor([1.0, 1, 1, 1, 1]), Segments(torch.tensor([0, 3, 5])))
    tensor([1., 2., 3., 1., 2.])
    """
    with torch.autocast(x.device.type, enabled=False):
        return _SegmentCumsum.apply(x, segments, reverse)


def spread_first(first: Tensor, segments: Segments) -> Tensor:
    """A row per segment, at all tokens of the segment. Its backward is deterministic, as a gather's is not.

    Args:
        first: (S, ...).
        segments: the borders.

    Returns:
        (T, ...).
    """
    return _SpreadFirst.apply(first, segments)


def segment_total(x: Tensor, segments: Segments) -> Tensor:
    """`segment_sum` with its gradient: (T, ...) -> (S, ...)."""
    return _SegmentTotal.apply(x, segments)


class _SegmentTotal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, segments):
        ctx.segments = segments
        return segment_sum(x, segments)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return dy.index_select(0, ctx.segments.number), None


class _SpreadFirst(torch.autograd.Function):
    @staticmethod
    def forward(ctx, first, segments):
        ctx.segments = segments
        return first.index_select(0, segments.number)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return segment_sum(dy, ctx.segments), None


class _SegmentCumsum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, segments, reverse):
        ctx.segments, ctx.reverse = segments, reverse
        return running_sum(x, segments, reverse)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return running_sum(dy, ctx.segments, not ctx.reverse), None, None


def running_sum(x: Tensor, segments: Segments, reverse: bool = False) -> Tensor:
    """`segment_cumsum` without autograd, for use inside hand-written backwards."""
    (chunks,) = aligned_chunks(segments, CHUNK, short=0)
    inside = chunks.zero_padding(chunks.gather(x.reshape(len(x), -1)))  # (c, q, k)
    ones = torch.ones(CHUNK, CHUNK, dtype=x.dtype, device=x.device)
    sums = (ones.triu() if reverse else ones.tril()) @ inside
    if len(chunks.alive) > 1:
        sums += _carried(sums[:, 0 if reverse else -1], chunks, reverse)[:, None]
    return sums.flatten(0, 1).index_select(0, chunks.slot).view(x.shape)


def segment_sum(x: Tensor, segments: Segments) -> Tensor:
    """Sum over every segment, (T, ...) -> (S, ...), without autograd.

    >>> segment_sum(torch.tensor([1.0, 2, 3, 4, 5]), Segments(torch.tensor([0, 3, 5])))
    tensor([6., 9.])
    """
    (chunks,) = aligned_chunks(segments, CHUNK, short=0)
    total = chunks.zero_padding(chunks.gather(x.reshape(len(x), -1))).sum(1)  # (c, k)
    for here, there in reversed(chunks.steps()):
        total[here] += total[there]
    first = chunks.slot.index_select(0, segments.first) // CHUNK
    return total.index_select(0, first).view(-1, *x.shape[1:])


def _carried(total: Tensor, chunks: Chunks, reverse: bool) -> Tensor:
    """For every chunk the sum of the chunks before it (after it with `reverse`), (c, k)."""
    carried = torch.zeros_like(total)
    for here, there in reversed(chunks.steps()) if reverse else chunks.steps():
        source, sink = (there, here) if reverse else (here, there)
        torch.add(carried[source], total[source], out=carried[sink])
    return carried
