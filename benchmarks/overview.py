"""The first screen of RESULTS.md: what is best, what is fast, and what each choice gives."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from math import inf, sqrt
from pathlib import Path
from statistics import fmean, variance

from scipy.stats import studentized_range

from recbole_ssd.comparison.document import Table
from recbole_ssd.comparison.summary import mean_sd
from recbole_ssd.model_lookup import own_models

COMPARISONS = {"models", "seeds"}  # of models at their best settings; all others are sweeps of one choice
BASELINES = ("GRU4Rec", "SASRec")  # of RecBole's, those that stand in sweeps
COST_ONLY = {"batch_memory"}  # too few epochs to learn anything from
SHARE = 0.99  # of the best validation of a model, for the time to quality
LEVEL = 0.95  # of sets of runs that differ in the seed alone lie no further apart than what is called level


def summaries(folder: Path) -> dict[str, dict[str, dict]]:
    """The summary of every experiment, by data set and name."""
    found = {}
    for file in sorted(folder.glob("*/*/summary.json")):
        found.setdefault(file.parent.parent.name, {})[file.parent.name] = json.loads(file.read_text(encoding="utf-8"))
    return found


def models(experiments: dict[str, dict]) -> dict[str, dict]:
    """By label, each model's row with the most seeds in the comparisons of a data set."""
    best = {}
    for name in sorted(COMPARISONS & set(experiments)):
        for row in finished(experiments[name]["tables"][0]):
            if len(row["seeds"]) > len(best.get(row["label"], {"seeds": ()})["seeds"]):
                best[row["label"]] = row
    return best


def finished(table: dict) -> list[dict]:
    """The rows that have a result."""
    return [row for row in table["models"] if row.get("test")]


def anchor(data: str, name: str) -> str:
    return f"{data}-{name}"


def both_protocols(row: dict, metric: str) -> str:
    """The test metric, and behind a dot that under the other protocol."""
    return " · ".join(mean_sd(values) for values in (row["test"][metric], row.get("test_other_history")) if values)


def time_to_quality(table: dict, baseline: str) -> dict[str, float | None]:
    """Seconds until each model's validation first reaches 99 % of the baseline's best, means over seeds.

    None where a seed never does; empty where the baseline was not validated.
    """
    rows = {row["label"]: row for row in finished(table)}
    if not rows.get(baseline, {}).get("valid"):
        return {}
    goal = SHARE * fmean(rows[baseline]["valid"])
    found = {}
    for label, row in rows.items():
        reached = [next((s for s, value in curve if value >= goal), None) for curve in row["curves"]]
        found[label] = None if None in reached else fmean(reached)
    return found


def best_and_fast(by_data: dict) -> str:
    """A line for each data set whose models were compared."""
    header = ["on", "best of ours, A · B", "best of RecBole's here, A · B", "least s an epoch"]
    rows = [[data, *_cells(found)] for data, found in by_data.items() if not COMPARISONS.isdisjoint(found)]
    return Table([*header, "s to 99 % of SASRec's best"], rows, left=5).format("pipe")


def _cells(experiments: dict[str, dict]) -> list[str]:
    metric, here = next(iter(experiments.values()))["metric"], own_models()
    rows = models(experiments).values()
    table = experiments["models"]["tables"][0] if "models" in experiments else {"models": []}
    seconds = time_to_quality(table, "SASRec")
    reached = [(s, label) for label, s in seconds.items() if label in here and s is not None]

    def place(row):  # under protocol B, where repeat_bias favours nobody
        return -fmean(row.get("test_other_history") or row["test"][metric])

    def score(row):
        return f"{row['name']} {both_protocols(row, metric)}"

    return [
        _first([row for row in rows if row["label"] in here], place, score),
        _first([row for row in rows if row["label"] not in here], place, score),
        _first(  # of one table: seconds of two may be those of two machines
            [row for row in finished(table) if row["label"] in here],
            lambda row: row["epoch_s"],
            lambda row: f"{row['label']} {row['epoch_s']:.1f}",
        ),
        _first(reached, lambda pair: pair[0], lambda pair: f"{pair[1]} {pair[0]:,.0f}, {_until('SASRec', seconds)}"),
    ]


def _until(label: str, seconds: dict) -> str:
    return f"{label} {'never' if seconds[label] is None else f'{seconds[label]:,.0f}'}"


def _first(rows: Iterable, place: Callable, told: Callable) -> str:
    """What is told of the row in the lowest place, nothing where there is none."""
    rows = sorted(rows, key=place)
    return told(rows[0]) if rows else ""


def choices(by_data: dict) -> str:
    """A line for each sweep, a column for each data set: the best and the worst, or that they are level."""
    names = sorted({name for experiments in by_data.values() for name in experiments} - COMPARISONS - COST_ONLY)
    noise = {data: seed_noise(experiments) for data, experiments in by_data.items()}
    rows = [["*another seed*", *("" if sd is None else f"± {sd:.4f}" for sd in noise.values())]]
    for name in names:
        cells = [_cell(data, name, experiments.get(name), noise[data]) for data, experiments in by_data.items()]
        rows.append([name.replace("_", " "), *cells])
    return Table(["", *by_data], rows, left=1 + len(by_data)).format("pipe")


def seed_noise(experiments: dict[str, dict]) -> float | None:
    """Standard deviation of the test metric over seeds, pooled over the models that have several; None without any."""
    found = models(experiments).values()
    metric = next(iter(experiments.values()))["metric"]
    spread = [(len(row["seeds"]) - 1, variance(row["test"][metric])) for row in found if len(row["seeds"]) > 1]
    return sqrt(sum(n * v for n, v in spread) / sum(n for n, _ in spread)) if spread else None


def _cell(data: str, name: str, summary: dict | None, noise: float | None) -> str:
    groups = [rows for table in summary["tables"] for rows in _by_model(finished(table))] if summary else []
    said = "; ".join(_verdict(rows, summary["metric"], noise) for rows in groups)
    return f"[{said}](#{anchor(data, name)})" if said else ""


def _by_model(rows: list[dict]) -> list[list[dict]]:
    """The rows of each model apart, where labels begin with models: what a choice gives is asked of each."""
    groups = {}
    for row in rows:
        groups.setdefault(row["label"].split()[0], []).append(row)
    return list(groups.values()) if set(groups) <= {*own_models(), *BASELINES} else [rows] if rows else []


def _verdict(rows: list[dict], metric: str, noise: float | None) -> str:
    value = {row["name"]: fmean(row["test"][metric]) for row in rows}
    best, worst = max(value, key=value.get), min(value, key=value.get)
    if best == worst:
        return f"{best} {value[best]:.4f}"
    between, seeds = value[worst] - value[best], min(len(row["seeds"]) for row in rows)
    level = noise is not None and -between < studentized_range.ppf(LEVEL, len(rows), inf) * noise / sqrt(seeds)
    return f"{'level: ' if level else ''}{best} {value[best]:.4f}, {worst} {between:+.4f}"
