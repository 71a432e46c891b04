"""Metrics from ranks, their difference between two models with an interval, and p-values for several differences.

    hit@k = [rank <= k]    ndcg@k = [rank <= k] / log2(rank + 1)    mrr@k = [rank <= k] / rank       one target a row

A metric of a model varies over users and over seeds. Both are drawn again: users with replacement, the same for all
models (a paired bootstrap), and the seeds of each model with replacement too, each model its own, for two models
share a seed's number and nothing else (Owen, "The pigeonhole bootstrap", 2007, https://arxiv.org/abs/0712.1111). Of S
seeds S - 1 are drawn: with so few, S of S would give a variance too small by (S - 1) / S (Rao and Wu, "Resampling
inference with complex survey data", 1988). scipy.stats.bootstrap draws along one axis and has neither.

Shape letters:
    b draws    s seeds    u users
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_GAINS = {
    "hit": lambda rank, k: np.ones_like(rank),
    "recall": lambda rank, k: np.ones_like(rank),
    "precision": lambda rank, k: np.full_like(rank, 1 / k),
    "ndcg": lambda rank, k: 1 / np.log2(rank + 1),
    "mrr": lambda rank, k: 1 / rank,
    "map": lambda rank, k: 1 / rank,
}
DRAWS = 10_000
_MOST_NUMBERS = 10**9  # draws times users: a million users get a thousand draws
_CHUNK = 2**22  # of these at a time


@dataclass(frozen=True)
class Difference:
    """How much a model's metric exceeds another's: the mean, a 95 % interval, and a two-sided p-value."""

    mean: float
    low: float
    high: float
    p: float


def at_k(metric: str) -> tuple | None:
    """The parts of a metric's name, if it can be told from a target's rank.

    >>> at_k("ndcg@10"), at_k("itemcoverage@10")
    (('ndcg', 10), None)
    """
    name, _, k = metric.lower().partition("@")
    return (name, int(k)) if name in _GAINS and k.isdigit() else None


def metric_values(ranks: np.ndarray, metric: str) -> np.ndarray:
    """A metric of every target, float64, of the shape of `ranks`.

    >>> metric_values(np.array([1, 3, 11]), "ndcg@10")
    array([1. , 0.5, 0. ])

    Raises:
        ValueError: if ranks do not tell this metric.
    """
    parts = at_k(metric)
    if parts is None:
        raise ValueError(f"ranks do not tell '{metric}': they tell {', '.join(_GAINS)} at a number")
    name, k = parts
    ranks = np.asarray(ranks, dtype=float)
    return np.where(ranks <= k, _GAINS[name](ranks, k), 0.0)


def bootstrap_means(sums: list[np.ndarray], counts: np.ndarray, draws: int = DRAWS, seed: int = 0) -> list[np.ndarray]:
    """Each model's mean over users and seeds, drawn again and again.

    Args:
        sums: of each model, a metric summed over the targets of each user, shape (s, u); s >= 2 may differ.
        counts: targets of each user, shape (u,).
        draws: how many.
        seed: of the draws.

    Returns:
        float64 of shape (b,) for each model; entry i of all models has the same users.

    Raises:
        ValueError: if a model has a single seed, whose variation nobody knows.
    """
    if any(len(values) < 2 for values in sums):
        raise ValueError("the bootstrap draws seeds too: every model needs two or more")
    rng = np.random.default_rng(seed)
    users = len(counts)
    draws = min(draws, max(1_000, _MOST_NUMBERS // users))
    means = [np.empty(draws) for _ in sums]
    step = max(1, _CHUNK // users)
    for start in range(0, draws, step):
        size = min(step, draws - start)
        drawn = rng.integers(users, size=(size, users)) + users * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * users).reshape(size, users).astype(float)  # (b, u)
        targets = weights @ counts
        for values, mean in zip(sums, means, strict=True):
            n = len(values)
            chosen = rng.integers(n, size=(size, n - 1))
            by_seed = weights @ values.T  # (b, s)
            mean[start : start + size] = np.take_along_axis(by_seed, chosen, axis=1).mean(axis=1) / targets
    return means


def differences(sums: list[np.ndarray], counts: np.ndarray, draws: int = DRAWS, seed: int = 0) -> list[Difference]:
    """How much each model after the first exceeds it, from the same draws."""
    first, *others = bootstrap_means(sums, counts, draws, seed)
    exact = [float(values.sum() / len(values) / counts.sum()) for values in sums]
    found = []
    for mean, drawn in zip(exact[1:], others, strict=True):
        drawn = drawn - first
        low, high = np.quantile(drawn, [0.025, 0.975])
        tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
        p = min(1.0, 2 * (int(tail) + 1) / (len(drawn) + 1))
        found.append(Difference(mean - exact[0], float(low), float(high), p))
    return found


def holm(p_values: list[float]) -> list[float]:
    """p-values that may be read together (Holm, 1979): the chance of one false discovery or more is held.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected
