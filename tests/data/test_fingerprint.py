"""The split fingerprint: equal for equal splits, different for different ones."""

import random

import numpy as np
import pytest

from recbole_ssd.data import split_fingerprint
from tests.data.conftest import build, random_events


@pytest.fixture
def rows():
    """Distinct times, so that the order of the file does not matter."""
    return [(user, item, 100 * k) for k, (user, item, _) in enumerate(random_events(seed=4))]


def fingerprint(config):
    _, valid, test = build(config)
    return split_fingerprint(valid, test)


def test_it_has_12_digits_and_ignores_ids_and_file_order(make_config, write_toy, rows):
    write_toy(rows)
    first = fingerprint(make_config())
    assert len(first) == 12 and int(first, 16) >= 0
    _, valid, test = build(make_config())
    backwards = valid.copy(valid.inter_feat[np.arange(len(valid))[::-1]])
    assert split_fingerprint(backwards, test) == first
    random.Random(1).shuffle(rows)
    write_toy(rows)
    assert fingerprint(make_config()) == first
    assert fingerprint(make_config(packed=True, MAX_ITEM_LIST_LENGTH=3)) == first


def test_one_other_target_changes_it(make_config, write_toy, rows):
    write_toy(rows)
    first = fingerprint(make_config())
    user, item, time = rows[-1]
    write_toy([*rows[:-1], (user, "other", time)])
    assert fingerprint(make_config()) != first


@pytest.mark.parametrize("split", [{"LS": "test_only"}, {"RS": [0.8, 0.1, 0.1]}], ids=str)
def test_another_split_changes_it(make_config, toy, split):
    assert fingerprint(make_config(eval_args={"split": split})) != fingerprint(make_config())


def test_swapping_validation_and_test_changes_it(make_config, toy):
    _, valid, test = build(make_config())
    assert split_fingerprint(valid, test) != split_fingerprint(test, valid)
