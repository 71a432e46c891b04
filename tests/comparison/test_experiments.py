"""Every file of benchmarks/experiments can be run and is what its name says."""

import pytest
import yaml

from recbole_ssd.comparison.options import read_options
from recbole_ssd.comparison.runs import check_one_protocol, plan_runs
from tests.conftest import ROOT

FOLDER = ROOT / "benchmarks" / "experiments"
FILES = {file.stem: file for file in sorted(FOLDER.glob("*.yaml"))}
SWEPT = {  # the values of a key, in the order of the file's rows
    "bidirectional": ("bidirectional", ["none", "readout", "none", "readout", "flip"]),
    "mask_ratio": ("mask_ratio", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]),
    "history_length": ("MAX_ITEM_LIST_LENGTH", [None, 200, 50, 10] * 2),
    "supervision": ("supervision", ["all_positions", "prefixes"] * 2),
    "packed_or_padded": ("model", ["SASRec", "PackedSASRec", "PackedSASRec"]),
    "depth_and_width": ("num_layers", [1, 2, 4] * 3),
    "losses": ("loss_type", ["CE", "BPR", "BCE"] * 2),
    "time_order": ("time_order", ["exact", "exact", "recbole", "recbole"]),
    "gate": ("gate", ["running_mean", "token", "top1", None, None]),
    "batch_memory": ("max_batch_tokens", [2048, 8192, 32768, 131072]),
    "models": (
        "model",
        ["SASRec", "GRU4Rec", "SSD4Rec", "MambaRec", "Mamba4Rec", "RecMamba", "MoEMaTrRec", "PackedSASRec"],
    ),
}


def planned(file):
    options, models, notes = read_options({}, [str(file)], "SSD4Rec", "ml-100k")
    assert not notes
    runs = plan_runs(models, options.seeds)  # every model and key is known, every value allowed
    check_one_protocol(runs, options.separate_tables)
    return options, models, runs


def test_every_file_is_known_here():
    assert set(FILES) == set(SWEPT)


@pytest.mark.parametrize("name", FILES)
def test_an_experiment_yields_the_runs_it_promises(name):
    options, models, runs = planned(FILES[name])
    key, values = SWEPT[name]
    assert [settings.get(key) for settings in models.values()] == values
    assert options.seeds == 3 and len(runs) == 3 * len(values)
    assert len({run.identity for run in runs}) == len(runs)
    assert FILES[name].read_text().startswith("# ")


@pytest.mark.parametrize("name", ["supervision", "packed_or_padded", "models"])
def test_equal_wall_time_is_a_limit_for_all(name):
    assert yaml.safe_load(FILES[name].read_text())["max_train_s"] >= 1800
    assert all("max_train_s" in run.settings for run in planned(FILES[name])[2])


def test_time_orders_have_tables_of_their_own():
    assert planned(FILES["time_order"])[0].separate_tables is True


def test_make_runs_them():
    text = (ROOT / "Makefile").read_text()
    assert "--config_files=benchmarks/experiments/$(NAME).yaml" in text
