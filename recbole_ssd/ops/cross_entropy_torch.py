"""The loss of `ops.cross_entropy` in plain torch, in blocks of logits that caches can keep.

    p[i, v] = exp(l[i, v]) / total[i],    l = h @ W.T,    total[i] = sum_v exp(l[i, v])
    dh = (p - onehot(target)) @ W,        dW = (p - onehot(target)).T @ h

Both gradients are made in the forward pass, from logits that are there anyway; the backward only scales them. While at
least 64 rows of logits are in the budget, blocks are whole rows. Else they are tiles, and since dW needs `total`, which
is known after the last column only, a first round makes the totals and a second makes the logits again. With 100,000
items and more that is also the faster way: a tile of 1 MB stays in a core's second-level cache through exp, sum and two
products, where a block of whole rows would travel to memory and back for each.

Nothing is subtracted before exp as long as every total stays far from float32's ends; the first total that does not
sends the rest the safe way, with each row's maximum subtracted. That saves two of five passes over the logits.

`seen_bias` is added to the logits of what a row has seen, entry by entry, as its gradient is read from them. The
places of these entries are not in the budget: 8 bytes each.

Shape letters:    N targets    d model size    V items
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import isqrt
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .seen import Seen

FEW_ROWS = 64  # of whole rows: with fewer the products slow down by more than computing logits twice costs
ROWS, TILE = 256, 256 * 1008  # of a block on a CPU; columns that are no power of two keep clear of cache conflicts
SMALLEST, LARGEST = 1e-20, 1e20  # totals that need no shift: exp(l) / total then loses nothing to under- or overflow


def linear_cross_entropy_torch(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    budget_mb: float,
    precision: str,
    seen: Seen | None = None,
    seen_bias: Tensor | None = None,
) -> Tensor:
    """See `ops.cross_entropy.linear_cross_entropy`. Half precision is computed in float32."""
    dtype = hidden.dtype if hidden.dtype == torch.float64 else torch.float32
    budget = max(1, int(budget_mb * 2**20 / dtype.itemsize))  # in logits
    with _products_in(precision, hidden):
        loss = LinearCrossEntropy.apply(
            hidden.to(dtype), weight.to(dtype), target, partial(_run, budget), seen, seen_bias
        )
    return loss.to(hidden.dtype)


@contextmanager
def _products_in(precision: str, hidden: Tensor) -> Iterator[None]:
    """Lets oneDNN round float32 operands to bfloat16 inside its products; their sums stay float32."""
    if precision == "float32":
        yield
        return
    if hidden.is_cuda:
        raise RuntimeError(
            "the backend 'torch' has bfloat16 products on a CPU only: take the backend 'triton' or precision 'float32'"
        )
    if not hasattr(torch.backends.mkldnn, "matmul"):
        raise RuntimeError(f"bfloat16 products need torch 2.9, this is {torch.__version__}: take precision 'float32'")
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def _run(budget: int, hidden, weight, *others) -> Tensor:
    run = _by_rows if budget // len(weight) >= min(FEW_ROWS, len(hidden)) else _by_tiles
    return run(budget, hidden, weight, *others)


class LinearCrossEntropy(torch.autograd.Function):
    """The mean of the losses, of a `run(hidden, weight, target, grads, seen, seen_bias)` that makes both at once: it
    gives the sum of the losses, float64, and leaves the gradients of that sum in `grads`, which hold zeros.
    """

    @staticmethod
    def forward(ctx, hidden, weight, target, run, seen, seen_bias):
        wants = *ctx.needs_input_grad[:2], ctx.needs_input_grad[5]
        ours = hidden, weight, hidden.new_zeros((), dtype=torch.float64)
        rows = {"memory_format": torch.contiguous_format}  # whatever the strides of the inputs
        grads = Gradients(*(torch.zeros_like(t, **rows) if wanted else None for t, wanted in zip(ours, wants)))
        loss = run(hidden, weight, target[:, None], grads, seen, seen_bias)
        ctx.save_for_backward(*grads)
        ctx.count, ctx.bias_dtype = len(target), getattr(seen_bias, "dtype", None)
        return (loss / len(target)).to(hidden.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss):
        scale = dloss / ctx.count
        hidden, weight, bias = (None if grad is None else grad * scale for grad in ctx.saved_tensors)
        return hidden, weight, None, None, None, None if bias is None else bias.to(ctx.bias_dtype)


class Gradients(NamedTuple):
    """Of the sum of the losses, starting at zero; None where nobody asks."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def _by_rows(budget, hidden, weight, target, grads, seen, seen_bias) -> Tensor:
    """Sum of the losses; the gradients of that sum are added to `grads`."""
    rows = budget // len(weight) if hidden.is_cuda else min(ROWS, budget // len(weight))
    buffer = hidden.new_empty(min(rows, len(target)), len(weight))
    loss, shifted = hidden.new_zeros((), dtype=torch.float64), hidden.is_cuda  # to look at totals would stop a GPU
    tile = None if seen is None else seen.tiles(len(weight))[0]
    for begin in range(0, len(target), rows):
        part, goal = hidden[begin : begin + rows], target[begin : begin + rows]
        block = buffer[: len(part)]
        places = tile and tile.places(slice(begin, begin + len(part)))
        total, found = _exp_rows(part, weight, goal, block, shifted, places, seen_bias)
        if not shifted and not _fit(total):
            shifted = True
            total, found = _exp_rows(part, weight, goal, block, shifted, places, seen_bias)
        loss += (total.log() - found).sum(dtype=torch.float64)
        if all(grad is None for grad in grads):
            continue
        block.scatter_add_(1, goal, -total)  # total times the gradient of the logits
        if grads.hidden is not None:
            torch.mm(block, weight, out=grads.hidden[begin : begin + rows]).div_(total)
        if grads.weight is not None:
            grads.weight.addmm_(block.t(), part / total)
        if grads.bias is not None:
            grads.bias.add_(_sum(block, total, *places))
    return loss


def _exp_rows(part, weight, goal, block, shifted, places, seen_bias) -> tuple[Tensor, Tensor]:
    """Leaves exp(logits) in the block; gives their sums and the targets' logits, (rows, 1) each."""
    logits = torch.mm(part, weight.t(), out=block)
    if places:
        _add(logits, seen_bias, *places)
    if shifted:
        logits -= logits.amax(1, keepdim=True)
    found = logits.gather(1, goal)
    return logits.exp_().sum(1, keepdim=True), found


def _add(block: Tensor, bias: Tensor, places: Tensor, count: Tensor) -> None:
    """Adds the bias to some logits of a block."""
    block.view(-1).scatter_add_(0, places, bias.to(block.dtype).expand(len(places)))


def _sum(block: Tensor, total: Tensor, places: Tensor, count: Tensor) -> Tensor:
    """Their gradients, summed; the block holds `total` times those."""
    return torch.dot(block.view(-1)[places], torch.repeat_interleave(1 / total[:, 0], count, output_size=len(places)))


def _fit(total: Tensor) -> bool:
    low, high = total.aminmax()
    return bool((low > SMALLEST) & (high < LARGEST))


def _by_tiles(budget, hidden, weight, target, grads, seen, seen_bias) -> Tensor:
    """As `_by_rows`, with every logit computed twice."""
    tiles = _Tiles(hidden, weight, target, budget, seen, seen_bias)
    total, found = tiles.totals()
    if hidden.is_cuda or not _fit(total):
        tiles.shift = tiles.largest()
        total, found = tiles.totals()
    if any(grad is not None for grad in grads):
        scaled = hidden / total
        for rows, columns, goal, inside, places in tiles:
            block = tiles.logits(rows, columns, places).exp_()
            block.scatter_add_(1, goal, -total[rows] * inside)
            if grads.hidden is not None:
                grads.hidden[rows].addmm_(block, weight[columns])
            if grads.weight is not None:
                grads.weight[columns].addmm_(block.t(), scaled[rows])
            if grads.bias is not None:
                grads.bias.add_(_sum(block, total[rows], *places))
        if grads.hidden is not None:
            grads.hidden.div_(total)
    return (total.log() - found).sum(dtype=torch.float64)


class _Tiles:
    """The logits in tiles, down the rows first: a tile's items and their gradients stay in the cache meanwhile."""

    def __init__(self, hidden, weight, target, budget: int, seen: Seen | None, seen_bias: Tensor | None):
        self.hidden, self.weight, self.target, self.seen_bias = hidden, weight, target, seen_bias
        self.shift = None  # (N, 1), taken from the logits
        size = budget if hidden.is_cuda else min(budget, TILE)
        self.rows = min(ROWS, len(hidden), isqrt(size))
        self.columns = min(len(weight), size // self.rows)
        self.seen = None if seen is None else seen.tiles(self.columns)
        self._buffer = hidden.new_empty(self.rows * self.columns)

    def __iter__(self) -> Iterator[tuple]:
        """(rows, columns, each row's target as a column of the tile, whether it is one), (rows, 1) each; places."""
        for number, left in enumerate(range(0, len(self.weight), self.columns)):
            right = min(left + self.columns, len(self.weight))
            for top in range(0, len(self.hidden), self.rows):
                rows = slice(top, min(top + self.rows, len(self.hidden)))
                goal = self.target[rows].clamp(left, right - 1)
                places = None if self.seen is None else self.seen[number].places(rows)
                yield rows, slice(left, right), goal - left, goal == self.target[rows], places

    def logits(self, rows: slice, columns: slice, places: tuple[Tensor, Tensor] | None) -> Tensor:
        part, items = self.hidden[rows], self.weight[columns]
        block = self._buffer[: len(part) * len(items)].view(len(part), len(items))
        torch.mm(part, items.t(), out=block)
        if places:
            _add(block, self.seen_bias, *places)
        return block if self.shift is None else block.sub_(self.shift[rows])

    def totals(self) -> tuple[Tensor, Tensor]:
        """Sums of exp(logits) and the targets' logits, (N, 1) each."""
        total, found = (self.hidden.new_zeros(len(self.hidden), 1) for _ in range(2))
        for rows, columns, goal, inside, places in self:
            block = self.logits(rows, columns, places)
            found[rows] = torch.where(inside, block.gather(1, goal), found[rows])
            total[rows] += block.exp_().sum(1, keepdim=True)
        return total, found

    def largest(self) -> Tensor:
        """The largest logit of every row, (N, 1)."""
        found = self.hidden.new_full((len(self.hidden), 1), -torch.inf)
        for rows, columns, _, _, places in self:
            torch.maximum(found[rows], self.logits(rows, columns, places).amax(1, keepdim=True), out=found[rows])
        return found
