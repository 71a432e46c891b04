import pytest
import torch
from recbole.evaluator.collector import Collector as RecBoleCollector

from recbole_ssd import scores as module
from recbole_ssd.compat import Collector
from recbole_ssd.scores import has_nan, ranks_of


@pytest.mark.parametrize("value, expected", [(torch.nan, True), (torch.inf, False), (0.0, False)])
def test_a_nan_is_found_and_infinities_are_none(value, expected):
    scores = torch.randn(5, 7)
    scores[:, 0] = -torch.inf
    scores[3, 4] = value
    assert has_nan(scores) is expected


def test_ranks_do_not_depend_on_the_block(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(9, (11, 20), generator=generator).float()  # with ties
    rows, items = torch.arange(11), torch.randint(20, (11,), generator=generator)
    whole = ranks_of(scores, rows, items)
    assert whole.tolist() == [int((row >= row[item]).sum()) for row, item in zip(scores, items, strict=True)]
    monkeypatch.setattr(module, "BLOCK", 40)
    assert torch.equal(ranks_of(scores, rows, items), whole)


class Settings(dict):
    """Those of a collector; None where nothing is set, as RecBole's config gives."""

    def __missing__(self, key):
        return None


def collected(kind: type, metrics: list, batch: tuple) -> dict:
    """What a collector keeps of a batch."""
    settings = {"metrics": metrics, "topk": [3, 10], "device": torch.device("cpu"), "eval_args": {"mode": "full"}}
    collector = kind(Settings(settings))
    collector.eval_batch_collect(*batch)
    return collector.data_struct._data_dict


@pytest.mark.parametrize("metrics", [["NDCG"], ["NDCG", "ItemCoverage"], ["Hit", "Recall", "MAP"]])
def test_the_collector_keeps_what_recboles_keeps(metrics):
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(12, 40, generator=generator)
    rows = torch.tensor([0, 0, 1, 2, 2, 2, *range(3, 12)])  # some rows have several targets
    items = torch.cat([torch.tensor([5, 6, 5, 1, 2, 3]), torch.randint(40, (9,), generator=generator)])
    batch = scores, None, rows, items
    ours, recboles = (collected(kind, metrics, batch) for kind in (Collector, RecBoleCollector))
    assert ours.keys() == recboles.keys() and "rec.topk" in ours
    assert all(torch.equal(ours[key], recboles[key]) for key in ours)
