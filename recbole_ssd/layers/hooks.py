"""Who listens to a layer: what computes several layers at once calls none of them, unless somebody does."""

from __future__ import annotations

from torch import nn


def heard(*layers: nn.Module | None) -> bool:
    """Whether one of them has a forward hook, as RecBole's get_flops and many a debugger set: then they are called."""
    return any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers if layer is not None)
