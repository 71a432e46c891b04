"""Exact order of events, and how far RecBole's is from it."""

import logging
from collections import defaultdict

import numpy as np
import pytest

from recbole_ssd.data import SequentialDataset
from tests.data.conftest import build, random_events


def tokens(dataset, part):
    rows = part.inter_feat
    users = dataset.field2id_token["user_id"][rows.table[:, 0]]
    return dict(zip(users, dataset.field2id_token["item_id"][rows.target_items()], strict=True))


def histories(rows, rounding):
    """Each user's items: a stable sort of the file by a rounded time."""
    found = defaultdict(list)
    for user, item, _ in sorted(rows, key=lambda row: float(rounding(row[2]))):
        found[user].append(item)
    return found


@pytest.mark.parametrize("time_order, rounding", [("exact", np.float64), ("recbole", np.float32)])
def test_histories_follow_the_order_asked_for(make_config, write_toy, time_order, rounding):
    rows = random_events(seed=5, users=60, step=20)
    write_toy(rows)
    dataset = SequentialDataset(make_config(time_order=time_order))
    test = dataset.build()[2]
    found = tokens(dataset, test)
    expected = histories(rows, rounding)
    assert len(found) > 40
    for row, (user, target) in enumerate(found.items()):
        window = test[row]["item_id_list"][: len(expected[user]) - 1]
        assert [*dataset.id2token("item_id", window.numpy()), target] == expected[user]


def test_the_two_orders_differ_on_times_100_s_apart(make_config, write_toy):
    # 50 s before and after a multiple of 128: one float32 bucket; the later event stands first in the file
    bucket = 1_100_000_000 // 128 * 128
    history = [("old", bucket - 9999), ("late", bucket + 50), ("early", bucket - 50)]
    write_toy([(f"u{u}", item, time) for u in range(5) for item, time in history])
    exact = SequentialDataset(make_config())
    recbole = SequentialDataset(make_config(time_order="recbole"))
    assert set(tokens(exact, exact.build()[2]).values()) == {"late"}
    assert set(tokens(recbole, recbole.build()[2]).values()) == {"early"}


@pytest.mark.parametrize("split", [{"LS": "valid_and_test"}, {"RS": [0.6, 0.2, 0.2]}, {"TS": [0.6, 0.2, 0.2]}], ids=str)
def test_the_log_counts_test_targets_that_differ_from_recbole(make_config, write_toy, caplog, split):
    write_toy(random_events(seed=7, users=40, step=20))
    config = make_config(eval_args={"split": split, "order": "TO", "group_by": "user"})
    with caplog.at_level(logging.INFO):
        ours = set(pairs(build(config)[2]))
    theirs = set(pairs(build(make_config(time_order="recbole", eval_args=config["eval_args"]))[2]))
    moved = len(ours - theirs)
    assert moved > 0
    assert f"exact; {moved} of {len(ours)} test targets differ" in caplog.text


def pairs(part):
    """(user, place in the file) of every target."""
    rows = part.inter_feat
    return zip(rows.table[:, 0].tolist(), rows.events.place[rows.table[:, 3]].tolist(), strict=True)


@pytest.mark.parametrize("normalize_all, moved", [(False, 149), (True, 4)])
def test_ml_100k_moves_as_many_test_targets_as_measured(make_config, caplog, normalize_all, moved):
    with caplog.at_level(logging.INFO):
        build(make_config("ml-100k", normalize_all=normalize_all))
    assert f"{moved} of 943 test targets differ" in caplog.text


@pytest.mark.parametrize("keep", ["first", "last"])
def test_removing_repeats_keeps_the_file_order_of_ties(make_config, write_toy, keep):
    # 2,000 events at 3 times: enough for an unstable sort to shuffle the ties
    rng = np.random.default_rng(0)
    rows = [("u0", f"i{rng.integers(300)}", int(rng.integers(3))) for _ in range(2000)]
    write_toy(rows)
    dataset = SequentialDataset(make_config(rm_dup_inter=keep, eval_args={"split": {"LS": "test_only"}}))
    events = dataset.build()[2].inter_feat.events
    ordered = histories(rows, np.float64)["u0"]
    kept = list(dict.fromkeys(ordered if keep == "first" else ordered[::-1]))
    expected = kept if keep == "first" else kept[::-1]
    assert list(dataset.field2id_token["item_id"][events.items]) == expected


def test_rules_are_logged(make_config, write_toy, caplog):
    write_toy([("u9", "i0", 0), ("u0", "i0", 1), *[("u1", f"i{k}", k) for k in (1, 2, 3, 4, 4)]])
    with caplog.at_level(logging.INFO):
        build(make_config(val_interval={"timestamp": "[1,inf)"}))
    assert "1 users have one event" in caplog.text
    assert "Filtering keeps 6 of 7 events, 2 of 3 users" in caplog.text
    assert "1 events repeat user, item and time" in caplog.text
