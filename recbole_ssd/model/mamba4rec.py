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
        hidden_size, num_layers = config.required("hidden_size"), config.required("num_layers")
        dropout_prob, eps = config.required("dropout_prob"), config.required("layer_norm_eps")
        self.dropout = Dropout(dropout_prob)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=eps)
        self.layers = nn.ModuleList(
            Residual(
                mamba1(config),
                hidden_size,
                dropout_prob,
                eps,
                residual=num_layers > 1,
                feed_forward=FeedForward(
                    hidden_size, config.required("inner_size"), "gelu", dropout_prob, dropout_prob, eps
                ),
            )
            for _ in range(num_layers)
        )
        self.initialize(config.required("initializer_range"))

    def embed(self, stream: Stream) -> Tensor:
        return self.LayerNorm(self.dropout(self.item_embedding(stream.items)))
