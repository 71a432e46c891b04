"""What the README's first command reaches: SSD4Rec on ml-100k with its defaults, several seeds.

    python benchmarks/quick_start.py [--seeds=3]

Each seed runs as `python run_recbole_ssd.py --seed=...` in a process of its own. Writes
benchmarks/results/quick_start.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from record import SEED, save

COMMAND = Path(__file__).resolve().parents[1] / "run_recbole_ssd.py"
KEPT = ("seed", "best_valid_result", "test_result", "best_epoch", "valid_by_epoch", "epoch_s", "train_s", "eval_s")
KEPT += ("tokens_per_epoch", "peak_rss_mb", "n_params", "split_fingerprint", "protocol")


def one_seed(seed: int) -> dict:
    """The result file of one run."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        options = [f"--seed={seed}", f"--result_file={file}", "--show_progress=False"]
        subprocess.run([sys.executable, COMMAND, *options], cwd=folder, check=True, capture_output=True)
        result = json.loads(file.read_text(encoding="utf-8"))
    print(f"seed {seed}: valid {result['best_valid_result']}, test {result['test_result']}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    results = [one_seed(SEED + number) for number in range(parser.parse_args().seeds)]
    summary = {}
    for split in ("best_valid_result", "test_result"):
        for metric in results[0][split]:
            values = [result[split][metric] for result in results]
            summary[f"{split} {metric}"] = {
                "mean": statistics.mean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else None,
            }
    runs = [{key: result[key] for key in KEPT} for result in results]
    config = {key: value for key, value in results[0]["config"].items() if key not in ("seed", "result_file")}
    path = save("quick_start", {"summary": summary, "config": config, "runs": runs})
    print(json.dumps(summary, indent=1), f"written to {path}", sep="\n")


if __name__ == "__main__":
    main()
