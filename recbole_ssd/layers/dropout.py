"""Dropout whose mask costs about half of torch's on a CPU.

torch draws one random number an element there, from one serial generator; we draw 64 bits for four elements. The
dropout rate is kept to 1/65536, and the scale is that of the rate that is kept. On a GPU torch's own is used.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 2**16


class Dropout(nn.Dropout):
    """Zeroes elements with probability `p` while training, and scales the others by 1 / (1 - p)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        dropped = round(self.p * LEVELS)
        if x.device.type != "cpu" or not 0 < dropped < LEVELS:
            return F.dropout(x, self.p)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= dropped - LEVELS // 2
        return x * (kept * (LEVELS / (LEVELS - dropped))).to(x.dtype)
