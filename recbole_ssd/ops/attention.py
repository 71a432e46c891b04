"""Causal softmax attention inside the segments of a stream: the one door to every backend.

    y[t] = sum_{s <= t} P[t, s] * v[s],    P[t, :] = softmax_s( q[t] . k[s] / sqrt(p) ),    s only in t's own segment

Vaswani et al., "Attention Is All You Need", NeurIPS 2017, https://arxiv.org/abs/1706.03762, section 3.2; dropout, where
asked for, falls on P, as RecBole's SASRec has it.

Shape letters:    b batch    l length    h heads    p head size    S segments
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention_reference import attention_reference
from .attention_torch import attention_torch
from .packing import Segments

BACKENDS = ("auto", "torch", "reference")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens: Tensor | Segments | None = None,
    dropout_p: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Attention of every token to itself and its past, over a dense batch or a packed stream.

    A backend changes rounding, speed and which probabilities a seed drops, never the function. Half precision is
    computed in float32, as is autocast's.

    Args:
        q, k, v: (b, l, h, p), all float32, float64, bfloat16 or float16.
        cu_seqlens: (S + 1,) borders of the segments of a stream (then b is 1), or a `Segments`.
        dropout_p: each probability is dropped with this chance, in 0 <= dropout_p < 1; 0 when not training.
        backend: `torch` (in blocks, any device), `reference` (one matrix a segment) or `auto` (which is `torch`).

    Returns:
        y: (b, l, h, p), in the dtype of q.

    Raises:
        ValueError: on a wrong shape, dtype, dropout_p or backend.

    >>> v = torch.tensor([1.0, 2, 3, 10, 20]).view(1, 5, 1, 1)
    >>> attention(0 * v, v, v, cu_seqlens=torch.tensor([0, 3, 5])).flatten()
    tensor([ 1.0000,  1.5000,  2.0000, 10.0000, 15.0000])
    """
    _check(q, k, v, dropout_p, backend)
    segments = Segments.of_batch(q, cu_seqlens)
    run = attention_reference if backend == "reference" else attention_torch
    with torch.autocast(q.device.type, enabled=False):
        return run(*(t.flatten(0, 1) for t in (q, k, v)), segments, dropout_p).view(q.shape)


def _check(q, k, v, dropout_p, backend) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"attention has the backends {', '.join(BACKENDS)}; got '{backend}'")
    shapes = [tuple(t.shape) for t in (q, k, v)]
    if q.dim() != 4 or len(set(shapes)) > 1:
        raise ValueError("q, k and v must share one shape (b, l, h, p), got {}, {} and {}".format(*shapes))
    if q.dtype not in DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(
            "q, k and v must all be float32, float64, bfloat16 or float16, "
            f"got {q.dtype}, {k.dtype} and {v.dtype}: cast them to one of these before"
        )
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p must be at least 0 and below 1, got {dropout_p}")
