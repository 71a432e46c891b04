"""Aligned chunks: a packed stream laid out as small equal blocks, none of which spans two segments.

Every segment is cut into chunks of one width, and segments of one width share a layout. Because no chunk holds tokens
of two users, one user's numbers cannot touch another's, not even in rounding.

`aligned_chunks` gives a layout for each width; `blocks` cuts them into pieces that a core's cache holds.

Shape letters:    c chunks    q tokens of a chunk    T tokens of the stream    S segments    R slots of all blocks
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .packing import Segments, moved

NARROWEST = 8  # no fitted width is smaller, and those of up to 64 are multiples of it


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

    def zero_padding(self, chunks: Tensor) -> Tensor:
        """(c, q, k) with zeros in its padding."""
        return chunks if self.real is None else chunks * self.real.to(chunks.dtype)


def aligned_chunks(segments: Segments, size: int, short: int | None = None) -> list[Chunks]:
    """The layout of a stream: one `Chunks` for every width.

    A segment becomes as few chunks of at most `size` tokens as it takes, all as narrow as that number of them allows.

    Args:
        segments: the borders.
        size: tokens of a chunk.
        short: segments of more tokens get chunks of `size`; 0 gives a single `Chunks` for all. None: no segment does.

    >>> [(c.width, c.alive) for c in aligned_chunks(Segments(torch.tensor([0, 3, 103, 110])), 64)]
    [(8, [2]), (56, [1, 1])]
    """
    if (size, short) not in segments.layouts:
        lengths = segments.borders.diff()
        width = _rounded_up(-(-lengths // -(-lengths // size))).clamp(max=size)
        if short is not None:
            width[lengths > short] = size
        segments.layouts[size, short] = [
            _chunks(segments, (width == w).nonzero()[:, 0], w) for w in sorted(width.unique().tolist())
        ]
    return segments.layouts[size, short]


def _rounded_up(lengths: Tensor) -> Tensor:
    """To a multiple of an eighth of the next power of two: an octave has four widths, and little is padding.

    >>> _rounded_up(torch.tensor([1, 9, 64, 65, 128, 129]))
    tensor([  8,  16,  64,  80, 128, 160])
    """
    step = 2 ** torch.log2(lengths.clamp(min=8 * NARROWEST).double()).ceil().long() // 8
    return -(-lengths // step) * step


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
        index=moved(index, device),
        target=moved(target, device),
        real=None if bool(real.all()) else moved(real[..., None].float(), device),
        width=width,
        alive=alive.tolist(),
    )


@dataclass
class Block:
    """Chunks of one width and one rank that are worked on together."""

    slots: slice  # its part of the R slots of all blocks
    index: Tensor  # (c * q,) as in `Chunks`
    target: Tensor  # (c * q,) as in `Chunks`
    width: int  # q
    enter: slice | None  # rows of the states before its chunks; None where they begin a segment
    leave: slice | None  # rows of the states after its first chunks, those that go on; None where none does

    def chunks(self, rows: Tensor) -> Tensor:
        """The view (c, q, ...) of (c * q, ...)."""
        return rows.view(-1, self.width, *rows.shape[1:])


class Blocks:
    """A whole stream in blocks, every one after those it continues.

    Args:
        classes: the layouts of the stream.
        rows: slots of a block, or the width of a chunk where that is more.

    >>> layout = Blocks(aligned_chunks(Segments(torch.tensor([0, 3, 103, 110])), 64), rows=128)
    >>> [(block.slots, block.enter, block.leave) for block in layout.blocks[1:]]
    [(slice(16, 72, None), None, slice(0, 1, None)), (slice(72, 128, None), slice(0, 1, None), None)]
    """

    def __init__(self, classes: list[Chunks], rows: int):
        self.classes, self.blocks, self.states = classes, [], 0  # states: as many as chunks that continue another
        slots = 0
        for chunks in classes:
            self.blocks += _cut(chunks, max(1, rows // chunks.width), slots, self.states)
            slots += len(chunks.index)
            self.states += sum(chunks.alive[1:])
        self.index, self.target = (torch.cat([getattr(c, name) for c in classes]) for name in ("index", "target"))
        self.padding = (self.target == classes[0].tokens).nonzero()[:, 0]
        self.sizes = [len(block.index) for block in self.blocks]

    def split(self, *slots: Tensor) -> Iterator[tuple]:
        """Every block with its views (c * q, ...) of some (R, ...)."""
        return zip(self.blocks, *(t.split(self.sizes) for t in slots))

    def by_class(self, slots: Tensor) -> list[Tensor]:
        """The views (c, q, ...) of (R, ...), one for each width."""
        parts = slots.split([len(chunks.index) for chunks in self.classes])
        return [part.unflatten(0, (-1, chunks.width)) for part, chunks in zip(parts, self.classes)]


def blocks(segments: Segments, size: int, rows: int) -> Blocks:
    """The blocks of a stream, of at most `rows` slots or one chunk of at most `size` tokens."""
    key = "blocks", size, rows
    if key not in segments.layouts:
        segments.layouts[key] = Blocks(aligned_chunks(segments, size), rows)
    return segments.layouts[key]


def _cut(chunks: Chunks, most: int, slots: int, states: int) -> list[Block]:
    """The blocks of one width, of at most `most` chunks; its first slot and its first state have these numbers."""
    made, begin, q = [], 0, chunks.width
    for now, then in zip(chunks.alive, [*chunks.alive[1:], 0]):
        here = states + begin - chunks.alive[0]  # row of the state before this rank's first chunk
        for first in range(0, now, most):
            end, on = min(first + most, now), min(first + most, then)
            part = slice((begin + first) * q, (begin + end) * q)
            made.append(
                Block(
                    slots=slice(slots + part.start, slots + part.stop),
                    index=chunks.index[part],
                    target=chunks.target[part],
                    width=q,
                    enter=slice(here + first, here + end) if begin else None,
                    leave=slice(here + now + first, here + now + on) if on > first else None,
                )
            )
        begin += now
    return made


def coarse(rows: Tensor) -> Tensor:
    """The same rows in elements of 16 bytes where that can be: `index_copy_` takes its time by the element."""
    return rows.view(torch.complex128) if rows.shape[-1] * rows.element_size() % 16 == 0 else rows
