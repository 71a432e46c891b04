"""Runs in processes: crashes, kills and Ctrl-C cost one run, and a second call goes on."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from recbole_ssd import run_recbole_ssd
from recbole_ssd.comparison import runner
from recbole_ssd.comparison.runner import folder_lock
from tests.comparison.conftest import FAKE
from tests.conftest import ROOT

FOLDER = Path("comparison/tiny")
REPORTS = ("report.md", "results.csv", "groups.csv")


def reports(folder=FOLDER) -> dict:
    return {name: (folder / name).read_text() for name in REPORTS}


def started(folder=FOLDER) -> dict:
    """When each run's process began to write."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/*/settings.yaml")}


def test_what_is_done_is_not_run_again(compared):
    assert compared(seeds=2) == 0
    before, times = reports(), started()
    assert compared(seeds=2) == 0
    assert started() == times and len(times) == 4 and reports() == before
    assert compared("SSD4Rec,GRU4Rec,SASRec", seeds=2) == 0
    assert times.items() <= started().items() and len(started()) == 6


def test_comparisons_share_the_runs_of_one_folder(compared, tmp_path):
    section = tmp_path / "sections.yaml"
    section.write_text("models: {another label: {model: SSD4Rec}, SASRec: }")
    assert compared(seeds=2, runs="shared", output="a") == 0
    times = started(Path("."))
    assert compared("", [str(section)], seeds=2, runs="shared", output="b") == 0
    assert len(times) == 4 and len(started(Path("."))) == 6 and times.items() <= started(Path(".")).items()
    assert "another label" in reports(Path("b"))["report.md"] and not Path("a/runs").exists()


def test_one_folder_may_hold_report_and_runs(compared):
    assert compared(runs="a", output="a") == 0
    assert Path("a/report.md").is_file() and len(list(Path("a").glob("*/result.json"))) == 2


def test_changed_settings_are_new_runs(compared):
    compared(learning_rate="0.001")
    compared(learning_rate="0.01")
    assert len(started()) == 4
    assert reports()["results.csv"].count("\n") == 3  # the report is of what was asked last


def test_a_failed_run_is_shown_and_never_dropped(compared, monkeypatch, capsys):
    monkeypatch.setenv("FAKE_CRASH", "GRU4Rec-2021")
    assert compared("SSD4Rec,GRU4Rec", seeds=3) == 1
    printed = capsys.readouterr().out
    text = reports()
    assert "GRU4Rec, seed 2021: failed: the loss is not a number: lower 'learning_rate' (log: " in printed
    assert "| GRU4Rec | 2 of 3 (1 failed) |" in text["report.md"]
    assert "GRU4Rec, seed 2021 | failed  | the loss is not a number: lower 'learning_rate'" in text["report.md"]
    assert text["results.csv"].count(",failed,") == 1 and text["results.csv"].count(",done,") == 5
    monkeypatch.delenv("FAKE_CRASH")
    assert compared("SSD4Rec,GRU4Rec", seeds=3) == 0
    assert "failed" not in reports()["report.md"]


def row(label: str) -> list:
    """The cells of a model in the first table of the report."""
    line = next(line for line in reports()["report.md"].splitlines() if line.startswith(f"| {label} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("crash", ["GRU4Rec-2020", "SSD4Rec-2020"])
def test_a_model_that_always_fails_keeps_its_row(compared, monkeypatch, crash):
    monkeypatch.setenv("FAKE_CRASH", crash)
    assert compared() == 1
    failed = crash.partition("-")[0]
    other = {"GRU4Rec": "SSD4Rec", "SSD4Rec": "GRU4Rec"}[failed]
    assert row(failed)[1] == "0 of 1 (1 failed)" and row(other)[1] == "1" and float(row(other)[2]) > 0


def test_a_comparison_without_any_result_says_so(compared, monkeypatch):
    monkeypatch.setenv("FAKE_CRASH", "GRU4Rec-2020 SSD4Rec-2020")
    assert compared() == 1
    assert "No run of it is done." in reports()["report.md"]
    assert reports()["results.csv"].count(",failed,") == 2


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["heard", "ignored"])
def interrupts(request):
    """How a comparison itself takes SIGINT: one that a script started with `&` ignores it."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_killed_run_is_failed_and_an_interrupted_one_is_not(compared, monkeypatch, interrupts):
    monkeypatch.setenv("FAKE_HANG", "SSD4Rec-2020")
    real = runner._start

    def start_and_end(run, folder):
        process = real(run, folder)
        if run.label == "SSD4Rec":
            wait_for(lambda: next(folder.glob("SSD4Rec*/run.log")).stat().st_size)
            process.send_signal(number)
        return process

    monkeypatch.setattr(runner, "_start", start_and_end)
    number = signal.SIGKILL
    assert compared() == 1
    assert "ended by signal 9 (so the system ends what takes too much memory)" in reports()["report.md"]
    number = signal.SIGINT
    assert compared() == 1
    assert row("SSD4Rec")[1] == "0 of 1 (1 interrupted)" and row("GRU4Rec")[1] == "1"


def stages(folder: Path) -> list:
    """Every file that a comparison writes, in the order of writing."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return sorted(files, key=lambda path: path.stat().st_mtime_ns)


def test_resume_after_a_kill_at_any_point_gives_the_same_report(compared, tmp_path):
    """The folder as it was after each file was written, and with half of that file, continued."""
    compared()
    whole, expected = tmp_path / "whole", reports()
    shutil.copytree(FOLDER, whole)
    order = [path.relative_to(whole) for path in stages(whole)]
    assert len(order) == 2 * 4 + 1 + 5
    for number, last in enumerate(order):
        for half in (False, True):
            shutil.rmtree(FOLDER)
            for path in order[: number + 1]:
                (FOLDER / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(whole / path, FOLDER / path)
            atomic = last.name in ("result.json", "result.ranks.csv", "comparison.json")
            if half and not atomic:  # these appear whole or not at all
                content = (whole / last).read_bytes()
                (FOLDER / last).write_bytes(content[: len(content) // 2])
            assert compared() == 0
            assert reports() == expected, (last, half)


COMMAND = [sys.executable, str(ROOT / "run_recbole_ssd.py"), "--model=SSD4Rec,GRU4Rec", "--dataset=tiny"]
FAST = ["--epochs=2", "--seeds=1", f"--data_path={ROOT / 'dataset'}"]


def wait_for(found, seconds=600):  # the first run on a machine compiles kernels
    deadline = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)
    return result


def test_a_killed_comparison_of_real_runs_goes_on_and_ends_alike(run_folder, tiny):
    """Killed in the middle of the second run, whose orphan holds the folder until it ends."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen([*COMMAND, *FAST, "--output=a"], env=environment, stdout=subprocess.DEVNULL)
    wait_for(lambda: list(Path("a/runs").glob("GRU4Rec*/run.log")))
    killed.kill()
    killed.wait()
    again = subprocess.run([*COMMAND, *FAST, "--output=a"], env=environment, capture_output=True, text=True)
    if again.returncode == 2:  # the orphan still works
        assert "a run that it left behind, is at work in 'a'" in again.stderr and "Traceback" not in again.stderr
        for pid in orphans("a/runs/GRU4Rec"):  # none, if it has ended meanwhile
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not orphans("a/runs/GRU4Rec"))
        again = subprocess.run([*COMMAND, *FAST, "--output=a"], env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert re.search("[12] of 2 runs are done already", again.stdout)
    with open("a/results.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["SSD4Rec", "GRU4Rec"]
    for row in rows:
        alone = run_recbole_ssd(row["model"], config_dict={**tiny, "epochs": 2})["test_result"]
        assert {name: round(float(row[f"test {name}"]), 4) for name in alone} == alone


def orphans(words: str) -> list:
    """Processes whose command line holds these words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if words.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_ctrl_c_stops_the_run_and_says_how_to_go_on(run_folder):
    code = (
        "import sys; from recbole_ssd.comparison import runner; from recbole_ssd.command_line import main; "
        f"runner.PROGRAM = ({str(FAKE)!r},); sys.exit(main(sys.argv[1:]))"
    )
    environment = {**os.environ, "FAKE_HANG": "GRU4Rec-2020", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *COMMAND[2:], *FAST, "--output=c"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: any(path.stat().st_size for path in Path("c/runs").glob("GRU4Rec*/run.log")))
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=30)[0]
    assert process.returncode == 130
    assert "stopped; what is done stays in c: the same command goes on from there" in printed
    assert not orphans("c/runs/GRU4Rec")
    assert len(list(Path("c/runs").glob("*/result.json"))) == 1


def test_two_comparisons_do_not_share_a_folder(tmp_path):
    with folder_lock(tmp_path / "x"):
        with pytest.raises(ValueError, match="another comparison, or a run that it left behind"):
            with folder_lock(tmp_path / "x"):
                pass
    with folder_lock(tmp_path / "x"):
        pass


def test_data_that_are_not_there_are_refused_once_before_anything_runs(compared, run_folder):
    with pytest.raises(ValueError, match="there is no data set 'tiny,ml-100k'"):
        compared(dataset="tiny,ml-100k")
    assert not (run_folder / "comparison").exists()


def test_tables_of_two_deciding_metrics_are_reported(compared):
    Path("two.yaml").write_text("models: {SSD4Rec: {}, GRU4Rec: {valid_metric: Hit@10}}\nseparate_tables: True\n")
    assert compared(None, files=["two.yaml"]) == 0
    (report,) = Path("comparison").glob("*/report.md")
    assert "valid ndcg@10" in report.read_text() and "valid hit@10" in report.read_text()


def test_a_folder_of_another_data_set_is_refused(compared, capsys):
    compared("GRU4Rec", output="here", seeds=1)
    with pytest.raises(ValueError, match="'here' holds a comparison on 'tiny', this one is on 'ml-100k'"):
        compared("GRU4Rec", output="here", dataset="ml-100k")


def test_dry_run_runs_nothing_and_tells_what_would(compared, capsys):
    assert compared(seeds=2, dry_run="True") == 0
    printed = capsys.readouterr().out
    assert printed.count("would run") == 4 and "4 of 4 runs to do" in printed and not Path("comparison").exists()
    compared(seeds=1)
    capsys.readouterr()
    compared(seeds=2, dry_run="True")
    assert "2 of 4 runs to do" in capsys.readouterr().out


def test_several_jobs_give_the_same_results_and_are_told_of(compared):
    compared(seeds=2)
    alone = reports()
    shutil.rmtree(FOLDER)
    compared(seeds=2, jobs=3)
    together = reports()
    assert together["results.csv"] == alone["results.csv"] and together["groups.csv"] == alone["groups.csv"]
    assert "Up to 3 runs at a time shared it" in together["report.md"] and "shared it" not in alone["report.md"]
