"""RESULTS.md, made from the summaries of experiments: python benchmarks/results_page.py writes it.

Every number in it comes from a benchmarks/results/experiments/DATA/NAME/summary.json, as `make experiment` left
it, or from benchmarks/results/published.yaml.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from statistics import fmean

import yaml
from overview import COST_ONLY, anchor, best_and_fast, choices, finished, summaries, time_to_quality

from recbole_ssd.comparison.document import Table
from recbole_ssd.comparison.summary import mean_sd
from recbole_ssd.result import other_history

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT / "benchmarks" / "experiments"
PAGE = ROOT / "RESULTS.md"
PUBLISHED = ROOT / "benchmarks" / "results" / "published.yaml"
ORDER = ("models", "bidirectional", "supervision", "history_length", "mask_ratio", "losses", "depth_and_width", "gate")
LEVEL = 0.05  # of p after Holm
BEST = """Test NDCG@10 of the best models, chosen under protocol B, which favours neither ours nor
RecBole's; (cut): a time limit ended a training. Then the fastest of ours, and the first to reach what SASRec does."""
CHOICES = """What each choice gives: its best value and how far its worst stays behind, in test NDCG@10, protocol A. The
first line is the standard deviation over seeds of the models above. A choice is called level where its rows lie no
further apart than 95 of 100 sets of as many runs that differ in the seed alone."""
INTRODUCTION = """# Results
Every number here is made from the data files beside the reports that are linked (`python benchmarks/results_page.py`),
and every table by the command under it, with its files as they stood at the commit that is named. Test figures are
those of the epoch with the best validation; ± is the standard deviation over seeds; an interval is that of the
difference from the first row, from a paired bootstrap over users and seeds, and p is corrected after Holm. (cut): a
time limit ended the training. Seconds are those of the machine that is named, and compare inside a table. Under
protocol A what is in the history is ranked too. Models of this package that are trained with `repeat_bias` learn to
leave it out where nothing is consumed twice; RecBole's models and published ones do not, and are to be compared with
them under protocol B, the column "history excluded". Compare the rows of a sweep with each other, and not
with `models`: its command says how long it trained, on ml-1m four epochs or twenty minutes, and earlier commits than
b4a2359 know no `repeat_bias`. Seed 2020 of MambaRec and MoEMaTrRec on ml-1m shared its processor: read no seconds of
theirs. On ml-1m an epoch of RecBole's GRU4Rec takes longer than its ten minutes: there stand published rows."""


def page(folder: Path = ROOT / "benchmarks" / "results" / "experiments") -> str:
    """The whole page."""
    by_data, by_others = summaries(folder), yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    parts = [INTRODUCTION]
    if by_data:
        parts.append(overview(by_data))
    for data, experiments in by_data.items():
        parts.append(f"## {data}\n{_measured(experiments.values())}")
        parts += [experiment(data, name, experiments[name], folder) for name in sorted(experiments, key=_place)]
        parts += published(by_others.get(data, []), experiments)
    return "\n\n".join(parts) + "\n"


def _place(name: str) -> tuple:
    return ORDER.index(name) if name in ORDER else len(ORDER), name


def overview(by_data: dict) -> str:
    """What is best, what is fast and what the choices give, on one screen."""
    return "\n\n".join(["## In one screen", BEST, best_and_fast(by_data), CHOICES, choices(by_data)])


def experiment(data: str, name: str, summary: dict, folder: Path) -> str:
    """Question, table, sentences and picture of one experiment."""
    metric = summary["metric"]
    lines = [f'<a id="{anchor(data, name)}"></a>\n### {name.replace("_", " ")} on {data}', _question(name)]
    for table in summary["tables"]:
        if finished(table):
            lines += [_table(table, metric), sentences(table, None if name in COST_ONLY else metric)]
    place = Path("benchmarks") / "results" / "experiments" / data / name
    pictures = sorted((folder / data / name).glob("*curves.png"))
    lines += [f"![validation over seconds]({place / picture.name})" for picture in pictures]
    source = f"[The report]({place / 'report.md'})"
    source += f", {summary['jobs']} runs at a time" if summary["jobs"] > 1 else ""
    source += f", commit {', '.join(filter(None, summary['commits']))}"
    lines.append(f"{source}:\n\n```bash\n{summary['command']}\n```")
    return "\n\n".join(filter(None, lines))


def published(rows: list[dict], experiments: dict[str, dict]) -> list[str]:
    """The table of what others published on a data set, and the most that any row here has; nothing without such."""
    if not rows:
        return []
    header = ["published", "protocol", "by", "test hit@10", "test ndcg@10"]
    cells = [
        [row["model"], row["protocol"], row["by"], *(f"{row[m]:.4f}" for m in ("hit@10", "ndcg@10"))] for row in rows
    ]
    told = f"Not run here. {most_here(experiments)}"
    return ["### published by others", told, Table(header, cells, left=3).format("pipe")]


def most_here(experiments: dict[str, dict]) -> str:
    """The best row of all experiments on a data set, under each protocol that was tested."""
    metric = next(iter(experiments.values()))["metric"]
    scores = {"A": [], "B": []}
    for name, summary in experiments.items():
        for row in (row for table in summary["tables"] for row in finished(table)):
            for rule, values in (("A", row["test"][metric]), ("B", row.get("test_other_history"))):
                if values:
                    scores[rule].append((fmean(values), f"{row['name']}, {name.replace('_', ' ')}"))
    most = [
        f"{score:.4f} under protocol {rule} ({row})"
        for rule, found in scores.items()
        for score, row in sorted(found)[-1:]
    ]
    return f"The most that a row above has, whatever was varied, is {metric} {' and '.join(most)}."


def sentences(table: dict, metric: str | None) -> str:
    """What a table says of accuracy (not without a metric) and of cost, in two sentences made from its numbers."""
    done = finished(table)
    fast, slow = (pick(done, key=lambda row: row["epoch_s"]) for pick in (min, max))
    cost = (
        f"An epoch takes {fast['epoch_s']:.2f} s with {fast['name']} and {slow['epoch_s']:.2f} s with {slow['name']}, "
        f"{slow['epoch_s'] / fast['epoch_s']:.1f} times as long."
    )
    first, *others = table["models"]
    if metric is None or not others:
        return cost
    if not first.get("test"):
        return f"{first['label']}, which the others are compared with, has no result. {cost}"
    compared = [row for row in others if row.get("difference")]
    alone = [row for row in others if row.get("test") and not row["difference"]]
    told = [row for row in compared if row["difference"]["p_holm"] < LEVEL]
    better = [row for row in told if row["difference"]["low"] > 0]
    worse = [row for row in told if row["difference"]["high"] < 0]
    kinds = {
        ("beats", "beat"): better,
        ("stays behind", "stay behind"): worse,
        ("cannot be told from",) * 2: [row for row in compared if row not in better + worse],
        ("has one seed, too few to tell it from", "have one seed, too few to tell them from"): alone,
    }
    said = [f"{_names(rows)} {verbs[len(rows) > 1]} {first['name']}" for verbs, rows in kinds.items() if rows]
    return f"In test {metric}, {'; '.join(said)}. {cost}" if said else cost


def _names(rows: list[dict]) -> str:
    *others, last = [row["name"] for row in rows]
    return f"{', '.join(others)} and {last}" if others else last


def _table(table: dict, metric: str) -> str:
    done, others = finished(table), [row for row in table["models"] if not row.get("test")]
    metrics = sorted(done[0]["test"], key=lambda name: name != metric)
    names = [f"test {name}" for name in metrics]
    both = any(row.get("test_other_history") for row in done)
    names += [f"test {metric}, history {other_history(table['protocol'])}"] if both else []
    header = ["", "seeds", *names, f"valid {metric}", "difference", "95 %", "p", "epoch s", "s to best", "peak MB"]
    quality = time_to_quality(table, "SASRec")
    if quality:
        header.append("s to 99 % of SASRec")
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    for row in done:
        found = row["difference"]
        cells = [row["name"], str(len(row["seeds"])), *(mean_sd(row["test"][name]) for name in metrics)]
        cells += [mean_sd(row["test_other_history"])] if both else []
        first = table["models"][0]
        cells += [mean_sd(row["valid"]), "" if row is first else _difference(row, first, metric)]
        cells += [f"{found['low']:+.4f} to {found['high']:+.4f}", f"{found['p_holm']:.3f}"] if found else ["", ""]
        memory = row["peak_gpu_mb"] or row["peak_rss_mb"]
        cells += [f"{row['epoch_s']:.2f}", f"{row['seconds_to_best']:,.0f}", f"{memory:,.0f}" if memory else ""]
        if quality:
            cells.append("never" if quality[row["label"]] is None else f"{quality[row['label']]:,.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    lines += [f"| {row['label']} | none of {row['runs']} |" + " |" * (len(header) - 2) for row in others]
    return "\n".join(lines)


def _measured(experiments: Collection[dict]) -> str:
    """Users, targets, split and machine, of all tables of a data set."""
    tables = [table for summary in experiments for table in summary["tables"]]
    splits = dict.fromkeys(
        f"{table['users']:,} users, {table['targets']:,} test targets, split {table['split_fingerprint']}, protocol "
        f"{table['protocol']['letter']}, time order {table['protocol']['time_order']}"
        for table in tables
    )
    machines = dict.fromkeys(
        f"{place['gpu'] or place['cpu']}, {place['threads']} thread(s) a run"
        for summary in experiments
        for place in summary["machines"]
    )
    versions = dict.fromkeys(
        f"torch {version['torch']}, recbole {version['recbole']}"
        for summary in experiments
        for version in summary["versions"]
    )
    commits = dict.fromkeys(commit for summary in experiments for commit in summary["commits"] if commit)
    seeds = sorted({seed for table in tables for row in table["models"] for seed in row["seeds"]})
    told = ["; ".join(splits), "; ".join(machines), "; ".join(versions), f"seeds {', '.join(map(str, seeds))}"]
    told += [f"commit {', '.join(commits)}"] if commits else []
    return ". ".join(told) + "."


def _question(name: str) -> str:
    """The first comment of the experiment's file."""
    file = EXPERIMENTS / f"{name}.yaml"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


def _difference(row: dict, first: dict, metric: str) -> str:
    return f"{fmean(row['test'][metric]) - fmean(first['test'][metric]):+.4f}" if first.get("test") else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written to {PAGE}")
