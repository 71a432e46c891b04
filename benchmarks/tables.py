"""The README's figures, made from the data files in benchmarks/results: python benchmarks/tables.py writes them there.

A figure stands between <!-- NAME --> and <!-- /NAME -->, where NAME is that of a function here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean

from overview import COMPARISONS, both_protocols, models, summaries

from recbole_ssd.comparison.document import Table
from recbole_ssd.comparison.summary import mean_sd
from recbole_ssd.model_lookup import own_models

RESULTS = Path(__file__).parent / "results"
NOTE = (
    "Protocol A ranks what is in the history too, B leaves it out; ± is the standard deviation over seeds, without it "
    "there is one, and what is empty was not run, or on another machine alone. ¹ a time limit, which the report's "
    "settings name, ended a training; RecBole's models have its defaults but for what stands there. On ml-100k, "
    "amazon-beauty and ml-1m ours are trained with `repeat_bias` and so leave the history out by themselves; RecBole's "
    "cannot: compare them under B."
)


def quick_start_sentence() -> str:
    """What the first command reaches, as benchmarks/quick_start.py measured it."""
    record = json.loads((RESULTS / "quick_start.json").read_text(encoding="utf-8"))
    valid, test = (record["summary"][f"{split} ndcg@10"] for split in ("best_valid_result", "test_result"))
    return (
        f"Over {len(record['runs'])} seeds the best validation NDCG@10 was {valid['mean']:.4f} ± {valid['sd']:.4f} and "
        f"the test NDCG@10 {test['mean']:.4f} ± {test['sd']:.4f} (943 users, protocol A; `{record['command']}`, commit "
        f"{record['commit']}, data in [benchmarks/results/quick_start.json](benchmarks/results/quick_start.json))."
    )


def speed_table() -> str:
    """One epoch on ml-100k, as benchmarks/training.py measured it."""
    record = json.loads((RESULTS / "training.json").read_text(encoding="utf-8"))
    bases = [f"{model} L=50" for model in ("SASRec", "GRU4Rec")]
    lines = [
        "| on ml-100k | tokens | epoch s | evaluation s | times as fast as SASRec | as GRU4Rec | peak MB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, seconds in record["epoch_s"].items():
        ratios = record["ratios"].get(name, {})
        whose = "" if ratios else "RecBole's "
        cells = [_two(ratios, f"times faster than {base}") for base in bases]
        report = record["reports"][name]
        lines.append(
            f"| {whose}{name} | {report['tokens']:,} | {seconds:.3g} | {record['evaluation_s'][name]:.2f} | "
            f"{' | '.join(cells)} | {report['peak_mb']:,.0f} |"
        )
    explained = (
        "Importing RecBole's models switches torch's anomaly detection on, which is RecBole as it comes; run by this "
        "package it is off, and memory that a step frees is kept for the next. The first ratio is to RecBole as it "
        "comes, the second to RecBole as it runs here. On [an older processor](benchmarks/NOTES.md) readout was 90 and "
        "28 times as fast as RecBole as it comes, at commit a8a66e4."
    )
    floors = ", ".join(
        f"{found['times the arithmetic floor']:.1f} ({name})"
        for name, found in record["ratios"].items()
        if name.startswith("SSD4Rec")  # Mamba-1's scan is not made of products
    )
    floor = f"Times the time that torch.mm takes for as many operations: {floors}."
    return "\n".join([*lines, "", explained, floor, _source(record, len(record["rounds"][bases[0]]))])


def _two(ratios: dict, name: str) -> str:
    """The ratios to a baseline as it comes and as it runs here."""
    return f"{ratios[f'{name}, as it comes']:.0f} / {ratios[name]:.0f}" if ratios else ""


def model_records(folder: Path = RESULTS / "models") -> dict[str, list[dict]]:
    """The runs of benchmarks/models.py by model, the best validation first."""
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    by_model = {}
    for run in runs:
        by_model.setdefault(run["model"], []).append(run)
    return dict(sorted(by_model.items(), key=lambda item: -fmean(r["best_valid_result"]["ndcg@10"] for r in item[1])))


def results_table() -> str:
    """Test NDCG@10 of every model on every data set, from the reports of `make experiment NAME=models` and `seeds`."""
    best, data, sources = {}, [], []
    for name, experiments in summaries(RESULTS / "experiments").items():
        found = models(experiments)
        best |= {(label, name): row for label, row in found.items()}
        data += [name] if found else []
        for comparison in sorted(COMPARISONS & set(experiments)):
            link = f"benchmarks/results/experiments/{name}/{comparison}/report.md"
            sources.append(f"[{name}{', seeds' if comparison == 'seeds' else ''}]({link})")
    labels = sorted({label for label, _ in best}, key=lambda label: (_mean_rank(label, best, data), label))
    ours = own_models()
    names = [label if label in ours else f"RecBole's {label}" for label in labels]
    rows = [[name, *(_both(best.get((label, d))) for d in data)] for name, label in zip(names, labels, strict=True)]
    table = Table(["test NDCG@10, A · B", *data], rows).format("pipe")
    return f"{table}\n\n{NOTE} Commands, commits, seconds and curves: {', '.join(sorted(sources))}."


def _both(row: dict | None) -> str:
    return "" if row is None else both_protocols(row, "ndcg@10") + (" ¹" if row["cut"] else "")


def _mean_rank(label: str, best: dict, data: list[str]) -> float:
    """A model's place among all on a data set, the mean over those where it ran; the best first."""
    score = {key: fmean(row["test"]["ndcg@10"]) for key, row in best.items()}
    return fmean(
        sum(score[key] > score[label, name] for key in score if key[1] == name)
        for name in data
        if (label, name) in score
    )


def explanation_sentence() -> str:
    """What was tried to explain PackedSASRec, from the runs of benchmarks/models.py that change one thing."""
    every = model_records(RESULTS / "models" / "explanations")
    convolved = every.pop("PackedSASRec convolved")
    plain = model_records()["PackedSASRec"]
    first = next(run for run in plain if run["seed"] == convolved[0]["seed"])
    others = ", ".join(
        f"{name.removeprefix('PackedSASRec ')} {runs[0]['best_valid_result']['ndcg@10']:.4f}"
        for name, runs in every.items()
    )
    shown = [mean_sd([run["best_valid_result"]["ndcg@10"] for run in runs]) for runs in (plain, convolved)]
    return (
        "PackedSASRec is behind the recurrent models in good part because attention over whole histories does not see "
        "what came just before: with a causal convolution of four taps in front of it, as Mamba has one, its "
        f"validation NDCG@10 goes from {shown[0]} to {shown[1]} ({len(convolved)} seeds, all without `repeat_bias`, "
        "which has all models leave out the history). Other single changes do not "
        f"explain it (seed 2020, unchanged {first['best_valid_result']['ndcg@10']:.4f}): {others} "
        "([benchmarks/results/models/explanations](benchmarks/results/models/explanations))."
    )


def preparation_sentence() -> str:
    """Reading, ordering and splitting ml-100k for a model with padded rows, ours beside RecBole's."""
    figures = json.loads((RESULTS / "training.json").read_text(encoding="utf-8"))["preparation"]
    ours, theirs = figures["ours L=600"], figures["RecBole L=600"]
    return (
        f"Preparing ml-100k with `MAX_ITEM_LIST_LENGTH=600` took {ours['seconds']:.1f} s and "
        f"{ours['growth_mb']:,.0f} MB here, "
        f"{theirs['seconds']:.1f} s and {theirs['growth_mb']:,.0f} MB in RecBole (same run)."
    )


def memory_sentence() -> str:
    """Peak memory against the tokens of a batch, as benchmarks/memory.py measured it."""
    record = json.loads((RESULTS / "memory.json").read_text(encoding="utf-8"))
    shown = [row for row in record["rows"] if row["kb_per_token_above_the_first"]]
    rates = [row["kb_per_token_above_the_first"] for row in shown]
    return (
        f"Memory grows with the tokens of a batch alone, by {min(rates):.1f} to {max(rates):.1f} KiB a token "
        f"from {shown[0]['tokens']:,} to {shown[-1]['tokens']:,} tokens (SSD4Rec, hidden "
        f"{record['settings']['hidden_size']}, {record['settings']['num_layers']} layer, forward and backward; "
        f"`{record['command']}`, commit {record['commit']}, data in "
        "[benchmarks/results/memory.json](benchmarks/results/memory.json))."
    )


def cpu_kernels_table() -> str:
    """numba's kernels beside plain torch, as benchmarks/cpu_kernels.py measured them."""
    record = json.loads((RESULTS / "cpu_kernels.json").read_text(encoding="utf-8"))
    rows = []
    for name, row in record["ops"].items():
        one, two = (row[f"threads: {threads}"] for threads in (1, 2))
        ms = f"{one['numba, ms']:.1f} · {two['numba, ms']:.1f}"
        rows.append([name, ms, *(f"{found['torch / numba']:.1f}" for found in (one, two))])
    table = Table(["numba, on one thread · two", "ms", "torch's ms / numba's, one thread", "two"], rows).format("pipe")
    return (
        f"{table}\n\nForward and backward of 4,096 tokens, {record['machine']['cpu']}; `{record['command']}`, commit "
        f"{record['commit']}, data in [benchmarks/results/cpu_kernels.json](benchmarks/results/cpu_kernels.json)."
    )


def _source(record: dict, rounds: int) -> str:
    """The sentence under a table: what made it, where, and with what."""
    machine, versions = record["machine"], record["versions"]
    return (
        f"Medians of {rounds} rounds in one run, loader included; whole histories, hidden 64, 2 layers; the baselines "
        "at RecBole's defaults with CE, their epoch extrapolated from batches. "
        f"{machine['cpu']}, {record['threads']} threads; torch {versions['torch']}, recbole {versions['recbole']}; "
        f"commit {record['commit']}, seed {record['seed']}; "
        f"`{record['command']}`, data in [benchmarks/results/training.json](benchmarks/results/training.json)."
    )


PARTS = {
    part.__name__: part
    for part in (
        quick_start_sentence,
        speed_table,
        preparation_sentence,
        memory_sentence,
        cpu_kernels_table,
        results_table,
        explanation_sentence,
    )
}


def filled(text: str) -> str:
    """The text with every figure made anew."""
    marked = re.compile(r"(<!-- (\w+) -->\n).*?(\n<!-- /\2 -->)", re.DOTALL)
    return marked.sub(lambda found: found[1] + PARTS[found[2]]() + found[3], text)


if __name__ == "__main__":
    README = Path(__file__).parents[1] / "README.md"
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
