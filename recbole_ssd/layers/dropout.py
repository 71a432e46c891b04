"""Dropout as a layer, with the masks of `ops/dropout.py`."""

from __future__ import annotations

from torch import Tensor, nn

from recbole_ssd.ops.dropout import dropout


class Dropout(nn.Dropout):
    """Zeroes elements with probability `p` while training, and scales the others by 1 / (1 - p)."""

    @property
    def rate(self) -> float:
        """p while training, else 0."""
        return self.p if self.training else 0.0

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.rate) if self.rate else x
