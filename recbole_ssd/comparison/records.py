"""What the runs left behind, read back and not believed blindly."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from recbole_ssd.comparison.runs import Run, RunFolder
from recbole_ssd.comparison.statistics import at_k, metric_values

DONE, FAILED, INTERRUPTED, PENDING = "done", "failed", "interrupted", "pending"
TIES = 0.005  # scores with ties may differ so much between ranks and RecBole's evaluator


@dataclass
class Record:
    """A run and what came of it.

    Attributes:
        run: what was asked for.
        folder: where its files lie.
        state: done | failed | interrupted | pending.
        reason: why it is not done, in words.
        result: of the result file, if it is done.
    """

    run: Run
    folder: RunFolder
    state: str
    reason: str = ""
    result: dict | None = None

    @property
    def protocol(self) -> dict:
        return self.run.protocol

    @property
    def cut(self) -> bool:
        """Whether the training was ended by `max_train_s`."""
        return bool(self.result and self.result.get("cut"))

    @property
    def seconds(self) -> float:
        """Of training and evaluation, and of what lies between the epochs, as far as the result tells."""
        last = self.result["valid_by_epoch"][-1:]
        return max(self.result["train_s"] + self.result["eval_s"], *(entry["seconds"] for entry in last), 0.0)

    @property
    def seconds_to_best(self) -> float:
        """From the start of training until the tested epoch had been validated."""
        curve = self.result["valid_by_epoch"]
        return next((e["seconds"] for e in curve if e["epoch"] == self.result["best_epoch"]), self.result["train_s"])

    @cached_property
    def ranks(self) -> pd.DataFrame:
        """One line for each test target, sorted by user and item: `user`, `item`, `rank`, `history_length`, ..."""
        return read_ranks(self.folder.ranks)

    def test(self, metric: str) -> float:
        """A metric of the test targets, unrounded, such as `ndcg@10`."""
        return float(metric_values(self.ranks["rank"].to_numpy(), metric).mean())


def read_ranks(path: Path) -> pd.DataFrame:
    """The ranks of a run.

    Raises:
        ValueError: if the file is missing or an older version wrote it.
    """
    if not path.is_file():
        raise ValueError(f"'{path}' is missing, without which nothing can be compared: delete its folder to run again")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if len(table.columns) != 5 or not {"rank", "history_length", "item_count"} <= set(table.columns):
        raise ValueError(f"'{path}' has the columns {list(table.columns)}: delete its folder to run again")
    table.columns = ["user", "item", *table.columns[2:]]
    table = table.astype({"rank": int, "history_length": int, "item_count": int})
    return table.sort_values(["user", "item", "rank"], kind="stable", ignore_index=True)


def read_record(folder: Path, run: Run) -> Record:
    """What came of a run.

    Raises:
        ValueError: if its files are damaged.
    """
    place = RunFolder(folder, run)
    if place.result.is_file():
        record = Record(run, place, DONE, result=_read_json(place.result))
        record.reason = _doubt(record)
        if record.reason:
            record.state = FAILED
        return record
    if place.failure.is_file():
        return Record(run, place, **_read_json(place.failure))
    if place.path.is_dir():
        return Record(run, place, INTERRUPTED, "stopped before its end")
    return Record(run, place, PENDING, "not started")


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"'{path}' is damaged: delete its folder to run again") from None


def _doubt(record: Record) -> str:
    """A sentence if the ranks do not give the metrics of RecBole's evaluator; a model without a test has none."""
    targets = len(record.ranks)
    if not targets:
        return "the split has no test targets to compare models by"
    for metric, theirs in record.result["test_result"].items():
        if at_k(metric) and abs(record.test(metric) - theirs) > max(TIES, 2 / targets):
            return (
                f"its ranks give {metric} {record.test(metric):.4f} and RecBole's evaluator {theirs:.4f}: "
                "many items score alike, no order can be told from such scores"
            )
    return ""


def check_one_split(records: list[Record]) -> None:
    """Refuses results of different test targets.

    Raises:
        ValueError: that says who has which fingerprint.
    """
    by_split = {}
    for record in records:
        if record.state == DONE:
            split = f"{record.result['dataset']} {record.result['split_fingerprint']}"
            by_split.setdefault(split, []).append(str(record.run))
    if len(by_split) > 1:
        told = "; ".join(f"{split}: {', '.join(runs)}" for split, runs in by_split.items())
        raise ValueError(
            f"these runs have different test targets and cannot stand in one table ({told}): give all models the same "
            "filters; if the data have changed, delete the older runs or choose another folder with --output"
        )
