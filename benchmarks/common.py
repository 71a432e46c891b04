"""What benchmarks of training share: a model trained a step at a time, and the floor of arithmetic."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import torch
from recbole.utils import init_seed
from record import SEED

from recbole_ssd import Config, create_dataset, data_preparation
from recbole_ssd.allocator import keep_freed_memory
from recbole_ssd.data.dataloader import is_packed
from recbole_ssd.optimizer import for_packed

LOOK = 50  # steps between two looks at the clock, for which the device is waited for


class Steps:
    """A model with its loader and optimizer, trained a step at a time, the loader's time included.

    Args:
        model, dataset: names.
        precision: `bfloat16` runs the forward pass under autocast, whatever the model; `float32` does not.
        keeps_memory: as our Trainer has it on a CPU, whatever the model; RecBole's does not.
        settings: of the config.
    """

    def __init__(
        self, model: str, dataset: str = "ml-100k", precision: str = "float32", keeps_memory: bool = True, **settings
    ):
        self.config = Config(model, dataset, config_dict={"show_progress": False, "seed": SEED, **settings})
        self.device, self.precision = self.config["device"], precision
        if keeps_memory and self.device.type == "cpu":
            keep_freed_memory()
        init_seed(SEED, True)
        self.data, self.valid_data, _ = data_preparation(self.config, create_dataset(self.config))
        self.model = self.config.model_class(self.config, self.data.dataset).to(self.device).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=self.config["learning_rate"])
        if is_packed(self.config):  # as our Trainer has it; RecBole's models keep RecBole's
            self.optimizer = for_packed(self.optimizer, self.model)
        self.n_batches = len(self.data)
        self._batches, self._epochs = iter(()), 0

    def batches(self) -> Iterator:
        """The batches of an epoch, on the model's device."""
        return (batch.to(self.device) for batch in self.data)

    def step(self) -> float:
        """Seconds of one step; a new epoch begins when the last one is used up."""
        return self.run(1)

    def run(self, count: int) -> float:
        """Seconds of `count` steps, the device waited for after the last one only."""
        started = time.perf_counter()
        for _ in range(count):
            batch = next(self._batches, None)
            if batch is None:
                self._begin_epoch()
                batch = next(self._batches)
            self.train_on(batch)
        self._synchronize()
        return time.perf_counter() - started

    def epoch_s(self, batches: int | None = None) -> float:
        """Seconds of an epoch: all its steps, or the median of `batches` steps times their number in an epoch."""
        if batches is None:
            return sum(self.step() for _ in range(self.n_batches))
        return statistics.median(self.step() for _ in range(batches)) * self.n_batches

    def part_of_epoch(self, seconds: float, steps: int | None = None) -> tuple[int, float]:
        """(steps, seconds) of a new epoch, its planning included, that stops early when either limit is reached."""
        started, done = time.perf_counter(), 0
        self._begin_epoch()
        for done, batch in enumerate(self._batches, start=1):
            self.train_on(batch)
            if done == steps:
                break
            if done % LOOK == 0:
                self._synchronize()
                if time.perf_counter() - started > seconds:
                    break
        self._synchronize()
        return done, time.perf_counter() - started

    def evaluation_s(self) -> float:
        """Seconds of scoring all items for every user of the validation, the loader's time included."""
        started = time.perf_counter()
        self.model.eval()
        with torch.no_grad():
            for interaction, *_ in self.valid_data:
                self.model.full_sort_predict(interaction.to(self.device))
        self.model.train()
        self._synchronize()
        return time.perf_counter() - started

    def _begin_epoch(self) -> None:
        if self._epochs and hasattr(self.data, "set_epoch"):  # the first one is planned with the loader
            self.data.set_epoch(self._epochs)
        self._epochs += 1
        self._batches = self.batches()

    def train_on(self, batch) -> None:
        """One step of the optimizer."""
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            loss = self.model.calculate_loss(batch)
        loss.backward()
        self.optimizer.step()

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
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
