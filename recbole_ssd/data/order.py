"""How far the exact order of events is from RecBole's.

RecBole casts timestamps to float32 before it sorts, which puts events 128 s apart (at 1e9) into one bucket,
where they stay in file order. Rounding keeps the order otherwise, so RecBole's order is ours with some ties.
"""

from __future__ import annotations

import numpy as np

from recbole_ssd.data.split import split_rows


def moved_test_targets(events, rounded_time, test_targets, split, group_by):
    """Number of test targets that are not test targets in RecBole's order.

    Args:
        events (EventLog): The log in exact order.
        rounded_time (numpy.ndarray): RecBole's float32 time of each event of the log, shape (n,).
        test_targets (numpy.ndarray): Positions of the test targets in the log.
        split (dict): As in `split_rows`.
        group_by (str or None): As in `split_rows`.

    Returns:
        int: How many differ.
    """
    recbole_order = np.lexsort((events.place, rounded_time, events.users))  # position there -> position here
    time = rounded_time[recbole_order]
    targets = events.targets()  # user borders are the same in both orders
    targets = targets[np.argsort(time[targets], kind="stable")]
    test = split_rows(events.users[targets], time[targets], split, group_by)[2]
    return len(np.setdiff1d(test_targets, recbole_order[targets[test]], assume_unique=True))
