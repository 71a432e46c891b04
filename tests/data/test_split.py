"""Every split against RecBole's own loops: the same rows in the same order."""

import numpy as np
import pytest

from recbole_ssd.data.split import split_rows
from tests.data.conftest import build, random_events

SPLITS = [
    {"LS": "valid_and_test"},
    {"LS": "valid_only"},
    {"LS": "test_only"},
    {"RS": [0.8, 0.1, 0.1]},
    {"RS": [3, 1, 2]},
    {"RS": [0.34, 0.33, 0.33]},
    {"RS": [0.9, 0.1, 0.0]},
    {"TS": [0.8, 0.1, 0.1]},
    {"TS": [0.5, 0.2, 0.3]},
]


@pytest.mark.parametrize("group_by", ["user", "none"])
@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_split_is_recboles(make_config, write_toy, split, group_by, seed):
    write_toy(random_events(seed))
    config = make_config(time_order="recbole", eval_args={"split": split, "order": "TO", "group_by": group_by})
    for mine, other in zip(build(config), build(config, ours=False), strict=True):
        for name in ("user_id", "item_id", "timestamp", "item_length"):
            assert mine.inter_feat[name].tolist() == other.inter_feat[name].tolist()


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_every_row_is_in_exactly_one_part(split):
    rng = np.random.default_rng(3)
    user, time = rng.integers(0, 50, 400), np.sort(rng.random(400))
    parts = split_rows(user, time, split, "user")
    assert sorted(np.concatenate(parts).tolist()) == list(range(400))


@pytest.mark.parametrize(
    "split, group_by, words",
    [
        ({"LS": "both"}, "user", "LS takes one of"),
        ({"RS": [0.8, 0.2]}, "user", "three ratios"),
        ({"RS": [0, 0.5, 0.5]}, "user", "the first above 0"),
        ({"TS": "0.8"}, "user", "three ratios"),
        ({"RS": [8, 1, 1]}, "item", "group_by"),
        ({"XS": 1}, "user", "eval_args.split"),
        (None, "user", "eval_args.split"),
    ],
)
def test_a_split_that_does_not_exist_is_refused(split, group_by, words):
    with pytest.raises(ValueError, match=words):
        split_rows(np.zeros(3, int), np.arange(3.0), split, group_by)
