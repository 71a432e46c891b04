"""Negatives of a packed batch: any item but the target, drawn uniformly or by popularity.

RecBole's popularity counts the targets of all phases; this counts training events only, so that nothing of
the evaluation is told to the model. An item may be drawn twice for one target, as in RecBole.
"""

from __future__ import annotations

import numpy as np


def training_counts(rows, n_items):
    """How often each item occurs in the training events, inputs and targets alike.

    Args:
        rows (Rows): The training rows.
        n_items (int): Items, with the padding item 0.

    Returns:
        numpy.ndarray: int64, shape (n_items,).
    """
    events = rows.events
    first = events.starts[np.unique(rows.users)]  # a user's first event is nobody's target
    return np.bincount(np.concatenate([rows.target_items(), events.items[first]]), minlength=n_items)


class NegativeSampler:
    """Draws negatives.

    Args:
        distribution (str): `uniform` or `popularity`.
        alpha (float): Power of the popularity.
        sample_num (int): Negatives per target.
        counts (numpy.ndarray): Occurrences of each item in training, shape (n_items,); entry 0 is the
            padding.

    Raises:
        ValueError: If fewer than two items can be drawn.
    """

    def __init__(self, distribution, alpha, sample_num, counts):
        self.sample_num, self.n_items = sample_num, len(counts)
        self.cumulative = None
        if distribution == "popularity":
            weights = np.where(counts > 0, counts.astype(np.float64) ** alpha, 0.0)
            self.cumulative = np.cumsum(weights / weights.sum())
        drawable = self.n_items - 1 if self.cumulative is None else int((counts > 0).sum())
        if drawable < 2:
            raise ValueError(f"negative sampling needs at least 2 items, the training data have {drawable}")

    def draw(self, positives, rng):
        """Negatives of a batch.

        Args:
            positives (numpy.ndarray): Targets, int64, shape (n,).
            rng (numpy.random.Generator): Where the randomness comes from.

        Returns:
            numpy.ndarray: int64, shape (n, sample_num), never the target of its row.
        """
        shape = (len(positives), self.sample_num)
        positives = np.broadcast_to(positives[:, None], shape)
        if self.cumulative is None:
            drawn = rng.integers(1, self.n_items - 1, size=shape)
            return drawn + (drawn >= positives)  # every item but the target, equally likely
        drawn = self._by_popularity(shape, rng)
        again = drawn == positives
        while again.any():
            drawn[again] = self._by_popularity(int(again.sum()), rng)
            again = drawn == positives
        return drawn

    def _by_popularity(self, shape, rng):
        return np.searchsorted(self.cumulative, rng.random(shape) * self.cumulative[-1], side="right")
