"""How Mamba starts: the step sizes dt.

Section 3.6 of Gu and Dao, "Mamba", https://arxiv.org/abs/2312.00752: dt is drawn log-uniformly between .001 and .1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

DT_MIN, DT_MAX = 0.001, 0.1


def inverse_softplus_of_dt(size: int) -> Tensor:
    """A bias (size,) whose softplus is a step size, drawn log-uniformly between DT_MIN and DT_MAX."""
    dt = torch.exp(torch.rand(size) * (math.log(DT_MAX) - math.log(DT_MIN)) + math.log(DT_MIN))
    return dt + torch.log(-torch.expm1(-dt))
