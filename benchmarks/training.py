"""How long an epoch takes: SSD4Rec on packed streams beside RecBole's SASRec and GRU4Rec, in one run.

    python benchmarks/training.py [--rounds=5] [--batches=4]

Each round times one whole epoch of ours, then some batches of each baseline, then torch.mm, so that what else happens
on the machine hits all of them; a ratio is the median of the rounds' ratios. The loader's time is included everywhere,
and the baselines read through our loaders, which are faster than RecBole's own. Memory and data preparation are
measured in processes of their own. Writes benchmarks/results/training.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
from common import Steps, matmul_gflops, save
from torch.utils.flop_counter import FlopCounterMode

from recbole_ssd.environment import peak_rss_mb
from recbole_ssd.memory import keep_freed_memory
from recbole_ssd.ops.ssd import ssd

OURS = {"hidden_size": 64, "num_layers": 2, "expand": 2, "d_state": 64, "headdim": 32, "inner_size": 256}
BASELINES = {
    "SASRec L=50": ("SASRec", {"MAX_ITEM_LIST_LENGTH": 50}),
    "GRU4Rec L=50": ("GRU4Rec", {"MAX_ITEM_LIST_LENGTH": 50}),
}
MODELS = {
    "SSD4Rec readout": ("SSD4Rec", {**OURS, "bidirectional": "readout"}),
    "SSD4Rec none": ("SSD4Rec", {**OURS, "bidirectional": "none"}),
    **BASELINES,
}


def check_parity() -> float:
    """Largest error of the chunked scan against the recurrence in float64, before anything is timed."""
    generator = torch.Generator().manual_seed(0)
    lengths = (1, 63, 64, 65, 200)
    x = torch.randn(1, sum(lengths), 4, 32, generator=generator)
    dt = torch.rand(1, sum(lengths), 4, generator=generator) * 0.1
    A = -1 - 15 * torch.rand(4, generator=generator)
    B, C = torch.randn(2, 1, sum(lengths), 1, 64, generator=generator)
    cu = torch.tensor([0, *lengths]).cumsum(0)
    truth = ssd(*(t.double() for t in (x, dt, A, B, C)), cu_seqlens=cu, backend="reference")
    error = ((ssd(x, dt, A, B, C, cu_seqlens=cu) - truth).abs().max() / truth.abs().max()).item()
    assert error < 1e-6, error
    return error


def time_rounds(rounds: int, batches: int) -> tuple[dict, list]:
    """Seconds of an epoch, by name and round, and what torch.mm reached in each round."""
    steps = {name: Steps(model, **settings) for name, (model, settings) in MODELS.items()}
    for run in steps.values():
        run.step()  # a warm-up, not counted
    seconds, gflops = {name: [] for name in steps}, []
    for number in range(rounds):
        for name, run in steps.items():
            seconds[name].append(run.epoch_s(batches if name in BASELINES else None))
        gflops.append(matmul_gflops())
        shown = "   ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items())
        print(f"round {number}: {shown}   torch.mm {gflops[-1]:.0f} GFLOP/s", flush=True)
    return seconds, gflops


def arithmetic(name: str) -> dict:
    """Tokens of an epoch of ours, and its floating point operations in matrix products."""
    steps = Steps(MODELS[name][0], **MODELS[name][1])
    with FlopCounterMode(display=False) as counter:
        steps.step()
    return {"tokens": steps.data.n_tokens, "tflop": counter.get_total_flops() * steps.n_batches / 1e12}


def in_its_own_process(*arguments: str) -> dict:
    """What this script prints when it is called with these arguments."""
    child = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    return json.loads(child.stdout.splitlines()[-1])


def memory(name: str, batches: int) -> dict:
    """Peak memory of some steps, in this process, and that of the process before the model was made."""
    keep_freed_memory()
    model, settings = MODELS[name]
    before = peak_rss_mb()
    steps = Steps(model, **settings)
    for _ in range(min(batches, steps.n_batches)):
        steps.step()
    return {"peak_mb": peak_rss_mb(), "imports_mb": before}


def preparation(whose: str, length: int) -> dict:
    """Seconds and memory of reading, ordering and splitting ml-100k for a built-in model."""
    from recbole_ssd import Config, create_dataset, data_preparation

    config = Config("GRU4Rec", "ml-100k", config_dict={"MAX_ITEM_LIST_LENGTH": length, "time_order": "recbole"})
    if whose == "RecBole":
        from recbole.data import create_dataset, data_preparation
    before, started = peak_rss_mb(), time.perf_counter()
    data_preparation(config, create_dataset(config))
    return {"seconds": time.perf_counter() - started, "growth_mb": peak_rss_mb() - before}


def ratios(seconds: dict, gflops: list, work: dict) -> dict:
    """By name of ours: how many times faster than each baseline, and over the floor, medians of the rounds."""
    table = {}
    for name in (name for name in seconds if name not in BASELINES):
        table[name] = {
            f"times faster than {base}": statistics.median(b / o for o, b in zip(seconds[name], seconds[base]))
            for base in BASELINES
        }
        floors = [work[name]["tflop"] * 1e3 / rate for rate in gflops]
        table[name]["times the arithmetic floor"] = statistics.median(o / f for o, f in zip(seconds[name], floors))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds, each with an epoch of ours")
    parser.add_argument("--batches", type=int, default=4, help="batches of a baseline in a round")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--preparation", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(memory(options.memory, options.batches)))
        return
    if options.preparation:
        print(json.dumps(preparation(options.preparation[0], int(options.preparation[1]))))
        return

    keep_freed_memory()
    error = check_parity()
    seconds, gflops = time_rounds(options.rounds, options.batches)
    work = {name: arithmetic(name) for name in seconds if name not in BASELINES}
    epoch_s = {name: statistics.median(values) for name, values in seconds.items()}
    figures = {
        "what": "one training epoch on ml-100k, loader included",
        "parity_error": error,
        "epoch_s": epoch_s,
        "ratios": ratios(seconds, gflops, work),
        "tokens_per_s": {name: work[name]["tokens"] / epoch_s[name] for name in work},
        "work": work,
        "matmul_gflops": gflops,
        "rounds": seconds,
        "memory": {name: in_its_own_process("--memory", name, "--batches=6") for name in MODELS},
        "preparation": {
            f"{whose} L={length}": in_its_own_process("--preparation", whose, str(length))
            for length in (50, 600)
            for whose in ("ours", "RecBole")
        },
    }
    print(json.dumps({key: figures[key] for key in ("epoch_s", "ratios", "memory", "preparation")}, indent=1))
    print(f"written to {save('training', figures)}")


if __name__ == "__main__":
    main()
