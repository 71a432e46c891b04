"""One experiment: its result, its files, and RecBole's own numbers."""

import csv
import json
import logging
import sys
from collections import Counter
from pathlib import Path

import pytest

from recbole_ssd import (
    Config,
    Trainer,
    compat,
    init_logger,
    load_data_and_model,
    objective_function,
    quick_start,
    run_recbole_ssd,
)
from recbole_ssd.logger import log_file
from recbole_ssd.model_lookup import builtin_models
from recbole_ssd.ops.backends import log_once
from recbole_ssd.result import describe, protocol

RESULT_KEYS = {
    "model",
    "dataset",
    "seed",
    "best_valid_result",
    "test_result",
    "best_epoch",
    "cut",
    "valid_by_epoch",
    "epoch_s",
    "train_s",
    "eval_s",
    "tokens_per_epoch",
    "targets_per_epoch",
    "peak_rss_mb",
    "peak_gpu_mb",
    "n_params",
    "test_result_other_history",
    "split_fingerprint",
    "protocol",
    "versions",
    "commit",
    "machine",
    "command",
    "config",
}


def test_the_commit_is_that_of_the_start(run_folder, tiny, monkeypatch):
    order = []
    monkeypatch.setattr(quick_start, "commit", lambda: order.append("commit"))
    build = quick_start._build
    monkeypatch.setattr(quick_start, "_build", lambda config: order.append("build") or build(config))
    run_recbole_ssd("SSD4Rec", config_dict={**tiny, "epochs": 1})
    assert order == ["commit", "build"]


@pytest.mark.parametrize("model", ["GRU4Rec", "SSD4Rec"])
def test_both_protocols_are_tested_by_one_run(run_folder, tiny, model):
    kept, excluded = (
        run_recbole_ssd(model, config_dict={**tiny, "epochs": 1, "both_protocols": True, "exclude_history": value})
        for value in (False, True)
    )
    assert kept["test_result"] != excluded["test_result"]
    assert kept["test_result_other_history"] == excluded["test_result"]
    assert excluded["test_result_other_history"] == kept["test_result"]
    assert "  test, excluded hit@10" in describe(kept) and "  test, kept     hit@10" in describe(excluded)
    assert run_recbole_ssd(model, config_dict={**tiny, "epochs": 1})["test_result_other_history"] is None


@pytest.mark.parametrize("model", ["GRU4Rec", "SSD4Rec"])
def test_result_file_holds_what_the_run_returned(run_folder, tiny, model):
    settings = {**tiny, "epochs": 2, "result_file": "out/result.json", "save_ranks": True}
    result = run_recbole_ssd(model, config_dict=settings)
    written = json.loads(Path("out/result.json").read_text())
    assert set(written) == RESULT_KEYS
    assert all(written[key] == json.loads(json.dumps(result[key])) for key in RESULT_KEYS)
    assert {"best_valid_score", "valid_score_bigger"} <= set(result)
    assert len(result["epoch_s"]) == len(result["valid_by_epoch"]) == 2 and result["cut"] is False
    best = max(result["valid_by_epoch"], key=lambda entry: (entry["result"]["ndcg@10"], entry["epoch"]))
    assert (result["best_epoch"], result["best_valid_result"]) == (best["epoch"], best["result"])
    assert result["best_valid_score"] == best["result"]["ndcg@10"]
    assert result["train_s"] == pytest.approx(sum(result["epoch_s"]))
    assert result["targets_per_epoch"] == 606 - 3 * 60  # all events but each user's first and two held out
    assert Path(result["checkpoint"]).is_file() and Path(result["log_file"]).is_file()


def test_ranks_give_the_metrics(run_folder, tiny):
    settings = {**tiny, "result_file": "r.json", "save_ranks": True, "metric_decimal_place": 6}
    result = run_recbole_ssd("GRU4Rec", config_dict=settings)
    with open("r.ranks.csv") as file:
        rows = list(csv.DictReader(file))
    assert len({row["user_id"] for row in rows}) == len(rows) == 60
    assert rows[0]["user_id"].startswith("u") and rows[0]["item_id"].startswith("i")
    ranks = [int(row["rank"]) for row in rows]
    hit = sum(rank <= 10 for rank in ranks) / len(ranks)
    mrr = sum(1 / rank for rank in ranks if rank <= 10) / len(ranks)
    assert result["test_result"]["hit@10"] == pytest.approx(hit, abs=1e-5)
    assert result["test_result"]["mrr@10"] == pytest.approx(mrr, abs=1e-5)


@pytest.mark.parametrize("model", ["GRU4Rec", "SSD4Rec"])
def test_ranks_tell_history_and_popularity(run_folder, tiny, model):
    """Counted again from the file, with a window shorter than most histories."""
    run_recbole_ssd(model, config_dict={**tiny, "result_file": "r.json", "save_ranks": True, "MAX_ITEM_LIST_LENGTH": 3})
    histories = {}
    with open(Path(tiny["data_path"]) / "tiny" / "tiny.inter") as file:
        header = [name.partition(":")[0] for name in next(file).split()]
        for line in sorted(file, key=lambda line: float(line.split()[header.index("timestamp")])):
            event = dict(zip(header, line.split()))
            histories.setdefault(event["user_id"], []).append(event["item_id"])
    in_training = Counter(item for history in histories.values() for item in history[:-2])
    with open("r.ranks.csv") as file:
        rows = list(csv.DictReader(file))
    assert len({row["history_length"] for row in rows}) > 3 and len({row["item_count"] for row in rows}) > 3
    for row in rows:
        assert int(row["history_length"]) == len(histories[row["user_id"]]) - 1
        assert int(row["item_count"]) == in_training[row["item_id"]]
        assert row["item_id"] == histories[row["user_id"]][-1]


@pytest.mark.parametrize("model", ["GRU4Rec", "SSD4Rec"])
def test_one_seed_one_result(run_folder, tiny, model):
    first, second = (run_recbole_ssd(model, config_dict=tiny) for _ in range(2))
    assert first["train_loss"] == second["train_loss"]
    assert first["test_result"] == second["test_result"]
    assert run_recbole_ssd(model, config_dict={**tiny, "seed": 1})["train_loss"] != first["train_loss"]


@pytest.mark.parametrize("model", ["GRU4Rec", "SSD4Rec"])
def test_two_workers_change_no_loss(run_folder, tiny, model):
    settings = {**tiny, "epochs": 2, "train_batch_size": 128, "eval_batch_size": 32}
    alone, helped = (run_recbole_ssd(model, config_dict={**settings, "worker": n}) for n in (0, 2))
    assert helped["train_loss"] == alone["train_loss"]
    assert helped["test_result"] == alone["test_result"]


SPLITS = [
    {"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "user"},
    {"split": {"TS": [0.8, 0.1, 0.1]}, "group_by": "user"},
    {"split": {"LS": "test_only"}},
    {"split": {"LS": "valid_only"}},
    {"mode": "uni20"},
    {"mode": {"valid": "pop20", "test": "full"}},
]


@pytest.mark.parametrize("args", SPLITS, ids=str)
def test_ours_and_recboles_share_every_split_and_candidates(run_folder, tiny, args):
    settings = {**tiny, "eval_args": args}
    ours, theirs = (run_recbole_ssd(model, config_dict=settings) for model in ("SSD4Rec", "GRU4Rec"))
    assert ours["split_fingerprint"] == theirs["split_fingerprint"]
    assert ours["targets_per_epoch"] == theirs["targets_per_epoch"]
    assert ours["protocol"]["split"] == theirs["protocol"]["split"]
    has_test = args.get("split") != {"LS": "valid_only"}
    assert (ours["test_result"] is not None) == (theirs["test_result"] is not None) == has_test


def test_tensorboard_files_lie_in_the_run_folder(run_folder, tiny):
    run_recbole_ssd("GRU4Rec", config_dict=tiny)
    written = b"".join(file.read_bytes() for file in Path("log_tensorboard").rglob("events.out.tfevents.*"))
    assert b"Loss/Train" in written and b"Vaild_score" in written  # RecBole's spelling


def test_a_run_that_its_time_cut_says_so(run_folder, tiny):
    """The best epoch so far is tested; file and log tell that there might have been a better one."""
    settings = {**tiny, "epochs": 9, "max_train_s": 1e-6, "result_file": "result.json"}
    result = run_recbole_ssd("SSD4Rec", config_dict=settings)
    assert result["cut"] is True and json.loads(Path("result.json").read_text())["cut"] is True
    assert result["best_epoch"] == 0 and len(result["epoch_s"]) == 1 and result["test_result"]
    assert ", ended by max_train_s)" in Path(result["log_file"]).read_text()


def test_two_runs_write_two_logs_and_leave_other_handlers(run_folder, tiny):
    root, mine = logging.getLogger(), logging.NullHandler()
    root.addHandler(mine)
    before = list(root.handlers)
    try:
        first, second = (run_recbole_ssd("GRU4Rec", config_dict=tiny) for _ in range(2))
        assert mine in root.handlers and set(before) - set(root.handlers) <= {*before} - {mine}
        assert len(root.handlers) <= len(before) + 2
    finally:
        root.removeHandler(mine)
    assert first["log_file"] != second["log_file"]
    for result in (first, second):
        text = Path(result["log_file"]).read_text()
        assert text.count("test           hit@10") == 1
        assert "settings read from" in text and "properties/overall.yaml" in text
        assert result["split_fingerprint"] in text


def test_two_logs_of_one_second_have_two_names(run_folder, tiny):
    config = Config("GRU4Rec", config_dict=tiny)
    names = set()
    for _ in range(2):
        init_logger(config)
        log_once("ssd runs on a backend")
        names.add(log_file())
    assert len(names) == 2 and None not in names
    assert all(Path(name).read_text().count("ssd runs on a backend") == 1 for name in names)


def log_of(result) -> str:
    return Path(result["log_file"]).read_text()


def test_unused_key_is_warned_of_in_the_log(run_folder, tiny):
    result = run_recbole_ssd("GRU4Rec", config_dict={**tiny, "n_heads": 4, "reg_weight": 0.1})
    assert "WARNING  'n_heads' (set in config_dict) is not used: GRU4Rec" in log_of(result)
    assert "WARNING  'reg_weight' (set in config_dict) is not used: GRU4Rec" in log_of(result)


@pytest.mark.parametrize(
    ("model", "settings", "without_effect"),
    [
        ("MambaRec", {"ssm": "mamba1", "headdim": 16}, "headdim"),
        ("MambaRec", {"ssm": "mamba2", "scan_backend": "torch"}, "scan_backend"),
        ("RecMamba", {"inner_size": 17}, "inner_size"),
        ("MoEMaTrRec", {"gate": "token", "balance_weight": 0.5}, "balance_weight"),
    ],
)
def test_settings_without_effect_are_warned_of_in_the_log(run_folder, tiny, model, settings, without_effect):
    log = log_of(run_recbole_ssd(model, config_dict={**tiny, **settings}))
    assert f"'{without_effect}' (set in config_dict) has no effect" in log
    assert log.count("has no effect") == 1


def test_expert_shares_are_in_log_and_tensorboard(run_folder, tiny):
    result = run_recbole_ssd("MoEMaTrRec", config_dict={**tiny, "epochs": 2, "gate": "top1"})
    assert log_of(result).count("share_of_mamba/layer_0") == 2
    files = (run_folder / "log_tensorboard").rglob("events.out.tfevents.*")
    assert any(b"Model/share_of_attention/layer_0" in file.read_bytes() for file in files)


def test_objective_function_gives_the_score(run_folder, tiny):
    result = objective_function({**tiny, "model": "GRU4Rec"}, saved=False)
    assert result["best_valid_score"] == result["best_valid_result"]["ndcg@10"]
    assert result["checkpoint"] is None and not list(Path("saved").iterdir())


@pytest.mark.parametrize("watched", [False, True])
def test_bars_are_for_who_watches(run_folder, tiny, monkeypatch, capsys, watched):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: watched)
    run_recbole_ssd("GRU4Rec", config_dict={**tiny, "show_progress": True}, saved=False)
    assert ("Train     0" in capsys.readouterr().err) == watched


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"result_file": "blocked/x/result.json"}, "the folder of result_file"),
        ({"checkpoint_dir": "blocked/saved"}, "checkpoint_dir 'blocked/saved' cannot be written"),
        ({"result_file": "."}, "is a folder: name a file in it"),
        ({"dataset": "tinny"}, "tinny"),
    ],
)
def test_refuses_before_training(run_folder, tiny, settings, words):
    Path("blocked").write_text("a file where a folder should be")
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        run_recbole_ssd("GRU4Rec", config_dict={**tiny, **settings})


def test_refuses_a_log_folder_that_is_a_file(run_folder, tiny):
    Path("log").write_text("")
    with pytest.raises(ValueError, match="the folder of the log 'log/GRU4Rec' cannot be written"):
        run_recbole_ssd("GRU4Rec", config_dict=tiny)


def test_item_coverage_and_its_kin_are_measured(run_folder, tiny):
    metrics = ["NDCG", "ItemCoverage", "AveragePopularity", "GiniIndex", "TailPercentage", "ShannonEntropy"]
    result = run_recbole_ssd("GRU4Rec", config_dict={**tiny, "metrics": metrics})
    assert 0 < result["test_result"]["itemcoverage@10"] <= 1


def test_protocol_letter(run_folder, tiny):
    def letter(**settings):
        return protocol(Config("GRU4Rec", config_dict={**tiny, **settings}))["letter"]

    assert letter() == "A"
    assert letter(exclude_history=True) == "B"
    assert letter(eval_args={"mode": "uni100"}) is None
    assert letter(eval_args={"split": {"RS": [0.8, 0.1, 0.1]}}) is None


SMALL = {"hidden_size": 16, "embedding_size": 16, "inner_size": 16, "MAX_ITEM_LIST_LENGTH": 9}


@pytest.mark.parametrize("model", sorted(builtin_models()))
def test_every_model_of_recboles_runs_on_the_same_split(run_folder, tiny, model):
    candidates = {"reranker_CAN_NUM": 20} if model.endswith("CPR") else {}
    result = run_recbole_ssd(model, config_dict={**tiny, **SMALL, **candidates})
    assert result["targets_per_epoch"] == 426
    assert result["split_fingerprint"] == "71d03a675a93"
    assert 0 <= result["test_result"]["ndcg@10"] <= 1
    config, loaded, _, _, _, test = load_data_and_model(result["checkpoint"])
    again = Trainer(config, loaded).evaluate(test, load_best_model=False)
    assert dict(again) == pytest.approx(result["test_result"], abs=1e-4)


@pytest.mark.parametrize("loss_type", ["CE", "BPR"])
def test_builtin_equals_recbole_driven_by_hand(run_folder, monkeypatch, loss_type):
    settings = {
        "epochs": 2,
        "loss_type": loss_type,
        "time_order": "recbole",
        "user_inter_num_interval": "[20,24]",
        "hidden_size": 32,
        "embedding_size": 16,
        "normalize_all": True,
        "metrics": ["Hit", "NDCG"],
        "valid_metric": "NDCG@10",
        "eval_batch_size": 512,
        "show_progress": False,
        "gpu_id": "",
    }
    ours = run_recbole_ssd("GRU4Rec", "ml-100k", config_dict=settings, saved=False)
    losses, valid, test = _recbole_by_hand("GRU4Rec", "ml-100k", settings, monkeypatch)
    assert ours["train_loss"] == losses
    assert ours["best_valid_result"] == valid
    assert ours["test_result"] == test


def _recbole_by_hand(model, dataset, settings, monkeypatch):
    """RecBole's own classes and functions, as its quick_start calls them."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    monkeypatch.setattr(sys, "argv", ["by hand"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # put back after the test: RecBole overwrites it
    compat.apply()
    columns = {"inter": ["user_id", "item_id", "timestamp"]}
    negatives = {} if settings["loss_type"] == "BPR" else {"train_neg_sample_args": None}
    config = Config(model, dataset, config_dict={**settings, **negatives, "load_col": columns})
    init_seed(config["seed"], config["reproducibility"])
    data = create_dataset(config)
    train_data, valid_data, test_data = data_preparation(config, data)
    init_seed(config["seed"], config["reproducibility"])
    network = get_model(model)(config, train_data.dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], model)(config, network)
    _, valid = trainer.fit(train_data, valid_data, saved=False, verbose=False)
    test = trainer.evaluate(test_data, load_best_model=False)
    return list(trainer.train_loss_dict.values()), dict(valid), dict(test)
