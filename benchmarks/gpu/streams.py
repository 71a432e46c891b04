"""Streams to check and to time on: segments of ugly lengths, and of lengths that histories have."""

from __future__ import annotations

import math

import torch

MIXED = (1, 64, 200, 3, 33, 1000, 65, 2, 63, 1, 31, 32)  # around every power of two that a block may have, shuffled
LONG, SINGLES = 5000, 2000
SMALL = {"mixed": (1, 64, 3, 33, 65, 2, 63, 1, 31, 32), "one segment": (150,), "length 1": (1,) * 40}


def ugly(small: bool) -> dict[str, tuple[int, ...]]:
    """Lengths by name; `small` ones for Triton's interpreter, which takes a second for some hundred tokens."""
    return SMALL if small else {"mixed": MIXED, "one segment": (LONG,), "length 1": (1,) * SINGLES}


def histories(tokens: int, median: float, sigma: float = 0.8) -> list[int]:
    """Lengths drawn log-normally until they fill `tokens`; the last is cut.

    sigma .8 is that of KuaiRand-Pure: its median is 34, and 5 % of its users have more than 131.

    >>> lengths = histories(10_000, 20)
    >>> sum(lengths), sorted(lengths)[len(lengths) // 2] in range(18, 23)
    (10000, True)
    """
    generator = torch.Generator().manual_seed(0)
    count = 64 + int(tokens / median)  # more than enough: the mean is above the median
    drawn = torch.empty(count).log_normal_(math.log(median), sigma, generator=generator).round().clamp(min=1).long()
    ends = drawn.cumsum(0)
    inside = int((ends < tokens).sum())
    filled = int(ends[inside - 1]) if inside else 0
    return [*drawn[:inside].tolist(), tokens - filled]


def borders(lengths, device: torch.device) -> torch.Tensor:
    """cu_seqlens, int32."""
    return torch.tensor([0, *lengths], device=device).cumsum(0).int()
