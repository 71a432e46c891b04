"""The optimizer of a packed model: one kernel for all weights, and no weight decay where it does harm.

Weight decay draws item vectors, matrices and filters towards zero, weights of two or more dimensions. Biases, norms and
what Mamba calls A_log, D and dt_bias are left alone: a decay exp(dt A) has no reason to lie near that of A_log = 0,
which is A = -1. Loshchilov and Hutter, "Decoupled Weight Decay Regularization", https://arxiv.org/abs/1711.05101, is
`learner: adamw`.
"""

from __future__ import annotations

import torch
from torch import nn

# One kernel for all weights: a step of Adam for SSD4Rec on ml-100k takes 0.36 ms on a CPU, torch's default 1.2. Under
# float16 it is told on the device of gradients that overflowed, the others on the host. Its rounding differs.
FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
KEPT = ("A_log", "D", "dt_bias")


def for_packed(built: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The same kind of optimizer with the same settings, fused where there is a kernel.

    Args:
        built: RecBole's, of one group with all weights of `model`.
        model: whose weights.
    """
    (group,) = built.param_groups
    more = {"fused": True} if type(built) in FUSED else {}
    return type(built)(decay_groups(model, group["weight_decay"]), lr=group["lr"], **more)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Groups of weights for an optimizer: those that decay and those that do not; one group without any decay."""
    named = list(model.named_parameters())
    if not weight_decay:
        return [{"params": [weight for _, weight in named], "weight_decay": 0.0}]
    decays = [weight.dim() > 1 and name.rpartition(".")[2] not in KEPT for name, weight in named]
    return [
        {"params": [weight for (_, weight), does in zip(named, decays) if does is chosen], "weight_decay": value}
        for chosen, value in ((True, weight_decay), (False, 0.0))
    ]
