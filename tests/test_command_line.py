"""The command line: settings in, sentences out."""

import os
import signal
import subprocess
import sys

import pytest

from recbole_ssd import command_line
from recbole_ssd.command_line import main, parse, raiser
from tests.conftest import ROOT


def test_reads_any_key_and_splits_at_the_first_equals_sign():
    arguments = ["--model=SASRec", "--val_interval={'a':'[1,2]'}", "--data_path=x=y", "--result_file="]
    expected = {"model": "SASRec", "val_interval": "{'a':'[1,2]'}", "data_path": "x=y", "result_file": ""}
    assert parse(arguments) == expected


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("SASRec", "write --SASRec=VALUE"),
        ("--model", "write --model=VALUE"),
        ("-model=x", "write --model=x, or see --help"),
        ("--dry-run", "write --dry_run, or see --help"),
        ("help", "write --help, or see --help"),
        ("--=x", "is not of the form --key=value"),
        ("--seed=1", "'--seed' is given twice, as '2' and as '1'"),
    ],
)
def test_anything_else_is_refused(argument, words, capsys):
    assert main(["--seed=2", argument]) == 2
    printed = capsys.readouterr().err
    assert words in printed and "Traceback" not in printed


@pytest.fixture
def asked(monkeypatch):
    """What run_recbole_ssd was called with."""
    calls = []
    monkeypatch.setattr(command_line, "run_recbole_ssd", lambda **kwargs: calls.append(kwargs))
    return calls


def test_no_arguments_is_ssd4rec_on_ml_100k(asked):
    assert main([]) == 0
    assert asked == [{"config_file_list": [], "config_dict": {"model": "SSD4Rec", "dataset": "ml-100k"}}]


def test_the_name_of_a_config_file_may_hold_a_space(tmp_path):
    file = tmp_path / "my settings.yaml"
    file.write_text("model: SASRec\n")
    assert parse([f"--config_files={file}"])["config_files"] == [str(file)]


def test_names_in_config_files_count(asked, tmp_path):
    (tmp_path / "a.yaml").write_text("model: SASRec\n")
    (tmp_path / "b.yaml").write_text("dataset: tiny\n")
    assert main([f"--config_files={tmp_path / 'a.yaml'} {tmp_path / 'b.yaml'}", "--seed=1"]) == 0
    assert asked[0]["config_dict"] == {"seed": "1"}
    assert len(asked[0]["config_file_list"]) == 2


@pytest.mark.parametrize("arguments", [["--model=SSD4Rec,SASRec"], ["--seeds=2"], ["--dry_run"], ["--search=x.yaml"]])
def test_several_runs_are_a_comparison(asked, monkeypatch, arguments):
    calls = []
    monkeypatch.setattr(command_line, "compare", lambda *args: calls.append(args) or 1)
    assert main([*arguments, "--epochs=2"]) == 1 and not asked
    settings, files, defaults, command = calls[0]
    key, _, value = arguments[0].removeprefix("--").partition("=")
    assert settings == {key: value or "True", "epochs": "2"} and files == [] and defaults == ("SSD4Rec", "ml-100k")


def test_models_in_a_config_file_are_a_comparison(asked, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(command_line, "compare", lambda *args: calls.append(args) or 0)
    (tmp_path / "a.yaml").write_text("models: [SASRec, SSD4Rec]\n")
    assert main([f"--config_files={tmp_path / 'a.yaml'}"]) == 0 and len(calls) == 1 and not asked


def test_sentences_of_a_comparison_come_without_a_traceback(run_folder, capsys):
    assert main(["--model=SSD4Rec,SASrec"]) == 2
    assert "there is no model 'SASrec'. Did you mean 'SASRec'?" in capsys.readouterr().err


def test_list_models_names_ours_first(capsys):
    assert main(["--list_models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    assert names.index("SSD4Rec") < names.index("BERT4Rec") < names.index("SASRec")
    assert not {"KSR", "DIEN", "S3Rec", "BPR"} & set(names)
    assert all(len(line.split()) > 2 for line in lines)


def test_help_says_how(capsys):
    assert main(["--help"]) == 0
    assert "--KEY=VALUE" in capsys.readouterr().out


def test_ctrl_c_exits_130(monkeypatch):
    def stop(**kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "run_recbole_ssd", stop)
    assert main([]) == 130


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_termination_is_taken_as_ctrl_c(monkeypatch):
    monkeypatch.setattr(command_line, "run_recbole_ssd", lambda **kwargs: os.kill(os.getpid(), signal.SIGTERM))
    assert main([]) == 130
    monkeypatch.setattr(command_line, "run_recbole_ssd", lambda **kwargs: os.kill(os.getpid(), signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert main([]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_bug_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(command_line, "run_recbole_ssd", lambda **kwargs: int("no number"))
    with pytest.raises(ValueError, match="invalid literal"):
        main([])


def test_debug_shows_the_traceback_of_a_sentence():
    with pytest.raises(ValueError, match="there is no model 'Nope'"):
        main(["--model=Nope", "--state=DEBUG"])


def test_a_message_to_the_user_is_told_from_a_bug():
    from recbole.data.transform import construct_transform

    from recbole_ssd.settings import read_yaml

    def found(call):
        with pytest.raises((ValueError, TypeError, RuntimeError)) as error:
            call()
        return raiser(error.value)

    assert found(lambda: read_yaml("missing.yaml")) == "recbole_ssd"
    assert found(lambda: construct_transform({"transform": "nope"})) == "recbole"
    assert found(lambda: read_yaml(3)) is None  # breaks inside pathlib
    assert found(lambda: int("x")) is None


def test_recboles_refusals_are_sentences_too(run_folder, capsys):
    arguments = [f"--data_path={ROOT / 'dataset'}", "--dataset=tiny", "--val_interval={nope: '[1,2]'}"]
    assert main([*arguments, "--state=ERROR"]) == 2
    assert capsys.readouterr().err.strip() == "RecBole refuses this: Field [nope] not defined in dataset."


def test_the_script_refuses_without_a_traceback(run_folder):
    command = [sys.executable, str(ROOT / "run_recbole_ssd.py"), "--lerning_rate=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    sentence = "unknown key 'lerning_rate' in the command line. Did you mean 'learning_rate'?"
    assert done.stderr.strip() == sentence


def test_the_script_trains(run_folder):
    settings = ["--model=GRU4Rec", f"--data_path={ROOT / 'dataset'}", "--dataset=tiny", "--epochs=1"]
    command = [sys.executable, str(ROOT / "run_recbole_ssd.py"), *settings, "--result_file=r.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "protocol A" in done.stderr and "FutureWarning" not in done.stderr
    assert (run_folder / "r.json").is_file()
