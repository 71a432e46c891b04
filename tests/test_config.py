"""Config: what it reads in which order, and what it refuses."""

import os
import sys

import numpy as np
import pytest
import torch
import yaml
from recbole.model.sequential_recommender import KSR

from recbole_ssd import Config
from recbole_ssd.settings import known_keys, properties_folder

BUILTIN = {"model": "GRU4Rec", "dataset": "ml-100k"}
OURS = {"model": "SSD4Rec", "dataset": "ml-100k"}
HALF = {"enable_amp": True, "amp_dtype": "float16"}

# settings, and words that the sentence holds
REFUSED = [
    ({"lerning_rate": 0.1}, "unknown key 'lerning_rate' in config_dict. Did you mean 'learning_rate'?"),
    ({"zzzzqqq": 1}, "unknown key 'zzzzqqq' in config_dict"),
    ({"config_file": "a.yaml"}, "'config_file' (config_dict) has no effect: use 'config_files'"),
    ({"config_file_list": "a.yaml"}, "Did you mean 'config_files'?"),
    ({"eval_args.mode": "uni10"}, "is a part of 'eval_args': write eval_args=\"{mode: VALUE}\""),
    ({"neg_sampling": {}}, "use 'train_neg_sample_args'"),
    ({"MODEL_TYPE": 1}, "'MODEL_TYPE' (config_dict) is worked out"),
    ({"valid_metric_bigger": False}, "of 'NDCG@10' more is better: take 'valid_metric_bigger' away"),
    ({"nproc": 2}, "several processes"),
    ({"local_rank": 0}, "several processes"),
    (
        {"eval_args": {"splitt": {}}},
        "unknown key 'splitt' in 'eval_args' (config_dict). Did you mean 'split'?",
    ),
    ({"eval_args": None}, "'eval_args' (config_dict) should be a dict"),
    ({"eval_args": {"order": "RO"}}, "should be TO"),
    ({"eval_args": {"mode": "uni0"}}, "should be full, uniN or popN (such as uni100)"),
    ({"eval_args": {"mode": "labeled"}}, "should be full, uniN or popN"),
    ({"eval_args": {"mode": None}}, "should be full, uniN or popN"),
    ({"eval_args": {"mode": {"vali": "full"}}}, "takes the keys valid and test, it has vali"),
    ({"user_inter_num_interval": "5"}, "should be an interval such as [5,inf)"),
    ({"item_inter_num_interval": "[5,2]"}, "should be an interval such as [5,inf)"),
    ({"val_interval": {"rating": "[a,b]"}}, "'val_interval['rating']' (config_dict) should be an interval"),
    ({"val_interval": 5}, "'val_interval' (config_dict) should be a dict such as {'rating': '[3,inf)'}"),
    ({"clip_grad_norm": 5}, "'clip_grad_norm' (config_dict) should be a dict such as {'max_norm': 5}"),
    ({"rm_dup_inter": "second"}, "should be one of None, first, last, it is 'second'"),
    ({"valid_metric": "NDCG"}, "valid_metric 'NDCG' is not measured"),
    ({"dataset": "../toy"}, "should be the name of a folder in data_path, it is '../toy'"),
    ({"dropout_prob": 1}, "'dropout_prob' (config_dict) should be at least 0 and below 1, it is 1"),
    ({"gpu_id": -1}, "gpu_id should be the number of a GPU, such as 0, or '' for the CPU; it is '-1'"),
    ({"gpu_id": "cuda:0"}, "gpu_id should be the number of a GPU, such as 0, or '' for the CPU"),
    ({"epochs": 0}, "'epochs' (config_dict) should be greater than 0, it is 0"),
    ({"epochs": "many"}, "'epochs' (config_dict) should be a number, it is 'many'"),
    ({"epochs": 1.5}, "'epochs' (config_dict) should be a whole number, it is 1.5"),
    ({"epochs": float("nan")}, "'epochs' (config_dict) should be a finite number, it is nan"),
    ({"epochs": float("inf")}, "'epochs' (config_dict) should be a finite number, it is inf"),
    ({"epochs": None}, "'epochs' (config_dict) should be a number, it is None"),
    ({"epochs": True}, "'epochs' (config_dict) should be a number, it is True"),
    ({"train_batch_size": -1}, "'train_batch_size' (config_dict) should be greater than 0"),
    ({"eval_batch_size": 0}, "'eval_batch_size' (config_dict) should be greater than 0"),
    ({"max_batch_tokens": 0}, "'max_batch_tokens' (config_dict) should be greater than 0"),
    ({"MAX_ITEM_LIST_LENGTH": 0}, "'MAX_ITEM_LIST_LENGTH' (config_dict) should be greater than 0"),
    ({"MAX_ITEM_LIST_LENGTH": None}, "GRU4Rec reads padded rows"),
    ({"seed": -1}, "'seed' (config_dict) should be 0 or greater"),
    ({"dropout_prob": "high"}, "'dropout_prob' (config_dict) should be a number, it is 'high'"),
    ({"use_gpu": 1}, "'use_gpu' (config_dict) should be True or False, it is 1"),
    ({"time_order": "exakt"}, "'time_order' (config_dict) should be one of exact, recbole, it is 'exakt'"),
    ({"supervision": "all"}, "should be one of all_positions, prefixes"),
    ({"learner": "lamb"}, "should be one of adam, adamw"),
    ({"metrics": ["NDGC"]}, "there is no metric 'NDGC'. Did you mean 'ndcg'?"),
    ({"metrics": 3}, "'metrics' should be a list of names"),
    ({"metrics": ["AUC"]}, "metric 'AUC' measures single values"),
    ({"topk": [0]}, "'topk' should be a whole number greater than 0"),
    ({"valid_metric": "NDCG@20"}, "valid_metric 'NDCG@20' is not measured"),
    ({"valid_metric": "GAUC"}, "valid_metric 'GAUC' is not measured"),
    ({"loss_type": "BCE"}, "'loss_type' of GRU4Rec should be one of CE, BPR, it is 'BCE'"),
    ({"train_neg_sample_args": {"sample_num": 2}}, "'CE' ranks all items and samples no negatives"),
    ({"train_neg_sample_args": {"number": 2}}, "unknown key 'number' in 'train_neg_sample_args'"),
    (
        {"loss_type": "BPR", "train_neg_sample_args": {"distribution": "zipf"}},
        "should be uniform or popularity, it is 'zipf'",
    ),
    (
        {"loss_type": "BPR", "train_neg_sample_args": {"sample_num": 0}},
        "'sample_num' of 'train_neg_sample_args' should be a whole number above 0, it is 0",
    ),
    ({"loss_type": "BPR", "train_neg_sample_args": None}, "loss_type 'BPR' needs negatives"),
    ({**HALF, "enable_scaler": True, "clip_grad_norm": {"max_norm": 1}}, "would clip the scaled gradients"),
    ({"enable_amp": 1}, "'enable_amp' (config_dict) should be True or False, it is 1"),
    ({"amp_dtype": "half"}, "'amp_dtype' (config_dict) should be one of bfloat16, float16, it is 'half'"),
    ({"amp_dtype": "float16"}, "'amp_dtype: float16' has no effect while 'enable_amp' is False"),
    ({"enable_scaler": True}, "'enable_scaler' scales the losses of float16, and this run trains in float32"),
    ({"enable_scaler": True, "enable_amp": True}, "and this run trains in bfloat16: take enable_scaler away"),
    ({"max_train_s": 0}, "'max_train_s' (config_dict) should be greater than 0, it is 0"),
    ({"max_train_s": "long"}, "'max_train_s' (config_dict) should be a number, it is 'long'"),
    (
        {"both_protocols": True, "eval_args": {"mode": {"valid": "full", "test": "uni100"}}},
        "'both_protocols' is for full ranking, and 'mode' of 'eval_args' tests among candidates (uni100)",
    ),
    ({**OURS, "time_gaps": True, "time_order": "recbole"}, "'time_order: recbole' rounds it to float32"),
    ({"lr_schedule": "step"}, "'lr_schedule' (config_dict) should be one of constant, linear, cosine, it is 'step'"),
    ({"warmup_epochs": -1}, "'warmup_epochs' (config_dict) should be 0 or greater, it is -1"),
    ({"lr_schedule": "linear", "warmup_epochs": 5, "epochs": 5}, "'warmup_epochs' (5) leaves none of 5 'epochs'"),
    ({"cosine_temperature": 0}, "'cosine_temperature' (config_dict) should be greater than 0, it is 0"),
    ({"label_smoothing": 1}, "'label_smoothing' (config_dict) should be at least 0 and below 1, it is 1"),
    ({**OURS, "label_smoothing": 0.1, "loss_type": "BPR"}, "'label_smoothing' spreads the target of loss_type CE"),
    ({"save_ranks": True}, "'result_file', which is not set"),
    ({"save_dataset": True}, "'save_dataset' is refused"),
    ({"save_dataloaders": True}, "'save_dataloaders' is refused"),
    ({"dataset_save_path": "x"}, "'dataset_save_path' is refused"),
    ({"dataloaders_save_path": "x"}, "'dataloaders_save_path' is refused"),
    ({"repeatable": False}, "sequential ones need True"),
    ({"model": "SSD4Rek"}, "there is no model 'SSD4Rek'. Did you mean 'SSD4Rec'?"),
    ({"model": "sasrec"}, "there is no model 'sasrec'. Did you mean 'SASRec'?"),
    ({"model": "../x"}, "there is no model '../x'"),
    ({"model": "BPR"}, "one of RecBole's general recommenders"),
    ({"model": "KSR"}, "RecBole's KSR does not run in recbole-ssd"),
    ({"model": KSR}, "RecBole's KSR does not run in recbole-ssd"),
    ({"model": "CORE", "loss_type": "BPR"}, "'loss_type' of CORE should be one of CE, it is 'BPR'"),
    ({"model": None}, "no model is named"),
    ({"dataset": None}, "no dataset is named"),
    ({"clip_grad_norm": {"max_norm": -1}}, "needs a 'max_norm' greater than 0"),
    ({"clip_grad_norm": {"max": 5}}, "unknown key 'max' in 'clip_grad_norm'"),
    ({"seed": 2**32}, "should be below 2^32"),
    ({"threshold": 3}, "should be a dict such as {'rating': 3}"),
    ({"load_col": {"inter": len}}, "should be plain data"),
    ({**OURS, "loss_type": "MSE"}, "'loss_type' of SSD4Rec should be one of CE, BPR, BCE"),
    ({**OURS, "bidirectional": "flip"}, "'bidirectional: flip' reads the whole segment"),
    ({**OURS, "d_state": 0}, "'d_state' (config_dict) should be greater than 0"),
    ({**OURS, "transform": "mask_itemseq"}, "SSD4Rec reads packed streams"),
    ({**OURS, "loss_type": "BPR", "train_neg_sample_args": {"dynamic": True}}, "dynamic negatives"),
]


@pytest.mark.parametrize(
    "settings",
    [
        {**OURS, **HALF, "enable_scaler": True, "clip_grad_norm": {"max_norm": 1}},  # ours are clipped unscaled
        {**BUILTIN, **HALF, "enable_scaler": True},
        {**BUILTIN, **HALF, "clip_grad_norm": {"max_norm": 1}},
        {**OURS, "amp_dtype": "bfloat16"},  # the default, as a checkpoint's settings have it
        {**OURS, "max_train_s": 1.5},
        {**OURS, "cosine_temperature": 1, "label_smoothing": 0.1, "lr_schedule": "cosine", "warmup_epochs": 0.5},
    ],
    ids=str,
)
def test_takes_settings_that_go_together(settings):
    config = Config(config_dict=settings)
    assert all(config[key] == value for key, value in settings.items())
    assert Config(config_dict=config.given()).given() == config.given()


@pytest.mark.parametrize(("settings", "words"), REFUSED, ids=lambda value: str(value)[:60])
def test_refuses_in_a_sentence(settings, words):
    with pytest.raises(ValueError) as refusal:
        Config(config_dict={**BUILTIN, **settings})
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not exist"),
        ("a: [1", "is not valid YAML"),
        ("- a\n- b\n", "should hold lines 'key: value', it holds a list"),
        ("lerning_rate: 1\n", "unknown key 'lerning_rate' in config file"),
    ],
)
def test_refuses_a_file_by_its_name(tmp_path, text, words):
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError) as refusal:
        Config(**BUILTIN, config_file_list=[str(file)])
    assert words in str(refusal.value) and str(file) in str(refusal.value)


def test_a_single_file_name_is_no_list_of_files():
    with pytest.raises(ValueError, match="should be a list of files"):
        Config(**BUILTIN, config_file_list="a.yaml")


@pytest.fixture
def own_properties(tmp_path, monkeypatch):
    """A properties folder whose five files all set seed; returns a function that empties one of them."""
    folder = tmp_path / "properties"
    for part in ("model", "dataset", "tuned"):
        (folder / part).mkdir(parents=True)
    (folder / "overall.yaml").write_text((properties_folder() / "overall.yaml").read_text() + "\nseed: 1\n")
    (folder / "model" / "GRU4Rec.yaml").write_text("seed: 2\n")
    (folder / "dataset" / "ml-100k.yaml").write_text("seed: 3\n")
    (folder / "tuned" / "GRU4Rec-ml-100k.yaml").write_text("seed: 4\n")
    (tmp_path / "a.yaml").write_text("seed: 5\n")
    (tmp_path / "b.yaml").write_text("seed: 6\n")
    monkeypatch.setattr("recbole_ssd.settings.properties_folder", lambda: folder)
    return tmp_path


def test_later_files_win_in_the_documented_order(own_properties):
    files = [own_properties / "a.yaml", own_properties / "b.yaml"]
    assert Config(**BUILTIN, config_file_list=files, config_dict={"seed": 7})["seed"] == 7
    for expected in (6, 5):
        assert Config(**BUILTIN, config_file_list=files)["seed"] == expected
        files.pop()
    for name, expected in (("tuned/GRU4Rec-ml-100k", 4), ("dataset/ml-100k", 3), ("model/GRU4Rec", 2)):
        assert Config(**BUILTIN)["seed"] == expected
        (own_properties / "properties" / f"{name}.yaml").unlink()
    assert Config(**BUILTIN)["seed"] == 1


def test_names_every_file_that_it_read(own_properties):
    config = Config(**BUILTIN, config_file_list=[own_properties / "a.yaml"])
    names = [f"{file.parent.name}/{file.stem}" for file in config.files_read]
    assert names[-5:-1] == ["properties/overall", "model/GRU4Rec", "dataset/ml-100k", "tuned/GRU4Rec-ml-100k"]
    assert names[0] == "properties/overall" and names[-1].endswith("/a")


def test_model_and_dataset_may_stand_in_a_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model: GRU4Rec\ndataset: ml-100k\nlearning_rate: 1e-2\n")
    config = Config(config_file_list=[file])
    assert (config["model"], config["dataset"], config["learning_rate"]) == ("GRU4Rec", "ml-100k", 0.01)


def test_model_may_be_a_class():
    from recbole.model.sequential_recommender import SASRec

    assert Config(SASRec, "ml-100k").model_class is SASRec


def test_never_reads_the_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest", "--seed=3", "--cov=recbole_ssd", "-x"])
    config = Config(**BUILTIN)
    assert config["seed"] == 2020 and "cov" not in config


def test_runs_no_code_of_a_value(tmp_path):
    spoiled = tmp_path / "spoiled"
    config = Config(**BUILTIN, config_dict={"encoding": f"open({str(spoiled)!r}, 'w')"})
    assert not spoiled.exists() and config["encoding"].startswith("open(")


def test_does_not_change_the_given_dict():
    mine = {"topk": "[5, 10]", "train_neg_sample_args": "None"}
    Config(**BUILTIN, config_dict=mine)
    assert mine == {"topk": "[5, 10]", "train_neg_sample_args": "None"}


@pytest.mark.parametrize("names", [BUILTIN, OURS, {"model": "SASRec", "dataset": "amazon-beauty"}])
def test_given_rebuilds_an_equal_config(names):
    config = Config(**names, config_dict={"gpu_id": "", "weight_decay": np.float64(0.5), "topk": (5, 10)})
    again = Config(config_dict=config.given())
    assert again.final_config_dict == config.final_config_dict
    assert again.given() == config.given()
    assert not again.notes
    assert yaml.safe_load(yaml.safe_dump(config.given())) == config.given()


def test_own_names_of_columns_are_loaded():
    names = {"USER_ID_FIELD": "Customer ID", "ITEM_ID_FIELD": "sku", "TIME_FIELD": "when"}
    columns = Config("GRU4Rec", "unheard-of", config_dict=names)["load_col"]["inter"]
    assert {"Customer ID", "sku", "when"} <= set(columns)


def test_what_is_set_later_is_given_too():
    config = Config(**BUILTIN)
    config["epochs"], config["worked_out"] = np.int64(7), 1
    given = config.given()
    assert config["epochs"] == given["epochs"] == 7 and type(given["epochs"]) is int and "worked_out" not in given


def test_ce_turns_negatives_off_and_bpr_keeps_them():
    assert Config(**BUILTIN)["train_neg_sample_args"]["distribution"] == "none"
    bpr = Config(**BUILTIN, config_dict={"loss_type": "BPR"})
    assert bpr["train_neg_sample_args"]["sample_num"] == 1
    assert bpr["MODEL_INPUT_TYPE"].name == "PAIRWISE"
    assert Config(**OURS, config_dict={"loss_type": "BCE"})["MODEL_INPUT_TYPE"].name == "PAIRWISE"


def test_time_field_is_loaded_whatever_the_columns():
    columns = {"inter": ["user_id", "item_id"]}
    assert Config(**BUILTIN, config_dict={"load_col": columns})["load_col"]["inter"][-1] == "timestamp"
    config = Config("GRU4Rec", "unheard-of", config_dict={"TIME_FIELD": "when"})
    assert config["load_col"]["inter"] == ["user_id", "item_id", "when"]


def test_part_of_eval_args_keeps_the_rest():
    args = Config(**BUILTIN, config_dict={"eval_args": {"mode": "uni100"}})["eval_args"]
    assert args["mode"] == {"valid": "uni100", "test": "uni100"}
    assert (args["split"], args["order"]) == ({"LS": "valid_and_test"}, "TO")


def test_known_but_unused_keys_warn_with_key_and_model():
    config = Config(**BUILTIN, config_dict={"n_heads": 2, "supervision": "prefixes"})
    assert len(config.notes) == 2
    assert all(
        f"'{key}'" in note and "GRU4Rec" in note
        for key, note in zip(("n_heads", "supervision"), config.notes, strict=True)
    )
    assert not Config(**BUILTIN, config_dict={"hidden_size": 32, "encoding": "utf-8"}).notes
    for model, notes in (("GRU4Rec", 1), ("HRM", 0), ("Caser", 0)):  # two read it, RecBole's YAML tells it of one
        assert len(Config(model, "ml-100k", config_dict={"reg_weight": 0.1}).notes) == notes


def test_required_names_the_key_and_the_ways_to_set_it():
    with pytest.raises(ValueError, match="'d_state' is not set: add it to .*properties/model/GRU4Rec.yaml"):
        Config(**BUILTIN).required("d_state")
    assert Config(**BUILTIN).required("result_file") is None


def test_dataset_files_hold_columns_and_filters_only():
    from recbole.utils import dataset_arguments

    for file in (properties_folder() / "dataset").glob("*.yaml"):
        assert set(yaml.safe_load(file.read_text())) <= set(dataset_arguments), file


def test_every_key_of_our_files_is_explained():
    for file in properties_folder().rglob("*.yaml"):
        for line in file.read_text().splitlines():
            if line and not line.startswith((" ", "#")):
                assert "# (" in line, f"{file}: {line}"


def test_lists_of_recbole_stay_as_they_are():
    from recbole.utils import dataset_arguments

    before = list(dataset_arguments)
    Config(**BUILTIN)
    assert dataset_arguments == before and known_keys() >= set(before)


def test_rules_of_yaml_do_not_pile_up(tmp_path):
    rules = [len(rules) for rules in yaml.FullLoader.yaml_implicit_resolvers.values()]
    (tmp_path / "rate.yaml").write_text("learning_rate: 3e-3\n")
    config = Config(**BUILTIN, config_file_list=[str(tmp_path / "rate.yaml")])
    assert config["learning_rate"] == 0.003
    assert [len(rules) for rules in yaml.FullLoader.yaml_implicit_resolvers.values()] == rules


def test_leaves_cuda_visible_devices_alone(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    Config(**BUILTIN, config_dict={"gpu_id": "0" if not torch.cuda.is_available() else ""})
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


class TestDevice:
    """On a machine that shows two GPUs."""

    @pytest.fixture(autouse=True)
    def two_gpus(self, monkeypatch):
        self.chosen = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "set_device", self.chosen.append)

    @pytest.mark.parametrize(
        ("settings", "device"),
        [
            ({}, "cuda:0"),
            ({"gpu_id": 1}, "cuda:1"),
            ({"gpu_id": "1,0"}, "cuda:1"),
            ({"gpu_id": (0, 1)}, "cuda:0"),
            ({"gpu_id": ""}, "cpu"),
            ({"use_gpu": False}, "cpu"),
        ],
    )
    def test_takes_the_first_that_gpu_id_names(self, settings, device):
        assert Config(**BUILTIN, config_dict=settings)["device"] == torch.device(device)
        assert self.chosen == ([1] if device == "cuda:1" else [])

    @pytest.mark.parametrize("gpu_id", [2, "2"])
    def test_refuses_one_that_does_not_exist(self, gpu_id, monkeypatch):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
        with pytest.raises(ValueError, match=r"shows 2 GPU\(s\) under CUDA_VISIBLE_DEVICES=4,5, counted from 0"):
            Config(**BUILTIN, config_dict={"gpu_id": gpu_id})
