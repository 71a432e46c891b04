"""PackedSASRec whose input goes through a short causal convolution first, to ask what attention alone lacks.

The filter starts as the identity. It has four taps a channel, as Mamba's, and adds nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recbole_ssd.model.packedsasrec import PackedSASRec
from recbole_ssd.ops.causal_conv1d import causal_conv1d

TAPS = 4


class ConvolvedSASRec(PackedSASRec):
    """PackedSASRec over convolved items."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.filter = nn.Parameter(torch.zeros(self.item_embedding.embedding_dim, TAPS))
        with torch.no_grad():
            self.filter[:, -1] = 1

    def embed(self, stream) -> Tensor:
        x = self.position(self.item_embedding(stream.items), stream.segments)
        x = causal_conv1d(x[None], self.filter, cu_seqlens=stream.segments, activation=None)[0]
        return self.dropout(self.LayerNorm(x))
