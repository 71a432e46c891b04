"""The position-wise feed-forward network with its residual and norm, as Transformers have it.

y = LayerNorm( dropout(W2 dropout(activation(W1 x))) + x )
"""

from __future__ import annotations

from torch import Tensor, nn

from recbole_ssd.ops.feed_forward import ACTIVATIONS, feed_forward

from .dropout import Dropout
from .hooks import heard


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
        self.hidden_act = hidden_act
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.inner_dropout = Dropout(inner_dropout_prob)
        self.dropout = Dropout(dropout_prob)

    def forward(self, x: Tensor) -> Tensor:
        w_1, w_2, norm = self.w_1, self.w_2, self.LayerNorm
        if heard(w_1, w_2, norm, self.inner_dropout, self.dropout):
            inner = self.inner_dropout(ACTIVATIONS[self.hidden_act](w_1(x)))
            return norm(self.dropout(w_2(inner)) + x)
        return feed_forward(
            x,
            *(w_1.weight, w_1.bias, w_2.weight, w_2.bias, norm.weight, norm.bias),
            activation=self.hidden_act,
            inner_p=self.inner_dropout.rate,
            p=self.dropout.rate,
            eps=norm.eps,
        )
