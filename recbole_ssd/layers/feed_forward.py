"""The position-wise feed-forward network with its residual and norm, as Transformers have it.

y = LayerNorm( dropout(W2 dropout(activation(W1 x))) + x )
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .dropout import Dropout

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


class FeedForward(nn.Module):
    """(..., d) -> (..., d) through `inner_size` units.

    Args:
        hidden_size: d.
        inner_size: width in between.
        hidden_act: `gelu`, `relu` or `silu`.
        dropout_prob: dropout before the residual.
        layer_norm_eps: of the LayerNorm.
        inner_dropout_prob: dropout after the activation.
    """

    def __init__(
        self,
        hidden_size: int,
        inner_size: int,
        *,
        hidden_act: str,
        dropout_prob: float,
        layer_norm_eps: float,
        inner_dropout_prob: float = 0.0,
    ):
        super().__init__()
        if hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act must be one of {', '.join(ACTIVATIONS)}, got '{hidden_act}'")
        self.w_1 = nn.Linear(hidden_size, inner_size)
        self.w_2 = nn.Linear(inner_size, hidden_size)
        self.activation = ACTIVATIONS[hidden_act]
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.inner_dropout = Dropout(inner_dropout_prob)
        self.dropout = Dropout(dropout_prob)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.inner_dropout(self.activation(self.w_1(x)))
        return self.LayerNorm(self.dropout(self.w_2(inner)) + x)
