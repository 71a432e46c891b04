"""A vector for the time that passed before each event, learned by octaves.

How long a user was away says what the next choice may be about. The vector joins what the first layer reads, and so
Mamba's step size dt, which is a projection of it: real time can move the decay of the state. TiSASRec (Li et al., WSDM
2020) gives attention the intervals between all pairs, TiM4Rec (Fan et al., https://arxiv.org/abs/2409.16182) gives a
state space those between neighbours; both their ways are others. Seconds and anything finer serve alike.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

OCTAVES = 48  # gaps of up to 2**47 - 1: four million years of seconds, four thousand of milliseconds


class TimeGap(nn.Module):
    """Starts at zero: without training it changes nothing.

    Args:
        hidden_size: d.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(torch.zeros(OCTAVES, hidden_size), freeze=False)
        self.embedding.keeps_its_init = True

    def forward(self, gaps: Tensor) -> Tensor:
        """(T,), each 0 or more -> (T, d)."""
        octave = torch.frexp(gaps.double() + 1).exponent.long() - 1  # floor(log2), exactly
        return self.embedding(octave.clamp(0, OCTAVES - 1))
