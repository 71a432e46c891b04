"""The README's tables, made from the data files in benchmarks/results: python benchmarks/tables.py prints them."""

from __future__ import annotations

import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def speed_table() -> str:
    """One epoch on ml-100k, as benchmarks/training.py measured it."""
    record = json.loads((RESULTS / "training.json").read_text(encoding="utf-8"))
    base = record["rounds"]["SASRec L=50"]
    lines = [
        "| one training epoch on ml-100k | tokens | seconds | times as fast as SASRec | as GRU4Rec | peak MB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in ("SASRec L=50", "GRU4Rec L=50", "SSD4Rec readout", "SSD4Rec none"):
        ratios = record["ratios"].get(name, {})
        shown = [ratios.get(f"times faster than {other}") for other in ("SASRec L=50", "GRU4Rec L=50")]
        whose = "RecBole's " if name in ("SASRec L=50", "GRU4Rec L=50") else ""
        lines.append(
            f"| {whose}{name} | {record['reports'][name]['tokens']:,} | {record['epoch_s'][name]:.1f} | "
            + " | ".join("" if ratio is None else f"{ratio:.0f}" for ratio in shown)
            + f" | {record['reports'][name]['peak_mb']:,.0f} |"
        )
    return "\n".join([*lines, "", _source(record, len(base))])


def preparation_sentence() -> str:
    """Reading, ordering and splitting ml-100k for a model with padded rows, ours beside RecBole's."""
    figures = json.loads((RESULTS / "training.json").read_text(encoding="utf-8"))["preparation"]
    ours, theirs = figures["ours L=600"], figures["RecBole L=600"]
    return (
        f"Preparing ml-100k with `MAX_ITEM_LIST_LENGTH=600` took {ours['seconds']:.1f} s and {ours['growth_mb']:,.0f} MB here, "
        f"{theirs['seconds']:.1f} s and {theirs['growth_mb']:,.0f} MB in RecBole (same run)."
    )


def _source(record: dict, rounds: int) -> str:
    """The sentence under a table: what made it, where, and with what."""
    machine, versions = record["machine"], record["versions"]
    return (
        f"Medians of {rounds} rounds in one run, loader included; whole histories, hidden 64, 2 layers; the baselines at "
        f"RecBole's defaults with CE, their epoch extrapolated from batches. {machine['cpu']}, {record['threads']} threads; "
        f"torch {versions['torch']}, recbole {versions['recbole']}; commit {record['commit']}, seed {record['seed']}; "
        f"`{record['command']}`, data in [benchmarks/results/training.json](benchmarks/results/training.json)."
    )


if __name__ == "__main__":
    print(speed_table(), preparation_sentence(), sep="\n\n")
