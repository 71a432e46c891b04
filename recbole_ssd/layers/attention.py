"""Causal self-attention on packed streams, with the parameter names of RecBole's `MultiHeadAttention`.

    y = dense( attention(query(x), key(x), value(x)) )

SASRec, Kang and McAuley, ICDM 2018, https://arxiv.org/abs/1808.09781, section III-B. Every token attends to itself and
its past; dropout falls on the probabilities, as in RecBole. Residual and norm are `residual.py`'s.

Shape letters:    T tokens of a stream    d model size    h heads    p head size (d / h)
"""

from __future__ import annotations

from torch import Tensor, nn

from recbole_ssd.ops.attention import attention
from recbole_ssd.ops.packing import Segments

from .linear import project


class SelfAttention(nn.Module):
    """(T, d) -> (T, d).

    Args:
        hidden_size: d.
        n_heads: h; it must divide d.
        attn_dropout_prob: dropout of the attention probabilities.
    """

    def __init__(self, hidden_size: int, n_heads: int, attn_dropout_prob: float):
        super().__init__()
        if hidden_size % n_heads:
            raise ValueError(f"n_heads must divide hidden_size = {hidden_size}, got {n_heads}")
        self.n_heads, self.attn_dropout_prob = n_heads, attn_dropout_prob
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, segments: Segments) -> Tensor:
        """Under autocast the projections are half precision, scores and softmax float32."""
        projected = project(x, self.query, self.key, self.value)
        q, k, v = (part.unflatten(-1, (self.n_heads, -1))[None] for part in projected)
        dropout_p = self.attn_dropout_prob if self.training else 0.0
        y = attention(q, k, v, cu_seqlens=segments, dropout_p=dropout_p)  # (1, T, h, p)
        return project(y.squeeze(0).flatten(1), self.dense)[0]
