"""Dropout whose mask costs about half of torch's on a CPU (`ops/random_bits.py`). On a GPU torch's own is used.

The rate is kept to 1/65536, and the scale is that of the rate that is kept.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from recbole_ssd.ops.random_bits import LEVELS, kept


class Dropout(nn.Dropout):
    """Zeroes elements with probability `p` while training, and scales the others by 1 / (1 - p)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        dropped = round(self.p * LEVELS)
        if x.device.type != "cpu" or not 0 < dropped < LEVELS:
            return F.dropout(x, self.p)
        return x * (kept(x.shape, dropped, x.device) * (LEVELS / (LEVELS - dropped))).to(x.dtype)
