"""The launch plan of the SSD kernels: which program reads which tokens. Made on the host, once per stream.

    stream    a a a b b c d d d d d d d d d d d e e        tiles of 8 tokens
    tiles    |a a a b b c|                     |e e|       whole short segments side by side, no state
    chunks               |d d d d d d d d|d d d|           a long segment, its state handed from chunk to chunk

A tile of several segments is masked to its diagonal blocks, so a token still sees nothing but its own past. Without
the sharing, a tile of 64 would be three quarters empty at a median length of 15.

Shape letters:    T tokens    S segments    k tiles or chunks    r long segments
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recbole_ssd.ops.packing import Segments, moved

ROWS = (16, 32, 64)  # tokens of a tile; tl.dot wants 16, and 64 is what the exact decays have room for (ssd_decay)


@dataclass
class Plan:
    """All tables are int32 on the stream's device but `begins`, uint8."""

    tiles: Tensor  # (k, 4) first token, tokens, whether a state enters, whether one leaves; tiles first, chunks last
    short: int  # how many are tiles of whole segments
    begins: Tensor  # (T,) where in its tile the token's segment begins; 0 in long segments
    runs: Tensor  # (r, 2) a long segment's first chunk, and how many it has

    @property
    def chunks(self) -> Tensor:
        return self.tiles[self.short :]


def launch_plan(segments: Segments, rows: int) -> Plan:
    """The plan of a stream for tiles of `rows` tokens; the same object at every later call.

    >>> plan = launch_plan(Segments(torch.tensor([0, 3, 5, 6, 26, 28])), 16)
    >>> plan.tiles.tolist(), plan.short, plan.runs.tolist()
    ([[0, 6, 0, 0], [26, 2, 0, 0], [6, 16, 0, 1], [22, 4, 1, 0]], 2, [[0, 2]])
    """
    key = "ssd kernels", rows
    if key not in segments.layouts:
        borders = segments.borders.numpy()
        (tiles, begins), (chunks, runs) = _tiles(borders, rows), _chunks(borders, rows)
        tables = np.concatenate([tiles, chunks]), begins, runs
        tiles_there, begins, runs = (_on(segments.device, table) for table in tables)
        segments.layouts[key] = Plan(tiles_there, len(tiles), begins, runs)
    return segments.layouts[key]


def _tiles(borders: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.diff(borders)
    after = np.searchsorted(borders, borders[:-1] + rows, side="right") - 1  # first segment that no longer fits
    first = _follow(np.maximum(after, np.arange(1, len(borders))))  # first segment of every tile; long ones are alone
    of_segment = np.repeat(np.arange(len(first)), np.diff(first, append=len(lengths)))
    start, end = borders[first], borders[np.append(first[1:], len(lengths))]
    begins = np.repeat(borders[:-1] - start[of_segment], lengths).astype(np.uint8)
    short = end - start <= rows
    start, end = start[short], end[short]
    return np.stack([start, end - start, 0 * start, 0 * start], axis=1), begins


def _follow(step: np.ndarray) -> np.ndarray:
    """0, step[0], step[step[0]], ... below len(step), where step[i] > i: each round doubles what is known.

    >>> _follow(np.array([2, 2, 3, 5, 5]))
    array([0, 2, 3])
    """
    step = np.append(step, len(step))
    known = np.zeros(1, dtype=step.dtype)
    while known[-1] < len(step) - 1:
        known = np.append(known, step[known])
        step = step[step]
    return known[known < len(step) - 1]


def _chunks(borders: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.diff(borders)
    (long,) = np.nonzero(lengths > rows)
    counts = -(-lengths[long] // rows)
    first = np.cumsum(counts) - counts
    rank = np.arange(counts.sum()) - np.repeat(first, counts)
    start = np.repeat(borders[long], counts) + rank * rows
    tokens = np.minimum(np.repeat(borders[long + 1], counts) - start, rows)
    leaves = rank < np.repeat(counts, counts) - 1
    return np.stack([start, tokens, rank > 0, leaves], axis=1), np.stack([first, counts], axis=1)


def _on(device: torch.device, table: np.ndarray) -> Tensor:
    """The table on the device, without waiting for the copy."""
    return moved(torch.from_numpy(table if table.dtype == np.uint8 else table.astype(np.int32)), device)
