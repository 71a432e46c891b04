"""Spans: what one program of a kernel walks over, token by token, planned on the host from the borders.

    segments    a a a | b b b b b b b b b b | c c | d
    chunks      a a a | b b b b . b b b b . b b | c c | d      a segment longer than `chunk` is cut, from its own start
    spans       consecutive chunks that begin in the same `chunk` tokens of the stream, side by side

So hardly a program is left with one token, none has more than two chunks, and what crosses the border of a span is the
state of one segment at most. A kernel starts anew where `position` is 0. Each chunk of the segments that were cut has
a row in a table of states: a span reads the row of the chunk before it, or after it when time runs backwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..packing import Segments, moved

CHUNK = 128  # tokens: twice as many programs as 256 gives, and the walk over a long segment's chunks is still short
STEPS = 8  # tokens a kernel holds in registers at a time


@dataclass(frozen=True)
class Spans:
    """The launch plan of a stream; all tensors are int32."""

    table: Tensor  # (spans, 5) first token, end, row before it or -1, row after it or -1, blocks of STEPS before it
    blocks: int  # of STEPS tokens, in all spans
    chunks: Tensor  # (rows, 2) first token and end of every chunk of the segments that were cut
    chains: Tensor  # (cut segments, 2) row of the first chunk, number of chunks
    position: Tensor  # (T,) place of each token in its segment
    owner: Tensor  # (T,) segment of each token

    def __len__(self) -> int:
        return len(self.table)


def spans_of(segments: Segments, device: torch.device, chunk: int | None = None) -> Spans:
    """The plan of a stream, made once for each `chunk` and copied without waiting for the device.

    >>> plan = spans_of(Segments(torch.tensor([0, 3, 13, 15, 16])), torch.device("cpu"), chunk=4)
    >>> plan.table.tolist()
    [[0, 7, -1, 1, 0], [7, 11, 0, 2, 1], [11, 13, 1, -1, 2], [13, 16, -1, -1, 3]]
    >>> plan.chunks.tolist(), plan.chains.tolist()
    ([[3, 7], [7, 11], [11, 13]], [[0, 3]])
    """
    chunk = chunk or CHUNK
    key = "spans", chunk, device
    if key not in segments.layouts:
        segments.layouts[key] = _plan(segments, chunk, device)
    return segments.layouts[key]


def _plan(segments: Segments, chunk: int, device: torch.device) -> Spans:
    borders, lengths = segments.borders, segments.borders.diff()
    count = -(-lengths // chunk)  # chunks in each segment
    owner = torch.arange(len(lengths)).repeat_interleave(count)  # (c,)
    rank = torch.arange(len(owner)) - (count.cumsum(0) - count)[owner]
    begin = borders[:-1][owner] + rank * chunk
    end = torch.minimum(begin + chunk, borders[1:][owner])
    cut = count[owner] > 1
    row = cut.cumsum(0) - 1

    before = torch.where(rank > 0, row - 1, -1)
    after = torch.where(rank < count[owner] - 1, row + 1, -1)
    first = torch.ones_like(cut)
    first[1:] = (begin // chunk).diff() != 0  # chunks of one segment never share a span: they begin `chunk` apart
    last = first.roll(-1)
    blocks = -(-(end[last] - begin[first]) // STEPS)
    table = torch.stack([begin[first], end[last], before[first], after[last], blocks.cumsum(0) - blocks], 1)

    long = count[count > 1]
    return Spans(
        table=moved(table.int(), device),
        blocks=int(blocks.sum()),
        chunks=moved(torch.stack([begin[cut], end[cut]], 1).int(), device),
        chains=moved(torch.stack([long.cumsum(0) - long, long], 1).int(), device),
        position=segments.position.to(device, torch.int32),
        owner=segments.seq_idx[0].to(device),
    )
