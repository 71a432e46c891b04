"""How fast every op is: milliseconds, GB/s, TFLOP/s, the distance to the roofline, and to other forms in the same run.

The cases that matter most come first; when the time is up the rest is left out and named. The layout of a stream (which
a batch makes once, for all layers and both passes) is made before; what it costs stands beside, as `layout_ms`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from recbole_ssd.ops.packing import Segments

from . import bare
from .op import REFUSALS, Draw, Op, Work
from .ops import table
from .parity import DTYPES, rounded
from .streams import borders, histories
from .timing import Timer, ceilings

TOKENS, MEDIANS = (10_000, 50_000, 200_000, 1_000_000), (5, 10, 20, 50, 200)
BAR = (200_000, 20)  # tokens and median length of the figures that are promised
ONE_SEGMENT = (100_000, None)
DRY = (300, 5)
COMPILING, COMPILED_IN = 15, 0.4  # processes that compile at once, and their share of the time at most
TUNING = 15  # processes among which the variants of mamba-ssm's kernels are divided
TUNED = "mamba_ssm"


class Case(NamedTuple):
    op: str
    dtype: str
    tokens: int
    median: int | None  # length of a segment; None: there is one
    backend: str
    options: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        stream = "one segment" if self.median is None else f"median {self.median}"
        options = "".join(f" {name} {value}" for name, value in self.options)
        return f"{self.op}, {self.dtype}, {self.tokens:,} tokens, {stream}: {self.backend}{options}"


def cases(ops: dict[str, Op], dry: bool) -> list[Case]:
    """Every case, the most important first."""
    timed = {name: op for name, op in ops.items() if op.timed}
    scans = [name for name in timed if name.startswith("ssd")]
    if dry:
        return [case for name in timed for case in _of(name, timed[name], "float32", DRY)]
    grid = [(tokens, median) for median in MEDIANS for tokens in TOKENS if (tokens, median) != BAR]
    grid.sort(key=lambda place: (BAR[0] not in place) + (BAR[1] not in place))  # neighbours of the bar first
    order = [(name, "bfloat16", BAR) for name in (*scans, *(name for name in timed if name not in scans))]
    order += [(name, "bfloat16", ONE_SEGMENT) for name in scans]
    order += [(name, "float32", BAR) for name in timed]
    order = [(name, dtype, place) for name, dtype, place in order if dtype in timed[name].dtypes]
    main = [case for name, dtype, place in order for case in _of(name, timed[name], dtype, place)]
    rest = [case for place in grid for name in scans for case in _of(name, timed[name], "bfloat16", place)]
    return main + [case for case in rest if case.backend != "torch"]


def _of(name: str, op: Op, dtype: str, place: tuple) -> list[Case]:
    peers = [(backend, tuple(options.items())) for backend, options in op.peers]
    if dtype == "float32":  # mamba-ssm's float32 products are in TF32: what is compared there is our own two forms
        peers = [(backend, options) for backend, options in peers if backend != TUNED]
    return [Case(name, dtype, *place, backend, options) for backend, options in [("triton", ()), *peers]]


class Prepared(NamedTuple):
    """A case with its inputs drawn."""

    forward: Callable[[Segments], Tensor]
    leaves: list[Tensor]
    lengths: list[int]
    cu_seqlens: Tensor


def prepared(case: Case, op: Op, device: torch.device) -> Prepared:
    dtype, lengths = DTYPES[case.dtype], [case.tokens]
    if case.median is not None:
        lengths = histories(case.tokens, case.median)
    inputs = rounded(op, op.draw(case.tokens, Draw(device, seed=0)), dtype)
    leaves = [t.requires_grad_() for t in inputs.values() if t.is_floating_point()]

    def forward(segments: Segments) -> Tensor:
        return op.run(inputs, segments, case.backend, dtype, **dict(case.options))

    return Prepared(forward, leaves, lengths, borders(lengths, device))


class Bench:
    """Runs cases on one device, between the ceilings measured there."""

    def __init__(self, device: torch.device):
        self.device, self.ops, self.timer = device, table(device.type == "cpu"), Timer(device)
        self.ceilings = ceilings(self.timer)

    def row(self, case: Case) -> dict:
        """The figures of one case, or why there are none."""
        try:
            figures = self._figures(case)
        except Exception as refusal:  # a peer's bare assert among them: the cases after it are measured all the same
            figures = {"refused": repr(refusal)}
        return {**case._asdict(), "options": dict(case.options), **figures}

    def _figures(self, case: Case) -> dict:
        op, (forward, leaves, lengths, cu_seqlens) = self.ops[case.op], prepared(case, self.ops[case.op], self.device)
        segments = Segments(cu_seqlens)
        times = self.timer.passes(lambda: forward(segments), leaves)
        known = self.timer.wall_ms(lambda: forward(segments))
        times["layout_ms"] = max(0.0, self.timer.wall_ms(lambda: forward(Segments(cu_seqlens))) - known)
        times["both_ms"] = times["forward_ms"] + times["backward_ms"]
        works = op.work(torch.tensor(lengths), DTYPES[case.dtype].itemsize)
        works = {"forward": works[0], "backward": works[1], "both": Work(*map(sum, zip(*works)))}
        rates = {name: self._rates(op, work, times[f"{name}_ms"], case.dtype) for name, work in works.items()}
        return {"segments": len(lengths), **times, **rates}

    def _rates(self, op: Op, work: Work, ms: float, dtype: str) -> dict:
        """The floor is what the bytes take at the speed of a copy, or what the products take at that of a product."""
        floors = [1e-6 * work.bytes / self.ceilings["copy_gb_per_s"]]
        if op.products:
            floors.append(1e-9 * work.flop / self.ceilings["matmul_tflops"][dtype])
        rates = {"gb_per_s": 1e-6 * work.bytes / ms, "tflops": 1e-9 * work.flop / ms}
        return {**rates, "bandwidth_floor_ms": floors[0], "times_the_floor": ms / max(floors)}


def measure(device: torch.device, minutes: float, keep: Callable[[dict], object]) -> dict:
    """All cases that fit into the time; `keep` gets the figures after every one of them."""
    deadline = time.monotonic() + 60 * minutes
    todo = cases(table(device.type == "cpu"), dry=device.type == "cpu")
    if device.type == "cuda":
        bare.quick_tuning()
        compile_ahead(todo, time.monotonic() + 60 * minutes * COMPILED_IN)
    bench = Bench(device)
    figures = {"ceilings": bench.ceilings, "rows": [], "left_out": []}
    for case in todo:
        if time.monotonic() > deadline:
            figures["left_out"].append(str(case))
            continue
        figures["rows"].append(bench.row(case))
        if device.type == "cuda":
            torch.cuda.empty_cache()
        keep(figures)
        print(_shown(case, figures["rows"][-1]), flush=True)
    keep(figures)
    return figures


def _shown(case: Case, row: dict) -> str:
    if "refused" in row:
        return f"{case}: refused: {row['refused'].splitlines()[-1]}"
    times = f"{row['forward_ms']:.3f} + {row['backward_ms']:.3f} ms"
    return f"{case}: {times}, {row['both']['times_the_floor']:.1f} times the floor"


def compile_ahead(todo: list[Case], deadline: float) -> None:
    """Has every kernel compiled into Triton's cache on disk by processes side by side.

    mamba-ssm tunes its kernels: their hundred variants are divided among `TUNING` processes. What is not ready at the
    deadline is compiled when its turn comes.
    """
    script = str(Path(__file__).parents[1] / "gpu_check.py")
    kinds = {(case.op, case.dtype, case.backend, case.options): n for n, case in reversed(list(enumerate(todo)))}
    ours = sorted(n for (_, _, backend, _), n in kinds.items() if backend not in ("torch", TUNED))
    tuned = ",".join(str(n) for (_, _, backend, _), n in sorted(kinds.items()) if backend == TUNED)
    jobs = [["--only", str(n)] for n in ours] + [["--only", tuned, "--share", str(k)] for k in range(TUNING) if tuned]

    def compile_one(job: list[str]) -> None:
        with suppress(subprocess.TimeoutExpired):
            remaining = deadline - time.monotonic()
            subprocess.run([sys.executable, script, "speed", *job], capture_output=True, timeout=remaining)

    with ThreadPoolExecutor(COMPILING) as pool:
        list(pool.map(compile_one, jobs))


def run_once(numbers: list[int], device: torch.device, share: int | None) -> None:
    """A forward and a backward of some cases, so that their kernels are compiled; `share`: of `TUNING`."""
    if share is not None:
        bare.quick_tuning((share, TUNING))
    ops = table(device.type == "cpu")
    todo = cases(ops, dry=device.type == "cpu")
    for case in (todo[number] for number in numbers):
        with suppress(*REFUSALS):
            forward, leaves, _, cu_seqlens = prepared(case, ops[case.op], device)
            y = forward(Segments(cu_seqlens))
            torch.autograd.grad(y, leaves, torch.randn_like(y))
