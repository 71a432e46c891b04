"""Search spaces as files, and searches that keep their budget and go on after a kill."""

import json
import math
import re
import shutil
from pathlib import Path

import optuna
import pytest

from recbole_ssd.comparison import search as search_file
from recbole_ssd.comparison.search import best_trial
from recbole_ssd.comparison.space import Dimension, read_space

FOLDER = Path("comparison/tiny")
SPACE = "GRU4Rec:\n  learning_rate: {loguniform: [1e-4, 0.1]}\n  dropout_prob: [0.1, 0.5]\n"


@pytest.fixture
def space_file(fake_runs):
    Path("space.yaml").write_text(SPACE)
    return "space.yaml"


def study_of(label="GRU4Rec"):
    (folder,) = FOLDER.glob(f"search/{label}-*")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "journal.log")))
    return optuna.load_study(storage=storage, study_name=folder.name)


def trials():
    return [(trial.user_attrs["settings"], trial.value) for trial in study_of().trials]


def test_yaml_spaces_are_read_by_label_by_model_and_for_all(run_folder):
    Path("space.yaml").write_text(
        "all: {epochs: [1, 2]}\nSSD4Rec: {num_layers: {randint: [1, 3]}}\nb: {beta: [0, 1]}\n"
    )
    found = read_space("space.yaml", {"a": "SSD4Rec", "b": "SSD4Rec", "c": "GRU4Rec"})
    assert {label: [str(dimension) for dimension in space] for label, space in found.items()} == {
        "a": ["num_layers randint [1, 3]"],
        "b": ["beta choice [0, 1]"],
        "c": ["epochs choice [1, 2]"],
    }


def test_hyper_files_are_read_as_recbole_reads_them(run_folder):
    Path("m.hyper").write_text(
        "learning_rate loguniform -8,0\nembedding_size choice [64, 96,128]\n\n"
        "mlp choice ['[64,64]','[128]']\ndropout_prob uniform 0.1,0.5\nhidden_size quniform 16,64,16\nshort line\n"
    )
    dimensions = {dimension.key: dimension for dimension in read_space("m.hyper", {"a": "GRU4Rec"})["a"]}
    assert dimensions["learning_rate"].values == (math.exp(-8), 1.0)  # hyperopt's loguniform takes logarithms
    assert dimensions["embedding_size"].values == (64, 96, 128)
    assert dimensions["mlp"].values == ("[64,64]", "[128]")
    assert dimensions["dropout_prob"].values == (0.1, 0.5)
    assert len(dimensions) == 5 and dimensions["hidden_size"].kind == "quniform"


def test_a_section_may_name_a_hyper_file_beside_it(run_folder):
    Path("spaces").mkdir()
    Path("spaces/g.hyper").write_text("epochs choice [1,2]\n")
    Path("spaces/s.yaml").write_text("GRU4Rec: g.hyper\n")
    assert read_space("spaces/s.yaml", {"GRU4Rec": "GRU4Rec", "SASRec": "SASRec"}) == {
        "GRU4Rec": [Dimension("epochs", "choice", (1, 2))]
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("GRU4rec: {epochs: [1]}", "section 'GRU4rec', which is not compared. Did you mean 'GRU4Rec'"),
        ("", "has a section for none of the models: add one named GRU4Rec"),
        ("GRU4Rec: 3", "should hold lines 'key: values'"),
        ("GRU4Rec: {epochs: 3}", "should be a list to choose from"),
        ("GRU4Rec: {epochs: []}", "nothing to choose from"),
        ("GRU4Rec: {epochs: {normal: [1, 2]}}", "'normal', which is none of choice, uniform"),
        ("GRU4Rec: {epochs: {randint: [3, 1]}}", "the lower end first"),
        ("GRU4Rec: {learning_rate: {loguniform: [0, 1]}}", "must be above 0"),
        ("GRU4Rec: {learning_rate: {uniform: [0.1, 1, 2]}}", "uniform needs 2 numbers"),
        ("GRU4Rec: other.hyper", "search file 'other.hyper' does not exist"),
    ],
)
def test_bad_spaces_are_refused_in_a_sentence(run_folder, text, words):
    Path("space.yaml").write_text(text + "\n")
    with pytest.raises(ValueError, match=words):
        read_space("space.yaml", {"GRU4Rec": "GRU4Rec"})


@pytest.mark.parametrize(("name", "text"), [("no.yaml", None), ("no.hyper", None), ("x.hyper", "a b\n")])
def test_missing_and_empty_files_are_refused(run_folder, name, text):
    if text:
        Path(name).write_text(text)
    with pytest.raises(ValueError, match="does not exist|holds no line"):
        read_space(name, {"GRU4Rec": "GRU4Rec"})


def test_values_and_keys_are_checked_before_anything_runs(compared):
    Path("space.yaml").write_text("GRU4Rec: {lerning_rate: [0.1]}\n")
    with pytest.raises(ValueError, match="unknown key 'lerning_rate' in the settings of GRU4Rec"):
        compared(search="space.yaml")
    Path("space.yaml").write_text("GRU4Rec: {dropout_prob: {uniform: [0.1, 1.5]}}\n")
    with pytest.raises(ValueError, match="'dropout_prob' .* below 1, it is 1.5"):
        compared(search="space.yaml")
    assert not Path("comparison").exists()


def test_the_best_validation_is_compared_and_the_report_tells_of_it(compared, space_file, capsys):
    assert compared(search=space_file, search_trials=6) == 0
    best = max(trials(), key=lambda trial: trial[1])
    assert len(trials()) == 6 and len({value for _, value in trials()}) > 2
    runs = [json.loads(file.read_text())["config"] for file in FOLDER.glob("runs/GRU4Rec-*/result.json")]
    assert len(runs) == 6  # the best trial is the run that is compared
    assert best[0] in [{key: config[key] for key in ("learning_rate", "dropout_prob")} for config in runs]
    text = (FOLDER / "report.md").read_text()
    assert "learning_rate loguniform [0.0001, 0.1]; dropout_prob choice [0.1, 0.5]" in text
    assert f"{best[1]:.4f}" in text.partition("## Tuning")[2] and "Not tuned: SSD4Rec." in text


def test_an_interrupted_search_goes_on_as_if_it_had_not_been(compared, space_file, monkeypatch):
    compared("GRU4Rec", search=space_file, search_trials=5)
    whole, report = trials(), (FOLDER / "report.md").read_text()
    assert len({str(settings) for settings, _ in whole}) == 5
    real, count = search_file._run_trial, []

    def killed(*args):
        count.append(1)
        if len(count) in (2, 4):
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(search_file, "_run_trial", killed)
    shutil.rmtree(FOLDER)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            compared("GRU4Rec", search=space_file, search_trials=5)
    compared("GRU4Rec", search=space_file, search_trials=5)
    assert trials() == whole and (FOLDER / "report.md").read_text() == report


def test_a_finished_search_runs_no_more_trials(compared, space_file, capsys):
    compared("GRU4Rec", search=space_file, search_trials=3)
    printed = capsys.readouterr().out
    assert printed.count("tuning GRU4Rec, trial") == 3 and "1 of 1 runs are done already" in printed
    assert re.search(r"tuning GRU4Rec, trial 3 of 3, best valid ndcg@10 0\.\d{4}: learning_rate=", printed)
    compared("GRU4Rec", search=space_file, search_trials=3)
    assert "tuning GRU4Rec, trial" not in capsys.readouterr().out
    compared("GRU4Rec", search=space_file, search_trials=4)
    assert capsys.readouterr().out.count("tuning GRU4Rec, trial") == 1


def test_seconds_of_trials_are_a_budget(compared, space_file, capsys):
    """Each fake trial tells of 2.6 s: after the fourth, 10 s are over."""
    compared("GRU4Rec", search=space_file, search_s=10)
    assert len(trials()) == 4
    assert "tuning GRU4Rec, trial 4, 8 of 10 s spent, best valid" in capsys.readouterr().out


def test_a_space_that_is_used_up_ends_the_search(compared, fake_runs, capsys):
    Path("space.yaml").write_text("GRU4Rec: {dropout_prob: [0.1, 0.5]}\n")
    compared("GRU4Rec", search="space.yaml", search_s=100_000)
    assert capsys.readouterr().out.count("tuning GRU4Rec, trial") == 2


def test_runs_of_another_study_are_taken_over_and_do_not_end_this_one(compared, space_file, monkeypatch, capsys):
    monkeypatch.setattr(search_file, "SAME", 3)
    compared("GRU4Rec", search=space_file, search_trials=6, runs="runs")
    first = trials()
    shutil.rmtree(FOLDER)
    capsys.readouterr()
    compared("GRU4Rec", search=space_file, search_trials=6, runs="runs")
    assert trials() == first and "tuning GRU4Rec, trial" not in capsys.readouterr().out


def test_failed_trials_are_counted_and_do_not_win(compared, space_file, monkeypatch):
    monkeypatch.setenv("FAKE_CRASH", "GRU4Rec-2020")
    with pytest.raises(ValueError, match="no trial of GRU4Rec gave a result: see the run.log files"):
        compared("GRU4Rec", search=space_file, search_trials=2)
    monkeypatch.delenv("FAKE_CRASH")
    assert compared("GRU4Rec", search=space_file, search_trials=4) == 0
    assert "4 (2 failed)" in (FOLDER / "report.md").read_text()
    assert best_trial(study_of()).number >= 2


def test_a_model_that_always_fails_ends_its_search(compared, space_file, monkeypatch):
    """Within its hour it could fail hundreds of times."""
    monkeypatch.setenv("FAKE_CRASH", "GRU4Rec-2020")
    with pytest.raises(ValueError, match="no trial of GRU4Rec gave a result"):
        compared("GRU4Rec", search=space_file, search_s=3600)
    assert len(trials()) == 5 and all(trial.user_attrs["seconds"] > 0 for trial in study_of().trials)


def test_another_space_is_another_search(compared, space_file):
    compared("GRU4Rec", search=space_file, search_trials=2)
    Path("space.yaml").write_text(SPACE.replace("0.5", "0.4"))
    compared("GRU4Rec", search=space_file, search_trials=2)
    assert len(list(FOLDER.glob("search/GRU4Rec-*"))) == 2


def test_dry_run_tells_the_search(compared, space_file, capsys):
    compared(search=space_file, search_s=600, dry_run="True")
    printed = capsys.readouterr().out
    assert (
        "tune GRU4Rec over learning_rate loguniform [0.0001, 0.1]; dropout_prob choice [0.1, 0.5] (10.0 min)" in printed
    )
    assert not Path("comparison").exists()


@pytest.mark.parametrize("choice", ["exclude_history: [True, False]", "seed: [1, 2]", "valid_metric: [Hit@10, MRR@10]"])
def test_what_is_measured_is_not_searched(compared, space_file, choice):
    """The rule that reads highest would win, whatever was learned."""
    Path(space_file).write_text(f"GRU4Rec: {{{choice}}}")
    with pytest.raises(ValueError, match="decides how GRU4Rec is measured and not what it learns"):
        compared(model="GRU4Rec", search=space_file, search_trials=2)


def test_what_the_line_sets_is_not_searched_over(compared, space_file):
    words = "'learning_rate' of GRU4Rec is set, by its section or the command line, and searched over too"
    with pytest.raises(ValueError, match=words):
        compared(model="GRU4Rec", search=space_file, search_trials=2, learning_rate="0.01")
    Path("all.yaml").write_text("learning_rate: 0.01")  # for all models, where a search may begin
    compared(model="GRU4Rec", search=space_file, search_trials=1, files=["all.yaml"])
