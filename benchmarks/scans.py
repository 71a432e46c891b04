"""How long a step of each scan takes on a CPU: numba's kernels beside plain torch, in one run.

    python benchmarks/scans.py [--rounds=15]

A round times one forward with its backward of each backend, in turn; a ratio (torch over numba) is the median of the
rounds' ratios. The stream has 4,096 tokens in histories of log-normal lengths, median 60. Before anything is timed, the
result and every gradient of both are held against the same in float64. What the first call takes longer, while kernels
are compiled or read from the disk, is told too. Writes benchmarks/results/scans.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time

import torch
from gpu.streams import borders, histories
from record import SEED, save
from torch import Tensor

from recbole_ssd.ops.packing import Segments
from recbole_ssd.ops.readout import prefix_readout
from recbole_ssd.ops.selective_scan import selective_scan

TOKENS, MEDIAN = 4096, 60
BACKENDS = ("torch", "numba")
THREADS = (1, 2)


def steps(*shape: int) -> Tensor:
    return torch.empty(shape).uniform_(math.log(1e-3), math.log(0.1)).exp_()


def mamba1(channels: int, states: int):
    """(op, inputs) of Mamba-1's scan, in its ranges."""
    A = -torch.arange(1.0, states + 1).expand(channels, -1).contiguous()
    B, C = torch.randn(2, 1, TOKENS, states)
    return selective_scan, [torch.randn(1, TOKENS, channels), steps(1, TOKENS, channels), A, B, C, torch.ones(channels)]


def readout(heads: int, headdim: int, states: int):
    """(op, inputs) of SSD4Rec's backward direction, with a filter of four taps."""
    channels, sizes = heads * headdim + 2 * states, {"headdim": headdim, "ngroups": 1}
    inputs = [torch.randn(TOKENS, channels), steps(TOKENS, heads), -torch.empty(heads).uniform_(1, 16)]
    inputs += [torch.ones(heads), torch.randn(channels, 4) / 2, torch.randn(channels)]
    return lambda *tensors, **how: prefix_readout(*tensors, **sizes, **how), inputs


SHAPES = {
    "selective_scan": {"128 channels, 16 states": (mamba1, 128, 16), "256 channels, 32 states": (mamba1, 256, 32)},
    "prefix_readout": {"4 heads of 32, 64 states": (readout, 4, 32, 64)},
}


def step(op, leaves: list[Tensor], dy: Tensor, **how) -> tuple[float, list[Tensor]]:
    """Milliseconds of a forward and its backward, and what they give."""
    started = time.perf_counter()
    y = op(*leaves, **how)
    grads = torch.autograd.grad(y, leaves, dy)
    return 1e3 * (time.perf_counter() - started), [y.detach(), *grads]


def measure(op, inputs: list[Tensor], segments: Segments, rounds: int) -> dict:
    leaves, exact = ([t.to(dtype).requires_grad_() for t in inputs] for dtype in (torch.float32, torch.float64))
    dy = torch.randn_like(op(*leaves, cu_seqlens=segments, backend="torch"))
    truth = step(op, exact, dy.double(), cu_seqlens=segments, backend="torch")[1]
    figures: dict = {"error": {}, "first call, ms": {}}
    for backend in BACKENDS:
        first, got = step(op, leaves, dy, cu_seqlens=segments, backend=backend)
        errors = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(got, truth)]
        assert max(errors) < 2e-5, (backend, errors)
        figures["error"][backend], figures["first call, ms"][backend] = max(errors), first
    for threads in THREADS:
        torch.set_num_threads(threads)
        ms: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
        for number in range(rounds + 2):
            for backend in BACKENDS:
                spent = step(op, leaves, dy, cu_seqlens=segments, backend=backend)[0]
                if number >= 2:  # the first two warm up
                    ms[backend].append(spent)
        figures[f"threads: {threads}"] = {
            **{f"{backend}, ms": statistics.median(times) for backend, times in ms.items()},
            "torch / numba": statistics.median(a / b for a, b in zip(ms["torch"], ms["numba"])),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.manual_seed(SEED)
    figures: dict = {"what": f"forward and backward of a scan over {TOKENS} tokens, float32: torch over numba"}
    segments = Segments(borders(histories(TOKENS, MEDIAN), torch.device("cpu")))
    for op, shapes in SHAPES.items():
        for name, (build, *sizes) in shapes.items():
            figures[f"{op}, {name}"] = measure(*build(*sizes), segments, rounds)
            print(op, name, json.dumps(figures[f"{op}, {name}"], indent=1), flush=True)
    figures["load average"] = os.getloadavg()  # of the machine: who else was computing
    print(f"written to {save('scans', figures)}")


if __name__ == "__main__":
    main()
