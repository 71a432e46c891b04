"""Packed training batches: what is in them, when, and that nothing of the evaluation is."""

import pickle
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch

from recbole_ssd.data import SequentialDataset, data_preparation
from recbole_ssd.data.negatives import NegativeSampler
from recbole_ssd.data.plan import generator, plan_batches
from tests.data.conftest import assert_same_interaction

SUPERVISIONS = ["all_positions", "prefixes"]
PAIRWISE = {"loss_type": "BPR", "train_neg_sample_args": {"distribution": "uniform", "sample_num": 3}}


def prepare(config):
    return data_preparation(config, SequentialDataset(config))


def histories(loader):
    """Each user's items in time order, from the log itself."""
    events = loader.dataset.events
    return {user: events.items[events.starts[user] : events.stops[user]].tolist() for user in set(events.users)}


def segments(batch):
    """(user, inputs, targets or None) of every segment of a batch."""
    borders = batch["cu_seqlens"].tolist()
    targets = batch["item_id"].tolist()
    per_position = len(targets) == borders[-1] and len(targets) != len(borders) - 1
    for k, (start, end) in enumerate(pairwise(borders)):
        inputs = batch["item_id_list"][start:end].tolist()
        yield int(batch["user_id"][k]), inputs, targets[start:end] if per_position else targets[k : k + 1]


@pytest.fixture
def distinct(write_toy):
    """Items that occur once each, so that an item tells user and position; users with 1 to 20 events."""
    write_toy([(f"u{u}", f"i{u}_{k}", 1000 * k + u) for u in range(20) for k in range(u + 1)])


@pytest.mark.parametrize("length", [None, 7, 1])
@pytest.mark.parametrize("supervision", SUPERVISIONS)
def test_every_training_target_once_and_no_other(make_config, distinct, supervision, length):
    config = make_config(packed=True, supervision=supervision, MAX_ITEM_LIST_LENGTH=length, train_batch_size=16)
    train, valid, test = prepare(config)
    expected = Counter(train.dataset.inter_feat.target_items().tolist())
    held_out = set(valid.dataset.inter_feat.target_items()) | set(test.dataset.inter_feat.target_items())
    seen = Counter()
    for batch in train:
        seen.update(batch["item_id"].tolist())
        assert not held_out & set(batch["item_id_list"].tolist())
    assert seen == expected and set(seen.values()) == {1}
    assert train.n_targets == sum(seen.values())


@pytest.mark.parametrize("length", [None, 7])
@pytest.mark.parametrize("supervision", SUPERVISIONS)
def test_inputs_are_what_the_user_did_just_before(make_config, distinct, supervision, length):
    config = make_config(packed=True, supervision=supervision, MAX_ITEM_LIST_LENGTH=length, train_batch_size=16)
    train = prepare(config)[0]
    past = histories(train)
    tokens = 0
    for batch in train:
        assert batch["cu_seqlens"].dtype == torch.int32 and batch["item_id_list"].dtype == torch.int64
        tokens += len(batch["item_id_list"])
        for user, inputs, targets in segments(batch):
            end = past[user].index(targets[-1])
            assert past[user][end - len(inputs) : end] == inputs
            assert length is None or len(inputs) <= length
            if supervision == "prefixes":
                assert len(inputs) == min(end, length or end)
            else:
                assert past[user][end - len(targets) + 1 : end + 1] == targets
    assert tokens == train.n_tokens


@pytest.mark.parametrize("supervision", SUPERVISIONS)
@pytest.mark.parametrize("tokens, targets", [(40, 1000), (1000, 12), (25, 10)])
def test_batches_keep_both_caps_but_for_one_long_history(make_config, distinct, supervision, tokens, targets):
    config = make_config(packed=True, supervision=supervision, max_batch_tokens=tokens, train_batch_size=targets)
    train = prepare(config)[0]
    batches = list(train)
    assert len(batches) == len(train) > 1
    for batch in batches:
        if len(batch["user_id"]) > 1:
            assert len(batch["item_id_list"]) <= tokens
            assert len(batch["item_id"]) <= targets


def test_histories_above_the_cap_are_counted_in_the_log(make_config, distinct, caplog):
    with caplog.at_level("INFO"):
        prepare(make_config(packed=True, max_batch_tokens=10))
    assert "7 training segments are longer than max_batch_tokens (10)" in caplog.text  # 11 to 17 inputs
    assert "9 test histories are longer than max_batch_tokens (10)" in caplog.text  # 11 to 19 inputs


def test_batches_are_full(make_config, distinct):
    """Greedy: no batch could have taken the first segment of the next one."""
    train = prepare(make_config(packed=True, train_batch_size=20))[0]
    sizes = [[len(inputs) for _, inputs, _ in segments(batch)] for batch in train]
    for this, following in pairwise(sizes):
        assert sum(this) + following[0] > 20


def epoch(loader, number):
    loader.set_epoch(number)
    return list(loader)


@pytest.mark.parametrize("supervision", SUPERVISIONS)
def test_plan_depends_on_seed_and_epoch_alone(make_config, toy, supervision):
    settings = {"packed": True, "supervision": supervision, "train_batch_size": 32, **PAIRWISE}
    first, again = prepare(make_config(**settings))[0], prepare(make_config(**settings))[0]
    epoch(first, 0), epoch(first, 1)
    torch.manual_seed(7)
    np.random.seed(7)
    for one, other in zip(epoch(first, 5), epoch(again, 5), strict=True):
        assert_same_interaction(one, other)
    users = [batch["user_id"].tolist() for batch in epoch(first, 5)]
    assert users != [batch["user_id"].tolist() for batch in epoch(first, 6)]
    assert users != [batch["user_id"].tolist() for batch in epoch(prepare(make_config(seed=3, **settings))[0], 5)]


def test_shuffle_false_keeps_one_order(make_config, toy):
    train = prepare(make_config(packed=True, shuffle=False, train_batch_size=32))[0]
    users = [batch["user_id"].tolist() for batch in epoch(train, 0)]
    assert users == [batch["user_id"].tolist() for batch in epoch(train, 1)]
    assert sum(users, []) == sorted(sum(users, []))


def test_length_is_that_of_the_current_plan(make_config, distinct):
    train = prepare(make_config(packed=True, train_batch_size=20))[0]
    lengths = set()
    for number in range(20):
        assert len(epoch(train, number)) == len(train)
        lengths.add(len(train))
    assert len(lengths) > 1  # otherwise this test shows nothing


def test_two_workers_give_the_batches_of_none(make_config, toy):
    settings = {"packed": True, "train_batch_size": 32, "eval_batch_size": 8, **PAIRWISE}
    alone, helped = prepare(make_config(**settings)), prepare(make_config(worker=2, **settings))
    for one, other in zip(epoch(alone[0], 3), epoch(helped[0], 3), strict=True):
        assert_same_interaction(one, other)
    for one, other in zip(alone[2], helped[2], strict=True):
        assert_same_interaction(one[0], other[0])


def test_a_pickled_loader_gives_the_same_batches(make_config, toy):
    loaders = prepare(make_config(packed=True, train_batch_size=32, **PAIRWISE))
    for loader in loaders[1:]:
        again = pickle.loads(pickle.dumps(loader))
        assert [len(batch[0]) for batch in again] == [len(batch[0]) for batch in loader]
    again = pickle.loads(pickle.dumps(loaders[0]))
    for one, other in zip(epoch(loaders[0], 2), epoch(again, 2), strict=True):
        assert_same_interaction(one, other)


def test_loader_is_recboles_dataset_and_counts_training_targets(make_config, toy):
    train, valid, test = prepare(make_config(packed=True))
    for loader in (train, valid, test):
        assert isinstance(loader.dataset, SequentialDataset)
        assert loader.dataset.num("item_id") == loader.dataset.item_num
    assert train.dataset.item_counter == Counter(train.dataset.inter_feat.target_items().tolist())


def test_iterating_draws_nothing_from_the_global_generators(make_config, toy):
    train = prepare(make_config(packed=True, **PAIRWISE))[0]
    torch.manual_seed(0), np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(train)
    assert torch.equal(before[0], torch.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize("supervision", SUPERVISIONS)
@pytest.mark.parametrize("distribution", ["uniform", "popularity"])
def test_negatives_are_never_the_target(make_config, write_toy, supervision, distribution):
    write_toy([(f"u{u}", f"i{(u + k) % 4}", k) for u in range(9) for k in range(8)])
    negatives = {"distribution": distribution, "sample_num": 3}
    train = prepare(
        make_config(packed=True, supervision=supervision, loss_type="BPR", train_neg_sample_args=negatives)
    )[0]
    for batch in train:
        assert batch["neg_item_id"].shape == (len(batch["item_id"]), 3)
        assert batch["neg_item_id"].dtype == torch.int64
        assert not (batch["neg_item_id"] == batch["item_id"][:, None]).any()
        assert 1 <= batch["neg_item_id"].min() and batch["neg_item_id"].max() <= 4


@pytest.mark.parametrize(
    "distribution, alpha, expected",
    [
        ("uniform", 1.0, [0, 0, 1 / 3, 1 / 3, 1 / 3]),
        ("popularity", 1.0, [0, 0, 4 / 14, 0, 10 / 14]),
        ("popularity", 0.5, [0, 0, 2 / (2 + 10**0.5), 0, 10**0.5 / (2 + 10**0.5)]),
    ],
)
def test_negatives_follow_their_distribution(distribution, alpha, expected):
    sampler = NegativeSampler(distribution, alpha, 4, np.array([0, 6, 4, 0, 10]))
    drawn = sampler.draw(np.full(20000, 1), generator(0))
    assert np.abs(np.bincount(drawn.ravel(), minlength=5) / drawn.size - expected).max() < 0.01


def test_no_negatives_with_ce(make_config, toy):
    assert "neg_item_id" not in next(iter(prepare(make_config(packed=True))[0]))


def test_a_batch_may_be_exactly_full():
    tokens, ones = np.array([2, 3, 5, 1]), np.ones(4, dtype=int)
    assert [len(batch) for batch in plan_batches(np.arange(4), tokens, ones, 5, 9)] == [2, 1, 1]
    assert [len(batch) for batch in plan_batches(np.arange(4), tokens, ones, 99, 2)] == [2, 2]


def test_plan_of_nothing_is_empty():
    none = np.array([], dtype=np.int64)
    assert plan_batches(none, none, none, 5, 5) == []


@pytest.mark.parametrize("length", [None, 3])
@pytest.mark.parametrize("supervision", SUPERVISIONS)
def test_time_gaps_are_the_time_since_the_event_before(make_config, write_toy, supervision, length):
    """An event's number is in its item's name, and its time is that number squared, in milliseconds of these years."""
    start = 1_700_000_000_000
    write_toy([(f"u{u}", f"i{u}_{k}", start + k * k) for u in range(12) for k in range(u + 1)])
    settings = {"MAX_ITEM_LIST_LENGTH": length, "worker": 0 if length else 1}
    config = make_config(packed=True, supervision=supervision, time_gaps=True, **settings)
    train, valid, test = prepare(config)
    names = train.dataset.field2id_token["item_id"]
    evaluated = [interaction for loader in (valid, test) for interaction, *_ in loader]
    for batch in [*train, *evaluated]:
        numbers = [int(names[item].partition("_")[2]) for item in batch["item_id_list"]]
        assert batch["time_gaps"].tolist() == [max(0, 2 * k - 1) for k in numbers]
    assert all("time_gaps" not in batch for batch in prepare(make_config(packed=True))[0])
