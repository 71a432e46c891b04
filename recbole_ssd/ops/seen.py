"""Which items the rows of a batch have seen, for what treats those otherwise than new ones.

A row is a part of the stream: the prefix of a history up to a token, or a whole history. What a history holds twice is
listed once, where it came first. A row's items then are a slice of the list:

    stream      7 3 7 | 3 5          token  0 1 3 4
    row         0 1 2   3 4          item   7 3 3 5          row 2: tokens 0 to 2, items 7 and 3

The list is made on the host, which then knows how many pairs of row and item there are; to count them on a GPU would
mean to wait for it. What is asked of the list is on the device of the segments.

Shape letters:    T tokens    S segments    N rows    V items    E entries of the list    P pairs of row and item
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from .packing import Segments, moved


class Seen:
    """The list above.

    Args:
        items: of the stream, (T,), int64, in 0..V-1; on the CPU, where the caller has them: reading them from a GPU
            waits for all that is queued there.
        segments: its borders.
        n_items: V.
        whole: a row is a whole segment, N = S; else a row ends at every token, N = T.
    """

    def __init__(self, items: Tensor, segments: Segments, n_items: int, whole: bool = False):
        self.n_items, self.device, self.total = n_items, segments.device, segments.total
        items, number, tokens = items.cpu(), segments.number_on_host, torch.arange(segments.total)
        key, order = (number * n_items + items).sort(stable=True)
        new = torch.ones_like(key, dtype=torch.bool)
        new[1:] = key[1:] != key[:-1]
        self._key, self._first = key[new], order[new]  # of the pairs of a history and an item, in their order
        self.token = torch.empty_like(new).scatter_(0, order, new).nonzero()[:, 0]  # (E,)
        self.item = items[self.token]  # (E,)
        self._history = tokens[: len(segments)] if whole else number  # of a row, (N,)
        self._begin = segments.borders[self._history]  # a row is the tokens from here, (N,)
        self._end = segments.borders[1:] if whole else tokens + 1  # to here, (N,)

    def __len__(self) -> int:
        """N."""
        return len(self._history)

    @cached_property
    def _there(self) -> list[Tensor]:
        """What `has` reads, on the device."""
        return [moved(index, self.device) for index in (self._key, self._first, self._history, self._end)]

    def has(self, items: Tensor) -> Tensor:
        """Whether each row has seen the items that are asked for, (N, k) -> (N, k), bool.

        >>> Seen(torch.tensor([7, 3]), Segments(torch.tensor([0, 2])), 8).has(torch.tensor([[7, 3], [7, 3]]))
        tensor([[ True, False],
                [ True,  True]])
        """
        keys, first, history, end = self._there
        key = history[:, None] * self.n_items + items
        entry = torch.searchsorted(keys, key).clamp(max=len(keys) - 1)
        return (keys[entry] == key) & (first[entry] < end[:, None])

    def count(self) -> int:
        """P."""
        begin, end = (torch.searchsorted(self.token, border) for border in (self._begin, self._end))
        return int((end - begin).sum())

    def entries(self, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """low, high (tiles, N), item (E,): in tile k of `tiles(width)` row i has seen item[low[k, i] : high[k, i]].

        low and high are int32. On the host.
        """
        tile = self.item // width
        before = torch.zeros(-(-self.n_items // width), self.total + 1, dtype=torch.int32)
        before[tile, self.token + 1] = 1
        # of entries: how many lie in earlier tiles, or in this one before a token
        before = before.view(-1).cumsum(0, dtype=torch.int32).view_as(before)
        item = torch.empty_like(self.item)
        item[before[tile, self.token]] = self.item - tile * width
        return before[:, self._begin], before[:, self._end], item

    def places(self) -> Tensor:
        """Where in scores of all rows, (N, V), there is a pair, (P,): see `Tile.places`."""
        return self.tiles(self.n_items)[0].places(slice(None))[0]

    def tiles(self, width: int) -> list[Tile]:
        """The list cut after every `width` items of the catalogue."""
        number, order = (self.item // width).sort(stable=True)
        borders = torch.searchsorted(number, torch.arange(-(-self.n_items // width) + 1)).tolist()
        token, item = self.token[order], (self.item - self.item // width * width)[order]
        widths = [*[width] * (len(borders) - 2), self.n_items - width * (len(borders) - 2)]
        return [
            Tile(token[begin:end], item[begin:end], (self._begin, self._end), columns, self.device)
            for (begin, end), columns in zip(pairwise(borders), widths, strict=True)
        ]


class Tile:
    """The entries of neighbouring items, numbered from the first of these.

    Attributes:
        token, item: of the entries, by token; on the host.
        rows: first token of every row, and the one after its last, (N,) each; on the host.
        width: of the tile, in items.
        device: of `places`.
    """

    def __init__(self, token: Tensor, item: Tensor, rows: tuple[Tensor, Tensor], width: int, device: torch.device):
        self.token, self.item, self.rows, self.width, self.device = token, item, rows, width, device

    @cached_property
    def _item_there(self) -> Tensor:
        return moved(self.item, self.device)

    def places(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Every pair of a row of the slice and an item that it has seen, once.

        Returns:
            (P,), the places of the pairs in a block (rows, width), row by row, and (rows,), how many each row has.
        """
        low, high = (torch.searchsorted(self.token, border[rows]) for border in self.rows)
        count = high - low
        above = torch.arange(0, len(count) * self.width, self.width)
        pairs = int(count.sum())
        first, above, count = (moved(t, self.device) for t in (low - count.cumsum(0) + count, above, count))
        entry = torch.repeat_interleave(first, count, output_size=pairs)
        entry += torch.arange(pairs, device=self.device)
        return torch.repeat_interleave(above, count, output_size=pairs) + self._item_there[entry], count
