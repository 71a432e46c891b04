"""Causal attention as it is defined: the whole matrix of a segment, masked. For tests; its memory is quadratic.

Equation, source and shape letters: `attention.py`.    T tokens    n tokens of a segment
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .packing import Segments


def attention_reference(q: Tensor, k: Tensor, v: Tensor, segments: Segments, dropout_p: float = 0.0) -> Tensor:
    """(T, h, p) three times -> (T, h, p), one segment after the other."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    outputs = []
    for begin, end in zip(segments.borders, segments.borders[1:]):
        queries, keys, values = (t[begin:end].to(dtype).transpose(0, 1) for t in (q, k, v))  # (h, n, p)
        scores = queries @ keys.mT / q.shape[-1] ** 0.5  # (h, n, n)
        future = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu(1)
        probabilities = scores.masked_fill(future, -torch.inf).softmax(-1)
        outputs.append((F.dropout(probabilities, dropout_p) @ values).transpose(0, 1))
    return torch.cat(outputs).to(q.dtype)
