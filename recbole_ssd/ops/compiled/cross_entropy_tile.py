"""A tile of logits, some rows by some items, which is worked on while a core has it in its cache.

Letters as in `cross_entropy.py`.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..seen import Seen
from .bfloat16 import rows_in_pairs
from .jit import exp, kernel, loop
from .matrices import multiply
from .registers import HAS_BFLOAT16

ROWS, COLUMNS = 144, 512  # at most: .3 megabytes in float32


class Operands(NamedTuple):
    """What tiles are made of.

    Attributes:
        h: of the logits h W^T, (N, d), or where products are of bfloat16 its pairs (`bfloat16.py`).
        w: W, (V, d), as it is.
        low, high, item: what rows have seen, of `Seen.entries(COLUMNS)`; empty where nobody asks.
        bias: (1,), added to the logits of that.
    """

    h: Tensor
    w: Tensor
    low: Tensor
    high: Tensor
    item: Tensor
    bias: Tensor


def operands_of(
    hidden: Tensor, weight: Tensor, precision: str, seen: Seen | None, seen_bias: Tensor | None
) -> Operands:
    """Of hidden and weight whose rows lie in one piece."""
    h = rows_in_pairs(hidden) if precision == "bfloat16" and HAS_BFLOAT16 else hidden
    nothing = hidden.new_empty(0).long()
    entries = (nothing.int()[:, None],) * 2 + (nothing,) if seen is None else seen.entries(COLUMNS)
    bias = hidden.new_zeros(1) if seen is None else seen_bias.detach().to(hidden.dtype).view(1)
    return Operands(h, weight, *(t.contiguous() for t in entries), bias)


@kernel
def logits(h, turned, seen, left, tile):
    """h W^T of the items from `left` on, whose W^T is `turned`, and the bias where a row has seen an item."""
    multiply(h, turned, tile)
    low, high, item, bias, begin = seen
    if len(item):
        for i in range(len(h)):
            for e in range(low[left // COLUMNS, begin + i], high[left // COLUMNS, begin + i]):
                tile[i, item[e]] += bias


@loop
def exponentials(row, shift):
    """row = exp(row - shift), and its sum."""
    total = row.dtype.type(0)
    for k in range(len(row)):
        row[k] = exp(row[k] - shift)
        total += row[k]
    return total


@kernel
def slopes(tile, target, seen, left, total):
    """Of exponentials, total times the gradient of the logits; gives what is due to the bias."""
    (low, high, item, _, begin), dbias = seen, 0.0
    for i in range(len(tile)):
        if left <= target[i] < left + tile.shape[1]:
            tile[i, target[i] - left] -= total[i]
    if len(item):
        for i in range(len(tile)):
            for e in range(low[left // COLUMNS, begin + i], high[left // COLUMNS, begin + i]):
                dbias += tile[i, item[e]] / total[i]
    return dbias
