"""How long an epoch takes: SSD4Rec and MambaRec on packed streams beside RecBole's SASRec and GRU4Rec, in one run.

    python benchmarks/training.py [--rounds=5] [--batches=4]

Every model lives in a process of its own, so that none disturbs another's memory, and waits for its turn. A round times
one whole epoch of ours, then some batches of each baseline (their median, times the number of batches), then torch.mm;
what else happens on the machine hits all of them, and a ratio is the median of the rounds' ratios. The loader's time is
included everywhere; the baselines read through our loaders, which are faster than RecBole's own. RecBole's models are
timed as they run here and as they come, with the anomaly detection that importing them switches on, and without what
our Trainer tells the C library about memory (`allocator.py`). Evaluation is the scoring of all items for all users. The
arithmetic floor is torch.mm's time for the products of the plain forms, whatever computes them. Data preparation is
timed in processes of its own as well. Writes benchmarks/results/training.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from unittest import mock

import torch
from common import Steps, matmul_gflops
from record import save
from torch.utils.flop_counter import FlopCounterMode

from recbole_ssd.environment import peak_rss_mb
from recbole_ssd.ops.compiled import support as on_cpu
from recbole_ssd.ops.ssd import ssd

OURS = {"hidden_size": 64, "num_layers": 2, "expand": 2, "d_state": 64, "headdim": 32, "inner_size": 256}
OURS |= {"train_batch_size": 4096, "learning_rate": 0.003}
AS_IT_COMES = ", as it comes"
BASELINES = {
    f"{model} L=50{suffix}": (model, {"MAX_ITEM_LIST_LENGTH": 50})
    for model in ("SASRec", "GRU4Rec")
    for suffix in ("", AS_IT_COMES)
}
MODELS = {
    "SSD4Rec readout": ("SSD4Rec", {**OURS, "bidirectional": "readout"}),
    "SSD4Rec readout, bfloat16 loss": ("SSD4Rec", {**OURS, "loss_precision": "bfloat16"}),
    "SSD4Rec none": ("SSD4Rec", {**OURS, "bidirectional": "none"}),
    "MambaRec": (
        "MambaRec",
        {name: OURS[name] for name in ("hidden_size", "num_layers", "inner_size", "train_batch_size")},
    ),
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


class Worker:
    """A process that trains one model when it is told to."""

    def __init__(self, name: str):
        command = [sys.executable, __file__, "--worker", name]
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, question: str) -> dict:
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def work(name: str) -> None:
    """The worker's side: answers `epoch`, `batches N` and `report`, one line of JSON each."""
    before = peak_rss_mb()
    model, settings = MODELS[name]
    as_it_comes = name.endswith(AS_IT_COMES)
    steps = Steps(model, keeps_memory=not as_it_comes, **settings)
    # Two steps of warm-up, not timed: the first in plain torch, whose products can be counted.
    with mock.patch.object(on_cpu, "refusal", lambda x: "they are counted"), FlopCounterMode(display=False) as counter:
        steps.step()
    steps.step()
    flop = counter.get_total_flops() * steps.n_batches
    torch.autograd.set_detect_anomaly(as_it_comes)
    for line in sys.stdin:
        question = line.split()
        if question[0] == "report":
            memory = {"imports_mb": before, "peak_mb": peak_rss_mb()}
            answer = {**memory, "tokens": steps.data.n_tokens, "batches": steps.n_batches, "tflop": flop / 1e12}
        elif question[0] == "evaluation":
            answer = {"seconds": steps.evaluation_s()}
        else:
            answer = {"seconds": steps.epoch_s(int(question[1]) if question[0] == "batches" else None)}
        print(json.dumps(answer), flush=True)


def time_rounds(rounds: int, batches: int) -> tuple[dict, dict, list, dict]:
    """Seconds of an epoch and of an evaluation by name and round, torch.mm's rate by round, the workers' reports."""
    workers = [Worker(name) for name in MODELS]
    for worker in workers:
        worker.ask("report")  # answered after its warm-up: nobody is timed while another one still starts
    seconds, evaluations, gflops = {name: [] for name in MODELS}, {name: [] for name in MODELS}, []
    for number in range(rounds):
        for worker in workers:
            question = f"batches {batches}" if worker.name in BASELINES else "epoch"
            seconds[worker.name].append(worker.ask(question)["seconds"])
            evaluations[worker.name].append(worker.ask("evaluation")["seconds"])
        gflops.append(matmul_gflops())
        shown = "   ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items())
        print(f"round {number}: {shown}   torch.mm {gflops[-1]:.0f} GFLOP/s", flush=True)
    reports = {worker.name: worker.ask("report") for worker in workers}
    for worker in workers:
        worker.stop()
    return seconds, evaluations, gflops, reports


def in_its_own_process(*arguments: str) -> dict:
    """What this script prints when it is called with these arguments."""
    child = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    return json.loads(child.stdout.splitlines()[-1])


def preparation(whose: str, length: int) -> dict:
    """Seconds and memory of reading, ordering and splitting ml-100k for a built-in model."""
    from recbole_ssd import Config, create_dataset, data_preparation

    config = Config("GRU4Rec", "ml-100k", config_dict={"MAX_ITEM_LIST_LENGTH": length, "time_order": "recbole"})
    if whose == "RecBole":
        from recbole.data import create_dataset, data_preparation
    before, started = peak_rss_mb(), time.perf_counter()
    data_preparation(config, create_dataset(config))
    return {"seconds": time.perf_counter() - started, "growth_mb": peak_rss_mb() - before}


def ratios(seconds: dict, evaluations: dict, gflops: list, reports: dict) -> dict:
    """By name of ours: how many times faster than each baseline, and over the floor, medians of the rounds."""
    both = {name: [sum(pair) for pair in zip(seconds[name], evaluations[name])] for name in seconds}
    table = {}
    for name in (name for name in seconds if name not in BASELINES):
        table[name] = {
            f"times faster than {base}{what}": statistics.median(b / o for o, b in zip(spent[name], spent[base]))
            for base in BASELINES
            for what, spent in (("", seconds), (", evaluation included", both))
        }
        floors = [reports[name]["tflop"] * 1e3 / rate for rate in gflops]
        table[name]["times the arithmetic floor"] = statistics.median(o / f for o, f in zip(seconds[name], floors))
    return table


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds, each with an epoch of ours")
    parser.add_argument("--batches", type=int, default=4, help="batches of a baseline in a round")
    parser.add_argument("--worker", choices=MODELS, help=argparse.SUPPRESS)
    parser.add_argument("--preparation", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.worker:
        work(options.worker)
        return
    if options.preparation:
        print(json.dumps(preparation(options.preparation[0], int(options.preparation[1]))))
        return

    error = check_parity()
    seconds, evaluations, gflops, reports = time_rounds(options.rounds, options.batches)
    epoch_s = {name: statistics.median(values) for name, values in seconds.items()}
    figures = {
        "what": "one training epoch on ml-100k, loader included",
        "parity_error": error,
        "epoch_s": epoch_s,
        "evaluation_s": {name: statistics.median(values) for name, values in evaluations.items()},
        "ratios": ratios(seconds, evaluations, gflops, reports),
        "tokens_per_s": {name: reports[name]["tokens"] / epoch_s[name] for name in seconds if name not in BASELINES},
        "reports": reports,
        "matmul_gflops": gflops,
        "rounds": seconds,
        "evaluation_rounds": evaluations,
        "preparation": {
            f"{whose} L={length}": in_its_own_process("--preparation", whose, str(length))
            for length in (50, 600)
            for whose in ("ours", "RecBole")
        },
    }
    shown = ("epoch_s", "ratios", "tokens_per_s", "reports", "preparation")
    print(json.dumps({key: figures[key] for key in shown}, indent=1))
    print(f"written to {save('training', figures)}")


if __name__ == "__main__":
    main()
