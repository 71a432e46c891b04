"""What an evaluation asks of a matrix of scores, in blocks that a core's cache keeps.

A matrix of the size of the scores, of ones and zeros, takes longer to get from the system than to fill.

Shape letters:    N rows    V items    P targets
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 2**19  # scores, on a CPU: 2 MB of float32


def has_nan(scores: Tensor) -> bool:
    """Whether a score is not a number, (N, V) -> bool. A sum finds most matrices clean in a tenth of the time."""
    return bool(torch.isnan(scores.sum())) and bool(torch.isnan(scores).any())


def ranks_of(scores: Tensor, rows: Tensor, items: Tensor) -> Tensor:
    """Rank of every target in its row, from 1; in a tie the target is the last.

    Args:
        scores: (N, V).
        rows, items: of the targets, (P,), int64.

    Returns:
        (P,), int64.

    >>> ranks_of(torch.tensor([[0.1, 0.5, 0.3], [0.2, 0.2, 0.0]]), torch.tensor([0, 1]), torch.tensor([2, 0]))
    tensor([2, 2])
    """
    target = scores[rows, items].unsqueeze(1)  # (P, 1)
    step = len(rows) if scores.is_cuda else max(1, BLOCK // scores.shape[1])
    blocks = zip(rows.split(step), target.split(step))
    return torch.cat([(scores[part] >= goal).sum(1) for part, goal in blocks])


def hits_of(best: Tensor, rows: Tensor, items: Tensor) -> Tensor:
    """Which of each row's best items are targets, and how many targets the row has.

    Args:
        best: items of each row, best first, (N, k).
        rows, items: of the targets, (P,), int64; no row has a target twice.

    Returns:
        (N, k + 1), int32: ones and zeros, then the number of targets: RecBole's `rec.topk`.

    >>> hits_of(torch.tensor([[4, 2], [3, 1]]), torch.tensor([0, 1, 1]), torch.tensor([2, 5, 3]))
    tensor([[0, 1, 1],
            [1, 0, 2]], dtype=torch.int32)
    """
    found = torch.cat([best[rows] == items[:, None], torch.ones_like(items, dtype=torch.bool)[:, None]], dim=1)
    hits = torch.zeros(len(best), best.shape[1] + 1, dtype=torch.int32, device=best.device)
    return hits.index_add_(0, rows, found.int())
