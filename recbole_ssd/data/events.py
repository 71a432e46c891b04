"""The event log: every column once, sorted by user and time.

Histories are slices of these columns. Nothing here is padded and nothing is copied per prefix, so the memory
is O(events), whatever MAX_ITEM_LIST_LENGTH says.

Shape letters, here and in the files beside it:
    n events    r rows    s segments    t tokens of a stream    w width of a padded window
"""

from __future__ import annotations

from functools import cached_property

import numpy as np


class EventLog:
    """Flat columns, sorted by (user, time, place in the file).

    Args:
        columns (dict[str, torch.Tensor]): Column name to values of shape (n, ...), in file order.
        uid_field (str): The column of user ids.
        iid_field (str): The column of item ids.
        time (numpy.ndarray): What to sort by, shape (n,), in file order: float64 as read, or RecBole's
            float32.

    Attributes:
        users, items (numpy.ndarray): int64, shape (n,), sorted.
        time (numpy.ndarray): Shape (n,), sorted.
        place (numpy.ndarray): Place of each sorted event in the file, int64, shape (n,).
        starts, stops (numpy.ndarray): Borders of each user's history, indexed by internal user id.
    """

    def __init__(self, columns, uid_field, iid_field, time):
        self.uid_field, self.iid_field = uid_field, iid_field
        self.place = np.lexsort((time, columns[uid_field].numpy()))  # lexsort is stable
        self.columns = {name: values[self.place] for name, values in columns.items()}
        self.time = time[self.place]
        self.users = self.columns[uid_field].numpy()
        self.items = self.columns[iid_field].numpy()
        counts = np.bincount(self.users)
        self.stops = np.cumsum(counts)
        self.starts = self.stops - counts

    def __len__(self):
        return len(self.users)

    @property
    def longest_history(self):
        """Events of the user with most events."""
        return int((self.stops - self.starts).max())

    @cached_property
    def gaps(self):
        """Time since the user's event before it, 0 at the first, in the file's unit. float32, shape (n,)."""
        gaps = np.diff(self.time.astype(np.float64), prepend=0.0)
        gaps[self.starts[self.stops > self.starts]] = 0
        return gaps.astype(np.float32)

    def targets(self):
        """Positions of every event that has a past: all but each user's first. int64, shape (r,)."""
        has_past = np.ones(len(self), dtype=bool)
        has_past[self.starts[self.stops > self.starts]] = False
        return np.flatnonzero(has_past)

    def first_event(self, position):
        """Position of the first event of the user to whom the event at `position` belongs."""
        return self.starts[self.users[position]]

    def repeats(self):
        """Number of events that repeat the user, item and time of the event before them."""
        same = (self.users[1:] == self.users[:-1]) & (self.items[1:] == self.items[:-1])
        return int((same & (self.time[1:] == self.time[:-1])).sum())


def slices_index(starts, lengths):
    """Positions of many slices laid end to end.

    >>> slices_index(np.array([5, 0]), np.array([2, 3]))
    array([5, 6, 0, 1, 2])

    Args:
        starts (numpy.ndarray): First position of each slice, shape (s,).
        lengths (numpy.ndarray): Length of each slice, shape (s,).

    Returns:
        numpy.ndarray: int64, shape (t,), where t is the sum of the lengths.
    """
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total)
