"""The position-wise feed-forward network with its residual and norm, in one op.

On a CPU a few rows at a time go through all of it, and what is four times as wide as they are never leaves the cache.
On a GPU, and wherever the kernel cannot run, it is torch's products one after the other.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .add_norm import add_norm, refusal
from .backends import choose
from .dropout import dropout
from .linear import too_large

ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


def feed_forward(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    activation: str,
    inner_p: float = 0.0,
    p: float = 0.0,
    eps: float,
    backend: str = "auto",
) -> Tensor:
    """LayerNorm(dropout(W2 dropout(activation(W1 x + b1)) + b2) + x).

    Args:
        x: (..., d).
        w1, b1: (f, d) and (f,).
        w2, b2: (d, f) and (d,).
        weight, bias: (d,), of the norm.
        activation: `gelu`, `relu` or `silu`.
        inner_p, p: rates of the two dropouts, the inner one first, in [0, 1].
        eps: added to the variance.
        backend: `torch` (any device), `numba` (our kernel for CPUs), or `auto`: `numba` where it can run.

    Returns:
        (..., d). What is dropped is what `ops.dropout.dropout` drops on the same backend.

    Raises:
        ValueError: on a wrong shape, a rate outside [0, 1], an unknown activation or backend.
        RuntimeError: when the backend asked for cannot run on this machine or these tensors.
    """
    (d, f), parameters = w2.shape, (w1, b1, w2, b2, weight, bias)
    wanted = (d,), (f, d), (f,), (d, f), (d,), (d,), (d,)
    if (shapes := tuple(map(tuple, (x.shape[-1:], *(t.shape for t in parameters))))) != wanted:
        raise ValueError(f"x must be (..., {d}) and the parameters {wanted[1:]} as w2 is {wanted[3]}, got {shapes}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got '{activation}'")
    if choose("feed_forward", backend, x, {"numba": lambda: refusal(x, inner_p, p) or too_large(w1)}) == "numba":
        from .compiled.feed_forward import feed_forward_numba  # late: it imports numba

        return feed_forward_numba(x.reshape(-1, d), parameters, activation, inner_p, p, eps).view(x.shape)
    inner = dropout(ACTIVATIONS[activation](F.linear(x, w1, b1)), inner_p, backend="torch")
    return add_norm(F.linear(inner, w2, b2), x, weight, bias, p=p, eps=eps, backend="torch")
