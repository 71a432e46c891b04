"""Comparisons whose runs cost nothing: a script that writes results stands where the training is."""

import signal
from pathlib import Path

import pytest
import yaml

from recbole_ssd.comparison import plots, runner
from recbole_ssd.comparison.command import compare
from recbole_ssd.comparison.options import ModelSettings
from recbole_ssd.comparison.records import read_record
from recbole_ssd.comparison.runs import RunFolder, plan_runs
from tests.comparison import fake_run

FAKE = Path(__file__).parent / "fake_run.py"


@pytest.fixture(autouse=True)
def interruptible():
    """A test run that a script started with `&` ignores SIGINT, and the processes of these tests would inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def fake_runs(monkeypatch, run_folder):
    """Runs write results from their settings and train nothing."""
    monkeypatch.setattr(runner, "PROGRAM", (str(FAKE),))
    monkeypatch.setattr(runner, "POLL_S", 0.02)
    return run_folder


@pytest.fixture
def compared(fake_runs, monkeypatch):
    """A function that runs a comparison on `tiny`, without pictures, and gives its exit status."""
    monkeypatch.setattr(plots, "can_plot", lambda: False)
    (fake_runs / "dataset" / "tiny").mkdir(parents=True)

    def call(model="SSD4Rec,GRU4Rec", files=(), **settings):
        settings = {"dataset": "tiny", **settings}
        if model:
            settings["model"] = model
        return compare(settings, list(files), ("SSD4Rec", "ml-100k"), "the command")

    return call


@pytest.fixture
def records(tmp_path):
    """A function that gives the records of done runs, made from settings by label; changes go into the results."""

    def make(models: dict, seeds: int = 2, **changed):
        runs = plan_runs(
            {label: ModelSettings({"dataset": "tiny", "model": label, **s}) for label, s in models.items()}, seeds
        )
        for run in runs:
            place = RunFolder(tmp_path / "runs", run)
            place.path.mkdir(parents=True, exist_ok=True)
            place.write_settings(run)
            fake_run.write(yaml.safe_load(place.settings.read_text()), **changed.get(run.label, {}))
        return [read_record(tmp_path / "runs", run) for run in runs]

    return make
