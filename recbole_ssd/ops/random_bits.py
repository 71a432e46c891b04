"""Which elements a dropout keeps, for about half of what torch's own draw costs on a CPU.

torch draws one random number an element there, from one serial generator; here 64 bits serve four elements. A rate is
kept to 1 / LEVELS.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 2**16


def kept(shape: torch.Size, dropped: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """int16 of `shape`: 0 with a chance of dropped / LEVELS, in 0 <= dropped < LEVELS, else 1."""
    count = shape.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64, device=device).random_(-(2**63), None, generator=generator)
    return bits.view(torch.int16)[:count].ge_(dropped - LEVELS // 2).view(shape)
