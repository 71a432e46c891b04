"""How Mamba starts: the step sizes dt.

Section 3.6 of Gu and Dao, "Mamba", https://arxiv.org/abs/2312.00752: dt is drawn log-uniformly between .001 and .1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def inverse_softplus_of_dt(size: int, dt_min: float, dt_max: float) -> Tensor:
    """A bias (size,) whose softplus is a step size, drawn log-uniformly between `dt_min` and `dt_max`."""
    dt = torch.exp(torch.rand(size) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min)).clamp(min=1e-4)
    return dt + torch.log(-torch.expm1(-dt))
