"""A generated data set shaped like KuaiRand-Pure: 23,951 users, 7,111 items, 1.13 M events.

Histories are log-normal (median 34, 5 % beyond 131) and end at 806. Items follow Zipf's law; two events in five are the
successor of the one before, so that there is an order to learn. What it is not is data of people: its times are
right, the scores of a model on it say nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

NAME = "kuairand-pure-like"
USERS, ITEMS, EVENTS = 23_951, 7_111, 1_130_000
MEDIAN, LATE, LONGEST, SHORTEST = 34, 131, 806, 5
LATE_QUANTILE = 1.645  # of a normal distribution, at 95 %
FOLLOWING = 0.4  # share of events that are the successor of the one before
COLUMNS = {"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "TIME_FIELD": "timestamp"}
SETTINGS = {**COLUMNS, "load_col": {"inter": list(COLUMNS.values())}}


def write(folder: Path, users: int = USERS, seed: int = 2020) -> dict:
    """Writes the atomic file that RecBole reads; tells its shape.

    Args:
        folder: becomes `data_path`.
        users: fewer than all for a trial.
        seed: of all draws.
    """
    rng = np.random.default_rng(seed)
    lengths = history_lengths(rng, users)
    user = np.repeat(np.arange(users), lengths)
    item = items(rng, lengths)
    times = 1_650_000_000_000 + 60_000 * np.arange(len(user))  # in milliseconds; a user's events in their order
    frame = pd.DataFrame({"user_id:token": user, "item_id:token": item, "timestamp:float": times})
    (folder / NAME).mkdir(parents=True)
    frame.to_csv(folder / NAME / f"{NAME}.inter", sep="\t", index=False)
    late, most = np.quantile(lengths, 0.95), lengths.max()
    shape = {"users": users, "items": len(np.unique(item)), "events": len(user), "median": np.median(lengths)}
    return {name: float(number) for name, number in {**shape, "95 %": late, "longest": most}.items()}


def history_lengths(rng: np.random.Generator, users: int) -> np.ndarray:
    """Events of every user, scaled so that all users have EVENTS."""
    sigma = np.log(LATE / MEDIAN) / LATE_QUANTILE
    drawn = rng.lognormal(np.log(MEDIAN), sigma, USERS)
    scaled = drawn * (EVENTS / drawn.sum())
    return np.clip(np.round(scaled), SHORTEST, LONGEST).astype(np.int64)[:users]


def items(rng: np.random.Generator, lengths: np.ndarray) -> np.ndarray:
    """The item of every event, user after user."""
    events = int(lengths.sum())
    weight = 1 / (10 + np.arange(ITEMS))
    drawn = rng.choice(ITEMS, size=events, p=weight / weight.sum())
    fresh = rng.random(events) >= FOLLOWING
    fresh[np.cumsum(lengths) - lengths] = True  # a history begins with a draw
    place = np.arange(events)
    since = np.maximum.accumulate(np.where(fresh, place, 0))  # of the last draw
    order = rng.permutation(ITEMS)  # neighbours in it follow each other, and are not equally popular by that
    rank = np.argsort(order)
    return order[(rank[drawn[since]] + place - since) % ITEMS]
