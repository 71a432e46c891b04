"""Every file of benchmarks/experiments can be run and is what its name says."""

import pytest

from recbole_ssd.comparison.options import read_options
from recbole_ssd.comparison.runs import check_one_protocol, plan_runs
from tests.conftest import ROOT

FOLDER = ROOT / "benchmarks" / "experiments"
FILES = {file.stem: file for file in sorted(FOLDER.glob("*.yaml"))}
DATA = {file.stem: file for file in sorted((FOLDER / "on").glob("*.yaml"))}
SWEPT = {  # the values of a key, in the order of the file's rows
    "bidirectional": ("bidirectional", ["none", "readout", "none", "readout", "flip"]),
    "mask_ratio": ("mask_ratio", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]),
    "history_length": ("MAX_ITEM_LIST_LENGTH", [None, 200, 50, 10] * 2),
    "supervision": ("supervision", ["all_positions", "prefixes"] * 2),
    "packed_or_padded": ("model", ["SASRec", "PackedSASRec", "PackedSASRec"]),
    "depth_and_width": ("num_layers", [1, 2, 4] * 3),
    "losses": ("loss_type", ["CE", "BPR", "BCE"] * 2),
    "time_order": ("time_order", ["exact", "exact", "recbole", "recbole"]),
    "time_gaps": ("time_gaps", [None, True, None, True]),
    "gate": ("gate", ["running_mean", "token", "top1", None, None]),
    "mixture": ("hidden_size", [None, None, None, 192, None]),
    "scans": ("ssm", ["mamba1", "mamba2"] * 3),
    "seeds": ("model", ["MoEMaTrRec", "MambaRec"]),
    "recipe": ("model", ["SSD4Rec"] * 8),
    "batch_memory": ("max_batch_tokens", [2048, 8192, 32768, 131072]),
    "models": (
        "model",
        ["GRU4Rec", "SASRec", "BERT4Rec", "SSD4Rec", "MambaRec", "Mamba4Rec", "RecMamba", "MoEMaTrRec", "PackedSASRec"],
    ),
}

ONE_SEED = {"models": ["SASRec", "BERT4Rec"]}


def planned(name, data="ml-100k", **line):
    files = [str(DATA[data]), str(FILES[name])]
    options, models, notes = read_options(line, files, "SSD4Rec", "tiny")
    assert not notes
    runs = plan_runs(models, options.seeds)  # every model and key is known, every value allowed
    check_one_protocol(runs, options.separate_tables)
    return options, models, runs


def test_every_file_is_known_here():
    assert set(FILES) == set(SWEPT)


@pytest.mark.parametrize("name", FILES)
def test_an_experiment_yields_the_runs_it_promises(name):
    options, models, runs = planned(name)
    key, values = SWEPT[name]
    assert [settings.get(key) for settings in models.values()] == values
    assert options.seeds == 3 and len(runs) == 3 * len(values) - 2 * len(ONE_SEED.get(name, ()))
    assert len({run.identity for run in runs}) == len(runs)
    assert all(sum(run.label == label for run in runs) == 1 for label in ONE_SEED.get(name, ()))
    assert FILES[name].read_text().startswith("# ")


@pytest.mark.parametrize("data", DATA)
def test_the_data_and_the_budget_are_the_other_files(data):
    options, models, runs = planned("losses", data, seeds=1)
    assert {run.settings["dataset"] for run in runs} == {data}
    assert len({run.settings["max_train_s"] for run in runs}) == 1
    assert DATA[data].read_text().startswith("# ")


def test_what_an_experiment_says_wins_over_the_data():
    assert all(run.settings["epochs"] == 2 for run in planned("batch_memory")[2])


def test_experiments_on_the_same_data_share_runs():
    shared = [{run.name for run in planned(name)[2]} for name in ("mask_ratio", "losses", "time_order")]
    assert len(set.intersection(*shared)) == 3  # SSD4Rec as it comes, three seeds


def test_equal_wall_time_is_the_only_limit():
    for run in planned("supervision")[2]:
        assert min(run.settings["epochs"], run.settings["stopping_step"]) > 10_000 and run.settings["max_train_s"]


def test_time_orders_have_tables_of_their_own():
    assert planned("time_order")[0].separate_tables is True


def test_make_runs_them():
    text = (ROOT / "Makefile").read_text()
    assert '--config_files="benchmarks/experiments/on/$(ON).yaml benchmarks/experiments/$(NAME).yaml"' in text
