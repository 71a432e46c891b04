"""A residual and its norm, of layers that a model holds apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recbole_ssd.ops.add_norm import add_norm

from .dropout import Dropout


def add_and_norm(branch: Tensor, x: Tensor, norm: nn.LayerNorm, dropout: Dropout | None = None) -> Tensor:
    """norm(dropout(branch) + x), (..., d): in one pass where gradients are wanted, else by calling both."""
    if torch.is_grad_enabled():
        return add_norm(branch, x, norm.weight, norm.bias, p=dropout.rate if dropout else 0.0, eps=norm.eps)
    return norm((dropout(branch) if dropout else branch) + x)
