"""The numbers of a report: each model's runs together, their differences, and accuracy by history and popularity."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import pandas as pd

from recbole_ssd.comparison.records import DONE, Record
from recbole_ssd.comparison.statistics import Difference, at_k, differences, holm, metric_values

GROUPS = 5
BY = {"history_length": "events before the target", "item_count": "occurrences of the target in training"}


@dataclass
class Model:
    """A row of the tables.

    Attributes:
        label: its name.
        records: of all its runs, done or not.
        difference: from the first model; None for the first itself and where seeds do not allow an interval.
        p_holm: the p-value, corrected for all differences of the table.
    """

    label: str
    records: list[Record]
    difference: Difference | None = None
    p_holm: float | None = None

    @property
    def done(self) -> list[Record]:
        return [record for record in self.records if record.state == DONE]

    @property
    def name(self) -> str:
        """The label, with what a reader of any table must know of its runs."""
        cut = sum(record.cut for record in self.done)
        if not cut:
            return self.label
        return f"{self.label} (cut)" if cut == len(self.done) else f"{self.label} ({cut} of {len(self.done)} cut)"

    @property
    def metric(self) -> str:
        """What decides on its best epoch and on differences, such as `ndcg@10`."""
        return self.records[0].run.metric

    def test(self, metric: str) -> list[float]:
        return [record.test(metric) for record in self.done]

    def test_other_history(self, metric: str) -> list[float]:
        """A metric under the other treatment of the history, of the runs that tested both (`both_protocols`).

        As RecBole's evaluator gives it, rounded: only the run's own protocol has ranks.
        """
        results = [record.result.get("test_result_other_history") for record in self.done]
        return [result[metric] for result in results if result]

    def valid(self, metric: str) -> list[float]:
        return [r.result["best_valid_result"][metric] for r in self.done if r.result["best_valid_result"]]


def summarize(records: list[Record], metric: str, seed: int = 0) -> list[Model]:
    """The models in their order, with differences from the first in `metric`."""
    models = [Model(label, [r for r in records if r.run.label == label]) for label in _labels(records)]
    compared = [model for model in models if len(model.done) > 1]
    if len(compared) > 1 and compared[0] is models[0]:
        sums, counts = zip(*(_by_user(model, metric) for model in compared), strict=True)
        found = differences(list(sums), counts[0], seed=seed)
        corrected = holm([difference.p for difference in found])
        for model, difference, p in zip(compared[1:], found, corrected, strict=True):
            model.difference, model.p_holm = difference, p
    return models


def _labels(records: list[Record]) -> list[str]:
    return list(dict.fromkeys(record.run.label for record in records))


def _by_user(model: Model, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Sums of a metric over each user's targets, (seeds, users), and the targets of each user, (users,)."""
    users, counts = np.unique(model.done[0].ranks["user"].to_numpy(), return_counts=True)
    starts = np.cumsum(counts) - counts  # ranks are sorted by user
    rows = [np.add.reduceat(metric_values(r.ranks["rank"].to_numpy(), metric), starts) for r in model.done]
    return np.stack(rows), counts


def shown_metrics(models: list[Model], metric: str) -> list[str]:
    """The metrics that ranks tell and that every result has, the deciding one first."""
    results = [record.result["test_result"] for model in models for record in model.done]
    common = [name for name in results[0] if at_k(name) and all(name in result for result in results)]
    return sorted(common, key=lambda name: name != metric)


def mean_sd(values: list[float], digits: int = 4) -> str:
    """A mean, and over several seeds the standard deviation.

    >>> mean_sd([0.25, 0.75]), mean_sd([0.25]), mean_sd([])
    ('0.5000 ± 0.3536', '0.2500', '')
    """
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{spread}"


def by_group(models: list[Model], column: str, metric: str) -> pd.DataFrame:
    """A metric in groups of test targets that are equally large, as far as ties allow.

    Args:
        models: those of a table.
        column: of the ranks, `history_length` or `item_count`.
        metric: such as `ndcg@10`.

    Returns:
        columns `model`, `by`, `group` (as in 12-30), `targets`, `seeds`, `mean`, `sd` (NaN for one seed).
    """
    rows = []
    for model in models:
        if not model.done:
            continue
        ranks = [record.ranks for record in model.done]
        number, names = _groups(ranks[0][column].to_numpy())
        for place, name in enumerate(names):
            chosen = number == place
            values = [metric_values(table["rank"].to_numpy()[chosen], metric).mean() for table in ranks]
            sd = statistics.stdev(values) if len(values) > 1 else float("nan")
            rows.append((model.name, column, name, int(chosen.sum()), len(values), fmean(values), sd))
    return pd.DataFrame(rows, columns=["model", "by", "group", "targets", "seeds", "mean", "sd"])


def _groups(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The group of each value, and the groups' names, from small to large."""
    last = np.arange(1, GROUPS) * len(values) // GROUPS - 1  # of each group but the highest
    cuts = np.sort(values)[np.maximum(last, 0)]
    number = np.searchsorted(np.unique(cuts), values, side="left")  # a value at a cut belongs below it
    number = np.unique(number, return_inverse=True)[1]
    ends = [(values[number == place].min(), values[number == place].max()) for place in range(number.max() + 1)]
    return number, [f"{low}" if low == high else f"{low}–{high}" for low, high in ends]


def run_rows(records: list[Record]) -> pd.DataFrame:
    """One line for each run, done or not, of everything that the tables are made from."""
    rows = []
    for record in records:
        row = {"model": record.run.label, "seed": record.run.seed, "state": record.state, "reason": record.reason}
        if record.state == DONE:
            result = record.result
            row |= {f"test {name}": record.test(name) if at_k(name) else v for name, v in result["test_result"].items()}
            row |= {f"valid {name}": value for name, value in (result["best_valid_result"] or {}).items()}
            row |= {"cut": record.cut, "epochs": len(result["epoch_s"]), "best_epoch": result["best_epoch"]}
            row |= {"epoch_s": epoch_s(record), "seconds_to_best": record.seconds_to_best}
            names = ("train_s", "eval_s", "peak_rss_mb", "peak_gpu_mb", "n_params", "tokens_per_epoch")
            row |= {name: result[name] for name in (*names, "split_fingerprint")}
        rows.append({**row, "folder": record.folder.path.name})
    return pd.DataFrame(rows)


def epoch_s(record: Record) -> float:
    """The median epoch of a run, as its own log tells it."""
    seconds = record.result["epoch_s"]
    return statistics.median(seconds) if seconds else float("nan")
