"""Which segments share a batch: filled greedily in a given order, under caps on tokens and targets."""

from __future__ import annotations

import numpy as np


def plan_batches(order, tokens, weights, max_tokens, max_weight):
    """Cut an order of segments into batches.

    A segment above a cap travels alone.

    >>> plan = plan_batches(np.arange(4), np.array([2, 2, 9, 1]), np.ones(4, int), max_tokens=5, max_weight=3)
    >>> [batch.tolist() for batch in plan]
    [[0, 1], [2], [3]]

    Args:
        order (numpy.ndarray): Indices of segments, shape (s,).
        tokens (numpy.ndarray): Tokens of each segment, shape (s,).
        weights (numpy.ndarray): What `max_weight` counts in each segment (targets, or 1 for a row),
            shape (s,).
        max_tokens (int): Most tokens in one batch.
        max_weight (int): Most weight in one batch.

    Returns:
        list[numpy.ndarray]: Indices of the segments of each batch.
    """
    token_ends, weight_ends = np.cumsum(tokens[order]), np.cumsum(weights[order])
    borders, tokens_before, weight_before = [0], 0, 0
    while borders[-1] < len(order):
        stop = min(
            np.searchsorted(token_ends, tokens_before + max_tokens, side="right"),
            np.searchsorted(weight_ends, weight_before + max_weight, side="right"),
        )
        stop = max(int(stop), borders[-1] + 1)
        borders.append(stop)
        tokens_before, weight_before = token_ends[stop - 1], weight_ends[stop - 1]
    return [order[start:stop] for start, stop in zip(borders[:-1], borders[1:], strict=True)]


def shuffled(n, seed, epoch):
    """An order of n segments that depends on seed and epoch alone, int64, shape (n,)."""
    return generator(seed, epoch).permutation(n)


def generator(*key):
    """A generator of random numbers for a key of integers (negative ones too)."""
    return np.random.default_rng([part % 2**32 for part in key])
