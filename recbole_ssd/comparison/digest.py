"""The numbers of a report as data, `summary.json`: for whoever makes tables and pictures of their own."""

from __future__ import annotations

from statistics import fmean

from recbole_ssd.comparison.records import Record
from recbole_ssd.comparison.summary import Model, epoch_s, shown_metrics

COSTS = ("peak_rss_mb", "peak_gpu_mb", "tokens_per_epoch", "n_params")


def digest(parts: list[list[Model]], command: str, jobs: int) -> dict:
    """What each model of each table reached and cost, and where and how it was measured.

    Args:
        parts: the models of each table, one table for each protocol.
        command: that made the report.
        jobs: runs at a time.
    """
    done = [record for models in parts for model in models for record in model.done]
    return {
        "dataset": parts[0][0].records[0].run.settings["dataset"],
        "metric": parts[0][0].metric,
        "command": command,
        "jobs": jobs,
        "commits": _distinct(record.result.get("commit") for record in done),
        "machines": _distinct(record.result["machine"] for record in done),
        "versions": _distinct(record.result["versions"] for record in done),
        "tables": [_table(models, models[0].metric) for models in parts if any(model.done for model in models)],
    }


def _distinct(values) -> list:
    found = []
    for value in values:  # some are dicts, which no set takes
        if value not in found:
            found.append(value)
    return found


def _table(models: list[Model], metric: str) -> dict:
    first = next(model.done[0] for model in models if model.done)
    return {
        "protocol": first.result["protocol"],
        "split_fingerprint": first.result["split_fingerprint"],
        "users": int(first.ranks["user"].nunique()),
        "targets": len(first.ranks),
        "models": [_model(model, shown_metrics(models, metric), metric) for model in models],
    }


def _model(model: Model, metrics: list[str], metric: str) -> dict:
    settings = model.records[0].run.settings
    row = {
        "label": model.label,
        "name": model.name,
        "settings": {key: value for key, value in settings.items() if key != "seed"},
    }
    row |= {
        "shipped": model.records[0].run.shipped,
        "runs": len(model.records),
        "seeds": [record.run.seed for record in model.done],
    }
    if not model.done:
        return row
    row |= {"cut": sum(record.cut for record in model.done)}
    row |= {"test": {name: model.test(name) for name in metrics}, "valid": model.valid(metric)}
    row["test_other_history"] = model.test_other_history(metric)
    found = model.difference
    row["difference"] = found and {
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "p_holm": model.p_holm,
    }
    row |= {"epoch_s": _mean(model, epoch_s), "seconds_to_best": _mean(model, lambda r: r.seconds_to_best)}
    row |= {"seconds": _mean(model, lambda r: r.seconds), "epochs": _mean(model, lambda r: len(r.result["epoch_s"]))}
    row |= {name: _mean(model, lambda r, name=name: r.result[name]) for name in COSTS}
    row["curves"] = [_curve(record, metric) for record in model.done]
    return row


def _mean(model: Model, value) -> float | None:
    values = [value(record) for record in model.done]
    return None if None in values else fmean(values)


def _curve(record: Record, metric: str) -> list[list[float]]:
    """[seconds since the start of training, validation] after every validation."""
    return [[round(e["seconds"], 2), e["result"][metric]] for e in record.result["valid_by_epoch"]]
