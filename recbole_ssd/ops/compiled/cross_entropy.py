"""The loss of `ops.cross_entropy` for CPUs: tiles of logits that are worked on while a core has them in its cache.

    p[i, v] = exp(l[i, v]) / total[i],    l = h @ W.T,    total[i] = sum_v exp(l[i, v])
    dh = (p - onehot(target)) @ W,        dW = (p - onehot(target)).T @ h

A thread takes some rows, at most ROWS, and makes their logits tile by tile; a tile becomes its exponentials and their
sums before the next is made. When all totals are known it goes over the tiles again for both gradients. Nothing is
subtracted before exp unless a total comes near float32's ends, as in `cross_entropy_torch`. For products of bfloat16
their operands are paired (`bfloat16.py`); exponentials and sums stay float32.

The rows are cut into stripes, as many as memory allows gradients of W for, whatever the number of threads; those are
summed in the end, so that threads change no bit. At most 19 MB of logits a thread and 64 MB of gradients are held.

Shape letters:    N targets    d model size    V items    s stripes    E entries of what was seen (`ops/seen.py`)
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from numba import prange
from torch import Tensor

from ..cross_entropy_torch import LARGEST, SMALLEST, Gradients, LinearCrossEntropy
from ..seen import Seen
from .bfloat16 import columns_in_pairs, left_side, right_side, rows_in_pairs, some_rows
from .jit import exp, kernel, launch, loop, over_blocks, parallel_kernel
from .matrices import add_multiply, clear, multiply, product, stripe, stripes, tiled, transpose
from .registers import HAS_AMX, HAS_BFLOAT16

ROWS, COLUMNS = 144, 512  # of a tile, at most: .3 megabytes in float32
MOST_LOGITS = ROWS * 2**15  # what a thread holds
MOST_GRADIENTS = 2**24  # numbers in all stripes' gradients of W
LEAST = 4  # stripes for which there is room, or threads have no work


def refusal(weight: Tensor, precision: str) -> str | None:
    """Why torch is better at the precision, or this catalogue is too large; None if neither."""
    if precision == "bfloat16" and HAS_AMX:
        return "this CPU has AMX for products of bfloat16, which torch uses"
    if len(weight) * ROWS > MOST_LOGITS or weight.numel() * LEAST > MOST_GRADIENTS:
        room = f"{MOST_LOGITS // ROWS:,} items and {MOST_GRADIENTS // LEAST:,} weights"
        return f"its blocks have room for {room}, and these are {len(weight):,} items of {weight.shape[1]:,}"
    return None


def linear_cross_entropy_numba(
    hidden: Tensor, weight: Tensor, target: Tensor, precision: str, seen: Seen | None, seen_bias: Tensor | None
) -> Tensor:
    """See `ops.cross_entropy.linear_cross_entropy`; float32, or float64 with the precision `float32`."""
    return LinearCrossEntropy.apply(hidden, weight, target, partial(_run, precision), seen, seen_bias)


def _run(precision, hidden, weight, target, grads: Gradients, seen: Seen | None, seen_bias: Tensor | None) -> Tensor:
    """The sum of the losses; its gradients are put into `grads`."""
    parts = min(stripes(len(target)), max(1, MOST_GRADIENTS // weight.numel()))
    wanted = any(grad is not None for grad in grads)
    dhidden = hidden.new_empty(len(hidden) if wanted else 0, hidden.shape[1]) if grads.hidden is None else grads.hidden
    dweight = weight.new_empty(0 if grads.weight is None else parts, *weight.shape)
    sums = hidden.new_zeros(2, parts, dtype=torch.float64)  # of the losses, and of the gradient of the bias
    entries = (target[:0].int(),) * 2 + (target[:0, 0],) if seen is None else seen.entries(COLUMNS)
    bias = hidden.new_zeros(1) if seen is None else seen_bias.to(hidden.dtype).view(1)
    sides = hidden, weight, weight  # of products: h of the logits, and W of the logits and of dh
    if precision == "bfloat16" and HAS_BFLOAT16:
        sides = rows_in_pairs(hidden), rows_in_pairs(weight), columns_in_pairs(weight)
    tiles = sides[1].new_empty(-(-len(weight) // COLUMNS), sides[1].shape[1], COLUMNS)
    inputs = (t.contiguous() for t in (hidden, *sides, target[:, 0], *entries, bias))
    launch(_forward, *inputs, tiles, dhidden, dweight, sums)
    loss, dbias = sums.sum(1)
    if grads.weight is not None:
        grads.weight.copy_(over_blocks(dweight, weight.dtype))
    if grads.bias is not None:
        grads.bias.copy_(dbias)
    return loss


@parallel_kernel
def _forward(hidden, h, rows, w, target, low, high, item, bias, tiles, dhidden, dweight, sums):
    for tile in range(len(tiles)):
        transpose(rows[tile * COLUMNS : (tile + 1) * COLUMNS], tiles[tile])
    for s in prange(sums.shape[1]):
        span = stripe(s, sums.shape[1], len(hidden))
        weights, entries = (w, tiles, len(rows)), (low, high, item, bias[0])
        sums[0, s], sums[1, s] = _stripe(s, span, hidden, h, weights, target, entries, dhidden, dweight)


@kernel
def _stripe(s, span, hidden, h, weights, target, entries, dhidden, dweight):
    """The losses of a stripe and the gradient of the bias; its rows of dhidden and its dweight are written."""
    blocks = (span[1] - span[0] + ROWS - 1) // ROWS
    count = tiled((span[1] - span[0] + blocks - 1) // blocks)  # rows of a block: about alike
    buffer, shift = np.empty(count * weights[2], hidden.dtype), np.empty(count, hidden.dtype)
    total, found = np.empty(count), np.empty(count)
    (low, high, item, bias), loss, dbias = entries, 0.0, 0.0
    for begin in range(span[0], span[1], count):
        end = min(begin + count, span[1])
        goal, seen = target[begin:end], (low, high, item, bias, begin)
        for i in range(count):
            shift[i] = 0
        _exponentials(h[begin:end], weights, goal, seen, shift, buffer, total, found)
        if not _fit(total[: end - begin]):
            _largest(h[begin:end], weights, seen, shift, buffer)
            _exponentials(h[begin:end], weights, goal, seen, shift, buffer, total, found)
        for i in range(end - begin):
            loss += math.log(total[i]) - found[i]
        if len(dhidden):
            out = dhidden[begin:end], dweight[s] if len(dweight) else hidden[:0]
            dbias += _gradients(hidden[begin:end], weights, goal, seen, buffer, total, out, begin == span[0])
    return loss, dbias


@loop
def _fit(total):
    for value in total:
        if not SMALLEST < value < LARGEST:
            return False
    return True


@kernel
def _tile(buffer, left, right, count):
    """The logits of `count` rows and some items; tiles lie one after the other."""
    return buffer[left * count : right * count].reshape(count, right - left)


@kernel
def _logits(h, tiles, seen, left, tile):
    """h W^T, and the bias where a row has seen an item."""
    multiply(h, tiles[left // COLUMNS], tile)
    low, high, item, bias, begin = seen
    if len(item):
        for i in range(len(h)):
            for e in range(low[left // COLUMNS, begin + i], high[left // COLUMNS, begin + i]):
                tile[i, item[e]] += bias


@kernel
def _exponentials(h, weights, target, seen, shift, buffer, total, found):
    """Leaves exp(logits - shift) in the buffer; their sums, and the targets' logits less the shift."""
    _, tiles, items = weights
    for i in range(len(h)):
        total[i] = 0
    for left in range(0, items, COLUMNS):
        right = min(left + COLUMNS, items)
        tile = _tile(buffer, left, right, len(h))
        _logits(h, tiles, seen, left, tile)
        for i in range(len(h)):
            if left <= target[i] < right:
                found[i] = tile[i, target[i] - left] - shift[i]
            total[i] += _exp(tile[i], shift[i])


@loop
def _exp(row, shift):
    """row = exp(row - shift), and its sum."""
    total = row.dtype.type(0)
    for k in range(len(row)):
        row[k] = exp(row[k] - shift)
        total += row[k]
    return total


@kernel
def _largest(h, weights, seen, shift, buffer):
    """shift = the largest logit of each row."""
    _, tiles, items = weights
    for i in range(len(h)):
        shift[i] = -np.inf
    for left in range(0, items, COLUMNS):
        tile = _tile(buffer, left, min(left + COLUMNS, items), len(h))
        _logits(h, tiles, seen, left, tile)
        for i in range(len(h)):
            for k in range(tile.shape[1]):
                shift[i] = max(shift[i], tile[i, k])


@kernel
def _gradients(hidden, weights, target, seen, buffer, total, out, first):
    """dhidden, dweight (`first`: nothing is in it yet) and the gradient of the bias, from the exponentials."""
    (w, _, items), (low, high, item, _, begin), (dhidden, dweight) = weights, seen, out
    clear(dhidden)
    scaled, dbias = np.empty_like(hidden), 0.0
    for i in range(len(hidden)):
        for k in range(hidden.shape[1]):
            scaled[i, k] = hidden[i, k] / total[i]
    scaled = right_side(scaled, w)
    for left in range(0, items, COLUMNS):
        right = min(left + COLUMNS, items)
        tile = _tile(buffer, left, right, len(hidden))
        for i in range(len(hidden)):
            if left <= target[i] < right:
                tile[i, target[i] - left] -= total[i]  # now it holds total times the gradient of the logits
        if len(item):
            for i in range(len(hidden)):
                for e in range(low[left // COLUMNS, begin + i], high[left // COLUMNS, begin + i]):
                    dbias += tile[i, item[e]] / total[i]
        add_multiply(left_side(tile, w), some_rows(w, left, right), dhidden)
        if len(dweight):
            product(right_side(tile, w).T, scaled, dweight[left:right], not first)
    for i in range(len(hidden)):
        for k in range(hidden.shape[1]):
            dhidden[i, k] /= total[i]
    return dbias
