"""What the anomaly detection costs that RecBole switches on with its sequential models (compat.sequential_models).

    python benchmarks/anomaly.py

Steps of RecBole's GRU4Rec and SASRec on ml-100k, in turn with and without. Writes benchmarks/results/anomaly.json.
"""

from __future__ import annotations

import statistics
import time

import torch
from common import Steps
from record import save

ROUNDS = 5
SETTINGS = {"MAX_ITEM_LIST_LENGTH": 50, "train_neg_sample_args": None}


def step_s(steps: Steps, anomaly: bool) -> float:
    """CPU seconds of one step."""
    torch.autograd.set_detect_anomaly(anomaly)
    started = time.process_time()
    steps.step()
    return time.process_time() - started


def main() -> None:
    torch.set_num_threads(1)
    figures = {}
    for model in ("GRU4Rec", "SASRec"):
        steps = Steps(model, **SETTINGS)
        steps.step()  # the warm-up
        seconds = {name: [] for name in ("with", "without")}
        for _ in range(ROUNDS):
            seconds["with"].append(step_s(steps, True))
            seconds["without"].append(step_s(steps, False))
        ratio = statistics.median(a / b for a, b in zip(seconds["with"], seconds["without"]))
        figures[model] = {"times as long with anomaly detection": ratio, "cpu_s": seconds}
        print(model, ratio)
    print(f"written to {save('anomaly', figures)}")


if __name__ == "__main__":
    main()
