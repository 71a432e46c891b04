"""Stands for a training: writes what a run leaves, from its settings alone, in no time.

FAKE_CRASH and FAKE_HANG name runs (model-seed) that end with an error or never end.
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import yaml

USERS = 40


def ranks_of(settings: dict) -> np.ndarray:
    """Ranks of 40 targets; a higher learning rate ranks better."""
    rng = np.random.default_rng([settings["seed"], len(settings["model"])])
    spread = 30 / (1 + 100 * settings.get("learning_rate", 0.001))
    return 1 + np.floor(spread * rng.random(USERS) ** 2).astype(int)


def result_of(settings: dict, ranks: np.ndarray) -> dict:
    ndcg = float(np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0).mean())
    hit = float((ranks <= 10).mean())
    metrics = {"hit@10": round(hit, 4), "ndcg@10": round(ndcg, 4)}
    seconds = len(settings["model"]) / 10
    curve = [
        {"epoch": e, "seconds": (e + 1) * seconds, "result": {"hit@10": hit, "ndcg@10": ndcg * (e + 1) / 3}}
        for e in range(3)
    ]
    return {
        "model": settings["model"],
        "dataset": settings["dataset"],
        "seed": settings["seed"],
        "best_valid_result": {"hit@10": hit, "ndcg@10": ndcg},
        "test_result": metrics,
        "test_result_other_history": None,
        "best_epoch": 2,
        "valid_by_epoch": curve,
        "epoch_s": [seconds] * 3,
        "train_s": 3 * seconds,
        "eval_s": 0.5,
        "tokens_per_epoch": 1000,
        "targets_per_epoch": 900,
        "peak_rss_mb": 100.0 + len(settings["model"]),
        "peak_gpu_mb": None,
        "n_params": 12345,
        "split_fingerprint": "0123456789ab",
        "protocol": {
            "letter": "A",
            "split": {"LS": "valid_and_test"},
            "time_order": "exact",
            "mode": {"valid": "full", "test": "full"},
            "history": "kept",
        },
        "versions": {"torch": "2", "recbole": "1.2.1", "recbole_ssd": "0"},
        "commit": "1234567",
        "machine": {"cpu": "a processor", "cores": 2, "threads": 1, "gpu": None},
        "config": settings,
    }


def write(settings: dict, **changed) -> None:
    """What a run leaves, ranks first."""
    path = Path(settings["result_file"])
    path.parent.mkdir(parents=True, exist_ok=True)
    ranks = ranks_of(settings)
    lines = [f"u{u},i{u % 7},{rank},{3 + u},{1 + u % 7}" for u, rank in enumerate(ranks)]
    text = "user_id,item_id,rank,history_length,item_count\n" + "\n".join(lines) + "\n"
    path.with_suffix(".ranks.csv").write_text(text)
    path.write_text(json.dumps({**result_of(settings, ranks), **changed}))


if __name__ == "__main__":
    settings = yaml.safe_load(Path(sys.argv[1].removeprefix("--config_files=")).read_text())
    name = f"{settings['model']}-{settings['seed']}"
    print("21 Nov 00:00    INFO  epoch 0 training [time: 0.1s, train loss: 1.0]", flush=True)
    if name in os.environ.get("FAKE_CRASH", "").split():
        sys.exit("the loss is not a number: lower 'learning_rate'")
    if name in os.environ.get("FAKE_HANG", "").split():
        time.sleep(600)
    write(settings)
