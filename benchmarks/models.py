"""What single changes give on ml-100k, with a long patience and without `repeat_bias`, ours and two of RecBole's.

    python benchmarks/models.py [NAME ...] [--seeds=3] [--jobs=2]

Each run (a model, a seed) has a process and a thread of its own and stops after PATIENCE validations without a better
NDCG@10, or when the time limit of its model is over; its record is benchmarks/results/models/NAME-SEED.json. What is
there already is not run again: delete a record to repeat it. EXPLANATIONS, runs that ask why a model is behind, go to
the folder explanations there. All seconds are seconds of the process on a CPU, loader
and validation included: what else happens on the machine prolongs a run, and hardly these. A sentence of the
README is made from the records by benchmarks/tables.py; its table is that of benchmarks/experiments/models.yaml.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from convolvedsasrec import ConvolvedSASRec
from record import RESULTS, SEED, save

from recbole_ssd import Config, Trainer, create_dataset, data_preparation, init_logger, init_seed
from recbole_ssd.data import split_fingerprint
from recbole_ssd.environment import peak_rss_mb

DATASET = "ml-100k"
PATIENCE = 10  # RecBole stops at the validation after so many without a better NDCG@10; one after each epoch
SHARED = {"hidden_size": 64, "loss_type": "CE", "learning_rate": 0.003}
SHARED |= {"epochs": 200, "stopping_step": PATIENCE, "show_progress": False}
# Chosen by the validation of seed 2020: dropout .5 for MambaRec (.0800; .2 gave .0713), .001 for PackedSASRec (.0612;
# .003 gave .0600) and so for SASRec.
OURS = {"train_batch_size": 4096, "dropout_prob": 0.5}
SLOWLY = {"learning_rate": 0.001}
THEIRS = {"MAX_ITEM_LIST_LENGTH": 50, "train_batch_size": 2048, "train_neg_sample_args": None}  # RecBole's defaults
MODELS = {
    "MambaRec": ("MambaRec", OURS),
    "SSD4Rec": (
        "SSD4Rec",
        {**OURS, "num_layers": 2, "dropout_prob": 0.2},
    ),  # with .5 it hardly learns
    "Mamba4Rec": ("Mamba4Rec", OURS),
    "MoEMaTrRec": ("MoEMaTrRec", OURS),
    "RecMamba": ("RecMamba", OURS),
    "PackedSASRec": ("PackedSASRec", {"train_batch_size": 4096, **SLOWLY}),  # its dropout is .5 by itself
    "MambaRec mamba2": ("MambaRec", {**OURS, "ssm": "mamba2"}),
    "RecMamba BCE": ("RecMamba", {**OURS, "loss_type": "BCE"}),  # its authors' loss
    "GRU4Rec": ("GRU4Rec", {**THEIRS, "embedding_size": 64}),
    "SASRec": ("SASRec", {**THEIRS, **SLOWLY, "max_train_s": 600}),
}
# What might keep PackedSASRec behind GRU4Rec, one change each.
PACKED_SASREC = MODELS["PackedSASRec"][1]
EXPLANATIONS = {
    "PackedSASRec convolved": (ConvolvedSASRec, PACKED_SASREC),
    "PackedSASRec without positions": ("PackedSASRec", {**PACKED_SASREC, "max_position": None}),
    "PackedSASRec of one layer": ("PackedSASRec", {**PACKED_SASREC, "n_layers": 1}),
    "PackedSASRec in small batches": ("PackedSASRec", {**PACKED_SASREC, "train_batch_size": 512}),
    "PackedSASRec at rate .003": ("PackedSASRec", {**PACKED_SASREC, "learning_rate": 0.003}),
    "PackedSASRec with dropout .2": (
        "PackedSASRec",
        {**PACKED_SASREC, "hidden_dropout_prob": 0.2, "attn_dropout_prob": 0.2},
    ),
    "PackedSASRec of 50 items": ("PackedSASRec", {**PACKED_SASREC, "MAX_ITEM_LIST_LENGTH": 50}),
}
# SASRec takes hours here, the others are variants.
ONE_SEED = {"SASRec", "MambaRec mamba2", "RecMamba BCE", *EXPLANATIONS} - {"PackedSASRec convolved"}
KNOWN = {**MODELS, **EXPLANATIONS}


class CpuTimedTrainer(Trainer):
    """Counts the seconds that this process computes, not those in which it waits for its turn."""

    def _now(self) -> float:
        return time.process_time()


def train(name: str, seed: int) -> dict:
    """The record of one run."""
    model, settings = KNOWN[name]
    config = Config(model, DATASET, config_dict={**SHARED, **settings, "seed": seed})
    init_seed(seed, True)
    init_logger(config)
    train_data, valid_data, test_data = data_preparation(config, create_dataset(config))
    init_seed(seed, True)
    trainer = CpuTimedTrainer(config, config.model_class(config, train_data.dataset).to(config["device"]))
    trainer.fit(train_data, valid_data)
    return {
        "model": name,
        "seed": seed,
        "test_result": dict(trainer.evaluate(test_data)),
        "best_valid_result": dict(trainer.best_valid_result),
        "best_epoch": trainer.best_epoch,
        "cut": trainer.cut,
        "limit_s": config["max_train_s"],
        "patience": PATIENCE,
        "valid_by_epoch": trainer.valid_by_epoch,
        "epoch_s": trainer.epoch_s,
        "eval_s": trainer.eval_s,
        "peak_mb": peak_rss_mb(),
        "n_params": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "targets": train_data.n_targets,
        "tokens": train_data.n_tokens,
        "split_fingerprint": split_fingerprint(valid_data, test_data),
        "settings": {**SHARED, **settings},
    }


def record(name: str, seed: int) -> str:
    """The name of a run's record, below the results."""
    folder = "models/explanations" if name in EXPLANATIONS else "models"
    return f"{folder}/{name.replace(' ', '_')}-{seed}"


def run(name: str, seed: int) -> None:
    """One run in a process of its own, in a scratch folder."""
    print(f"{name}, seed {seed}: started", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).resolve()), "--one", name, str(seed)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    last = (done.stderr if done.returncode else done.stdout).strip().splitlines()[-1]
    print(f"{name}, seed {seed}: {'failed: ' * bool(done.returncode)}{last}", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(KNOWN)}; without any: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, one thread each")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.names) - set(KNOWN):
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(KNOWN)}")
    return options


def main() -> None:
    options = parse()
    if options.one:
        name, seed = options.one[0], int(options.one[1])
        torch.set_num_threads(1)
        figures = train(name, seed)
        command = f"python benchmarks/models.py '{name}'"
        path = save(record(name, seed), figures, command=command, seed=seed)
        print(f"test {figures['test_result']}, best epoch {figures['best_epoch']}, written to {path}")
        return

    runs = [
        (name, SEED + number)
        for number in range(options.seeds)
        for name in options.names or KNOWN
        if not (number and name in ONE_SEED) and not (RESULTS / f"{record(name, SEED + number)}.json").exists()
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda one: run(*one), runs))


if __name__ == "__main__":
    main()
