"""The loss of `ops.cross_entropy` for CPUs: tiles of logits that are worked on while a core has them in its cache.

    p[i, v] = exp(l[i, v]) / total[i],    l = h @ W.T,    total[i] = sum_v exp(l[i, v])
    dh = (p - onehot(target)) @ W,        dW = (p - onehot(target)).T @ h

A thread takes some rows, at most ROWS, and makes their logits tile by tile; a tile becomes its exponentials and their
sums before the next is made. When all totals are known it goes over the tiles again for both gradients. Nothing is
subtracted before exp unless a total comes near float32's ends, as in `cross_entropy_torch`. For products of bfloat16
their operands are paired (`bfloat16.py`); exponentials and sums stay float32.

The rows are cut into stripes, as many as memory allows gradients of W for, whatever the number of threads; those are
summed in the end, so that threads change no bit. At most 19 MB of logits a thread and 64 MB of gradients are held;
a catalogue that needs more is gone through by columns (`cross_entropy_columns.py`).

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
from .cross_entropy_columns import run_by_columns
from .cross_entropy_tile import COLUMNS, ROWS, Operands, exponentials, logits, operands_of, slopes
from .jit import kernel, launch, loop, over_blocks, parallel_kernel
from .matrices import add_multiply, clear, product, stripe, stripes, tiled, transpose
from .registers import HAS_AMX

MOST_LOGITS = ROWS * 2**15  # what a thread holds
MOST_GRADIENTS = 2**24  # numbers in all stripes' gradients of W
MOST_ENTRIES = 2**23  # tiles times tokens, where rows have seen items: three arrays of 34 MB
LEAST = 4  # stripes for which there is room, or threads have no work


def refusal(weight: Tensor, precision: str, seen: Seen | None) -> str | None:
    """Why torch is better at the precision, or there is no room for what rows have seen; None if neither."""
    if precision == "bfloat16" and HAS_AMX:
        return "this CPU has AMX for products of bfloat16, which torch uses"
    if seen is not None and seen.total * -(-len(weight) // COLUMNS) > MOST_ENTRIES:
        room = f"{MOST_ENTRIES * COLUMNS:,} pairs of a token and an item"
        return f"where rows have seen items, there is room for {room}, and these are {seen.total:,} x {len(weight):,}"
    return None


def linear_cross_entropy_numba(
    hidden: Tensor, weight: Tensor, target: Tensor, precision: str, seen: Seen | None, seen_bias: Tensor | None
) -> Tensor:
    """See `ops.cross_entropy.linear_cross_entropy`; float32, or float64 with the precision `float32`."""
    return LinearCrossEntropy.apply(hidden, weight, target, partial(_run, precision), seen, seen_bias)


def _run(precision, hidden, weight, target, grads: Gradients, seen: Seen | None, seen_bias: Tensor | None) -> Tensor:
    """The sum of the losses; its gradients are put into `grads`."""
    hidden, weight, target = hidden.contiguous(), weight.contiguous(), target[:, 0].contiguous()
    operands = operands_of(hidden, weight, precision, seen, seen_bias)
    fits = len(weight) * ROWS <= MOST_LOGITS and weight.numel() * LEAST <= MOST_GRADIENTS
    run = _run_by_rows if fits else run_by_columns
    return run(operands, hidden, target, grads)


def _run_by_rows(operands: Operands, hidden: Tensor, target: Tensor, grads: Gradients) -> Tensor:
    h, weight, *entries = operands
    items, size = weight.shape
    parts = min(stripes(len(target)), MOST_GRADIENTS // (items * size))
    wanted = any(grad is not None for grad in grads)
    dhidden = hidden.new_empty(len(hidden) if wanted else 0, size) if grads.hidden is None else grads.hidden
    dweight = hidden.new_empty(0 if grads.weight is None else parts, items, size)
    sums = hidden.new_zeros(2, parts, dtype=torch.float64)  # of the losses, and of the gradient of the bias
    rows, w = (rows_in_pairs(weight), columns_in_pairs(weight)) if h.dtype == torch.int32 else (weight, weight)
    tiles = rows.new_empty(-(-items // COLUMNS), rows.shape[1], COLUMNS)
    launch(_forward, hidden, h, rows, w, *entries, target, tiles, dhidden, dweight, sums)
    loss, dbias = sums.sum(1)
    if grads.weight is not None:
        grads.weight.copy_(over_blocks(dweight, hidden.dtype))
    if grads.bias is not None:
        grads.bias.copy_(dbias)
    return loss


@parallel_kernel
def _forward(hidden, h, rows, w, low, high, item, bias, target, tiles, dhidden, dweight, sums):
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
def _exponentials(h, weights, target, seen, shift, buffer, total, found):
    """Leaves exp(logits - shift) in the buffer; their sums, and the targets' logits less the shift."""
    _, tiles, items = weights
    for i in range(len(h)):
        total[i] = 0
    for left in range(0, items, COLUMNS):
        right = min(left + COLUMNS, items)
        tile = _tile(buffer, left, right, len(h))
        logits(h, tiles[left // COLUMNS], seen, left, tile)
        for i in range(len(h)):
            if left <= target[i] < right:
                found[i] = tile[i, target[i] - left] - shift[i]
            total[i] += exponentials(tile[i], shift[i])


@kernel
def _largest(h, weights, seen, shift, buffer):
    """shift = the largest logit of each row."""
    _, tiles, items = weights
    for i in range(len(h)):
        shift[i] = -np.inf
    for left in range(0, items, COLUMNS):
        tile = _tile(buffer, left, min(left + COLUMNS, items), len(h))
        logits(h, tiles[left // COLUMNS], seen, left, tile)
        for i in range(len(h)):
            for k in range(tile.shape[1]):
                shift[i] = max(shift[i], tile[i, k])


@kernel
def _gradients(hidden, weights, target, seen, buffer, total, out, first):
    """dhidden, dweight (`first`: nothing is in it yet) and the gradient of the bias, from the exponentials."""
    (w, _, items), (dhidden, dweight) = weights, out
    clear(dhidden)
    scaled, dbias = np.empty_like(hidden), 0.0
    for i in range(len(hidden)):
        for k in range(hidden.shape[1]):
            scaled[i, k] = hidden[i, k] / total[i]
    scaled = right_side(scaled, w)
    for left in range(0, items, COLUMNS):
        right = min(left + COLUMNS, items)
        tile = _tile(buffer, left, right, len(hidden))
        dbias += slopes(tile, target, seen, left, total)
        add_multiply(left_side(tile, w), some_rows(w, left, right), dhidden)
        if len(dweight):
            product(right_side(tile, w).T, scaled, dweight[left:right], not first)
    for i in range(len(hidden)):
        for k in range(hidden.shape[1]):
            dhidden[i, k] /= total[i]
    return dbias
