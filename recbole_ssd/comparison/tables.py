"""The tables of a report: what each model reaches, what it costs, and what it was run with."""

from __future__ import annotations

from statistics import fmean

from recbole_ssd.comparison.document import Table
from recbole_ssd.comparison.records import DONE, FAILED, INTERRUPTED, PENDING, Record
from recbole_ssd.comparison.summary import Model, by_group, epoch_s, mean_sd, shown_metrics
from recbole_ssd.result import other_history


def accuracy_table(models: list[Model], metric: str) -> Table:
    """What each model reaches, and how far it is from the first. Models whose runs all failed keep their row."""
    metrics = shown_metrics(models, metric)
    first = models[0].label
    header = ["model", "seeds", *(f"test {name}" for name in metrics), f"valid {metric}"]
    others = [model.test_other_history(metric) for model in models]
    measured = next((model.done[0].result["protocol"] for model in models if model.done), None)
    other = [f"test {metric}, history {other_history(measured)}"] if any(others) else []
    header += [*other, f"{metric} - {first}", "95 % interval", "p (Holm)"]
    rows = []
    for model, values in zip(models, others, strict=True):
        cells = [model.name, seeds_done(model), *(mean_sd(model.test(name)) for name in metrics)]
        cells += [mean_sd(model.valid(metric)), *([mean_sd(values)] if other else [])]
        rows.append([*cells, *_difference(model, models[0], metric)])
    if len(models) == 1:
        return Table(header[:-3], [row[:-3] for row in rows])
    return Table(header, rows)


def _difference(model: Model, first: Model, metric: str) -> list[str]:
    if model is first or not model.done or not first.done:
        return ["", "", ""]
    found = model.difference
    if found is None:
        return [f"{fmean(model.test(metric)) - fmean(first.test(metric)):+.4f}", "needs seeds", ""]
    p = f"{model.p_holm:.4f}" if model.p_holm >= 0.001 else "< 0.001"
    return [f"{found.mean:+.4f}", f"{found.low:+.4f} to {found.high:+.4f}", p]


def seeds_done(model: Model) -> str:
    """How many runs the row rests on, and what became of the others.

    A number alone if all are done: `3`; else `1 of 3 (2 failed)`.
    """
    done, asked = len(model.done), len(model.records)
    if done == asked:
        return str(done)
    states = [record.state for record in model.records]
    missing = ", ".join(f"{states.count(s)} {s}" for s in (FAILED, INTERRUPTED, PENDING) if s in states)
    return f"{done} of {asked} ({missing})"


def cost_table(models: list[Model]) -> Table:
    """Seconds and memory of each model, means over its seeds."""
    columns = {
        "epoch s": (epoch_s, ".2f"),
        "epochs": (lambda r: len(r.result["epoch_s"]), ".0f"),
        "s to best epoch": (lambda r: r.seconds_to_best, ",.1f"),
        "s in all": (lambda r: r.seconds, ",.1f"),
        "peak MB": (lambda r: r.result["peak_rss_mb"], ",.0f"),
        "peak GPU MB": (lambda r: r.result["peak_gpu_mb"], ",.0f"),
        "tokens per epoch": (lambda r: r.result["tokens_per_epoch"], ",.0f"),
        "parameters": (lambda r: r.result["n_params"], ",.0f"),
    }
    cells = {
        name: [_mean([value(record) for record in model.done], digits) for model in models]
        for name, (value, digits) in columns.items()
    }
    cells = {name: column for name, column in cells.items() if any(column)}
    rows = [[model.name, *(column[place] for column in cells.values())] for place, model in enumerate(models)]
    return Table(["model", *cells], rows)


def _mean(values: list, digits: str) -> str:
    values = [value for value in values if value is not None]
    return format(fmean(values), digits) if values else ""


def group_table(models: list[Model], column: str, metric: str) -> Table:
    """A metric by history length or popularity: a row for each model, a column for each group."""
    table = by_group(models, column, metric)
    first = table[table["model"] == table["model"].iloc[0]]
    header = ["model", *(f"{group} (n={targets:,})" for group, targets in zip(first["group"], first["targets"]))]
    rows = []
    for name, part in table.groupby("model", sort=False):
        spread = [f" ± {sd:.4f}" if sd == sd else "" for sd in part["sd"]]
        rows.append([name, *(f"{mean:.4f}{sd}" for mean, sd in zip(part["mean"], spread))])
    return Table(header, rows)


def settings_table(models: list[Model]) -> Table:
    """What was set for each model, what this package ships for its pair, and what was set alike for all."""
    own, common = own_settings(models)
    header = ["model", "class", "set for it", "shipped for it and this data set"]
    rows = []
    for model in models:
        run = model.records[0].run
        rows.append([model.name, run.settings["model"], words(own[model.label]) or "nothing", words(run.shipped)])
    return Table(header, [*rows, ["all", "", words(common) or "nothing", ""]], left=4)


def own_settings(models: list[Model]) -> tuple[dict, dict]:
    """Settings that the models do not share, by label, and those that they do."""
    settings = {model.label: model.records[0].run.settings for model in models}
    skip = ("model", "dataset", "seed", "data_path")
    common = dict(next(iter(settings.values())))
    for other in settings.values():
        common = {key: value for key, value in common.items() if key not in skip and other.get(key, skip) == value}
    own = {
        label: {key: value for key, value in given.items() if key not in (*skip, *common)}
        for label, given in settings.items()
    }
    return own, common


def words(settings: dict) -> str:
    """Settings as one line; the exact values stand in each run's settings.yaml.

    >>> words({"learning_rate": 0.0047386512615, "loss_type": "CE"})
    'learning_rate=0.00473865, loss_type=CE'
    """
    return ", ".join(
        f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}" for key, value in settings.items()
    )


def missing_table(records: list[Record]) -> Table | None:
    """The runs that gave no result, each with its reason; None if all did."""
    rows = [[str(r.run), r.state, r.reason, r.folder.path.name] for r in records if r.state != DONE]
    return Table(["run", "state", "why", "folder"], rows, left=4) if rows else None
