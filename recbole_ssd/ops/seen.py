"""Which items the rows of a batch have seen, for what treats those otherwise than new ones.

A row is a part of the stream: the prefix of a history up to a token, or a whole history. What a history holds twice is
listed once, where it came first. A row's items then are a slice of the list:

    stream      7 3 7 | 3 5          token  0 1 3 4
    row         0 1 2   3 4          item   7 3 3 5          row 2: tokens 0 to 2, items 7 and 3

Shape letters:    T tokens    S segments    N rows    V items    E entries of the list    P pairs of row and item
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from .packing import Segments


class Seen:
    """The list above.

    Args:
        items: of the stream, (T,), int64, in 0..V-1.
        segments: its borders.
        n_items: V.
        whole: a row is a whole segment, N = S; else a row ends at every token, N = T.
    """

    def __init__(self, items: Tensor, segments: Segments, n_items: int, whole: bool = False):
        self.n_items = n_items
        key, order = (segments.number * n_items + items).sort(stable=True)
        new = torch.ones_like(key, dtype=torch.bool)
        new[1:] = key[1:] != key[:-1]
        self._key, self._first = key[new], order[new]  # of the pairs of a history and an item, in their order
        self.token = self._first.sort().values  # (E,)
        self.item = items[self.token]  # (E,)
        tokens = torch.arange(len(items), device=items.device)
        self._history = tokens[: len(segments)] if whole else segments.number  # of a row, (N,)
        self._begin = segments.first[self._history]  # a row is the tokens from here, (N,)
        self._end = segments.last + 1 if whole else tokens + 1  # to here, (N,)

    def __len__(self) -> int:
        """N."""
        return len(self._history)

    def has(self, items: Tensor) -> Tensor:
        """Whether each row has seen the items that are asked for, (N, k) -> (N, k), bool.

        >>> Seen(torch.tensor([7, 3]), Segments(torch.tensor([0, 2])), 8).has(torch.tensor([[7, 3], [7, 3]]))
        tensor([[ True, False],
                [ True,  True]])
        """
        key = self._history[:, None] * self.n_items + items
        entry = torch.searchsorted(self._key, key).clamp(max=len(self._key) - 1)
        return (self._key[entry] == key) & (self._first[entry] < self._end[:, None])

    def count(self) -> Tensor:
        """P, ()."""
        return (torch.searchsorted(self.token, self._end) - torch.searchsorted(self.token, self._begin)).sum()

    def entries(self, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """low, high (tiles, N), item (E,): in tile k of `tiles(width)` row i has seen item[low[k, i] : high[k, i]]."""
        tiles = self.tiles(width)
        before = torch.tensor([0, *(len(tile.item) for tile in tiles)]).cumsum(0)[:-1, None]
        low, high = (
            torch.stack([torch.searchsorted(tile.token, border) for tile in tiles]) + before
            for border in (self._begin, self._end)
        )
        return low, high, torch.cat([tile.item for tile in tiles])

    def places(self) -> Tensor:
        """Where in scores of all rows, (N, V), there is a pair, (P,): see `Tile.places`."""
        return self.tiles(self.n_items)[0].places(slice(None))[0]

    def tiles(self, width: int) -> list[Tile]:
        """The list cut after every `width` items of the catalogue."""
        number, order = (self.item // width).sort(stable=True)
        borders = torch.searchsorted(number, torch.arange(-(-self.n_items // width) + 1, device=number.device)).tolist()
        token, item = self.token[order], (self.item - self.item // width * width)[order]
        widths = [*[width] * (len(borders) - 2), self.n_items - width * (len(borders) - 2)]
        return [
            Tile(token[begin:end], item[begin:end], self._begin, self._end, columns)
            for (begin, end), columns in zip(pairwise(borders), widths, strict=True)
        ]


class Tile:
    """The entries of neighbouring items, numbered from the first of these.

    Attributes:
        token, item: of the entries, by token.
        begin, end: tokens of every row, (N,).
        width: of the tile, in items.
    """

    def __init__(self, token: Tensor, item: Tensor, begin: Tensor, end: Tensor, width: int):
        self.token, self.item, self.begin, self.end, self.width = token, item, begin, end, width

    def places(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Every pair of a row of the slice and an item that it has seen, once.

        Returns:
            (P,), the places of the pairs in a block (rows, width), row by row, and (rows,), how many each row has.
        """
        low = torch.searchsorted(self.token, self.begin[rows])
        count = torch.searchsorted(self.token, self.end[rows]) - low
        before = count.cumsum(0) - count
        entry = torch.repeat_interleave(low - before, count)
        entry += torch.arange(len(entry), device=entry.device)
        above = torch.arange(0, len(count) * self.width, self.width, device=count.device)
        return torch.repeat_interleave(above, count) + self.item[entry], count
