"""Projections of the same rows: on a CPU in blocks of rows that a core keeps in its cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from .add_norm import refusal
from .backends import choose
from .compiled.support import mixed

LARGEST = 2**18  # numbers of a weight: beyond, it leaves the cache beside a block of rows, and torch's products win


def linear(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None] | None = None, *, backend: str = "auto"
) -> tuple[Tensor, ...]:
    """x W^T + b for every W and b.

    Args:
        x: (..., d).
        weights: (e, d) each, with an e of their own.
        biases: (e,) each, or None for one that is not there.
        backend: `torch` (any device), `numba` (our kernel for CPUs), or `auto`: `numba` where it can run.

    Returns:
        (..., e) for every weight, contiguous. A row does not depend on which others there are, by no bit with `numba`.

    Raises:
        ValueError: on a wrong shape or an unknown backend.
        RuntimeError: when the backend asked for cannot run on this machine or these tensors.

    >>> import torch
    >>> linear(torch.ones(1, 3), [torch.ones(2, 3), torch.eye(3)], backend="torch")
    (tensor([[3., 3.]]), tensor([[1., 1., 1.]]))
    """
    biases = [None] * len(weights) if biases is None else biases
    for weight, bias in zip(weights, biases, strict=True):
        if weight.shape[1:] != x.shape[-1:] or (bias is not None and bias.shape != weight.shape[:1]):
            shapes = f"{tuple(weight.shape)} and {None if bias is None else tuple(bias.shape)}"
            d = x.shape[-1]
            raise ValueError(f"x is (..., {d}): expected weights (e, {d}) and biases (e,), got {shapes}")
    refused = {"numba": lambda: refusal(x) or mixed(x, *weights, *biases) or too_large(*weights)}
    if choose("linear", backend, x, refused) == "numba":
        from .compiled.linear import linear_numba  # late: it imports numba

        rows = linear_numba(x.reshape(-1, x.shape[-1]), weights, biases)
        return tuple(part.view(*x.shape[:-1], part.shape[1]) for part in rows)
    return tuple(F.linear(x, weight, bias) for weight, bias in zip(weights, biases))


def too_large(*weights: Tensor) -> str | None:
    """Why a kernel that takes a block of rows after the other cannot have these weights; None when it can."""
    most = max(weight.numel() for weight in weights)
    if most > LARGEST:
        return f"there is room for {LARGEST:,} numbers of a weight beside a block of rows and these are {most:,}"
    return None
