"""A projection whose columns go different ways."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def split_linear(x: Tensor, weight: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """`F.linear(x, weight).split(sizes, dim=-1)`.

    On a GPU it is that, one product and views of it. On a CPU every part is a product of its own: contiguous, so that
    nobody has to copy a slice of columns, and no gradients are put together for the backward of a split.

    Args:
        x: (T, d).
        weight: (sum of sizes, d).
        sizes: of the parts.

    Returns:
        Tensors (T, size), one for each size.
    """
    if x.device.type == "cpu":
        return tuple(F.linear(x, part) for part in weight.split(list(sizes)))
    return F.linear(x, weight).split(list(sizes), dim=-1)
