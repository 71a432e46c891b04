"""recommend: the best items for histories of anybody, by name."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from recbole.utils.case_study import full_sort_topk

from recbole_ssd import load_data_and_model, load_model, recommend, run_recbole_ssd
from tests.conftest import ROOT

SETTINGS = {"data_path": str(ROOT / "dataset"), "epochs": 1, "show_progress": False, "MAX_ITEM_LIST_LENGTH": 5}


@pytest.fixture(scope="module", params=["SSD4Rec", "MambaRec", "GRU4Rec", "SASRec"])
def trained(request, tmp_path_factory):
    """Config, model, data set and loader of the test, from a checkpoint; and where that is."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp(request.param)
        patch.chdir(folder)
        result = run_recbole_ssd(request.param, "tiny", config_dict=SETTINGS)
        config, model, dataset, _, _, test_data = load_data_and_model(result["checkpoint"])
    return config, model, dataset, test_data, folder / result["checkpoint"]


def changed(checkpoint, file, **parts):
    """A copy of a checkpoint with other parts, or without one: None."""
    state = torch.load(checkpoint, weights_only=True) | parts
    torch.save({name: part for name, part in state.items() if part is not None}, file)
    return file


def test_users_get_what_recboles_own_top_k_gives_them(trained):
    config, model, dataset, test_data, _ = trained
    rows = test_data.dataset.inter_feat[:4]
    items = dataset.field2id_token[dataset.iid_field]
    histories = [
        items[rows.events.items[first : first + length]].tolist()
        for first, length in zip(rows.targets - rows.history_lengths(), rows.history_lengths())
    ]
    users = torch.from_numpy(rows.users)
    values, indices = full_sort_topk(users, model, test_data, k=41, device=config["device"])
    found = recommend(model, dataset, histories, k=40, exclude_history=False)
    for row, score, index in zip(found, values, indices):
        theirs = [(name, value) for name, value in zip(items[index], score.tolist()) if name != "[PAD]"]
        assert [name for name, _ in row] == [name for name, _ in theirs]
        torch.testing.assert_close([value for _, value in row], [value for _, value in theirs], rtol=1e-5, atol=1e-5)


def test_a_history_is_left_out_and_mode_and_batches_do_not_matter(trained, monkeypatch):
    _, model, dataset, *_ = trained
    items = dataset.field2id_token[dataset.iid_field][1:].tolist()
    histories = [items[:3], items[5:6], items[2:14]]
    found = recommend(model, dataset, histories, k=100)
    for row, history in zip(found, histories):
        assert {name for name, _ in row} == set(items) - set(history)
        assert [score for _, score in row] == sorted((score for _, score in row), reverse=True)
    monkeypatch.setattr("recbole_ssd.recommendation.AT_ONCE", 2)
    model.train()
    again = recommend(model, dataset, histories, k=100)
    assert model.training
    model.eval()
    for one, other in zip(found, again):
        assert [name for name, _ in one] == [name for name, _ in other]
        torch.testing.assert_close([s for _, s in one], [s for _, s in other], rtol=1e-5, atol=1e-5)
    assert recommend(model, dataset, []) == []
    (alone,) = recommend(model, dataset, histories[:1], k=1)
    assert [name for name, _ in alone] == [name for name, _ in found[0][:1]]


@pytest.mark.parametrize(
    ("histories", "words"),
    [
        ([["i1"], []], r"history 1 should be a list of item names, it is \[\]"),
        (["1"], "history 0 should be a list of item names, it is '1'"),
        ([{"i1"}], "history 0 should be a list of item names, it is {'i1'}"),
        ([iter(["i1"])], "history 0 should be a list of item names, it is <list_iterator"),
        ([["no such item"]], "history 0: the data set has no item 'no such item'"),
        ([["[PAD]"]], r"the data set has no item '\[PAD\]'"),
    ],
)
def test_what_is_no_history_is_refused(trained, histories, words):
    _, model, dataset, *_ = trained
    with pytest.raises(ValueError, match=words):
        recommend(model, dataset, histories)


def test_no_items_are_asked_for_in_a_sentence(trained):
    _, model, dataset, *_ = trained
    with pytest.raises(ValueError, match="k should be a whole number of 1 or more, it is 0"):
        recommend(model, dataset, [], k=0)


def test_threads_share_a_model_that_is_being_trained(trained):
    _, model, dataset, *_ = trained
    histories = [dataset.field2id_token[dataset.iid_field][n : n + 5].tolist() for n in range(1, 30)]
    model.train()
    alone = [recommend(model, dataset, [history]) for history in histories]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert list(pool.map(lambda history: recommend(model, dataset, [history]), histories)) == alone
    assert model.training
    model.eval()


def test_a_checkpoint_serves_without_its_data_set(trained, tmp_path):
    config, model, dataset, _, checkpoint = trained
    elsewhere = {**config.given(), "data_path": str(tmp_path / "nowhere")}
    names = dataset.field2id_token[dataset.iid_field][1:].tolist()
    served, items = load_model(changed(checkpoint, tmp_path / "served.pth", config=elsewhere))
    assert not served.training and len(items) == len(names)
    histories = [names[:3], names[4:5]]
    assert recommend(served, items, histories) == recommend(model, dataset, histories)
    with pytest.raises(ValueError, match="the data set has no item 'no such item'"):
        recommend(served, items, [["no such item"]])
    with pytest.raises(ValueError, match="does not name its items, an earlier version wrote it"):
        load_model(changed(checkpoint, tmp_path / "earlier.pth", items=None))


def test_it_serves_on_another_machine(trained, tmp_path, monkeypatch):
    config, _, dataset, _, checkpoint = trained
    there = changed(checkpoint, tmp_path / "there.pth", config={**config.given(), "gpu_id": "3", "use_gpu": True})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    served, items = load_model(there, device="cpu")
    assert served.device == torch.device("cpu") and len(items) == dataset.item_num - 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(trained):
    with pytest.raises(ValueError, match="device 'cuda' is asked for and torch sees no GPU here"):
        load_model(trained[-1], device="cuda")


def test_a_model_that_needs_more_than_items_is_refused(run_folder):
    result = run_recbole_ssd("FPMC", "tiny", config_dict=SETTINGS)
    with pytest.raises(ValueError, match="FPMC is built from more of its data set than the items"):
        load_model(result["checkpoint"])


def test_times_tell_what_a_model_of_gaps_reads(run_folder):
    settings = {**SETTINGS, "time_gaps": True}
    result = run_recbole_ssd("MambaRec", "tiny", config_dict=settings)
    _, model, dataset, _, _, test_data = load_data_and_model(result["checkpoint"])
    torch.nn.init.normal_(model.time_gap.embedding.weight)
    interaction, *_ = next(iter(test_data))
    expected = model.full_sort_predict(interaction)
    rows = test_data.dataset.inter_feat
    names = dataset.field2id_token[dataset.iid_field]
    spans = [slice(first, last) for first, last in zip(rows.targets - rows.history_lengths(), rows.targets)]
    histories = [names[rows.events.items[span]].tolist() for span in spans]
    times = [rows.events.time[span].tolist() for span in spans]
    for found, scores in zip(recommend(model, dataset, histories, 5, False, times), expected, strict=True):
        best = scores[1:].topk(5)
        assert [name for name, _ in found] == names[1:][best.indices].tolist()
        torch.testing.assert_close([score for _, score in found], best.values.tolist(), rtol=1e-5, atol=1e-5)
    for wrong, words in (
        (None, "give the times of the histories' events"),
        (times[1:], rf"a list for each of the {len(histories)} histories, it holds {len(histories) - 1}"),
        ([[1.0], *times[1:]], r"the times of history 0 should be \d+ numbers that do not fall, they are \[1.0\]"),
        ([[*times[0][:-1], float("nan")], *times[1:]], "the times of history 0 should be"),
        ([[*times[0][:-1], float("inf")], *times[1:]], "the times of history 0 should be"),
        ([times[0][::-1], *times[1:]], "the times of history 0 should be"),
    ):
        with pytest.raises(ValueError, match=words):
            recommend(model, dataset, histories, times=wrong)
