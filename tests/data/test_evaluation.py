"""Evaluation batches and the one rule of what must not rank."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.utils.case_study import full_sort_topk

from recbole_ssd.data import SequentialDataset, data_preparation
from recbole_ssd.data.candidates import PHASES, RankingRule, draw_candidates
from recbole_ssd.data.plan import generator
from tests.data.conftest import assert_same_interaction, build


def prepare(config):
    return data_preparation(config, SequentialDataset(config))


def counts(loader):
    return np.ones(loader.dataset.item_num, dtype=int)


def modes(mode):
    return {"eval_args": {"mode": {"valid": mode, "test": mode}}}


@pytest.mark.parametrize("length", [None, 5])
def test_packed_batches_hold_each_rows_last_items(make_config, toy, length):
    test = prepare(make_config(packed=True, MAX_ITEM_LIST_LENGTH=length, eval_batch_size=4))[2]
    row = 0
    for interaction, history, positive_u, positive_i in test:
        borders = interaction["cu_seqlens"].tolist()
        assert history is None and positive_u.tolist() == list(range(len(borders) - 1))
        for k, (start, end) in enumerate(pairwise(borders)):
            padded = test.dataset[[row]]
            assert interaction["item_id_list"][start:end].tolist() == padded["item_id_list"][0, : end - start].tolist()
            assert end - start == padded["item_length"].item()
            assert positive_i[k] == interaction["item_id"][k] == padded["item_id"].item()
            assert interaction["user_id"][k] == padded["user_id"].item()
            row += 1
    assert row == len(test.dataset)


def test_built_ins_get_recboles_batches(make_config, toy):
    config = make_config(time_order="recbole", MAX_ITEM_LIST_LENGTH=5, eval_batch_size=16)
    ours = prepare(config)
    theirs = build(config, ours=False)
    for mine, dataset in zip(ours[1:], theirs[1:], strict=True):
        assert isinstance(mine, FullSortEvalDataLoader) and mine.is_sequential
        expected = FullSortEvalDataLoader(config, dataset, None)
        for batch, other in zip(mine, expected, strict=True):
            assert_same_interaction(batch[0], other[0])
            assert batch[1] is None and other[1] is None
            assert torch.equal(batch[2], other[2]) and torch.equal(batch[3], other[3])


def test_built_ins_train_on_recboles_batches(make_config, toy):
    from recbole.data.utils import create_samplers, get_dataloader
    from recbole.utils import init_seed

    settings = {"loss_type": "BPR", "train_neg_sample_args": {"distribution": "popularity", "sample_num": 2}}
    config = make_config(time_order="recbole", MAX_ITEM_LIST_LENGTH=5, train_batch_size=64, **settings)
    init_seed(3, True)
    mine = list(prepare(config)[0])
    from recbole.data.dataset import SequentialDataset as RecBoleDataset

    init_seed(3, True)
    dataset = RecBoleDataset(config)
    parts = dataset.build()
    sampler = create_samplers(config, dataset, parts)[0]
    theirs = list(get_dataloader(config, "train")(config, parts[0], sampler, shuffle=config["shuffle"]))
    for batch, other in zip(mine, theirs, strict=True):
        assert_same_interaction(batch, other)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("rows, tokens", [(4, 10**6), (10**6, 30), (3, 30)])
def test_batches_keep_both_caps_but_for_one_long_history(make_config, toy, packed, rows, tokens):
    config = make_config(
        packed=packed,
        eval_batch_size=rows,
        max_batch_tokens=tokens,
        **({} if packed else {"MAX_ITEM_LIST_LENGTH": 7}),
    )
    test = prepare(config)[2]
    sizes = [len(batch[3]) for batch in test]
    assert sum(sizes) == len(test.dataset) and len(sizes) == len(test) > 1
    for (interaction, *_), size in zip(test, sizes, strict=True):
        assert size <= rows
        assert size == 1 or interaction["item_id_list"].numel() <= tokens
    if not packed:
        assert max(sizes) == min(rows, tokens // 7)


@pytest.mark.parametrize("packed, length", [(True, None), (True, 2), (False, 2)])
def test_excluded_history_is_all_of_the_past_but_the_target(make_config, write_toy, packed, length):
    # u0 meets its test target b before; the window of 2 does not reach a
    write_toy([("u0", item, k) for k, item in enumerate("abcdb")] + [("u1", item, k) for k, item in enumerate("efgh")])
    config = make_config(packed=packed, MAX_ITEM_LIST_LENGTH=length, exclude_history=True)
    test = prepare(config)[2]
    interaction, history, positive_u, positive_i = next(iter(test))
    scores = torch.zeros(2, test.dataset.item_num)
    scores[history] = -np.inf
    barred = {
        test.dataset.id2token("user_id", user): set(
            test.dataset.id2token("item_id", row.isinf().nonzero()[:, 0].numpy())
        )
        for user, row in zip(interaction["user_id"].tolist(), scores, strict=True)
    }
    assert barred == {"u0": {"a", "c", "d"}, "u1": {"e", "f", "g"}}
    assert not scores[positive_u, positive_i].isinf().any()


@pytest.mark.parametrize("exclude_history", [False, True])
@pytest.mark.parametrize("mode", ["uni5", "pop5"])
def test_only_the_target_and_n_candidates_may_rank(make_config, toy, mode, exclude_history):
    config = make_config(packed=True, exclude_history=exclude_history, eval_batch_size=7, **modes(mode))
    for loader in prepare(config)[1:]:
        rows = iter(loader.dataset[[k]] for k in range(len(loader.dataset)))
        for _, barred, positive_u, positive_i in loader:
            scores = torch.zeros(barred.shape)
            scores[barred] = -np.inf
            free = ~scores.isinf()
            assert free[positive_u, positive_i].all() and not free[:, 0].any()
            if not exclude_history:
                assert (free.sum(dim=1) == 6).all()
            for row, target in zip(free, positive_i.tolist(), strict=True):
                past = set(next(rows)["item_id_list"][0].tolist()) - {target}
                assert not exclude_history or not past & set(row.nonzero()[:, 0].tolist())


def test_candidates_are_drawn_once_per_phase_from_their_seed(make_config, toy):
    settings = {"packed": True, **modes("uni5")}
    _, _, test = prepare(make_config(**settings))
    _, _, again = prepare(make_config(seed=99, **settings))
    _, _, other = prepare(make_config(candidate_seed=1, **settings))
    masks = [batch[1] for batch in test]
    assert all(torch.equal(one, two) for one, two in zip(masks, [batch[1] for batch in test], strict=True))
    assert all(torch.equal(one, two) for one, two in zip(masks, [batch[1] for batch in again], strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(masks, [batch[1] for batch in other], strict=True))
    same_rows = [RankingRule(test.config, test.dataset.inter_feat, phase, counts(test)) for phase in PHASES]
    assert not np.array_equal(same_rows[0].candidates, same_rows[1].candidates)


@pytest.mark.parametrize("weights", ["uniform", "popularity"])
def test_candidates_are_distinct_and_not_the_target(make_config, toy, weights):
    rows = build(make_config(packed=True))[2].inter_feat
    weight = np.ones(41) if weights == "uniform" else np.arange(41.0)
    weight[0] = 0
    drawn = draw_candidates(rows, weight, 38, generator(0))
    assert drawn.shape == (len(rows), 38)
    for row, target in zip(drawn, rows.target_items(), strict=True):
        assert len(set(row)) == 38 and target not in row and 0 not in row


def test_candidates_follow_their_weights(make_config, toy):
    rows = build(make_config(packed=True))[2].inter_feat[np.zeros(20000, dtype=int)]
    weight = np.zeros(41)
    others = np.setdiff1d(np.arange(1, 41), rows.target_items())[:3]
    weight[others] = [1, 2, 5]
    drawn = draw_candidates(rows, weight, 1, generator(0)).ravel()
    assert np.abs(np.bincount(drawn, minlength=41)[others] / 20000 - [1 / 8, 2 / 8, 5 / 8]).max() < 0.015


def test_topk_of_recboles_case_study_finds_the_rows(make_config, toy):
    class Echo(torch.nn.Module):
        """Scores the target: top 1 must be the row's own item."""

        def full_sort_predict(self, interaction):
            return torch.nn.functional.one_hot(interaction["item_id"], 41).float()

    test = prepare(make_config())[2]
    rows = test.dataset.inter_feat
    users = rows["user_id"].numpy()[[4, 1]]
    _, top = full_sort_topk(users, Echo(), test, 1)
    assert top[:, 0].tolist() == rows["item_id"][[4, 1]].tolist()
