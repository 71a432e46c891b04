"""MambaRec: a Transformer recommender in which Mamba takes the place of self-attention, or of the whole block.

    x = dropout(sqrt(d) E + P)
    block: full     y = Mamba(x), or with several layers  y = LayerNorm(dropout(Mamba(x)) + x)
    block: mixer    h = LayerNorm(dropout(Mamba(x)) + x);   y = FFN(h)

Alokam, "State-Space Models for Large Sequence Modeling in Sequential Recommendation", the two architectures of the
section "Methodology", https://github.com/alokamgnaneswarasai/MambaRec. What differs from its code:

- packed streams and whole histories; positions, if any, count from the first item (`layers/position.py`).
- Mamba-1 or Mamba-2 (`ssm`), any number of layers (with `full` its code has one), CE and BPR beside BCE.
- its code draws every matrix anew by Xavier's rule, A_log included; here A_log, dt and D start as in Mamba's paper.
- `mixer` is given as a figure only; norms and residuals stand where RecBole's SASRec has them. Its published figures
  are those of its logs of `full`.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from recbole_ssd.layers.dropout import Dropout
from recbole_ssd.layers.feed_forward import FeedForward
from recbole_ssd.layers.position import Position
from recbole_ssd.layers.residual import Residual
from recbole_ssd.ops.packing import Segments

from .abstract_recommender import PackedSequentialRecommender, Stream
from .mixer import mamba

BLOCKS = ("full", "mixer")


class MambaRec(PackedSequentialRecommender):
    """Mamba in place of the Transformer's block, or of its attention (alokamgnaneswarasai/MambaRec)."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        hidden_size = config.required("hidden_size")
        self.position = Position(config.required("max_position"), hidden_size)
        self.scale = math.sqrt(hidden_size)
        self.dropout = Dropout(config.required("dropout_prob"))
        self.layers = nn.ModuleList(self.layer(config) for _ in range(config.required("num_layers")))
        self.initialize(config.required("initializer_range"))

    def layer(self, config) -> nn.Module:
        """A fresh layer."""
        block, hidden_size = config.required("block"), config.required("hidden_size")
        if block not in BLOCKS:
            raise ValueError(f"block must be one of {', '.join(BLOCKS)}, got '{block}'")
        if block == "full" and config.required("num_layers") == 1:
            return Bare(mamba(config))
        norm = {key: config.required(key) for key in ("dropout_prob", "layer_norm_eps")}
        if block == "full":
            return Residual(mamba(config), hidden_size, **norm)
        inner_size, hidden_act = config.required("inner_size"), config.required("hidden_act")
        feed_forward = FeedForward(hidden_size, inner_size, hidden_act=hidden_act, **norm)
        return Residual(mamba(config), hidden_size, feed_forward=feed_forward, **norm)

    def embed(self, stream: Stream) -> Tensor:
        return self.dropout(self.position(self.item_embedding(stream.items) * self.scale, stream.segments))


class Bare(nn.Module):
    """A mixer and nothing around it."""

    def __init__(self, mixer: nn.Module):
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor, segments: Segments, last: bool = False) -> Tensor:
        """(T, d) -> (T, d), or with `last` (S, d): the last token of each segment only, for less work."""
        y = self.mixer(x, segments)
        return y.index_select(0, segments.last) if last else y
