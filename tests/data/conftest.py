"""Configs and small data files for the tests of the data room."""

import numpy as np
import pytest
from recbole.data.dataset import SequentialDataset as RecBoleDataset
from recbole.model.abstract_recommender import SequentialRecommender

from recbole_ssd import Config
from recbole_ssd.data import SequentialDataset


class PackedDummy(SequentialRecommender):
    """Stands for any model that takes packed streams."""

    packed = True


@pytest.fixture
def make_config(tmp_path):
    """A function: settings -> Config. `packed=True` takes a packed model, otherwise RecBole's GRU4Rec."""

    def make(dataset="toy", packed=False, model="GRU4Rec", **settings):
        defaults = {"data_path": str(tmp_path), "loss_type": "CE", "checkpoint_dir": str(tmp_path / "saved")}
        defaults |= {"topk": [1], "valid_metric": "NDCG@1"}  # toys have few items
        if packed:
            defaults["MAX_ITEM_LIST_LENGTH"] = None
        return Config(PackedDummy if packed else model, dataset, config_dict={**defaults, **settings})

    return make


@pytest.fixture
def write_toy(tmp_path):
    """A function: rows -> the files of the data set `toy`, columns separated by tabs."""

    def write(rows, header="user_id:token\titem_id:token\ttimestamp:float", suffix="inter"):
        folder = tmp_path / "toy"
        folder.mkdir(exist_ok=True)
        lines = [row if isinstance(row, str) else "\t".join(map(str, row)) for row in rows]
        (folder / f"toy.{suffix}").write_text("\n".join([header, *lines]) + "\n")
        return folder / f"toy.{suffix}"

    return write


def random_events(seed=0, users=30, items=40, longest=25, step=100, start=10**9):
    """Rows (user, item, time) in random file order; times lie `step` apart, many within one float32 value."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        # users with 1, 2 and 3 events always exist
        count = user + 1 if user < 3 else int(rng.integers(1, longest))
        times = start + step * rng.integers(0, 3 * longest, size=count)
        rows += [(f"u{user}", f"i{rng.integers(items)}", time) for time in times]
    return [rows[k] for k in rng.permutation(len(rows))]


@pytest.fixture
def toy(write_toy):
    """A data set with ties, repeats and short users."""
    write_toy(random_events())
    return "toy"


def build(config, ours=True):
    """The three built data sets, ours or RecBole's own."""
    return (SequentialDataset if ours else RecBoleDataset)(config).build()


def assert_same_interaction(got, expected):
    """Same columns in the same order, same values, dtypes and shapes."""
    assert got.columns == expected.columns
    for name in expected.columns:
        assert got[name].dtype == expected[name].dtype, name
        assert got[name].shape == expected[name].shape, name
        assert bool((got[name] == expected[name]).all()), name
