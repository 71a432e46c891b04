"""Models broken on purpose, so that the contract is seen to catch what their originals do."""

from __future__ import annotations

import torch
from torch import nn

from recbole_ssd.layers.mixture import Gate
from recbole_ssd.model.mamba4rec import Mamba4Rec
from recbole_ssd.model.moematrrec import MoEMaTrRec
from recbole_ssd.model.packedsasrec import PackedSASRec
from recbole_ssd.model.ssd4rec import SSD4Rec
from recbole_ssd.ops.packing import Segments


def forgets_borders(model_class):
    """The borders between users are lost on the way to the layers."""

    class Forgetful(model_class):
        def encode(self, stream, rows=None):
            whole = Segments(torch.tensor([0, len(stream.items)]))
            return super().encode(stream._replace(segments=whole), rows)

    Forgetful.__name__ = f"Forgetful{model_class.__name__}"
    return Forgetful


class FlippedBack(SSD4Rec):
    """The backward direction over the whole history, flipped back: position t sees its own label."""

    def encode(self, stream, rows=None):
        flip = stream.segments.flip
        return super().encode(stream) + super().encode(stream._replace(items=stream.items[flip]))[flip]


class UncausalAttention(nn.Module):
    """The attention of MoEMaTrRec's original: inside the history, and without a causal mask."""

    def __init__(self, attention):
        super().__init__()
        self.causal = attention

    def forward(self, x, segments):
        rows = []
        for part in x.split(segments.lengths.tolist()):
            query, key, value = (getattr(self.causal, name)(part) for name in ("query", "key", "value"))
            rows.append((query @ key.t() / query.shape[1] ** 0.5).softmax(-1) @ value)
        return self.causal.LayerNorm(self.causal.dense(torch.cat(rows)) + x)


class WholeHistoryGate(Gate):
    """The gate of MoEMaTrRec's original: it reads the mean of the whole history."""

    def forward(self, x, segments):
        means = [part.mean(0, keepdim=True).expand_as(part) for part in x.split(segments.lengths.tolist())]
        return self.proj(torch.cat(means)).softmax(-1)


class UncausalMoEMaTrRec(MoEMaTrRec):
    def layer(self, config):
        layer = super().layer(config)
        layer.attention = UncausalAttention(layer.attention)
        return layer


class WholeHistoryMoEMaTrRec(MoEMaTrRec):
    def layer(self, config):
        layer = super().layer(config)
        layer.gate = WholeHistoryGate(config["hidden_size"], "token")
        return layer


FORGETS_BORDERS = [forgets_borders(model_class) for model_class in (SSD4Rec, Mamba4Rec, MoEMaTrRec, PackedSASRec)]
READS_THE_FUTURE = [FlippedBack, UncausalMoEMaTrRec, WholeHistoryMoEMaTrRec]
