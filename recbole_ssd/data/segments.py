"""What a packed model trains on: segments of the log, each training target in exactly one of them.

`all_positions`: one segment per user, from the first event to the one before the last training target, cut
into consecutive pieces of at most MAX_ITEM_LIST_LENGTH inputs; every position predicts the next event
(SASRec's original way). `prefixes`: one segment per row, which predicts one target (RecBole's augmentation).
"""

from __future__ import annotations

import numpy as np

ALL_POSITIONS, PREFIXES = "all_positions", "prefixes"


class Segments:
    """Slices of the log with their targets.

    Args:
        user, start, end (numpy.ndarray): int64, shape (s,); inputs are the events start .. end-1.
        supervision (str): `all_positions` (targets start+1 .. end) or `prefixes` (target `end`).
    """

    def __init__(self, user, start, end, supervision):
        self.user, self.start, self.end, self.supervision = user, start, end, supervision

    def __len__(self):
        return len(self.user)

    @property
    def lengths(self):
        """Inputs of each segment, int64, shape (s,)."""
        return self.end - self.start

    @property
    def n_targets(self):
        """Targets of each segment, int64, shape (s,)."""
        return self.lengths if self.supervision == ALL_POSITIONS else np.ones_like(self.start)


def train_segments(rows, supervision):
    """Segments of the training rows.

    Args:
        rows (Rows): The training rows.
        supervision (str): `all_positions` or `prefixes`.

    Returns:
        Segments: Every target of `rows` in exactly one segment.

    Raises:
        ValueError: With `all_positions`, if some user's training targets have holes between them.
    """
    user, start, end, _ = rows.table.T
    if supervision == PREFIXES:
        return Segments(user, start, end, supervision)
    users, counts = np.unique(user, return_counts=True)
    first = rows.events.starts[users]
    last = np.zeros(len(rows.events.starts), dtype=np.int64)
    np.maximum.at(last, user, end)
    last = last[users]
    if (last - first != counts).any():
        raise ValueError(
            "supervision: all_positions needs each user's training targets to be consecutive events from "
            "the second on; this split has holes in them: set supervision: prefixes"
        )
    return _cut(users, first, last, rows.max_length)


def _cut(users, first, last, max_length):
    """Pieces of at most `max_length` inputs: inputs first .. last-1 of each user."""
    if max_length is None:
        return Segments(users, first, last, ALL_POSITIONS)
    pieces = -(-(last - first) // max_length)
    before = np.cumsum(pieces) - pieces
    number = np.arange(pieces.sum()) - np.repeat(before, pieces)
    start = np.repeat(first, pieces) + number * max_length
    end = np.minimum(start + max_length, np.repeat(last, pieces))
    return Segments(np.repeat(users, pieces), start, end, ALL_POSITIONS)
