"""What is asked for: options, settings by model, and the identity of a run."""

from pathlib import Path

import pytest

from recbole_ssd.comparison.options import is_comparison, read_options
from recbole_ssd.comparison.runs import RunFolder, check_one_protocol, make_run, plan_runs
from recbole_ssd.settings import properties_folder, read_yaml


def options_of(settings, files=()):
    return read_options(settings, list(files), "SSD4Rec", "ml-100k")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model": "SSD4Rec"}, False),
        ({"model": "SSD4Rec,SASRec"}, True),
        ({"seeds": "1"}, True),
        ({"dry_run": "True"}, True),
        ({}, False),
    ],
)
def test_a_key_of_its_own_or_several_models_make_a_comparison(settings, expected):
    assert is_comparison(settings, []) == expected


def test_sections_win_over_files_and_the_line_over_both(run_folder):
    text = "learning_rate: 0.1\nepochs: 3\nseeds: 2\nmodels:\n  SASRec: {learning_rate: 0.2, n_layers: 1}\n  GRU4Rec:\n"
    Path("a.yaml").write_text(text)
    Path("b.yaml").write_text("models: {SASRec: {n_layers: 3}}\n")
    options, models, _ = options_of({"epochs": "5"}, ["a.yaml", "b.yaml"])
    assert options.seeds == 2 and list(models) == ["SASRec", "GRU4Rec"]
    assert models["SASRec"] == {
        "model": "SASRec", "dataset": "ml-100k", "learning_rate": 0.2, "epochs": 5, "n_layers": 3
    }  # fmt: skip
    assert models["GRU4Rec"] == {"model": "GRU4Rec", "dataset": "ml-100k", "learning_rate": 0.1, "epochs": 5}


def test_folders_are_text_and_begin_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    options, _, _ = options_of({"output": "~/tables", "runs": "2026"})
    assert (options.output, options.runs) == ("/home/ann/tables", "2026")


def test_a_list_chooses_among_sections_and_tells_of_the_others(run_folder):
    Path("a.yaml").write_text("models: {forward: {model: SSD4Rec, bidirectional: none}, SASrec: {n_layers: 1}}\n")
    _, models, notes = options_of({"model": "SASRec, forward"}, ["a.yaml"])
    assert list(models) == ["SASRec", "forward"] and models["forward"]["model"] == "SSD4Rec"
    assert notes == ["the section 'SASrec' of 'models' is not used: --model leaves it out"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seeds": "0"}, "'seeds' should be a whole number, 1 or more, it is 0"),
        ({"seeds": "two"}, "'seeds' should be a whole number"),
        ({"jobs": "1.5"}, "'jobs' should be a whole number"),
        ({"export": "word"}, "'export' should be one of latex"),
        ({"dry_run": "maybe"}, "'dry_run' should be True or False"),
        ({"search_s": "60"}, "name its file with --search"),
        ({"model": "SASRec,SASRec"}, "'SASRec' is named twice"),
        ({"model": "SASRec,"}, "names with commas between them"),
        ({"seeds": "2", "result_file": "x.json"}, "'result_file' is the comparison's own"),
        ({"models": "A"}, "'models' is a section of a config file"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(settings, words):
    with pytest.raises(ValueError, match=words):
        options_of(settings)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: 3\n", "one section for each model"),
        ("models: {SASRec: 3}\n", "one section for each model"),
        ("models: {'a, b': {model: SASRec}}\n", "holds a comma"),
        ("models: {SASRec: {dataset: x}, GRU4Rec: {}}\n", "on one data set"),
    ],
)
def test_bad_sections_are_refused_in_a_sentence(run_folder, text, words):
    Path("a.yaml").write_text(text)
    with pytest.raises(ValueError, match=words):
        options_of({}, ["a.yaml"])


def test_unknown_models_and_keys_name_the_label():
    with pytest.raises(ValueError, match="there is no model 'SASrecc'. Did you mean 'SASRec'"):
        plan_runs(options_of({"model": "GRU4Rec,SASrecc"})[1], 1)
    with pytest.raises(ValueError, match="unknown key 'lerning_rate' in the settings of GRU4Rec. Did you mean"):
        plan_runs(options_of({"model": "GRU4Rec,SASRec", "lerning_rate": "1"})[1], 1)


def run_of(**settings):
    return make_run("GRU4Rec", {"model": "GRU4Rec", "dataset": "tiny", **settings})


def test_identity_follows_what_decides_a_result():
    plain = run_of()
    assert run_of(learning_rate=0.001).identity == plain.identity  # RecBole's default, written out
    assert run_of(learning_rate="1e-3").identity == plain.identity  # as text, from a command line
    assert run_of(worker=2, state="ERROR").identity == plain.identity
    others = [run_of(learning_rate=0.002), run_of(seed=7), run_of(epochs=3), run_of(exclude_history=True)]
    assert len({plain.identity, *(run.identity for run in others)}) == 5


def test_identity_follows_the_data(tmp_path):
    """Not the place of the files but what is in them."""
    _, models, _ = options_of({"model": "GRU4Rec", "dataset": "own"})

    def identity(folder, text):
        file = tmp_path / folder / "own" / "own.inter"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return make_run("GRU4Rec", models["GRU4Rec"].but({"data_path": str(tmp_path / folder)})).identity

    header = "user_id:token\titem_id:token\ttimestamp:float\n"
    first = identity("a", header + "u1\ti1\t1\n")
    assert identity("b", header + "u1\ti1\t1\n") == first
    assert identity("b", header + "u1\ti2\t1\n") != first
    assert identity("a", header + "u1\ti3\t1\n") != first


def test_seeds_come_in_rounds_over_the_models():
    runs = plan_runs(options_of({"model": "GRU4Rec,SASRec", "seed": "7"})[1], 2)
    assert [(run.label, run.seed) for run in runs] == [("GRU4Rec", 7), ("SASRec", 7), ("GRU4Rec", 8), ("SASRec", 8)]
    assert len({run.name for run in runs}) == 4
    assert [run.settings["seed"] for run in runs] == [7, 7, 8, 8]


def test_a_slow_model_may_have_fewer_seeds(run_folder):
    Path("a.yaml").write_text("seeds: 3\nmodels: {GRU4Rec: {}, SASRec: {seeds: 1}}\n")
    options, models, _ = options_of({}, ["a.yaml"])
    assert [run.label for run in plan_runs(models, options.seeds)] == ["GRU4Rec", "SASRec", "GRU4Rec", "GRU4Rec"]
    options, models, _ = options_of({"seeds": "2"}, ["a.yaml"])  # the command line wins
    assert [run.label for run in plan_runs(models, options.seeds)] == ["GRU4Rec", "SASRec"] * 2
    Path("a.yaml").write_text("models: {SASRec: {seeds: many}}\n")
    with pytest.raises(ValueError, match="'seeds' should be a whole number, 1 or more, it is 'many'"):
        options_of({}, ["a.yaml"])


def test_two_labels_of_one_run_are_refused(run_folder):
    Path("a.yaml").write_text("models: {a: {model: GRU4Rec, epochs: 1}, b: {model: GRU4Rec, epochs: 2}}\n")
    assert len(plan_runs(options_of({}, ["a.yaml"])[1], 1)) == 2
    with pytest.raises(ValueError, match="'a' and 'b' ask for the same run"):
        plan_runs(options_of({"epochs": "5"}, ["a.yaml"])[1], 1)


def test_two_protocols_are_refused_before_anything_runs(run_folder):
    text = "models: {kept: {model: GRU4Rec}, excluded: {model: GRU4Rec, exclude_history: True}}\n"
    Path("a.yaml").write_text(text)
    runs = plan_runs(options_of({}, ["a.yaml"])[1], 1)
    with pytest.raises(ValueError, match=r"kept: letter A, history kept; excluded: letter B, history excluded"):
        check_one_protocol(runs, separate_tables=False)
    check_one_protocol(runs, separate_tables=True)


def test_a_metric_that_no_rank_tells_is_refused_before_anything_runs():
    runs = plan_runs(options_of({"model": "SSD4Rec,SASRec", "valid_metric": "GAUC", "metrics": "[GAUC]"})[1], 1)
    with pytest.raises(ValueError, match="cannot be compared by 'GAUC'.*such as NDCG@10"):
        check_one_protocol(runs, separate_tables=False)


def test_the_window_of_a_model_is_no_protocol():
    runs = plan_runs(options_of({"model": "SSD4Rec,SASRec"})[1], 1)
    check_one_protocol(runs, separate_tables=False)


def test_settings_shipped_for_a_pair_are_told():
    (run,) = plan_runs(options_of({"model": "SSD4Rec", "epochs": "2"})[1], 1)
    tuned = read_yaml(properties_folder() / "tuned" / "SSD4Rec-ml-100k.yaml")
    assert tuned.pop("epochs") and run.shipped == tuned  # the user's own epochs win


def test_settings_of_a_run_survive_their_file(tmp_path):
    """What the run's own process reads makes the same run."""
    from recbole_ssd import Config

    settings = {"learning_rate": "1e-3", "eval_args": "{'mode': 'uni100'}", "user_inter_num_interval": "[5,inf)"}
    run = run_of(**settings)
    place = RunFolder(tmp_path, run)
    place.path.mkdir()
    place.write_settings(run)
    config = Config(config_file_list=[place.settings])
    assert config["eval_args"]["mode"] == {"valid": "uni100", "test": "uni100"}
    own = ("result_file", "save_ranks", "checkpoint_dir", "show_progress")
    again = {key: value for key, value in config.given().items() if key not in own}
    assert make_run("GRU4Rec", again).identity == run.identity
