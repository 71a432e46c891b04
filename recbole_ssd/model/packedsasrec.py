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

from recbole_ssd.layers.dropout import Dropout
from recbole_ssd.layers.feed_forward import FeedForward
from recbole_ssd.layers.position import Position
from recbole_ssd.layers.residual import Residual

from .abstract_recommender import PackedSequentialRecommender, Stream
from .mixer import self_attention


class PackedSASRec(PackedSequentialRecommender):
    """RecBole's SASRec, a causal Transformer, over packed histories (arXiv 1808.09781)."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.position = Position(config.required("max_position"), config.required("hidden_size"))
        norm = {
            "dropout_prob": config.required("hidden_dropout_prob"),
            "layer_norm_eps": config.required("layer_norm_eps"),
        }
        self.LayerNorm = nn.LayerNorm(config.required("hidden_size"), eps=norm["layer_norm_eps"])
        self.dropout = Dropout(norm["dropout_prob"])
        self.layers = nn.ModuleList(self._layer(config, norm) for _ in range(config.required("n_layers")))
        self.initialize(config.required("initializer_range"))

    def _layer(self, config, norm: dict) -> Residual:
        hidden_size, inner_size = config.required("hidden_size"), config.required("inner_size")
        feed_forward = FeedForward(hidden_size, inner_size, hidden_act=config.required("hidden_act"), **norm)
        return Residual(self_attention(config), hidden_size, feed_forward=feed_forward, **norm)

    def embed(self, stream: Stream) -> Tensor:
        x = self.position(self.item_embedding(stream.items), stream.segments)
        return self.dropout(self.LayerNorm(x))
