"""What a CUDA machine says of this package, in parts of under nine minutes. How to run it: benchmarks/README.md.

    python benchmarks/gpu_check.py parity      # every kernel against float64
    python benchmarks/gpu_check.py speed       # ms, GB/s, TFLOP/s and the distance to the roofline
    python benchmarks/gpu_check.py training    # tokens a second and seconds an epoch, end to end; needs RecBole
    python benchmarks/gpu_check.py tables      # the results as Markdown

`parity` and `speed` need torch and triton only. Results go to benchmarks/results/gpu, those of a CPU, which only show
that the code runs, to a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from gpu import bare


def parity(options: argparse.Namespace) -> int:
    bare.ops_alone()
    bare.mamba_ssm_alone()
    from gpu.ops import table
    from gpu.parity import check_all, check_op
    from gpu.tables import parity_table

    if options.only:
        for record in check_op(options.only, options.backend, options.device):
            print(json.dumps(record), flush=True)
        return 0
    arguments = [f"--backend={options.backend}", f"--device={options.device}"]
    records = check_all(list(table(options.device.type == "cpu")), arguments, options.minutes, options.device)
    print(parity_table(records))
    print(f"written to {keep(options, 'parity', {'records': records})}")
    return 0 if all(record["passed"] for record in records) else 1


def speed(options: argparse.Namespace) -> int:
    bare.ops_alone()
    bare.mamba_ssm_alone()
    from gpu.speed import measure, run_once
    from gpu.tables import speed_bars

    if options.only:
        run_once([int(number) for number in options.only.split(",")], options.device, options.share)
        return 0
    figures = measure(options.device, options.minutes, lambda figures: keep(options, "speed", figures))
    print(f"{len(figures['left_out'])} cases left out for want of time", *speed_bars(figures), sep="\n")
    return 0


def training(options: argparse.Namespace) -> int:
    bare.recbole_alone()
    from gpu.tables import training_bars
    from gpu.training import measure

    settings = options.device, options.precision, options.dry, options.minutes
    figures = measure(*settings, lambda figures: keep(options, "training", figures), options.only)
    print(f"left out for want of time: {figures['left_out'] or 'nothing'}", *training_bars(figures), sep="\n")
    return 0


def tables(options: argparse.Namespace) -> int:
    from gpu.tables import all_tables

    print(all_tables(options.results))
    return 0


def keep(options: argparse.Namespace, name: str, figures: dict) -> Path:
    from record import COMMIT, save

    return save(name, figures, folder=options.results, at=options.commit or COMMIT)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("parity", "speed", "training", "tables"))
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"), help="cuda, or cpu for a dry run")
    parser.add_argument("--minutes", type=float, default=8.0, help="of the part; what is left out is named")
    parser.add_argument("--backend", default="triton", help="of parity: the one that is checked")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16", help="of training")
    parser.add_argument("--dry", action="store_true", help="training with 200 users and 3 steps")
    parser.add_argument("--results", type=Path, help="folder for the JSON files")
    parser.add_argument("--commit", help="what is measured, where the copy has no history to ask")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # one op of parity, cases of speed, one model of training
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)  # of the variants that mamba-ssm tunes
    options = parser.parse_args()
    if options.device.type == "cuda" and not torch.cuda.is_available() and options.part != "tables":
        parser.error("torch sees no CUDA device; --device=cpu makes a dry run")
    if options.results is None:
        dry = options.device.type == "cpu" or options.dry
        folder = Path(tempfile.gettempdir()) / "recbole-ssd-gpu-check"
        options.results = folder if dry else Path(__file__).parent / "results" / "gpu"
    return options


if __name__ == "__main__":
    chosen = parse()
    sys.exit({"parity": parity, "speed": speed, "training": training, "tables": tables}[chosen.part](chosen))
