"""What all recommenders on packed streams share: embed, encode, read, score all items, loss.

Shape letters:    T tokens of the stream    S segments    N targets    d model size    V items
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor, nn

from recbole_ssd.layers.time_gap import TimeGap
from recbole_ssd.ops.cross_entropy import linear_cross_entropy
from recbole_ssd.ops.packing import Segments
from recbole_ssd.ops.seen import Seen

LOSSES = ("CE", "BPR", "BCE")
REPEAT_SCALE = 10.0  # Adam, which sees no scale, moves the bias by ten learning rates a step: it may have far to go


class Stream(NamedTuple):
    """A batch of histories.

    Attributes:
        items: (T,).
        segments: the borders between histories.
        items_on_host: the same items on the CPU where the loader left them there, else wherever `items` are.
        gaps: with `time_gaps` those, (T,).
    """

    items: Tensor
    segments: Segments
    items_on_host: Tensor
    gaps: Tensor | None = None


class PackedSequentialRecommender(SequentialRecommender):
    """A next-item recommender whose batch is one packed stream.

    A subclass builds `layers`, calls `initialize`, and implements `embed`. A layer is called layer(x, segments, last);
    see `layers.residual.Residual`. Scores are inner products with the item table that embeds the histories, or cosines
    over `cosine_temperature`. With `repeat_bias` one learned number is added to the scores of the items that are in the
    history: it tells a model how likely anything is consumed again, which vectors alone tell it badly, as the last
    item's own is the most like the state.

    Reads `hidden_size`, `loss_type` (CE over all items; BPR and BCE with sampled negatives), `label_smoothing` and
    `loss_precision` (of CE's matrix products), `cosine_temperature`, `repeat_bias` and `time_gaps` from the config.
    """

    packed = True

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.loss_type = config.required("loss_type")
        if self.loss_type not in LOSSES:
            raise ValueError(f"loss_type must be one of {', '.join(LOSSES)}, got '{self.loss_type}'")
        self.label_smoothing = config.required("label_smoothing")
        self.loss_precision = config.required("loss_precision")
        self.cosine_temperature = config["cosine_temperature"]
        self.item_embedding = nn.Embedding(self.n_items, config.required("hidden_size"))
        self.time_gap = TimeGap(config["hidden_size"]) if config["time_gaps"] else None
        self.repeat_bias = nn.Parameter(torch.zeros(())) if config["repeat_bias"] else None  # over REPEAT_SCALE

    def initialize(self, std: float) -> None:
        """Draws embeddings and linear layers from a normal distribution, with zero biases, as RecBole's models do.

        What has a start of its own keeps it: Mamba's A_log, D, dt and filter, and layers with `keeps_its_init`.
        """
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)) and not getattr(module, "keeps_its_init", False):
                nn.init.normal_(module.weight, std=std)
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(module.bias)

    def embed(self, stream: Stream) -> Tensor:
        """What the first layer reads, (T, d)."""
        raise NotImplementedError

    def encode(self, stream: Stream, last: bool = False) -> Tensor:
        """One vector per token of the stream, (T, d), made of the token and those before it in its segment.

        With `last` only the vectors of each segment's last token, (S, d), for less work.
        """
        x = self.embed(stream)
        if self.time_gap is not None:
            x = x + self.time_gap(stream.gaps)
        for layer in self.layers[:-1]:
            x = layer(x, stream.segments)
        return self.layers[-1](x, stream.segments, last)

    def stream(self, interaction: Interaction) -> Stream:
        """The one door for batches: packed ones as they are, RecBole's padded rows unpacked."""
        items = interaction[self.ITEM_SEQ]
        if not len(items):
            raise ValueError(f"the batch has no rows: check the users that were asked for ('{self.USER_ID}')")
        if "cu_seqlens" in interaction:
            segments = getattr(interaction, "segments", None)  # made with the batch: data/prefetch.py
            segments = Segments(interaction["cu_seqlens"]) if segments is None else segments
            on_host = getattr(interaction, "on_host", interaction)[self.ITEM_SEQ]
            return Stream(items, segments, on_host, None if self.time_gap is None else interaction["time_gaps"])
        if self.time_gap is not None:
            raise ValueError(
                "'time_gaps' come with packed batches and these rows are RecBole's padded ones, whose times are "
                "rounded: use the loaders of recbole_ssd, or a model that was trained without time_gaps"
            )
        lengths = interaction[self.ITEM_SEQ_LEN]
        real = torch.arange(items.shape[1], device=items.device) < lengths[:, None]
        items = items[real]
        return Stream(items, Segments(F.pad(lengths.cumsum(0), (1, 0))), items)

    def forward(self, stream: Stream) -> Tensor:
        """The user's state after every history, (S, d)."""
        return self._user(self.encode(stream, last=True))

    def epoch_figures(self) -> dict[str, float]:
        """What the trainer logs after an epoch."""
        return {} if self.repeat_bias is None else {"repeat_bias": self._bias().item()}

    def _user(self, hidden: Tensor) -> Tensor:
        """What an item's vector is multiplied by: in the precision of the item table, whatever autocast made of it."""
        hidden = hidden.to(self.item_embedding.weight.dtype)
        return hidden if self.cosine_temperature is None else F.normalize(hidden, dim=-1) / self.cosine_temperature

    def _items(self) -> Tensor:
        """The vectors of all items that scores are made with, (V, d)."""
        table = self.item_embedding.weight
        return table if self.cosine_temperature is None else F.normalize(table, dim=-1)

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        stream = self.stream(interaction)
        target = interaction[self.POS_ITEM_ID]  # (T,): one after every token, or (S,): one after every segment
        last = len(target) != len(stream.items)
        hidden = self.encode(stream, last)
        with torch.autocast(hidden.device.type, enabled=False):
            hidden, table = self._user(hidden), self._items()
            seen = self._seen(stream, last)
            if self.loss_type == "CE":
                return self._cross_entropy(hidden, table, target, seen)
            return self._sampled_loss(hidden, table, target, interaction[self.NEG_ITEM_ID], seen)

    def _cross_entropy(self, hidden: Tensor, table: Tensor, target: Tensor, seen: Seen | None) -> Tensor:
        how = {"label_smoothing": self.label_smoothing, "precision": self.loss_precision}
        if seen is not None:
            how |= {"seen": seen, "seen_bias": self._bias()}
        return linear_cross_entropy(hidden, table, target, **how)

    def _sampled_loss(
        self, hidden: Tensor, table: Tensor, target: Tensor, negatives: Tensor, seen: Seen | None
    ) -> Tensor:
        positive = self._scores(hidden, table, target[:, None], seen)  # (N, 1)
        negative = self._scores(hidden, table, negatives.view(len(target), -1), seen)  # (N, k)
        if self.loss_type == "BPR":
            return -F.logsigmoid(positive - negative).mean()
        return -F.logsigmoid(positive).mean() - F.logsigmoid(-negative).mean()

    def _scores(self, hidden: Tensor, table: Tensor, items: Tensor, seen: Seen | None) -> Tensor:
        """Scores of some items a row, (N, k)."""
        scores = (hidden[:, None] * F.embedding(items, table)).sum(-1)
        return scores if seen is None else scores + self._bias() * seen.has(items)

    def _seen(self, stream: Stream, whole: bool) -> Seen | None:
        """What every token, or with `whole` every history, has seen; None where nobody asks."""
        return None if self.repeat_bias is None else Seen(stream.items_on_host, stream.segments, self.n_items, whole)

    def _bias(self) -> Tensor:
        """What is added to the scores of items in the history, ()."""
        return REPEAT_SCALE * self.repeat_bias

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items for every history, (S, V), float32."""
        stream = self.stream(interaction)
        with torch.autocast(self.device.type, enabled=False):
            scores = self(stream) @ self._items().t()
            seen = self._seen(stream, whole=True)
            if seen is not None:
                places = seen.places()
                scores.view(-1).scatter_add_(0, places, self._bias().expand(len(places)))
        return scores

    def predict(self, interaction: Interaction) -> Tensor:
        """Score of one item per history, (S,), float32."""
        stream, items = self.stream(interaction), interaction[self.ITEM_ID]
        with torch.autocast(self.device.type, enabled=False):
            return self._scores(self(stream), self._items(), items[:, None], self._seen(stream, whole=True))[:, 0]
