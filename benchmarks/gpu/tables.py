"""The results of benchmarks/gpu_check.py as Markdown."""

from __future__ import annotations

import json
from pathlib import Path

BAR = ("bfloat16", 200_000, 20)
PEERS = ("mamba_ssm", "causal_conv1d")
KEPT = ("neighbours stay", "past stays", "repeats")


def markdown(header: list[str], rows: list[list], words: int) -> str:
    """A table whose first `words` columns are words and whose others are numbers."""
    lines = [header, ["---"] * words + ["---:"] * (len(header) - words), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def parity_table(records: list[dict]) -> str:
    """One row a case: the tensor nearest to its bound, and what must not move a bit."""
    rows = []
    for record in records:
        row = [record["op"], record.get("dtype", ""), record.get("stream", "")]
        if "refused" in record:
            row += ["**refused**: " + record["refused"].splitlines()[-1], *[""] * 7]
        else:
            verdict = "passed" if record["passed"] else "**failed**"
            errors = [record[key] for key in ("error", "plain", "theirs", "bound")]
            errors = ["" if number is None else f"{number:.1e}" for number in errors]
            kept = ["—" if record[key] is None else "yes" if record[key] else "**no**" for key in KEPT]
            row += [verdict, record["worst"], *errors, *kept]
        rows.append(row)
    header = ["op", "dtype", "stream", "verdict", "worst", "error", "plain torch's", "the peer's", "bound", *KEPT]
    return markdown(header, rows, 5)


def speed_bars(figures: dict) -> list[str]:
    """What is promised of the scan, and what was measured: a line for each head dimension."""
    lines = []
    for name in dict.fromkeys(row["op"] for row in figures["rows"] if row["op"].startswith("ssd")):
        at = [row for row in figures["rows"] if row["op"] == name and _place(row) == BAR]
        ours, theirs = _best(at, "triton"), _best(at, "mamba_ssm")
        if ours is None:
            continue
        floor = ours["both_ms"] / ours["both"]["bandwidth_floor_ms"]
        ratio = "not measured" if theirs is None else f"{theirs['both_ms'] / ours['both_ms']:.2f}"
        lines.append(
            f"{name}, bfloat16, 200,000 tokens, median 20, forward and backward: {floor:.2f} times the bandwidth floor "
            f"(promised: at most 3); {ratio} times as fast as mamba-ssm at its best chunk (promised: at least 4)"
        )
    return lines


def _place(row: dict) -> tuple:
    return row["dtype"], row["tokens"], row["median"]


def _best(rows: list[dict], backend: str) -> dict | None:
    """The fastest row of a backend, over its options."""
    timed = [row for row in rows if row["backend"] == backend and "refused" not in row]
    return min(timed, key=lambda row: row["both_ms"], default=None)


def speed_table(figures: dict) -> str:
    """One row a stream and op: ours, its distance to the roofline, and how many times as long the others take."""
    groups = {}
    for row in figures["rows"]:
        groups.setdefault((row["op"], *_place(row)), []).append(row)
    lines = []
    for (name, dtype, tokens, median), rows in groups.items():
        ours = _best(rows, "triton")
        cells = [name, dtype, "one segment" if median is None else f"median {median}", f"{tokens:,}"]
        if ours is None:
            said = next((row["refused"].splitlines()[-1] for row in rows if row["backend"] == "triton"), "not timed")
            lines.append([*cells, f"**refused**: {said}", *[""] * 7])
            continue
        both, others = ours["both"], [_best(rows, backend) for backend in ("torch", *PEERS)]
        cells += [f"{ours[key]:.3f}" for key in ("forward_ms", "backward_ms", "host_ms", "layout_ms")]
        cells += [f"{both['gb_per_s']:,.0f}", f"{both['tflops']:.1f}", f"{both['times_the_floor']:.1f}"]
        torch_form, *peers = (None if other is None else other["both_ms"] / ours["both_ms"] for other in others)
        peer = next((ratio for ratio in peers if ratio is not None), None)
        lines.append([*cells, *("" if ratio is None else f"{ratio:.1f}" for ratio in (torch_form, peer))])
    header = ["op", "dtype", "stream", "tokens", "forward ms", "backward ms", "host ms", "layout ms", "GB/s", "TFLOP/s"]
    return markdown([*header, "times the floor", "torch / ours", "peer / ours"], lines, 3)


OURS, SHORT, ALL = "SSD4Rec, prefixes", "SSD4Rec, prefixes, L=200", "SSD4Rec, all positions"
THEIRS = ("SASRec, prefixes, L=200", "Mamba4Rec, prefixes, L=200")


def training_bars(figures: dict) -> list[str]:
    """What is promised of whole models, and what was measured."""
    models, lines = figures["models"], []
    if OURS in models:
        rate = models[OURS]["tokens_per_s"] / 1e6
        lines.append(f"{OURS}: {rate:.2f} M tokens/s (promised: at least 7.4, ten times the authors' code)")
    if ALL in models:
        lines.append(f"{ALL}: an epoch in {models[ALL]['epoch_s']:.2f} s (promised: under 1)")
    for name in THEIRS:
        for ours in (SHORT, ALL):
            if name in models and ours in models:
                ratio = models[name]["epoch_s"] / models[ours]["epoch_s"]
                lines.append(f"{ours}: {ratio:.1f} times as fast an epoch as {name} (promised: at least 5)")
    waits = {name: found["waits_a_step"] for name, found in models.items() if found["waits_a_step"] is not None}
    lines += [f"{name}: **failed**: {why}" for name, why in figures["failed"].items()]
    lines += [f"{name}: a step waits {count} times for the GPU (promised: 0)" for name, count in waits.items()]
    return lines


def training_table(figures: dict) -> str:
    """One row a model."""
    rows = []
    for name, found in figures["models"].items():
        scan = f" ({found['scan']})" if found["scan"] else ""
        peak = "" if found["peak_mb"] is None else f"{found['peak_mb']:,.0f}"
        epoch = f"{found['epoch_s']:.2f}" + (" ¹" if found["extrapolated"] else "")
        rate = f"{found['tokens_per_s'] / 1e6:.2f}"
        rows.append([name + scan, f"{found['tokens']:,}", f"{found['targets']:,}", epoch, rate, peak])
    header = [f"one epoch, {figures['precision']}", "tokens", "targets", "seconds", "M tokens/s", "peak MB"]
    return markdown(header, rows, 1) + "\n\n¹ extrapolated from the steps that the time allowed."


def all_tables(folder: Path) -> str:
    """The tables of the results that are there, each with where it comes from."""
    parts, wrong = [], []
    for part, table in (("parity", parity_table), ("speed", speed_table), ("training", training_table)):
        file = folder / f"{part}.json"
        if not file.is_file():
            parts.append(f"{file} is not there: run `gpu_check.py {part}` first.")
            continue
        record = json.loads(file.read_text(encoding="utf-8"))
        if part == "parity":
            wrong = sorted({found["op"] for found in record["records"] if not found["passed"]})
        elif wrong:
            parts.append(f"**Not to be published**, these ops failed parity: {'; '.join(wrong)}.")
        bars = {"speed": speed_bars, "training": training_bars}.get(part, lambda record: [])(record)
        parts += [f"### {part}", table(record["records"] if part == "parity" else record)]
        parts += ["\n".join(f"- {bar}" for bar in bars)] * bool(bars) + [_source(record)]
    return "\n\n".join(parts)


def _source(record: dict) -> str:
    machine = record["machine"]["gpu"] or record["machine"]["cpu"]
    return f"{machine}; torch {record['versions']['torch']}; commit {record['commit']}; `{record['command']}`"
