"""How long the device takes: CUDA events, a cold cache, medians; and what it can do at most, measured beside it.

Before every timed pass the device fills a buffer larger than its L2 cache, so that inputs come from memory; and fills
it so often that the host has launched the pass before the device begins it: what is timed is kernels, not Python. What
the host takes stands beside it. On a CPU, where this is only exercised, there are neither.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

LEAST, MOST = 20, 100  # repetitions
ENOUGH_MS = 200.0  # of repetitions, where that is more than LEAST of them
FLUSH_MB = 256  # an H200 has 60 MB of L2
MOST_FILLS = 40  # a pass that waits for the device takes the host as long as itself: no number of fills is enough
ALIKE = 1.5  # the host's time varies; so much longer does the device stay busy


class Timer:
    """Times passes on one device."""

    def __init__(self, device: torch.device):
        self.device, self.cuda = device, device.type == "cuda"
        if self.cuda:
            self.flush = torch.empty(FLUSH_MB * 2**18, dtype=torch.int32, device=device)
            self.fill_ms = self.median_ms(self.flush.zero_, fills=0)

    def now(self) -> float:
        """Milliseconds, with nothing left to do on the device."""
        if self.cuda:
            torch.cuda.synchronize(self.device)
        return 1e3 * time.perf_counter()

    def median_ms(self, work: Callable[[], object], fills: int = 1) -> float:
        """Of something that takes the host hardly any time."""
        work()  # the warm-up
        return statistics.median(taken for (taken,) in self._marks([work], LEAST, fills))

    def wall_ms(self, work: Callable[[], object], repeats: int = 5) -> float:
        """Median time until `work` is done on the device, as the host sees it."""
        taken = []
        for _ in range(repeats):
            started = self.now()
            work()
            taken.append(self.now() - started)
        return statistics.median(taken)

    def passes(self, forward: Callable[[], Tensor], leaves: list[Tensor]) -> dict:
        """Medians of a forward and of the backward after it, in milliseconds."""
        dy = torch.randn_like(forward())
        made = []  # the output that waits for its backward

        def backward():
            torch.autograd.grad(made.pop(), leaves, dy)

        steps = [lambda: made.append(forward()), backward]
        host, total = zip(*(self._host(steps) for _ in range(4)))
        host, total = (statistics.median(taken[1:]) for taken in (host, total))  # the first one compiles
        repeats = int(min(MOST, max(LEAST, ENOUGH_MS / total))) if self.cuda else 2
        fills = min(MOST_FILLS, math.ceil(ALIKE * host / self.fill_ms)) if self.cuda else 0
        marks = self._marks(steps, repeats, fills)
        medians = [statistics.median(taken) for taken in zip(*marks)]
        return {"forward_ms": medians[0], "backward_ms": medians[1], "host_ms": host, "repeats": repeats}

    def _host(self, steps: list[Callable]) -> tuple[float, float]:
        """Milliseconds until all is launched, and until all is done."""
        started = self.now()
        for step in steps:
            step()
        launched = 1e3 * time.perf_counter() - started
        return launched, self.now() - started

    def _marks(self, steps: list[Callable], repeats: int, fills: int) -> list[tuple[float, ...]]:
        """Milliseconds of every step, at each repetition."""
        if not self.cuda:
            return [tuple(self.wall_ms(step, repeats=1) for step in steps) for _ in range(repeats)]
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(len(steps) + 1)] for _ in range(repeats)]
        for row in events:
            for _ in range(fills):
                self.flush.zero_()
            row[0].record()
            for step, event in zip(steps, row[1:]):
                step()
                event.record()
        torch.cuda.synchronize(self.device)
        return [tuple(a.elapsed_time(b) for a, b in zip(row, row[1:])) for row in events]


def ceilings(timer: Timer) -> dict:
    """GB/s of a copy, read and written; TFLOP/s of a square product in both precisions, without tf32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    numbers, size = (2**30, 8192) if timer.cuda else (2**20, 256)
    source = torch.randn(numbers, device=timer.device)
    target = torch.empty_like(source)
    copied = 8e-6 * numbers / timer.median_ms(lambda: target.copy_(source))
    rates = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = (torch.randn(size, size, device=timer.device, dtype=dtype) for _ in range(2))
        rates[name] = 2e-9 * size**3 / timer.median_ms(lambda a=a, b=b: a @ b)
    return {"copy_gb_per_s": copied, "matmul_tflops": rates}
