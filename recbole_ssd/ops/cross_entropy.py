"""Softmax cross-entropy over a whole catalogue, without a (targets x items) matrix: the one door to every backend.

    loss = mean_i ( logsumexp_v(h[i] . W[v]) - h[i] . W[target[i]] )

Exact, forward and backward. `torch` makes the logits in blocks of a set size, `numba` in tiles, `triton` in registers.
Wijmans et al., "Cut Your Losses", https://arxiv.org/abs/2411.09009, is the plan of all. Label smoothing (Szegedy et
al., https://arxiv.org/abs/1512.00567, section 7) gives a share s of a target's weight to all items alike, which adds

    s mean_i ( h[i] . W[target[i]] - h[i] . mean_v W[v] )

and a number may be added to the logits of the items that a row has seen before, h[i] . W[v] + bias * seen[i, v].

Shape letters:    N targets    d model size    V items
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .backends import choose
from .compiled import support as on_cpu
from .cross_entropy_torch import linear_cross_entropy_torch
from .kernels.support import refusal
from .seen import Seen

PRECISIONS = ("float32", "bfloat16")
CPU_BUDGET_MB, CUDA_BUDGET_MB = 8.0, 256.0  # logits that caches keep, and enough of them to fill a GPU
WIDEST = {torch.float32: 64, torch.bfloat16: 256}  # d of the triton kernels: rows and their gradients fill registers


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    budget_mb: float | None = None,
    *,
    label_smoothing: float = 0.0,
    precision: str = "float32",
    seen: Seen | None = None,
    seen_bias: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Mean cross-entropy of `softmax(hidden @ weight.T)` against `target`.

    Args:
        hidden: (N, d), N >= 1.
        weight: (V, d), one row per item, in the dtype of `hidden`.
        target: (N,), int64, in 0..V-1.
        budget_mb: how many megabytes of logits `torch` may hold at a time; 8 by default, on a GPU 256. Where 64 rows
            of logits are more than that, every logit is computed twice, which costs a third more.
        label_smoothing: s, in [0, 1).
        precision: `float32`, or `bfloat16` to round the operands of the matrix products, which are still summed in
            float32. Changes nothing on a CPU without AVX512_BF16 or AMX.
        seen: which items the N rows have seen; None: no logit gets a bias.
        seen_bias: (), added to the logits of those.
        backend: `torch` (any device), `triton` (CUDA, d up to 64, in bfloat16 up to 256, no `seen`), `numba` (our
            kernels for CPUs, no bfloat16 where there is AMX, which torch uses; holds 19 MB a thread and 64 MB in all,
            and for `seen` up to 100 more; beyond 32,768 items or 4,194,304 weights every logit is computed twice) or
            `auto`: on a GPU `triton`, on a CPU `numba`, where they run, else `torch`.

    Returns:
        A scalar in the dtype of `hidden`, differentiable in `hidden`, `weight` and `seen_bias`.

    Raises:
        ValueError: on a wrong shape, dtype, budget, precision or backend, and on a target outside 0..V-1 (on a CPU;
            on a GPU CUDA raises).
        RuntimeError: when the backend asked for by name cannot run on this machine or these tensors.

    >>> loss = linear_cross_entropy(torch.zeros(3, 2), torch.ones(8, 2), torch.tensor([0, 5, 7]))
    >>> loss, torch.tensor(8.0).log()
    (tensor(2.0794), tensor(2.0794))
    """
    _check(hidden, weight, target, budget_mb, precision)
    _check_seen(hidden, weight, seen, seen_bias, precision)
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
    loss = _mean(hidden, weight, target, budget_mb, precision, seen, seen_bias, backend)
    if label_smoothing:
        loss = loss + label_smoothing * (hidden * (F.embedding(target, weight) - weight.mean(0))).sum(-1).mean()
        if seen is not None:
            more = seen.has(target[:, None]).sum() * len(weight) - seen.count()  # V (seen targets) - pairs
            loss = loss + (label_smoothing * seen_bias * more / (len(weight) * len(target))).to(loss.dtype)
    return loss


def _mean(hidden, weight, target, budget_mb, precision, seen, seen_bias, backend) -> Tensor:
    refusals = {
        "triton": lambda: _triton_refusal(hidden, precision, seen),
        "numba": lambda: _numba_refusal(hidden, weight, budget_mb, precision, seen),
    }
    # On paper the kernels are twice as fast: logits in a GPU's memory cost more than their products.
    backend = choose("linear_cross_entropy", backend, hidden, refusals)
    if backend == "triton":
        from .kernels.cross_entropy import linear_cross_entropy_triton

        return linear_cross_entropy_triton(hidden, weight, target, precision)
    if backend == "numba":
        from .compiled.cross_entropy import linear_cross_entropy_numba

        return linear_cross_entropy_numba(hidden, weight, target, precision, seen, seen_bias)
    if budget_mb is None:
        budget_mb = CUDA_BUDGET_MB if hidden.is_cuda else CPU_BUDGET_MB
    return linear_cross_entropy_torch(hidden, weight, target, budget_mb, precision, seen, seen_bias)


def _check(hidden, weight, target, budget_mb, precision) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1] or target.shape != hidden.shape[:1]:
        raise ValueError(
            "expected hidden (N, d), weight (V, d) and target (N,), "
            f"got {tuple(hidden.shape)}, {tuple(weight.shape)} and {tuple(target.shape)}"
        )
    if not len(target):
        raise ValueError("there is no target to compute a loss for: N is 0")
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden and weight must share a dtype, got {hidden.dtype} and {weight.dtype}: cast one")
    if budget_mb is not None and not budget_mb > 0:
        raise ValueError(f"budget_mb must be above 0, got {budget_mb}")
    if precision not in PRECISIONS or (precision == "bfloat16" and hidden.dtype == torch.float64):
        raise ValueError(
            f"precision must be {' or '.join(PRECISIONS)}, the latter not for float64; "
            f"got '{precision}' for {hidden.dtype}"
        )
    if not target.is_cuda and not 0 <= target.min() <= target.max() < len(weight):
        raise ValueError(f"targets must lie in 0..{len(weight) - 1}, got {target.min()}..{target.max()}")


def _check_seen(hidden, weight, seen, seen_bias, precision) -> None:
    if (seen is None) != (seen_bias is None):
        raise ValueError("seen and seen_bias come together: give both, or neither")
    if seen is None:
        return
    if len(seen) != len(hidden) or seen.n_items != len(weight) or seen_bias.shape:
        raise ValueError(
            f"expected a Seen of {len(hidden)} rows and {len(weight)} items and a seen_bias of shape (), got "
            f"{len(seen)} rows, {seen.n_items} items and {tuple(seen_bias.shape)}"
        )
    if hidden.is_cuda and precision == "bfloat16":  # of the backend triton alone, which knows no bias
        raise RuntimeError("seen_bias needs products of float32 on a GPU: take precision (loss_precision) float32")


def _numba_refusal(
    hidden: Tensor, weight: Tensor, budget_mb: float | None, precision: str, seen: Seen | None
) -> str | None:
    if budget_mb is not None:
        return f"it has blocks of its own, and budget_mb is {budget_mb}"
    if reason := on_cpu.refusal(hidden):
        return reason
    from .compiled.cross_entropy import refusal

    return refusal(weight, precision, seen)


def _triton_refusal(hidden: Tensor, precision: str, seen: Seen | None) -> str | None:
    if seen is not None:
        return "its kernels add no bias to the logits of what was seen"
    operands = hidden[:0].bfloat16() if precision == "bfloat16" else hidden[:0]
    if hidden.shape[1] > WIDEST.get(operands.dtype, hidden.shape[1]):
        return f"its kernels take a d of up to {WIDEST[operands.dtype]} in {operands.dtype}, got {hidden.shape[1]}"
    return refusal(operands)
