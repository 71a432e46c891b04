"""How long an op takes on a CPU: numba's kernels beside plain torch, in one run.

    python benchmarks/cpu_kernels.py [--rounds=15]

A round times one forward with its backward of each backend, in turn; a ratio (torch over numba) is the median of the
rounds' ratios. The stream has 4,096 tokens in histories of log-normal lengths, median 60. Before anything is timed, the
result and every gradient of both are held against plain torch in float64. What the first call takes longer, while
kernels are compiled or read from the disk, is told too. Writes benchmarks/results/cpu_kernels.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

import torch
from gpu.op import Draw, Op
from gpu.ops import SSD, CausalConv, GatedRMSNorm, LinearCrossEntropy, PrefixReadout, SelectiveScan
from gpu.streams import borders, histories
from record import SEED, save
from torch import Tensor

from recbole_ssd.ops.conv_ssd import conv_ssd
from recbole_ssd.ops.feed_forward import feed_forward
from recbole_ssd.ops.gated_directions import gated_directions
from recbole_ssd.ops.linear import linear
from recbole_ssd.ops.packing import Segments

TOKENS, MEDIAN = 4096, 60
BACKENDS = ("torch", "numba")
THREADS = (1, 2)


class GatedDirections(GatedRMSNorm):
    def draw(self, tokens: int, draw: Draw) -> dict:
        return {**super().draw(tokens, draw), "r": draw.normal(tokens, self.i)}

    def call(self, inputs: dict, segments: Segments, backend: str, dtype: torch.dtype) -> Tensor:
        y, r, z, weight = (inputs[name] for name in ("y", "r", "z", "weight"))
        return gated_directions(y, r, z, weight, 1.0, segments, backend=backend)


class ConvSSD(PrefixReadout):
    def call(self, inputs: dict, segments: Segments, backend: str, dtype: torch.dtype) -> Tensor:
        sizes = {"headdim": self.p, "ngroups": self.g, "cu_seqlens": segments}
        return conv_ssd(**inputs, **sizes, backend=backend, conv_backend=backend)


class FeedForward(Op):
    """d to f and back, GELU."""

    def __init__(self, d: int, f: int):
        self.shapes = {"w1": (f, d), "b1": (f,), "w2": (d, f), "b2": (d,), "weight": (d,), "bias": (d,)}
        self.d = d

    def draw(self, tokens: int, draw: Draw) -> dict:
        parameters = {name: draw.uniform(-0.1, 0.1, *shape) for name, shape in self.shapes.items()}
        return {"x": draw.normal(tokens, self.d), **parameters}

    def call(self, inputs: dict, segments: Segments, backend: str, dtype: torch.dtype) -> Tensor:
        return feed_forward(**inputs, activation="gelu", eps=1e-12, backend=backend)


class Linear(Op):
    """d to each of some sizes."""

    def __init__(self, d: int, *sizes: int):
        self.d, self.sizes = d, sizes

    def draw(self, tokens: int, draw: Draw) -> dict:
        weights = {f"weight {e}": draw.uniform(-0.1, 0.1, e, self.d) for e in self.sizes}
        return {"x": draw.normal(tokens, self.d), **weights}

    def call(self, inputs: dict, segments: Segments, backend: str, dtype: torch.dtype) -> Tensor:
        x, *weights = inputs.values()
        return torch.cat(linear(x, weights, backend=backend), dim=1)


OPS = {
    "`ssd`, 4 heads of 32, 64 states": SSD(128, 32, 64),
    "`ssd`, 8 heads of 32, 64 states": SSD(256, 32, 64),
    "`conv_ssd`, 4 heads of 32, 64 states, 4 taps": ConvSSD(128, 32, 64),
    "`prefix_readout`, 4 heads of 32, 64 states": PrefixReadout(128, 32, 64),
    "`selective_scan`, 128 channels, 16 states": SelectiveScan(128, 16),
    "`selective_scan`, 256 channels, 32 states": SelectiveScan(256, 32),
    "`causal_conv1d`, 256 channels, 4 taps": CausalConv(256),
    "`gated_rms_norm`, 128 channels": GatedRMSNorm(128),
    "`gated_directions`, 128 channels": GatedDirections(128),
    "`feed_forward`, 64 to 256": FeedForward(64, 256),
    "`feed_forward`, 128 to 512": FeedForward(128, 512),
    "`linear`, 64 to 128, 256 and 4": Linear(64, 128, 256, 4),
    "`linear`, 256 to 512, 768 and 16": Linear(256, 512, 768, 16),
    "`linear_cross_entropy`, 1,683 items, 64 wide": LinearCrossEntropy(64, 1683),
    "`linear_cross_entropy`, 12,101 items, 128 wide": LinearCrossEntropy(128, 12_101),
}


def step(op: Op, inputs: dict, dy: Tensor, segments: Segments, backend: str) -> tuple[float, list[Tensor]]:
    """Milliseconds of a forward and its backward, and what they give."""
    leaves = [t for t in inputs.values() if t.requires_grad]
    dtype = leaves[0].dtype
    started = time.perf_counter()
    y = op.call(inputs, segments, backend, dtype)
    grads = torch.autograd.grad(y, leaves, dy.to(dtype))
    return 1e3 * (time.perf_counter() - started), [y.detach(), *grads]


def leaves_of(inputs: dict, dtype: torch.dtype) -> dict:
    return {name: t.to(dtype).requires_grad_() if t.is_floating_point() else t for name, t in inputs.items()}


def measure(op: Op, segments: Segments, rounds: int) -> dict:
    drawn = op.draw(TOKENS, Draw(torch.device("cpu"), SEED))
    inputs, exact = (leaves_of(drawn, dtype) for dtype in (torch.float32, torch.float64))
    dy = torch.randn_like(op.call(inputs, segments, "torch", torch.float32))
    truth = step(op, exact, dy, segments, "torch")[1]
    figures: dict = {"error": {}, "first call, ms": {}}
    errors = {}
    for backend in BACKENDS:
        figures["first call, ms"][backend], got = step(op, inputs, dy, segments, backend)
        errors[backend] = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(got, truth)]
        figures["error"][backend] = max(errors[backend])
    assert all(ours <= max(2 * plain, 1e-6) for ours, plain in zip(errors["numba"], errors["torch"])), errors
    for threads in THREADS:
        torch.set_num_threads(threads)
        ms: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
        for number in range(rounds + 2):
            for backend in BACKENDS:
                spent = step(op, inputs, dy, segments, backend)[0]
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
    figures: dict = {"what": f"forward and backward over {TOKENS} tokens, float32: torch over numba", "ops": {}}
    segments = Segments(borders(histories(TOKENS, MEDIAN), torch.device("cpu")))
    for name, op in OPS.items():
        figures["ops"][name] = measure(op, segments, rounds)
        print(name, json.dumps(figures["ops"][name], indent=1), flush=True)
    figures["load average"] = os.getloadavg()  # of the machine: who else was computing
    print(f"written to {save('cpu_kernels', figures)}")


if __name__ == "__main__":
    main()
