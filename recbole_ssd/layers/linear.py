"""What linear layers give, by `ops.linear`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from recbole_ssd.ops.linear import linear

from .hooks import heard


def project(x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """What every layer gives for x (..., d)."""
    if heard(*layers):
        return tuple(layer(x) for layer in layers)
    return linear(x, [layer.weight for layer in layers], [layer.bias for layer in layers])


def split_linear(layer: nn.Linear, x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """`layer(x).split(sizes, dim=-1)`, for a projection whose columns go different ways.

    On a CPU every part is a product of its own: contiguous, so that nobody has to copy a slice of columns, and no
    gradients are put together for the backward of a split. Else it is one product.

    Args:
        layer: (..., d) -> (..., sum of sizes), without a bias.
        x: (..., d).
        sizes: of the parts.

    Returns:
        Tensors (..., size), one for each size.
    """
    if x.device.type == "cpu" and not heard(layer):
        return linear(x, layer.weight.split(sizes))
    return layer(x).split(sizes, dim=-1)
