"""A residual with dropout, and its LayerNorm: "add & norm", as Transformers have it after every part of a layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import choose
from .compiled import support
from .dropout import dropout


def add_norm(
    branch: Tensor, x: Tensor, weight: Tensor, bias: Tensor, *, p: float = 0.0, eps: float, backend: str = "auto"
) -> Tensor:
    """LayerNorm(dropout(branch) + x).

    Args:
        branch: (..., d).
        x: (..., d).
        weight, bias: (d,), of the norm.
        p: rate of the dropout, in [0, 1].
        eps: added to the variance.
        backend: `torch` (any device), `numba` (our kernel for CPUs), or `auto`: `numba` where it can run.

    Returns:
        (..., d). What is dropped is what `ops.dropout.dropout` drops on the same backend.

    Raises:
        ValueError: on shapes that differ, a rate outside [0, 1] or an unknown backend.
        RuntimeError: when the backend asked for cannot run on this machine or these tensors.
    """
    if branch.shape != x.shape or not weight.shape == bias.shape == x.shape[-1:]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (branch, x, weight, bias))
        raise ValueError(f"branch and x must be (..., d), weight and bias (d,), got {shapes}")
    if choose("add_norm", backend, x, {"numba": lambda: refusal(x, p)}) == "numba":
        from .compiled.add_norm import add_norm_numba  # late: it imports numba

        rows = (t.reshape(-1, len(weight)) for t in (branch, x))
        return add_norm_numba(*rows, weight, bias, p, eps).view(x.shape)
    return F.layer_norm(dropout(branch, p, backend="torch") + x, weight.shape, weight, bias, eps)


def refusal(x: Tensor, *rates: float) -> str | None:
    """Why a kernel with dropout cannot take x and these rates; None when it can."""
    if not all(0 <= p <= 1 for p in rates):
        raise ValueError(f"p must lie in [0, 1], got {', '.join(map(str, rates))}")
    if 1 in rates:
        return "a rate of 1 leaves nothing"
    if torch.is_autocast_enabled(x.device.type):
        return "autocast wants other precisions than the tensors'"
    return support.refusal(x)
