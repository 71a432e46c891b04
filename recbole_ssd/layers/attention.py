"""Multi-head self-attention on packed streams, with the parameter names and shapes of RecBole's `MultiHeadAttention`.

    y = LayerNorm( dropout( dense( attention(query(x), key(x), value(x)) ) ) + x )

SASRec, Kang and McAuley, ICDM 2018, https://arxiv.org/abs/1808.09781, section III-B, in RecBole's arrangement (norm
behind the residual, dropout on the attention probabilities). Every token attends to itself and its past.

Shape letters:    T tokens of a stream    d model size    h heads    p head size (d / h)
"""

from __future__ import annotations

from torch import Tensor, nn

from recbole_ssd.ops.attention import attention
from recbole_ssd.ops.packing import Segments

from .dropout import Dropout


class MultiHeadAttention(nn.Module):
    """The layer with its projections, residual and norm.

    Args:
        hidden_size: d.
        n_heads: h; it must divide d.
        hidden_dropout_prob: dropout of the output, before the residual.
        attn_dropout_prob: dropout of the attention probabilities.
        layer_norm_eps: of the norm.
    """

    def __init__(
        self,
        hidden_size: int,
        n_heads: int,
        hidden_dropout_prob: float,
        attn_dropout_prob: float,
        layer_norm_eps: float,
    ):
        super().__init__()
        if hidden_size % n_heads:
            raise ValueError(f"n_heads must divide hidden_size = {hidden_size}, got {n_heads}")
        self.n_heads, self.attn_dropout_prob = n_heads, attn_dropout_prob
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.dropout = Dropout(hidden_dropout_prob)

    def forward(self, x: Tensor, segments: Segments) -> Tensor:
        """(T, d) -> (T, d). Under autocast the projections are half precision, scores and softmax float32."""
        q, k, v = (project(x).unflatten(-1, (self.n_heads, -1))[None] for project in (self.query, self.key, self.value))
        dropout_p = self.attn_dropout_prob if self.training else 0.0
        y = attention(q, k, v, cu_seqlens=segments, dropout_p=dropout_p)  # (1, T, h, p)
        return self.LayerNorm(self.dropout(self.dense(y[0].flatten(1))) + x)
