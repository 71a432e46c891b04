"""RecBole's three ways to split rows, on whole arrays.

The rows come in time order. Each split gives three arrays of indices, in the order of RecBole's own lists:
users in the order of their first row, each user's rows in time order. Tested against RecBole's loops, row by
row.
"""

from __future__ import annotations

import numpy as np

LEAVE_ONE = {"valid_and_test": (1, 1), "valid_only": (1, 0), "test_only": (0, 1)}


def split_rows(user, time, split, group_by):
    """Indices of the training, validation and test rows.

    Args:
        user (numpy.ndarray): User of each row, rows in time order, shape (r,).
        time (numpy.ndarray): Time of each row's target, shape (r,); read by `TS` only.
        split (dict): RecBole's `eval_args.split`: {"LS": mode}, {"RS": [a, b, c]} or {"TS": [a, b, c]}.
        group_by (str or None): RecBole's `eval_args.group_by`; read by `RS` only.

    Returns:
        list[numpy.ndarray]: Three int64 arrays.

    Raises:
        ValueError: If the split is none of these.
    """
    if not isinstance(split, dict) or len(split) != 1 or next(iter(split)) not in ("LS", "RS", "TS"):
        raise ValueError(
            f"eval_args.split: expected {{'LS': 'valid_and_test'}}, {{'RS': [0.8, 0.1, 0.1]}} or "
            f"{{'TS': [0.8, 0.1, 0.1]}}, got {split!r}"
        )
    kind, value = next(iter(split.items()))
    if kind == "LS":
        return leave_one_out(user, value)
    ratios = _normal_ratios(kind, value)
    if kind == "TS":
        return split_by_time(user, time, ratios)
    return split_by_ratio(user if _by_user(group_by) else np.zeros_like(user), ratios)


def _by_user(group_by):
    if group_by is None or str(group_by).lower() == "none":
        return False
    if group_by == "user":
        return True
    raise ValueError(f"eval_args.group_by: expected 'user' or 'none', got {group_by!r}")


def _normal_ratios(kind, value):
    numbers = isinstance(value, (list, tuple)) and all(isinstance(ratio, (int, float)) for ratio in value)
    if not numbers or len(value) != 3 or min(value) < 0 or value[0] <= 0:
        raise ValueError(
            f"eval_args.split: {kind} takes three ratios (training, validation, test), the first above 0, "
            f"such as [0.8, 0.1, 0.1]; got {value!r}"
        )
    return [ratio / sum(value) for ratio in value]


class Groups:
    """Rows gathered by user, users in the order of their first row.

    Args:
        user (numpy.ndarray): User of each row, shape (r,).

    Attributes:
        order (numpy.ndarray): The rows, group after group, shape (r,).
        counts (numpy.ndarray): Rows of each group, shape (g,).
        size, place (numpy.ndarray): For each entry of `order`: its group's size, its place in it, shape (r,).
    """

    def __init__(self, user):
        _, first, inverse, counts = np.unique(user, return_index=True, return_inverse=True, return_counts=True)
        self.order = np.argsort(first[inverse], kind="stable")
        self.counts = counts[np.argsort(first)]
        self.starts = np.cumsum(self.counts) - self.counts
        self.size = self.spread(self.counts)
        self.place = np.arange(len(user)) - self.spread(self.starts)

    def spread(self, per_group):
        """Repeat a value per group for each of its rows."""
        return np.repeat(per_group, self.counts)

    def cut(self, first, second):
        """Three arrays of rows: places below `first`, below `second`, the rest. Borders have shape (g,)."""
        first, second = self.spread(first), self.spread(second)
        train, test = self.place < first, self.place >= second
        return [self.order[train], self.order[~train & ~test], self.order[test]]


def leave_one_out(user, mode):
    """Each user's last row is for test, the one before for validation, as far as one is left for training."""
    if mode not in LEAVE_ONE:
        raise ValueError(f"eval_args.split: LS takes one of {', '.join(LEAVE_ONE)}; got {mode!r}")
    valid, test = LEAVE_ONE[mode]
    groups = Groups(user)
    left = np.minimum(valid + test, groups.counts - 1)  # who has two rows keeps one and gives the test one
    n_test = np.minimum(left, test)
    return groups.cut(groups.counts - left, groups.counts - n_test)


def split_by_ratio(user, ratios):
    """Each user's rows by ratios; a part that rounds to nothing takes a row if training has more than one."""
    groups = Groups(user)
    counts = np.stack([(ratio * groups.counts).astype(np.int64) for ratio in ratios])  # (3, g)
    counts[0] = groups.counts - counts[1:].sum(axis=0)
    may_take = np.ones(len(groups.counts), dtype=bool)
    for part in (2, 1):
        may_take &= counts[0] > 1
        share = ratios[part] * groups.counts
        takes = may_take & (share > 0) & (share < 1)
        counts[part] += takes
        counts[0] -= takes
    return groups.cut(counts[0], counts[0] + counts[1])


def split_by_time(user, time, ratios):
    """Rows after a global moment are for test; each user's earlier ones for training and validation."""
    if ratios[2] >= 1:
        raise ValueError("eval_args.split: TS leaves nothing for training; give the first ratio a share")
    groups = Groups(user)
    border = np.percentile(time, 100 * (1 - ratios[2])) if len(time) else 0
    early = np.add.reduceat(time[groups.order] <= border, groups.starts, dtype=np.int64) if len(time) else groups.counts
    train = (early * (ratios[0] / (1 - ratios[2]))).astype(np.int64)
    return groups.cut(train, early)
