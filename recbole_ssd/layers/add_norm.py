"""A residual and its norm, of layers that a model holds apart."""

from __future__ import annotations

from torch import Tensor, nn

from recbole_ssd.ops.add_norm import add_norm

from .dropout import Dropout
from .hooks import heard


def add_and_norm(branch: Tensor, x: Tensor, norm: nn.LayerNorm, dropout: Dropout | None = None) -> Tensor:
    """norm(dropout(branch) + x), (..., d), in one pass."""
    if heard(norm, dropout):
        return norm((dropout(branch) if dropout else branch) + x)
    return add_norm(branch, x, norm.weight, norm.bias, p=dropout.rate if dropout else 0.0, eps=norm.eps)
