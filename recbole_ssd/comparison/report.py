"""The report of a comparison: report.md, report.html, summary.json, two CSVs, PNGs, and table.tex where asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from recbole_ssd.comparison import plots
from recbole_ssd.comparison.digest import digest
from recbole_ssd.comparison.document import Code, Heading, Picture, Table, Text, to_html, to_latex, to_markdown
from recbole_ssd.comparison.records import DONE, Record, check_one_split
from recbole_ssd.comparison.runs import by_protocol
from recbole_ssd.comparison.statistics import DRAWS
from recbole_ssd.comparison.summary import BY, Model, by_group, run_rows, summarize
from recbole_ssd.comparison.tables import accuracy_table, cost_table, group_table, missing_table, settings_table
from recbole_ssd.environment import whole

FEW = 5  # seeds


@dataclass
class Report:
    """What goes into a report beside the records.

    Attributes:
        folder: where it is written.
        command: that made it.
        tuning: blocks that tell what was tuned over what.
        latex: whether to write table.tex.
        jobs: runs at a time.
    """

    folder: Path
    command: str
    tuning: list = field(default_factory=list)
    latex: bool = False
    jobs: int = 1


def write_report(records: list[Record], report: Report) -> list[Table]:
    """Writes every file of the report, each whole or not at all.

    Returns:
        the tables to print, one of accuracy and one of cost for each protocol.

    Raises:
        ValueError: if records of one protocol have different test targets.
    """
    for part in by_protocol(records):
        check_one_split(part)
    parts = [summarize(part, part[0].run.metric) for part in by_protocol(records)]
    blocks, shown, grouped = [Heading(_title(records), 1)], [], []
    for number, models in enumerate(parts):
        if len(parts) > 1:
            blocks.append(Heading(", ".join(model.label for model in models)))
        if not any(model.done for model in models):
            blocks.append(Text("No run of it is done."))
            continue
        tables = [accuracy_table(models, models[0].metric), cost_table(models)]
        blocks += [Text(_measured(models)), tables[0], Text(_meaning(models)), tables[1]]
        shown += tables
        blocks += _pictures(models, report, "" if len(parts) == 1 else f"{number + 1}_")
        grouped += [by_group(models, column, models[0].metric) for column in BY]
    if missing := missing_table(records):
        blocks += [Heading("Runs without a result"), missing]
        shown.append(missing)
    blocks += report.tuning
    blocks += [Heading("Settings"), settings_table([model for models in parts for model in models])]
    blocks += [Heading("To repeat it"), Code(report.command), Text(_machine(records, report.jobs))]
    _write(blocks, shown, grouped, records, report)
    numbers = digest(parts, report.command, report.jobs)
    _replace(report.folder / "summary.json", json.dumps(numbers) + "\n")
    return shown


def _write(blocks: list, shown: list[Table], grouped: list, records: list[Record], report: Report) -> None:
    folder = report.folder
    _replace(folder / "report.md", to_markdown(blocks))
    _replace(folder / "report.html", to_html(blocks))
    _replace(folder / "results.csv", run_rows(records).to_csv(index=False))
    _replace(folder / "groups.csv", pd.concat(grouped).to_csv(index=False) if grouped else "")
    if report.latex or (folder / "table.tex").exists():  # an older one would contradict the report
        _replace(folder / "table.tex", to_latex(shown))


def _replace(path: Path, text: str) -> None:
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def _title(records: list[Record]) -> str:
    labels = dict.fromkeys(record.run.label for record in records)
    return f"{', '.join(labels)} on {records[0].run.settings['dataset']}"


def _measured(models: list[Model]) -> str:
    """Users, targets, split and protocol: what a number of the table means."""
    record = next(model.done[0] for model in models if model.done)
    kept, ranks = record.result["protocol"], record.ranks
    letter = f"protocol {kept['letter']}, that is " if kept["letter"] else "a protocol of its own: "
    mode = " / ".join(dict.fromkeys(kept["mode"].values()))
    split = "; ".join(f"{kind} {value}" for kind, value in kept["split"].items())
    seeds = sorted({record.run.seed for model in models for record in model.records})
    return (
        f"{ranks['user'].nunique():,} users with {len(ranks):,} test targets, split fingerprint "
        f"{record.result['split_fingerprint']}; {letter}split {split}, {mode} ranking, history {kept['history']}, "
        f"time order {kept['time_order']}; seeds {', '.join(map(str, seeds))}."
    )


def _meaning(models: list[Model]) -> str:
    """What stands behind the signs of the table of accuracy."""
    several = any(len(model.done) > 1 for model in models)
    text = "Mean ± standard deviation over seeds" if several else "One seed each"
    text += ", of the epoch with the best validation."
    if any(model.difference for model in models):
        text += (
            f" Intervals and p-values of the difference from {models[0].label} in test {models[0].metric} come from a "
            f"paired bootstrap over users and seeds ({DRAWS:,} draws, fewer above 100,000 users), p-values corrected "
            "after Holm; they do not tell of other data, nor of other settings."
        )
        if min(len(model.done) for model in models if model.difference or model is models[0]) < FEW:
            text += f" With fewer than {FEW} seeds their spread is known only roughly, and p-values come out too small."
    elif len(models) > 1:
        text += " There is no interval: it needs two seeds or more of the first model and of another."
    if any(record.cut for model in models for record in model.done):
        text += " (cut): its training was ended by max_train_s; given more time it might reach more."
    return text


def _pictures(models: list[Model], report: Report, prefix: str) -> list:
    blocks = [Heading("Pictures", 3)]
    if plots.can_plot():
        files = plots.write_plots(models, models[0].metric, report.folder, prefix)
        blocks += [Picture(file, text) for text, file in files.items()]
    else:
        blocks.append(Text(plots.MISSING))
    for column, meaning in BY.items():
        blocks += [Heading(f"Test {models[0].metric} by {meaning}", 3), group_table(models, column, models[0].metric)]
    return blocks


def _machine(records: list[Record], jobs: int) -> str:
    """Where the seconds were measured; several machines are all named, for their seconds do not compare."""
    done = [record.result for record in records if record.state == DONE]
    packages = ("torch", "recbole", "recbole_ssd")
    places = dict.fromkeys(
        f"{r['machine']['gpu'] or r['machine']['cpu']}, {r['machine']['threads']} thread(s) a run, "
        + ", ".join(f"{name} {r['versions'][name]}" for name in packages)
        + (f", commit {r['commit']}" if r.get("commit") else "")
        for r in done
    )
    if len(places) > 1:
        told = "whose seconds do not compare, nor perhaps what they learnt"
        return f"Measured on {len(places)} machines or versions, {told}: {'; '.join(places)}."
    shared = f" Up to {jobs} runs at a time shared it: alone they take fewer seconds." if jobs > 1 else ""
    return f"Measured on {next(iter(places), 'no machine yet')}.{shared}"
