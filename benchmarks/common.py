"""What every benchmark here shares: a trained step at a time, a record of the machine, and the floor of arithmetic."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from recbole.utils import init_seed

from recbole_ssd import Config, create_dataset, data_preparation
from recbole_ssd.environment import machine, versions

RESULTS = Path(__file__).parent / "results"
SEED = 2020


class Steps:
    """A model with its loader and optimizer, trained a step at a time, the loader's time included."""

    def __init__(self, model: str, dataset: str = "ml-100k", **settings):
        self.config = Config(model, dataset, config_dict={"show_progress": False, "seed": SEED, **settings})
        init_seed(SEED, True)
        self.data = data_preparation(self.config, create_dataset(self.config))[0]
        self.model = self.config.model_class(self.config, self.data.dataset).to(self.config["device"]).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.config["learning_rate"])
        self.n_batches = len(self.data)
        self._batches = iter(())

    def step(self) -> float:
        """Seconds of one step; a new epoch begins when the last one is used up."""
        started = time.perf_counter()
        batch = next(self._batches, None)
        if batch is None:
            self._batches = iter(self.data)
            batch = next(self._batches)
        self.optimizer.zero_grad()
        self.model.calculate_loss(batch.to(self.config["device"])).backward()
        self.optimizer.step()
        self._synchronize()
        return time.perf_counter() - started

    def epoch_s(self, batches: int | None = None) -> float:
        """Seconds of an epoch: all its steps, or the median of `batches` steps times their number in an epoch."""
        if batches is None:
            return sum(self.step() for _ in range(self.n_batches))
        return statistics.median(self.step() for _ in range(batches)) * self.n_batches

    def _synchronize(self) -> None:
        if self.config["device"].type == "cuda":
            torch.cuda.synchronize()


def matmul_gflops(size: int = 1024, repeats: int = 10) -> float:
    """What torch.mm reaches on this machine, now."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - started)
    return 2e-9 * size**3 / statistics.median(seconds)


def commit() -> str:
    """The commit that is measured, marked where the tree differs from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True)
    return head + ("+changes" if changed.stdout.strip() else "")


COMMIT = commit()  # read at the start: a long run may outlast it


def save(name: str, figures: dict, command: str | None = None, seed: int = SEED) -> Path:
    """Writes figures with what is needed to believe and repeat them; `command` is that of this process by default."""
    record = {
        **figures,
        "command": command or "python " + " ".join(["benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]]),
        "commit": COMMIT,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "machine": machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "versions": versions(),
    }
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path
