"""Aligned chunks: a packed stream laid out as small equal blocks, none of which spans two segments.

A short segment becomes one chunk, as wide as the next power of two; a long one becomes several chunks of one width.
Because no chunk holds tokens of two users, one user's numbers cannot touch another's, not even in rounding.

Shape letters:    c chunks    q tokens of a chunk    T tokens of the stream    S segments
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .packing import Segments

SHORT = 64  # a segment of at most this many tokens is one chunk and needs no state between chunks
NARROWEST = 8  # short segments share a layout by powers of two, from this width on


@dataclass
class Chunks:
    """Chunks of one width, ordered by their rank inside their segment.

    All first chunks come first (longest segment first), then all second chunks, ...; so the chunks of rank k + 1
    continue the first `alive[k + 1]` chunks of rank k, and a scan over ranks works on slices.
    """

    tokens: int  # of the whole stream, T
    index: Tensor  # (c * q,) stream position of every slot; padding repeats its chunk's last token
    target: Tensor  # (c * q,) the same, but padding points at row T, which is thrown away
    real: Tensor | None  # (c, q, 1) 1.0 where a slot holds a token, None when all do
    width: int  # q
    alive: list[int]  # chunks of rank 0, 1, 2, ...

    @cached_property
    def slot(self) -> Tensor:
        """(T,) the slot of every token, where this layout holds the whole stream."""
        slot = self.target.new_empty(self.tokens + 1)  # padding points at the last
        slot[self.target] = torch.arange(len(self.target), device=slot.device)
        return slot[: self.tokens]

    def __len__(self) -> int:
        return len(self.index) // self.width

    def steps(self) -> list[tuple[slice, slice]]:
        """For every rank but the last: (its chunks that go on, their continuations), in order."""
        pairs, begin = [], 0
        for now, then in zip(self.alive, self.alive[1:]):
            pairs.append((slice(begin, begin + then), slice(begin + now, begin + now + then)))
            begin += now
        return pairs

    def gather(self, rows: Tensor) -> Tensor:
        """(T, ...) -> (c, q, ...)."""
        return rows.index_select(0, self.index).view(len(self), self.width, *rows.shape[1:])

    def scatter(self, chunks: Tensor, rows: Tensor) -> None:
        """Writes (c, q, ...) into `rows`, shape (T + 1, ...), whose last row takes the padding."""
        rows.index_copy_(0, self.target, chunks.reshape(-1, *rows.shape[1:]))

    def zero_padding(self, chunks: Tensor) -> Tensor:
        """(c, q, k) with zeros in its padding."""
        return chunks if self.real is None else chunks * self.real.to(chunks.dtype)


def aligned_chunks(segments: Segments, size: int, short: int = SHORT) -> list[Chunks]:
    """The layout of a stream: one `Chunks` per width of short segments, and one of width `size` for the long ones.

    Args:
        segments: the borders.
        size: tokens of a chunk of a long segment.
        short: a segment of at most this many tokens is one chunk; 0 gives a single `Chunks` for all.

    >>> [(c.width, c.alive) for c in aligned_chunks(Segments(torch.tensor([0, 3, 103, 110])), 32)]
    [(8, [2]), (32, [1, 1, 1, 1])]
    """
    if (size, short) not in segments.layouts:
        lengths = segments.borders.diff()
        power = 2 ** torch.log2(lengths.clamp(min=NARROWEST).double()).ceil().long()
        width = torch.where(lengths <= short, power, 0)
        segments.layouts[size, short] = [
            _chunks(segments, (width == w).nonzero()[:, 0], w or size)
            for w in sorted(width.unique().tolist(), key=lambda w: w or short + 1)
        ]
    return segments.layouts[size, short]


def _chunks(segments: Segments, chosen: Tensor, width: int) -> Chunks:
    lengths, first = segments.borders.diff()[chosen], segments.borders[chosen]
    count = -(-lengths // width)  # chunks in each segment
    order = torch.sort(count, descending=True, stable=True).indices
    lengths, first, count = lengths[order], first[order], count[order]

    alive = (count[None] > torch.arange(int(count[0]))[:, None]).sum(1)  # (ranks,)
    rank = torch.arange(len(alive)).repeat_interleave(alive)  # (c,)
    segment = torch.arange(len(rank)) - (alive.cumsum(0) - alive).repeat_interleave(alive)
    start = first[segment] + rank * width
    end = (first + lengths)[segment]

    slots = start[:, None] + torch.arange(width)  # (c, q)
    real = slots < end[:, None]
    index = torch.minimum(slots, end[:, None] - 1).flatten()
    target = torch.where(real, slots, segments.total).flatten()
    device = segments.device
    return Chunks(
        tokens=segments.total,
        index=index.to(device),
        target=target.to(device),
        real=None if bool(real.all()) else real[..., None].float().to(device),
        width=width,
        alive=alive.tolist(),
    )
