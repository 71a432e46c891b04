"""The loss for catalogues too large for `cross_entropy.py`: a tile of items at a time, for all rows.

    first round     total[i] = sum_v exp(l[i, v])
    second round    the same exponentials anew, for dW[v] and, summed over tiles, dh

W of a tile stays in the cache while the rows go by, and no logits are kept: a fourth product takes the place of memory.
Where a total comes near float32's ends, two more rounds find the largest logits, and the totals without them.
Items are cut into stretches, as many whatever the number of threads: each has its own totals and its own dh, which are
summed in the end, so that threads change no bit; a row of dW belongs to one stretch. Rows are taken in groups for whose
dh there is room.

Shape letters as in `cross_entropy.py`, and    m rows of a group    s stretches
"""

from __future__ import annotations

import numpy as np
import torch
from numba import prange
from torch import Tensor

from ..cross_entropy_torch import LARGEST, SMALLEST, Gradients
from .bfloat16 import left_side, right_side
from .cross_entropy_tile import COLUMNS, ROWS, Operands, exponentials, logits, slopes
from .jit import kernel, launch, over_blocks, parallel_kernel
from .matrices import product, transpose

STRETCHES = 16
MOST_GRADIENTS = 2**24  # numbers in all stretches' dh


def run_by_columns(operands: Operands, hidden: Tensor, target: Tensor, grads: Gradients) -> Tensor:
    """The sum of the losses; its gradients are put into `grads`."""
    size = max(ROWS, MOST_GRADIENTS // (STRETCHES * hidden.shape[1]))
    return sum(_group(begin, size, operands, hidden, target, grads) for begin in range(0, len(hidden), size))


def _group(begin: int, size: int, operands: Operands, hidden: Tensor, target: Tensor, grads: Gradients) -> Tensor:
    """The sum of the losses of m rows from `begin` on."""
    here = slice(begin, begin + size)
    hidden, target, shift = hidden[here], target[here], hidden.new_zeros(len(hidden[here]))
    found = hidden.new_zeros(len(hidden), dtype=torch.float64)
    inputs = operands.h[here], *operands[1:], target, begin, shift
    stretches = min(STRETCHES, -(-len(operands.w) // COLUMNS))

    def totals(largest: bool) -> Tensor:
        start = -torch.inf if largest else 0.0
        parts = hidden.new_full((stretches, len(hidden)), start, dtype=torch.float64)
        launch(_totals, *inputs, largest, parts, found)
        return parts.amax(0) if largest else over_blocks(parts, parts.dtype)

    total = totals(largest=False)
    if not ((total > SMALLEST) & (total < LARGEST)).all():
        shift.copy_(totals(largest=True))
        total = totals(largest=False)
    if any(grad is not None for grad in grads):
        dhidden, divisor = hidden.new_empty(stretches, *hidden.shape), total[:, None].to(hidden.dtype)
        dweight = hidden[:0] if grads.weight is None else grads.weight
        dbias = total.new_zeros(stretches)
        launch(_gradients, hidden / divisor, *inputs, total, begin > 0, dhidden, dweight, dbias)
        if grads.hidden is not None:
            grads.hidden[here] = over_blocks(dhidden, hidden.dtype) / divisor
        if grads.bias is not None:
            grads.bias.add_(dbias.sum())
    return over_blocks((total.log() - found)[:, None], total.dtype)[0]  # torch's sum depends on threads


@kernel
def _stretch(s, stretches, items):
    """Where a stretch begins and ends: whole tiles."""
    tiles = (items + COLUMNS - 1) // COLUMNS
    return s * tiles // stretches * COLUMNS, min(items, (s + 1) * tiles // stretches * COLUMNS)


@parallel_kernel
def _totals(h, w, low, high, item, bias, target, begin, shift, largest, parts, found):
    for s in prange(len(parts)):
        span, seen = _stretch(s, len(parts), len(w)), (low, high, item, bias[0], begin)
        _totals_of(span, h, w, seen, target, shift, largest, parts[s], found)


@kernel
def _totals_of(span, h, w, seen, target, shift, largest, part, found):
    """A stretch's sums of exponentials, or largest logits; and the targets' logits that lie in it, less the shift."""
    turned, buffer = np.empty((h.shape[1], COLUMNS), h.dtype), np.empty(ROWS * COLUMNS, shift.dtype)
    for left in range(span[0], span[1], COLUMNS):
        right = min(left + COLUMNS, span[1])
        transpose(left_side(w[left:right], h), turned)
        for first in range(0, len(h), ROWS):
            tile = _tile(buffer, first, left, h, right, turned, seen)
            for i in range(first, first + len(tile)):
                row = tile[i - first]
                if largest:
                    part[i] = max(part[i], row.max())
                    continue
                if left <= target[i] < right:
                    found[i] = row[target[i] - left] - shift[i]
                part[i] += exponentials(row, shift[i])


@kernel
def _tile(buffer, first, left, h, right, turned, seen):
    """The logits of at most ROWS rows from `first` on."""
    last = min(first + ROWS, len(h))
    tile = buffer[: (last - first) * (right - left)].reshape(last - first, right - left)
    logits(h[first:last], turned, _from(first, seen), left, tile)
    return tile


@kernel
def _from(first, seen):
    """What rows have seen, counted from one of them."""
    low, high, item, bias, begin = seen
    return low, high, item, bias, begin + first


@parallel_kernel
def _gradients(scaled, h, w, low, high, item, bias, target, begin, shift, total, more, dhidden, dweight, dbias):
    for s in prange(len(dbias)):
        span, seen = _stretch(s, len(dbias), len(w)), (low, high, item, bias[0], begin)
        sides, out = (scaled, h, w), (dhidden[s], dweight)
        dbias[s] = _gradients_of(span, sides, seen, target, shift, total, more, out)


@kernel
def _gradients_of(span, sides, seen, target, shift, total, more, out):
    """A stretch's share of total times dh and of dbias, and its rows of dW, which hold something where `more`."""
    (scaled, h, w), (dhidden, dweight), dbias = sides, out, 0.0
    turned, buffer = np.empty((h.shape[1], COLUMNS), h.dtype), np.empty(ROWS * COLUMNS, shift.dtype)
    for left in range(span[0], span[1], COLUMNS):
        right = min(left + COLUMNS, span[1])
        below = right_side(w[left:right], h)
        transpose(left_side(w[left:right], h), turned)
        for first in range(0, len(h), ROWS):
            tile = _tile(buffer, first, left, h, right, turned, seen)
            last = first + len(tile)
            for i in range(len(tile)):
                exponentials(tile[i], shift[first + i])
            dbias += slopes(tile, target[first:last], _from(first, seen), left, total[first:last])
            product(left_side(tile, h), below, dhidden[first:last], left > span[0])
            if len(dweight):
                scaled_here = right_side(scaled[first:last], h)
                product(right_side(tile, h).T, scaled_here, dweight[left:right], more or first > 0)
    return dbias
