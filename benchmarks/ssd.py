"""How long a step of SSD takes on a CPU, in numba and in torch, as a multiple of torch.mm's time for a fixed count.

    OMP_WAIT_POLICY=passive python benchmarks/ssd.py [--rounds=40]

The count is that of the chunked form with chunks of 32 on such a stream (1.64 GFLOP for 8 heads of 32 and 64 states),
and stays where it is however few operations the op gets by with. A round times one forward with its backward and one
torch.mm of 1024 x 1024 matrices, in turn; the ratio is the median of the rounds' ratios. x, B and C are column slices
of one tensor, as the layer hands them over. Before anything is timed, the result and every gradient are held against
the recurrence in float64. Where other processes compute too, two threads that spin while they wait for each other
take ten times as long as one: hence the wait policy. Writes benchmarks/results/ssd.json.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import statistics
import time
from collections.abc import Callable

import torch
from record import SEED, save
from torch import Tensor

from recbole_ssd.ops.packing import Segments
from recbole_ssd.ops.ssd import ssd

TOKENS, MEDIAN, LONGEST = 8185, 21, 700
SIGMAS = 0.5, 1.0, 1.4  # of the logarithm of a length: 4, 44 and 71 % of the tokens lie in segments of more than 64
BAR = 3.0  # times torch.mm
SHAPES = {  # heads, head size, states, GFLOP of forward and backward with chunks of 32
    "8 heads of 32, 64 states": (8, 32, 64, 1.64),
    "4 heads of 32, 32 states": (4, 32, 32, 0.62),
    "4 heads of 32, 64 states (the default)": (4, 32, 64, 0.87),  # the two counts above, split by their three products
}
BACKENDS = ("numba", "torch")
NAMES = ("y", "dx", "ddt", "dA", "dB", "dC", "dD")
WIDE = 1024  # rows and columns of torch.mm's matrices, as in `common.matmul_gflops`
NARROW = (256, 32, 32, 256)  # the same for torch.bmm: matrices like those of the op


def histories(sigma: float) -> list[int]:
    """As many quantiles of a log-normal distribution of median 21 as make up the tokens, in a random order."""
    normal, lengths = statistics.NormalDist(math.log(MEDIAN), sigma), []
    while sum(lengths) < TOKENS:
        count = len(lengths) + 1
        logs = [normal.inv_cdf((i + 0.5) / count) for i in range(count)]
        lengths = [min(max(round(math.exp(log)), 1), LONGEST) for log in logs]
    lengths[-1] -= sum(lengths) - TOKENS
    return [lengths[i] for i in torch.randperm(len(lengths), generator=torch.Generator().manual_seed(SEED)).tolist()]


def inputs(heads: int, head_size: int, states: int) -> list[Tensor]:
    """x, dt, A, B, C, D in Mamba-2's ranges, all of them leaves."""
    parts = torch.randn(1, TOKENS, heads * head_size + 2 * states).split([heads * head_size, states, states], dim=-1)
    x, B, C = (part.unflatten(-1, (-1, size)) for part, size in zip(parts, (head_size, states, states)))
    dt = torch.empty(1, TOKENS, heads).uniform_(math.log(1e-3), math.log(0.1)).exp_()
    A = -torch.empty(heads).uniform_(1, 16)
    return [t.detach().requires_grad_() for t in (x, dt, A, B, C, torch.ones(heads))]


def errors(op: Callable, leaves: list[Tensor], segments: Segments, dy: Tensor) -> dict[str, float]:
    """Largest error of the result and of every gradient, as a share of the largest entry, against float64."""
    y = op(*leaves, cu_seqlens=segments)
    found = {}
    for name, got, want in zip(NAMES, [y, *torch.autograd.grad(y, leaves, dy)], truth(leaves, segments, dy)):
        found[name] = ((got - want).abs().max() / want.abs().max()).item()
    assert all(error < (2e-5 if name == "dA" else 2e-6) for name, error in found.items()), found
    return found


def truth(leaves: list[Tensor], segments: Segments, dy: Tensor) -> list[Tensor]:
    """The recurrence and its gradients in float64, a segment at a time: its graph holds h p n numbers a token."""
    alone = []
    for begin, end in zip(segments.borders, segments.borders[1:]):
        part = [(t[:, begin:end] if t.dim() > 2 else t).detach().double().requires_grad_() for t in leaves]
        y = ssd(*part, backend="reference")
        grads = torch.autograd.grad(y, part, dy[:, begin:end].double(), materialize_grads=True)  # one token: no A
        alone.append([y, *grads])
    return [torch.cat(parts, dim=1) if parts[0].dim() > 2 else sum(parts) for parts in zip(*alone)]


class Clock:
    """Wall and CPU milliseconds of everything that is called, by name."""

    def __init__(self):
        self.wall_ms: dict[str, list[float]] = {}
        self.cpu_ms: dict[str, list[float]] = {}

    def time(self, name: str, call):
        wall, cpu = time.perf_counter(), time.process_time()
        result = call()
        self.cpu_ms.setdefault(name, []).append(1e3 * (time.process_time() - cpu))
        self.wall_ms.setdefault(name, []).append(1e3 * (time.perf_counter() - wall))
        return result


def one_step(clock: Clock, op: Callable, leaves: list[Tensor], segments: Segments, dy: Tensor) -> None:
    y = clock.time("forward", lambda: op(*leaves, cu_seqlens=segments))
    clock.time("backward", lambda: torch.autograd.grad(y, leaves, dy))


def measure(op: Callable, leaves: list[Tensor], segments: Segments, dy: Tensor, gflop: float, rounds: int) -> dict:
    """Medians over rounds, and the medians of the rounds' ratios to torch.mm's time for `gflop`."""
    wide, narrow = [torch.randn(WIDE, WIDE)] * 2, [torch.randn(NARROW[:3]), torch.randn(NARROW[0], *NARROW[2:])]
    for _ in range(3):
        one_step(Clock(), op, leaves, segments, dy)
    clock = Clock()
    for _ in range(rounds):
        one_step(clock, op, leaves, segments, dy)
        clock.time("mm", lambda: torch.mm(*wide))
        clock.time("bmm", lambda: torch.bmm(*narrow))
    figures = {}
    for unit, times in (("wall", clock.wall_ms), ("cpu", clock.cpu_ms)):
        step = [a + b for a, b in zip(times["forward"], times["backward"])]
        floor = [gflop / (2e-9 * WIDE**3) * mm for mm in times["mm"]]
        figures[unit] = {
            "forward and backward, ms": statistics.median(step),
            "forward alone, ms": statistics.median(times["forward"]),
            "torch.mm for the fixed count, ms": statistics.median(floor),
            "op / torch.mm": statistics.median(a / b for a, b in zip(step, floor)),
            "torch.mm, GFLOP/s": 2e-6 * WIDE**3 / statistics.median(times["mm"]),
            "torch.bmm, GFLOP/s": 2e-6 * math.prod(NARROW) / statistics.median(times["bmm"]),
        }
    return figures


def layout_ms(op: Callable, lengths: list[int], leaves: list[Tensor]) -> float:
    """What the first call on a batch takes longer than the next one: the layout, which all layers share."""
    extra = []
    for _ in range(9):
        clock, segments = Clock(), Segments(torch.tensor([0, *lengths]).cumsum(0))
        forward = functools.partial(op, *leaves, cu_seqlens=segments)
        with torch.no_grad():
            clock.time("first", forward)
            clock.time("next", forward)
        extra.append(clock.cpu_ms["first"][0] - clock.cpu_ms["next"][0])
    return statistics.median(extra)


def stream(sigma: float, rounds: int) -> dict:
    """Every shape on the stream of one spread."""
    lengths = histories(sigma)
    segments = Segments(torch.tensor([0, *lengths]).cumsum(0))
    figures = {
        "lengths": f"{len(lengths)} quantiles of a log-normal distribution, median {statistics.median(lengths)}, "
        f"mean {TOKENS / len(lengths):.1f}, longest {max(lengths)}",
        "tokens in segments of more than 64": sum(n for n in lengths if n > 64) / TOKENS,
    }
    for name, (heads, head_size, states, gflop) in SHAPES.items():
        leaves, dy = inputs(heads, head_size, states), torch.randn(1, TOKENS, heads, head_size)
        figures[name] = {"GFLOP": gflop}
        for backend in BACKENDS:
            op = functools.partial(ssd, backend=backend)
            torch.set_num_threads(1)
            found = {"error": errors(op, leaves, segments, dy), "layout of a batch, ms": layout_ms(op, lengths, leaves)}
            for threads in (1, 2):
                torch.set_num_threads(threads)
                found[f"threads: {threads}"] = measure(op, leaves, segments, dy, gflop, rounds)
            figures[name][backend] = found
            print(f"sigma {sigma}, {name}, {backend}", json.dumps(found, indent=1), flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    torch.manual_seed(SEED)
    figures = {
        "what": f"SSD, {TOKENS} tokens, float32: forward and backward, as a multiple of torch.mm's time at {WIDE}^3",
        "bar": BAR,
        "bmm": "x".join(map(str, NARROW)),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
    }
    for sigma in SIGMAS:
        figures[f"sigma {sigma}"] = stream(sigma, rounds)
    figures["load average"] = os.getloadavg()  # of the machine: who else was computing
    print(f"written to {save('ssd', figures)}")


if __name__ == "__main__":
    main()
