"""Softmax cross-entropy over a whole catalogue, without ever holding a (targets x items) matrix.

    loss = mean_i ( logsumexp_v(h[i] . W[v]) - h[i] . W[target[i]] )

The logits of a few rows at a time are made, turned into their own gradient and used at once, in the forward pass, so
that the backward only scales. This is the plan of Wijmans et al., "Cut Your Losses", https://arxiv.org/abs/2411.09009,
in plain torch.

Shape letters:    N targets    d model size    V items
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BUDGET_MB = 8.0  # of logits at a time: what a core's cache can nearly keep


def linear_cross_entropy(hidden: Tensor, weight: Tensor, target: Tensor, budget_mb: float = BUDGET_MB) -> Tensor:
    """Mean cross-entropy of `softmax(hidden @ weight.T)` against `target`.

    Args:
        hidden: (N, d), N >= 1.
        weight: (V, d), one row per item.
        target: (N,), int64, in 0..V-1.
        budget_mb: how many megabytes of logits may exist at a time (at least one row).

    Returns:
        A scalar, differentiable in `hidden` and `weight`.

    Raises:
        ValueError: on shapes that do not fit.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1] or target.shape != hidden.shape[:1]:
        raise ValueError(
            "expected hidden (N, d), weight (V, d) and target (N,), "
            f"got {tuple(hidden.shape)}, {tuple(weight.shape)} and {tuple(target.shape)}"
        )
    if not len(target):
        raise ValueError("there is no target to compute a loss for: N is 0")
    rows = max(1, int(budget_mb * 2**20 / (weight.shape[0] * weight.element_size())))
    return _LinearCrossEntropy.apply(hidden, weight, target, rows)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, target, rows):
        want_hidden, want_weight = ctx.needs_input_grad[:2]
        dhidden = torch.empty_like(hidden) if want_hidden else None
        dweight = torch.zeros_like(weight) if want_weight else None
        loss = hidden.new_zeros((), dtype=torch.float64)
        buffer = hidden.new_empty(min(rows, len(target)), len(weight))
        for begin in range(0, len(target), rows):
            part, goal = hidden[begin : begin + rows], target[begin : begin + rows, None]
            logits = torch.mm(part, weight.t(), out=buffer[: len(part)])
            logits -= logits.amax(1, keepdim=True)
            loss -= logits.gather(1, goal).sum(dtype=torch.float64)
            total = logits.exp_().sum(1, keepdim=True)  # the logits are weights of the softmax from here on
            loss += total.log().sum(dtype=torch.float64)
            logits.scatter_add_(1, goal, -total)  # total times the gradient of the logits
            if want_hidden:
                torch.mm(logits, weight, out=dhidden[begin : begin + rows]).div_(total)
            if want_weight:
                dweight.addmm_(logits.t(), part / total)
        ctx.save_for_backward(dhidden, dweight)
        ctx.count = len(target)
        return (loss / len(target)).to(hidden.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss):
        scale = dloss / ctx.count
        dhidden, dweight = ctx.saved_tensors
        return *(None if g is None else g * scale for g in (dhidden, dweight)), None, None
