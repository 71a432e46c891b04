"""Metrics, bootstrap and Holm against answers that are known."""

import itertools

import numpy as np
import pytest
import torch
from recbole.config import Config as RecBoleConfig
from recbole.evaluator import Collector, Evaluator
from scipy import stats

from recbole_ssd import Config
from recbole_ssd.comparison.statistics import bootstrap_means, differences, holm, metric_values


def test_metrics_of_a_hand_worked_example():
    """Ranks 1, 2, 4 and 11: ndcg@10 = (1 + 1/log2 3 + 1/log2 5 + 0) / 4."""
    ranks = np.array([1, 2, 4, 11])
    expected = {
        "hit@10": 0.75,
        "hit@3": 0.5,
        "recall@3": 0.5,
        "precision@10": 0.075,
        "ndcg@10": (1 + 0.6309297535714575 + 0.43067655807339306) / 4,
        "mrr@10": (1 + 0.5 + 0.25) / 4,
        "mrr@3": 1.5 / 4,
    }
    for metric, value in expected.items():
        assert metric_values(ranks, metric).mean() == pytest.approx(value, abs=1e-15), metric


def test_metrics_equal_recboles_evaluator():
    names = ["Hit", "NDCG", "MRR", "Recall", "Precision", "MAP"]
    settings = {"metrics": names, "topk": [1, 5, 10], "metric_decimal_place": 10, "valid_metric": "NDCG@10"}
    config = Config("GRU4Rec", "tiny", config_dict=settings)
    assert isinstance(config, RecBoleConfig)
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(200, 60, generator=generator)
    targets = torch.randint(1, 60, (200,), generator=generator)
    scores[torch.arange(200), targets] += 0.4  # else few of them are among the first ten
    collector = Collector(config)
    collector.eval_batch_collect(scores.clone(), None, torch.arange(200), targets)
    theirs = Evaluator(config).evaluate(collector.get_data_struct())
    ranks = 1 + (scores > scores[torch.arange(200), targets][:, None]).sum(dim=1).numpy()
    assert len(theirs) == 18 and (ranks <= 10).mean() > 0.1
    for metric, value in theirs.items():
        assert metric_values(ranks, metric).mean() == pytest.approx(value, abs=1e-9), metric


def test_unknown_metrics_are_refused():
    with pytest.raises(ValueError, match="ranks do not tell 'itemcoverage@10'"):
        metric_values(np.array([1]), "itemcoverage@10")


def test_bootstrap_equals_all_draws_enumerated():
    """Two seeds and three users: 27 draws of users times two of a seed, all equally likely."""
    sums, counts = np.array([[0.0, 1.0, 4.0], [2.0, 2.0, 3.0]]), np.array([1, 1, 1])
    every = [sums[seed][list(users)].mean() for seed in range(2) for users in itertools.product(range(3), repeat=3)]
    (drawn,) = bootstrap_means([sums], counts, draws=40_000, seed=1)
    values, shares = np.unique(np.round(every, 9), return_counts=True)
    found, numbers = np.unique(np.round(drawn, 9), return_counts=True)
    assert found.tolist() == values.tolist()
    assert np.abs(numbers / len(drawn) - shares / len(every)).max() < 0.01


def test_users_with_several_targets_are_drawn_whole():
    """A user of three targets weighs three: the mean of [0, 1] with targets (1, 3) is 0, 3/4 or 1."""
    sums, counts = np.array([[0.0, 3.0], [0.0, 3.0]]), np.array([1, 3])
    (drawn,) = bootstrap_means([sums], counts, draws=5_000)
    assert np.unique(drawn).tolist() == [0.0, 0.75, 1.0]


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_variance_is_that_of_users_plus_that_of_seeds(seeds):
    """Users alone: that of their mean. Seeds alone: sd squared over the number of seeds, without a bias."""
    rng = np.random.default_rng(3)
    users, shifts = rng.normal(size=400), rng.normal(size=seeds)
    counts = np.ones(400, dtype=int)
    (drawn,) = bootstrap_means([np.tile(users, (seeds, 1))], counts, draws=20_000)
    assert drawn.var() == pytest.approx(users.var() / 400, rel=0.05)
    (drawn,) = bootstrap_means([np.tile(shifts[:, None], (1, 400))], counts, draws=20_000)
    assert drawn.var() == pytest.approx(shifts.var(ddof=1) / seeds, rel=0.05)


def test_interval_equals_scipys_where_seeds_do_not_vary():
    rng = np.random.default_rng(5)
    first, other = rng.random(300), rng.random(300) + 0.1
    (found,) = differences([np.tile(first, (2, 1)), np.tile(other, (3, 1))], np.ones(300, dtype=int))
    options = {"paired": True, "vectorized": True, "method": "percentile", "n_resamples": 10_000, "rng": 1}
    theirs = stats.bootstrap((other, first), lambda a, b, axis: (a - b).mean(axis=axis), **options)
    assert found.mean == pytest.approx((other - first).mean())
    width = found.high - found.low
    assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.04 * width)
    assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.04 * width)


def test_pairing_users_narrows_the_interval():
    """Both models fail for the same users: the difference hardly varies, each mean does."""
    rng = np.random.default_rng(6)
    hard = rng.random(500)
    first, other = np.stack([hard, hard]), np.stack([hard, hard]) + 0.01 * rng.random((2, 500))
    (found,) = differences([first, other], np.ones(500, dtype=int))
    assert 0 < found.low < found.mean < found.high
    assert found.high - found.low < 0.1 * hard.std() / np.sqrt(500)


def test_false_discoveries_are_rare_under_equality():
    """Of 200 comparisons of equals, about 10 have p < .05; seeds count here, so users alone would give many more."""
    rng = np.random.default_rng(7)
    counts = np.ones(60, dtype=int)
    found = []
    for _ in range(200):
        level, users = 0.1 * rng.normal(size=(2, 8, 1)), rng.normal(size=60)
        pair = [level[side] + users + 0.2 * rng.normal(size=(8, 60)) for side in range(2)]
        found += differences(pair, counts, draws=1000)
    share = np.mean([difference.p < 0.05 for difference in found])
    assert 0.01 < share < 0.12


def test_one_seed_has_no_interval():
    with pytest.raises(ValueError, match="two or more"):
        bootstrap_means([np.ones((1, 3))], np.ones(3))


def test_same_seed_same_interval():
    rng = np.random.default_rng(0)
    sums = [rng.random((3, 50)) for _ in range(3)]
    assert differences(sums, np.ones(50)) == differences(sums, np.ones(50))
    assert differences(sums, np.ones(50), seed=1) != differences(sums, np.ones(50))


def test_holm_of_a_hand_worked_example():
    """.005 * 4, .01 * 3, .03 * 2, .04 * 1; the last may not fall below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0] and holm([]) == []
