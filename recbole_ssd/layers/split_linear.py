"""A projection whose columns go different ways."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .hooks import heard


def split_linear(layer: nn.Linear, x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """`layer(x).split(sizes, dim=-1)`.

    On a CPU every part is a product of its own: contiguous, so that nobody has to copy a slice of columns, and no
    gradients are put together for the backward of a split. Else it is one product.

    Args:
        layer: (..., d) -> (..., sum of sizes), without a bias.
        x: (T, d).
        sizes: of the parts.

    Returns:
        Tensors (T, size), one for each size.
    """
    if x.device.type == "cpu" and not heard(layer):
        return tuple(F.linear(x, part) for part in layer.weight.split(sizes))
    return layer(x).split(sizes, dim=-1)
