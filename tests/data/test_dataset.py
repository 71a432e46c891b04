"""Our rows against RecBole's copies."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from recbole.data.dataset import SequentialDataset as RecBoleDataset

from recbole_ssd.data import SequentialDataset, create_dataset
from tests.data.conftest import assert_same_interaction, build, random_events

HEADER = "user_id:token\titem_id:token\ttimestamp:float\trating:float\ttags:token_seq\tvector:float_seq"
COLUMNS = {"inter": ["user_id", "item_id", "timestamp", "rating", "tags", "vector"]}


@pytest.fixture
def rich(write_toy):
    """Token, float, token_seq and float_seq columns, user and item files."""
    rng = np.random.default_rng(1)

    def words(row):
        tags = " ".join(f"t{k}" for k in range(int(rng.integers(1, 4))))
        return (
            *row,
            round(float(rng.random()), 3),
            tags or "t0",
            " ".join(["0.5", "1.5"][: int(rng.integers(1, 3))]),
        )

    rows = random_events(seed=2)
    write_toy([words(row) for row in rows], HEADER)
    write_toy([(f"u{k}", k % 7) for k in range(30)], "user_id:token\tage:token", "user")
    write_toy([(f"i{k}", k / 7) for k in range(40)], "item_id:token\tprice:float", "item")
    return {"load_col": {**COLUMNS, "user": ["user_id", "age"], "item": ["item_id", "price"]}}


def assert_same_parts(config):
    ours, theirs = build(config), build(config, ours=False)
    for mine, other in zip(ours, theirs, strict=True):
        assert len(mine) == len(other)
        if len(other):
            assert_same_interaction(mine[np.arange(len(mine))], other[np.arange(len(other))])


@pytest.mark.parametrize("length", [1, 5, 50])
def test_windows_are_recboles_bit_for_bit(make_config, rich, length):
    assert_same_parts(make_config(MAX_ITEM_LIST_LENGTH=length, time_order="recbole", **rich))


@pytest.mark.parametrize(
    "settings",
    [
        {"normalize_all": True},
        {"numerical_features": ["rating", "vector"]},
        {"unused_col": {"inter": ["rating", "rating_list"]}},
        {"user_inter_num_interval": "[3,inf)", "item_inter_num_interval": "[2,inf)"},
        {"rm_dup_inter": "first"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_windows_are_recboles_with_other_settings(make_config, rich, settings):
    assert_same_parts(make_config(MAX_ITEM_LIST_LENGTH=7, time_order="recbole", **rich, **settings))


def test_windows_are_recboles_on_ml_100k(make_config):
    config = make_config(
        "ml-100k",
        time_order="recbole",
        user_inter_num_interval="[20,40]",
        MAX_ITEM_LIST_LENGTH=50,
        load_col={"inter": ["user_id", "item_id", "rating", "timestamp"]},
        normalize_all=True,
    )
    assert_same_parts(config)


@pytest.mark.parametrize(
    "index", [3, torch.tensor([1]), [4, 2, 2], np.array([0, -1]), slice(2, 9, 3), range(3)], ids=repr
)
def test_every_kind_of_index_is_recboles(make_config, rich, index):
    config = make_config(MAX_ITEM_LIST_LENGTH=5, time_order="recbole", **rich)
    mine, other = build(config)[0], build(config, ours=False)[0]
    assert_same_interaction(mine[index], other[index])


def test_boolean_masks_select_rows(make_config, toy):
    train = build(make_config(time_order="recbole"))[0]
    mask = train.inter_feat["item_length"] == 1
    assert set(train[mask]["item_length"].tolist()) == {1}


def test_whole_histories_are_padded_to_the_longest_asked_for(make_config, toy):
    test = build(make_config(packed=True))[2]
    lengths = test.inter_feat["item_length"]
    longest = int(lengths.argmax())
    assert test[[longest]]["item_id_list"].shape == (1, int(lengths.max()))
    assert test.field2seqlen["item_id_list"] >= int(lengths.max())
    shortest = int(lengths.argmin())
    assert test[torch.tensor([shortest])]["item_id_list"].shape == (1, int(lengths.min()))


def test_figures_are_recboles_before_and_after_build(make_config, rich):
    config = make_config(time_order="recbole", **rich)
    mine, other = SequentialDataset(config), RecBoleDataset(config)
    assert str(mine) == str(other)
    parts, other_parts = mine.build(), other.build()
    for ours, theirs in zip([mine, *parts], [other, *other_parts], strict=True):
        assert str(ours) == str(theirs)
        assert ours.item_counter == theirs.item_counter
        assert ours.user_counter == theirs.user_counter
        for value in (None, "rating"):
            matrix, expected = ours.inter_matrix("csr", value), theirs.inter_matrix("csr", value)
            assert (matrix != expected).nnz == 0 and matrix.nnz == expected.nnz


def test_lazy_window_columns_index_like_tensors(make_config, toy):
    config = make_config(time_order="recbole", MAX_ITEM_LIST_LENGTH=5)
    mine, other = build(config)[0].inter_feat, build(config, ours=False)[0].inter_feat
    for index in (np.int64(4), 4, np.array([1, 3]), slice(0, 4)):
        assert torch.equal(mine["item_id_list"][index], other["item_id_list"][index])
    assert len(mine["item_id_list"]) == len(mine)


def test_an_unknown_column_is_named(make_config, toy):
    with pytest.raises(KeyError, match="no column 'genre'"):
        build(make_config())[0].inter_feat["genre"]


def test_a_pickled_dataset_is_the_same(make_config, rich):
    train = build(make_config(MAX_ITEM_LIST_LENGTH=5, **rich))[0]
    again = pickle.loads(pickle.dumps(train))
    assert_same_interaction(again[np.arange(len(train))], train[np.arange(len(train))])


def test_build_can_be_called_twice(make_config, toy):
    dataset = SequentialDataset(make_config(unused_col={"inter": ["timestamp"]}))
    first, second = dataset.build(), dataset.build()
    assert all(np.array_equal(a.inter_feat.table, b.inter_feat.table) for a, b in zip(first, second, strict=True))


PREPARE = """
from recbole_ssd import Config
from recbole_ssd.data import create_dataset, data_preparation

def peak_mb():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

config = Config("GRU4Rec", "ml-100k", config_dict={"MAX_ITEM_LIST_LENGTH": 600})
dataset = create_dataset(config)
before = peak_mb()
loaders = data_preparation(config, dataset)
print("grew by", peak_mb() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the peak memory from Linux' /proc")
def test_preparing_allocates_no_padded_copies():
    """RecBole's windows take 98,057 x 600 x 8 bytes = 449 MiB a column, 1,350 MiB in all."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PREPARE], capture_output=True, text=True)
    assert "grew by" in done.stdout, done.stderr
    assert float(done.stdout.split("grew by")[1]) < 64


def test_what_lacks_a_user_or_an_item_is_left_out_and_nothing_else(make_config, write_toy):
    """RecBole takes the lines for places after some are gone, and drops others."""
    rows = [("", "a", 1), ("", "b", 2), *[("u0", f"i{k}", k) for k in range(6)], ("u1", "i0", 1), ("u1", "i1", 2)]
    rows[5] = ("u0", "", 3)
    write_toy(rows)
    dataset = create_dataset(make_config())
    events = list(zip(*(dataset.id2token(field, dataset.inter_feat[field]) for field in ("user_id", "item_id"))))
    kept = [(user, item) for user, item, _ in rows if user and item]
    assert sorted(events) == sorted(kept)


def test_names_that_pandas_takes_for_missing_are_names(make_config, write_toy):
    names = ["NA", "null", "None", "nan", "a"]
    write_toy([(user, item, time) for user in ("u0", "NA") for time, item in enumerate(names)])
    dataset = create_dataset(make_config())
    assert set(dataset.field2token_id["item_id"]) == {"[PAD]", *names}
    assert set(dataset.field2token_id["user_id"]) == {"[PAD]", "u0", "NA"}
