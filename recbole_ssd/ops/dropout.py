"""Dropout for less than torch's costs on a CPU, where torch draws one number an element from one serial generator.

The plain form's mask costs about half (`random_bits.py`), numba's next to nothing. On a GPU torch's own is used.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .backends import choose
from .compiled import support as on_cpu
from .random_bits import LEVELS, kept


def dropout(x: Tensor, p: float, *, backend: str = "auto") -> Tensor:
    """Zeroes elements with probability p, and scales the others by 1 / (1 - p).

    Args:
        x: of any shape.
        p: in [0, 1]. On a CPU the plain form keeps it to 1/65536, and the scale is that of the rate that is kept.
        backend: `torch` (any device), `numba` (our kernels for CPUs), or `auto`: `numba` where it can run.

    Returns:
        The same shape and dtype. What is dropped follows torch's seed, and differs from one backend to the other.

    Raises:
        ValueError: on a rate outside [0, 1] or an unknown backend.
        RuntimeError: when the backend asked for cannot run on this machine or these tensors.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p must lie in [0, 1], got {p}")
    chosen = choose("dropout", backend, x, {"numba": lambda: on_cpu.refusal(x)})
    dropped = round(p * LEVELS)
    if x.device.type != "cpu" or not 0 < dropped < LEVELS:
        return F.dropout(x, p)
    if chosen == "numba":
        from .compiled.dropout import dropout_numba

        return dropout_numba(x, p)
    return x * (kept(x.shape, dropped, x.device) * (LEVELS / (LEVELS - dropped))).to(x.dtype)
