"""The position-wise feed-forward network with its residual and norm, as SSD4Rec and Mamba4Rec have it.

y = dropout( LayerNorm( W2 dropout(GELU(W1 x)) + x ) )
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .dropout import Dropout


class FeedForward(nn.Module):
    """(..., d) -> (..., d) through `inner_size` units."""

    def __init__(self, hidden_size: int, inner_size: int, dropout_prob: float, layer_norm_eps: float):
        super().__init__()
        self.w_1 = nn.Linear(hidden_size, inner_size)
        self.w_2 = nn.Linear(inner_size, hidden_size)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.dropout = Dropout(dropout_prob)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.dropout(F.gelu(self.w_1(x)))
        return self.dropout(self.LayerNorm(self.w_2(inner) + x))
