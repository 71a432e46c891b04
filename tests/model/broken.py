"""Models broken on purpose, so that the contract is seen to catch what their originals do."""

from __future__ import annotations

import torch

from recbole_ssd.layers.attention import SelfAttention
from recbole_ssd.layers.mixture import Gate
from recbole_ssd.model.mamba4rec import Mamba4Rec
from recbole_ssd.model.moematrrec import MoEMaTrRec
from recbole_ssd.model.packedsasrec import PackedSASRec
from recbole_ssd.model.ssd4rec import SSD4Rec
from recbole_ssd.ops.packing import Segments


def forgets_borders(model_class):
    """The borders between users are lost on the way to the layers."""

    class Forgetful(model_class):
        def encode(self, stream, last=False):
            whole = Segments(torch.tensor([0, len(stream.items)]))
            every = super().encode(stream._replace(segments=whole))
            return every[stream.segments.last] if last else every

    Forgetful.__name__ = f"Forgetful{model_class.__name__}"
    return Forgetful


class FlippedBack(SSD4Rec):
    """The backward direction over the whole history, flipped back: position t sees its own label."""

    def encode(self, stream, last=False):
        flip = stream.segments.flip
        return super().encode(stream) + super().encode(stream._replace(items=stream.items[flip]))[flip]


class UncausalAttention(SelfAttention):
    """The attention of MoEMaTrRec's original: inside the history, and without a causal mask."""

    def forward(self, x, segments):
        rows = []
        for part in x.split(segments.lengths.tolist()):
            query, key, value = (project(part) for project in (self.query, self.key, self.value))
            rows.append((query @ key.t() / query.shape[1] ** 0.5).softmax(-1) @ value)
        return self.dense(torch.cat(rows))


class WholeHistoryGate(Gate):
    """The gate of MoEMaTrRec's original: it reads the mean of the whole history."""

    def forward(self, x, segments, last=False):
        means = [part.mean(0, keepdim=True).expand_as(part) for part in x.split(segments.lengths.tolist())]
        return self.proj(torch.cat(means)).softmax(-1)


class UncausalMoEMaTrRec(MoEMaTrRec):
    def layer(self, config):
        layer = super().layer(config)
        layer.attention.mixer = UncausalAttention(config["hidden_size"], 1, 0.0)
        return layer


class WholeHistoryMoEMaTrRec(MoEMaTrRec):
    def layer(self, config):
        layer = super().layer(config)
        layer.gate = WholeHistoryGate(config["hidden_size"], "token")
        return layer


FORGETS_BORDERS = [forgets_borders(model_class) for model_class in (SSD4Rec, Mamba4Rec, MoEMaTrRec, PackedSASRec)]
READS_THE_FUTURE = [FlippedBack, UncausalMoEMaTrRec, WholeHistoryMoEMaTrRec]
