"""What every room's tests may use: the generated data set and a folder of their own to run in."""

import os
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # before a kernel is decorated: without a GPU they run on CPU tensors

import pytest
import torch

from recbole_ssd.compat import sequential_models

torch.set_num_threads(1)  # the tests are small: a second thread costs more than it does, most of all on a busy machine
sequential_models()  # before a test imports one of RecBole's models, which would leave anomaly detection on

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """An empty working folder: logs, TensorBoard files and checkpoints of a run land there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tiny():
    """Settings that train on the generated data set of the repository, one short epoch, in silence."""
    return {
        "data_path": str(ROOT / "dataset"),
        "dataset": "tiny",
        "epochs": 1,
        "show_progress": False,
        "gpu_id": "",
    }
