"""PackedSASRec: SASRec's Transformer on packed streams, to tell what packing gives and what a state space gives.

    x = dropout(LayerNorm(E + P));   h = LayerNorm(dropout(attention(x)) + x);   y = FFN(h)

Kang and McAuley, "Self-Attentive Sequential Recommendation", https://arxiv.org/abs/1808.09781, in the form that
RecBole's SASRec gives it: with its weights the scores are the same. What differs from that:

- no padding, whole histories, a loss at every position (as in the paper; RecBole trains one target per prefix).
- positions beyond `max_position` share the last vector; RecBole truncates histories there.
- CE over all items is the default; the paper has BCE with one negative.
"""

from __future__ import annotations

from torch import Tensor, nn

from recbole_ssd.layers.attention import MultiHeadAttention
from recbole_ssd.layers.dropout import Dropout
from recbole_ssd.layers.feed_forward import FeedForward
from recbole_ssd.layers.position import Position
from recbole_ssd.ops.packing import Segments

from .abstract_recommender import PackedSequentialRecommender, Stream


class PackedSASRec(PackedSequentialRecommender):
    """RecBole's SASRec, a causal Transformer, over packed histories (arXiv 1808.09781)."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        hidden_size, eps = config.required("hidden_size"), config.required("layer_norm_eps")
        dropout_prob = config.required("hidden_dropout_prob")
        self.position = Position(config.required("max_position"), hidden_size)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=eps)
        self.dropout = Dropout(dropout_prob)
        self.layers = nn.ModuleList(
            TransformerLayer(
                MultiHeadAttention(
                    hidden_size, config.required("n_heads"), dropout_prob, config.required("attn_dropout_prob"), eps
                ),
                FeedForward(
                    hidden_size, config.required("inner_size"), config.required("hidden_act"), 0.0, dropout_prob, eps
                ),
            )
            for _ in range(config.required("n_layers"))
        )
        self.initialize(config.required("initializer_range"))

    def embed(self, stream: Stream) -> Tensor:
        x = self.item_embedding(stream.items) + self.position(stream.segments)
        return self.dropout(self.LayerNorm(x))


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each with its residual and norm."""

    def __init__(self, attention: MultiHeadAttention, feed_forward: FeedForward):
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x: Tensor, segments: Segments, rows: Tensor | None = None) -> Tensor:
        """(T, d) -> (T, d), or with `rows` the result at these positions only."""
        h = self.attention(x, segments)
        return self.feed_forward(h if rows is None else h.index_select(0, rows))
