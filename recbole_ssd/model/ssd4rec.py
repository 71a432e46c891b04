"""SSD4Rec: Mamba-2 in both directions over packed histories.

    f = S(x);   b = S(x flipped inside each segment)
    h = dropout(LayerNorm(f + beta b + x));   y = dropout(FFN(h))

with one Mamba-2 block S shared by both directions. Qu, Zhang, Wu et al., "SSD4Rec: A Structured State Space Duality
Model for Efficient Sequential Recommendation", https://arxiv.org/abs/2409.01192. Where the paper is silent, its
authors' code decides. What differs from it:

- `bidirectional: readout` (the default) computes b for every prefix in one linear pass (`ops/readout.py`), so that one
  pass over a history trains all its positions. With one layer that is the authors' function, prefix by prefix. With
  more layers the authors run a layer over the scrambled output of the one before; ours runs it over causal inputs.
- `bidirectional: flip` is the authors' stack, for one target per prefix. `none` leaves the direction out.
- `dropout_place: residual` drops what a residual adds, f + beta b and FFN's W2, as SASRec does, and not what a norm
  gives: the authors drop a share of the very vector that scores, which slows training down when the share is large.
- Both directions share in_proj, and out_proj after their sum: the same numbers for less work.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recbole_ssd.layers.add_norm import add_and_norm
from recbole_ssd.layers.dropout import Dropout
from recbole_ssd.layers.feed_forward import FeedForward
from recbole_ssd.layers.linear import project
from recbole_ssd.layers.mamba2 import Mamba2
from recbole_ssd.ops.packing import Segments

from .abstract_recommender import PackedSequentialRecommender, Stream
from .mixer import mamba2

MASK = 0  # the item id that stands for a masked item; RecBole keeps it free for padding
DIRECTIONS = ("readout", "flip", "none")
DROPOUT_PLACES = ("output", "residual")


class SSD4Rec(PackedSequentialRecommender):
    """Mamba-2 (SSD) in both directions over packed histories (arXiv 2409.01192)."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        hidden_size = config.required("hidden_size")
        dropout_prob, eps = config.required("dropout_prob"), config.required("layer_norm_eps")
        dropout_place = config.required("dropout_place")
        self.mask_ratio = config.required("mask_ratio")
        if not 0 <= self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must lie in [0, 1), got {self.mask_ratio}")
        self.dropout = Dropout(dropout_prob)
        self.LayerNorm = nn.LayerNorm(hidden_size, eps=eps) if config.required("norm_embedding") else None
        self.layers = nn.ModuleList(
            SSD4RecLayer(
                mixer=mamba2(config),
                feed_forward=FeedForward(
                    hidden_size,
                    config.required("inner_size"),
                    hidden_act="gelu",
                    inner_dropout_prob=dropout_prob,
                    dropout_prob=dropout_prob if dropout_place == "residual" else 0.0,
                    layer_norm_eps=eps,
                ),
                bidirectional=config.required("bidirectional"),
                beta=config.required("beta"),
                dropout_prob=dropout_prob,
                dropout_place=dropout_place,
                eps=eps,
            )
            for _ in range(config.required("num_layers"))
        )
        self.initialize(config.required("initializer_range"))

    def embed(self, stream: Stream) -> Tensor:
        x = self.item_embedding(self._mask(stream.items) if self.training else stream.items)
        return x if self.LayerNorm is None else self.LayerNorm(self.dropout(x))

    def _mask(self, items: Tensor) -> Tensor:
        """Hides a share of the inputs, never a target."""
        if self.mask_ratio == 0:
            return items
        return items.masked_fill(torch.rand(items.shape, device=items.device) < self.mask_ratio, MASK)


class SSD4RecLayer(nn.Module):
    """One layer: mixer, residual and norm, feed-forward.

    Args:
        mixer: the Mamba-2 block of both directions.
        feed_forward: what follows, with its own residual and norm.
        bidirectional: `readout`, `flip` or `none`.
        beta: weight of the backward direction.
        dropout_prob: of the dropout of the mixer, and with `output` of the layer's.
        dropout_place: `output`, behind both norms, or `residual`, before the mixer's residual.
        eps: of the LayerNorm between mixer and feed-forward.
    """

    def __init__(
        self,
        mixer: Mamba2,
        feed_forward: FeedForward,
        bidirectional: str,
        beta: float,
        dropout_prob: float,
        dropout_place: str,
        eps: float,
    ):
        super().__init__()
        if bidirectional not in DIRECTIONS:
            raise ValueError(f"bidirectional must be one of {', '.join(DIRECTIONS)}, got '{bidirectional}'")
        if dropout_place not in DROPOUT_PLACES:
            raise ValueError(f"dropout_place must be one of {', '.join(DROPOUT_PLACES)}, got '{dropout_place}'")
        self.mixer, self.feed_forward = mixer, feed_forward
        self.bidirectional, self.beta = bidirectional, beta
        self.LayerNorm = nn.LayerNorm(mixer.out_proj.out_features, eps=eps)
        self.dropout, self.dropout_place = Dropout(dropout_prob), dropout_place

    def forward(self, x: Tensor, segments: Segments, last: bool = False) -> Tensor:
        """(T, d) -> (T, d), or with `last` (S, d): the last token of each segment only, for less work."""
        y = self._mix_last(x, segments) if last else self._mix(x, segments)
        x = x.index_select(0, segments.last) if last else x
        (y,) = project(y, self.mixer.out_proj)
        if self.dropout_place == "residual":
            return self.feed_forward(add_and_norm(y, x, self.LayerNorm, self.dropout))
        return self.dropout(self.feed_forward(self.dropout(add_and_norm(y, x, self.LayerNorm))))

    def _mix(self, x: Tensor, segments: Segments) -> Tensor:
        """Both directions before out_proj, (T, i)."""
        projected = self.mixer.project(x)
        if self.bidirectional == "readout":
            return self.mixer.scan_and_read_out(projected, segments, self.beta)
        y = self.mixer.scan(projected, segments)
        if self.bidirectional == "flip":
            return y + self.beta * self.mixer.scan(projected.flipped(segments), segments)
        return y

    def _mix_last(self, x: Tensor, segments: Segments) -> Tensor:
        """The same at each segment's last token, (S, i), where `readout` and `flip` are one: the flipped scan's end."""
        inputs = self.mixer.project_inputs(x)
        y = self.mixer.scan_last(x, inputs, segments)
        if self.bidirectional == "none":
            return y
        return y + self.beta * self.mixer.scan_last(x, inputs, segments, reverse=True)
