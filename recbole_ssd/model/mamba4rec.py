"""Mamba4Rec: Mamba-1 and a feed-forward network, layer by layer.

    x = LayerNorm(dropout(E));   h = LayerNorm(dropout(Mamba(x)) + x);   y = FFN(h)

with no residual around Mamba where there is one layer only. Liu et al., "Mamba4Rec: Towards Efficient Sequential
Recommendation with Selective State Space Models", https://arxiv.org/abs/2403.03900. What differs from their code:

- packed streams, whole histories and a loss at every position; they train one target per padded prefix
  (`supervision: prefixes`).
- `dt_init: authors` (the default) is theirs: the bias of dt_proj starts at zero, hence dt near .69. `paper` is Mamba's.
- BCE beside CE and BPR.
"""

from __future__ import annotations

from torch import Tensor, nn

from recbole_ssd.layers.dropout import Dropout
from recbole_ssd.layers.feed_forward import FeedForward
from recbole_ssd.layers.residual import Residual

from .abstract_recommender import PackedSequentialRecommender, Stream
from .mixer import mamba1


class Mamba4Rec(PackedSequentialRecommender):
    """Mamba-1 with feed-forward layers over packed histories (arXiv 2403.03900)."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        norm = {key: config.required(key) for key in ("dropout_prob", "layer_norm_eps")}
        self.dropout = Dropout(norm["dropout_prob"])
        self.LayerNorm = nn.LayerNorm(config.required("hidden_size"), eps=norm["layer_norm_eps"])
        self.layers = nn.ModuleList(self._layer(config, norm) for _ in range(config.required("num_layers")))
        self.initialize(config.required("initializer_range"))

    def _layer(self, config, norm: dict) -> Residual:
        hidden_size, inner_size = config.required("hidden_size"), config.required("inner_size")
        inner_dropout = {"inner_dropout_prob": norm["dropout_prob"]}
        feed_forward = FeedForward(hidden_size, inner_size, hidden_act="gelu", **inner_dropout, **norm)
        residual = config.required("num_layers") > 1
        return Residual(mamba1(config), hidden_size, residual=residual, feed_forward=feed_forward, **norm)

    def embed(self, stream: Stream) -> Tensor:
        return self.LayerNorm(self.dropout(self.item_embedding(stream.items)))
