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

Shape letters:    N targets    d model size    V items
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import isqrt

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

FEW_ROWS = 64  # of whole rows: with fewer the products slow down by more than computing logits twice costs
ROWS, TILE = 256, 256 * 1008  # of a block on a CPU; columns that are no power of two keep clear of cache conflicts
SMALLEST, LARGEST = 1e-20, 1e20  # totals that need no shift: exp(l) / total then loses nothing to under- or overflow


def linear_cross_entropy_torch(
    hidden: Tensor, weight: Tensor, target: Tensor, budget_mb: float, precision: str
) -> Tensor:
    """See `ops.cross_entropy.linear_cross_entropy`. Half precision is computed in float32."""
    dtype = hidden.dtype if hidden.dtype == torch.float64 else torch.float32
    budget = max(1, int(budget_mb * 2**20 / dtype.itemsize))  # in logits
    with _products_in(precision, hidden):
        loss = _LinearCrossEntropy.apply(hidden.to(dtype), weight.to(dtype), target, budget)
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


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, target, budget):
        dhidden, dweight = (
            torch.zeros_like(t) if wanted else None for t, wanted in zip((hidden, weight), ctx.needs_input_grad)
        )
        run = _by_rows if budget // len(weight) >= min(FEW_ROWS, len(target)) else _by_tiles
        loss = run(hidden, weight, target[:, None], dhidden, dweight, budget)
        ctx.save_for_backward(dhidden, dweight)
        ctx.count = len(target)
        return (loss / len(target)).to(hidden.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss):
        scale = dloss / ctx.count
        return *(None if grad is None else grad * scale for grad in ctx.saved_tensors), None, None


def _by_rows(hidden, weight, target, dhidden, dweight, budget) -> Tensor:
    """Sum of the losses; the gradients of that sum are added to dhidden and dweight where these are given."""
    rows = budget // len(weight) if hidden.is_cuda else min(ROWS, budget // len(weight))
    buffer = hidden.new_empty(min(rows, len(target)), len(weight))
    loss, shifted = hidden.new_zeros((), dtype=torch.float64), hidden.is_cuda  # to look at totals would stop a GPU
    for begin in range(0, len(target), rows):
        part, goal = hidden[begin : begin + rows], target[begin : begin + rows]
        block = buffer[: len(part)]
        total, found = _exp_rows(part, weight, goal, block, shifted)
        if not shifted and not _fit(total):
            shifted = True
            total, found = _exp_rows(part, weight, goal, block, shifted)
        loss += (total.log() - found).sum(dtype=torch.float64)
        if dhidden is None and dweight is None:
            continue
        block.scatter_add_(1, goal, -total)  # total times the gradient of the logits
        if dhidden is not None:
            torch.mm(block, weight, out=dhidden[begin : begin + rows]).div_(total)
        if dweight is not None:
            dweight.addmm_(block.t(), part / total)
    return loss


def _exp_rows(part, weight, goal, block, shifted) -> tuple[Tensor, Tensor]:
    """Leaves exp(logits) in the block; gives their sums and the targets' logits, (rows, 1) each."""
    logits = torch.mm(part, weight.t(), out=block)
    if shifted:
        logits -= logits.amax(1, keepdim=True)
    found = logits.gather(1, goal)
    return logits.exp_().sum(1, keepdim=True), found


def _fit(total: Tensor) -> bool:
    low, high = total.aminmax()
    return bool((low > SMALLEST) & (high < LARGEST))


def _by_tiles(hidden, weight, target, dhidden, dweight, budget) -> Tensor:
    """As `_by_rows`, with every logit computed twice."""
    tiles = _Tiles(hidden, weight, target, budget)
    total, found = tiles.totals()
    if hidden.is_cuda or not _fit(total):
        tiles.shift = tiles.largest()
        total, found = tiles.totals()
    if dhidden is not None or dweight is not None:
        scaled = hidden / total
        for rows, columns, goal, inside in tiles:
            block = tiles.logits(rows, columns).exp_()
            block.scatter_add_(1, goal, -total[rows] * inside)
            if dhidden is not None:
                dhidden[rows].addmm_(block, weight[columns])
            if dweight is not None:
                dweight[columns].addmm_(block.t(), scaled[rows])
        if dhidden is not None:
            dhidden /= total
    return (total.log() - found).sum(dtype=torch.float64)


class _Tiles:
    """The logits in tiles, down the rows first: a tile's items and their gradients stay in the cache meanwhile."""

    def __init__(self, hidden: Tensor, weight: Tensor, target: Tensor, budget: int):
        self.hidden, self.weight, self.target = hidden, weight, target
        self.shift = None  # (N, 1), taken from the logits
        size = budget if hidden.is_cuda else min(budget, TILE)
        self.rows = min(ROWS, len(hidden), isqrt(size))
        self.columns = min(len(weight), size // self.rows)
        self._buffer = hidden.new_empty(self.rows * self.columns)

    def __iter__(self) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        """(rows, columns, each row's target as a column of the tile, whether it is one), (rows, 1) each."""
        for left in range(0, len(self.weight), self.columns):
            right = min(left + self.columns, len(self.weight))
            for top in range(0, len(self.hidden), self.rows):
                rows = slice(top, top + self.rows)
                goal = self.target[rows].clamp(left, right - 1)
                yield rows, slice(left, right), goal - left, goal == self.target[rows]

    def logits(self, rows: slice, columns: slice) -> Tensor:
        part, items = self.hidden[rows], self.weight[columns]
        block = self._buffer[: len(part) * len(items)].view(len(part), len(items))
        torch.mm(part, items.t(), out=block)
        return block if self.shift is None else block.sub_(self.shift[rows])

    def totals(self) -> tuple[Tensor, Tensor]:
        """Sums of exp(logits) and the targets' logits, (N, 1) each."""
        total, found = (self.hidden.new_zeros(len(self.hidden), 1) for _ in range(2))
        for rows, columns, goal, inside in self:
            block = self.logits(rows, columns)
            found[rows] = torch.where(inside, block.gather(1, goal), found[rows])
            total[rows] += block.exp_().sum(1, keepdim=True)
        return total, found

    def largest(self) -> Tensor:
        """The largest logit of every row, (N, 1)."""
        found = self.hidden.new_full((len(self.hidden), 1), -torch.inf)
        for rows, columns, *_ in self:
            torch.maximum(found[rows], self.logits(rows, columns).amax(1, keepdim=True), out=found[rows])
        return found
