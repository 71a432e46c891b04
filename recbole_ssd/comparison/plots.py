"""The pictures of a report. Each function draws into a matplotlib figure of its own and gives it back."""

from __future__ import annotations

from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from statistics import fmean, stdev

from recbole_ssd.comparison.summary import BY, Model, by_group, epoch_s

MISSING = "No pictures: matplotlib is not installed (pip install 'recbole-ssd[compare]'), then give the command again."


def can_plot() -> bool:
    """Whether matplotlib is there."""
    return find_spec("matplotlib") is not None


def write_plots(models: list[Model], metric: str, folder: Path, prefix: str = "") -> dict[str, Path]:
    """Writes all pictures as PNG.

    Returns:
        the files by what they show.
    """
    done = [model for model in models if model.done]
    figures = {
        f"validation {metric} over seconds since the start of training, a line for each seed": curves(done, metric),
        "median seconds of an epoch": bars(done, "seconds", _epoch_seconds),
        "peak memory": bars(done, "MB", _peak_mb),
    }
    names = ["curves", "epoch_seconds", "peak_memory"]
    for column, meaning in BY.items():
        figures[f"test {metric} by {meaning}, bars: standard deviation over seeds"] = groups(done, column, metric)
        names.append(f"by_{column}")
    files = {}
    for name, (text, figure) in zip(names, figures.items(), strict=True):
        files[text] = folder / f"{prefix}{name}.png"
        _save(figure, files[text])
    return files


def _save(figure, path: Path) -> None:
    """A PNG of 64 colours, a quarter as large as one of all: reports are sent around and kept."""
    from PIL import Image  # matplotlib needs it too

    drawn = BytesIO()
    figure.savefig(drawn, dpi=120)
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)


def _axes(height: float = 4.2):
    from matplotlib.figure import Figure  # not pyplot: no window, nothing global

    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def curves(models: list[Model], metric: str):
    """Validation over wall time; a cross ends a run that was cut."""
    figure, axes = _axes()
    for number, model in enumerate(models):
        for place, record in enumerate(model.done):
            curve = record.result["valid_by_epoch"]
            seconds = [entry["seconds"] for entry in curve]
            values = [entry["result"][metric] for entry in curve]
            label = model.name if place == 0 else None
            axes.plot(seconds, values, color=f"C{number}", label=label, linewidth=1.3, marker=".", markersize=3)
            if record.cut and curve:
                axes.plot(seconds[-1:], values[-1:], color=f"C{number}", marker="x", markersize=9)
    ends = [record.result["valid_by_epoch"][-1:] for model in models for record in model.done]
    longest = [end[0]["seconds"] for end in ends if end]
    if longest and max(longest) > 10 * min(longest):
        axes.set_xscale("log")
    axes.set(xlabel="seconds since the start of training", ylabel=f"validation {metric}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def bars(models: list[Model], unit: str, values):
    """One bar for each model, the number at its end."""
    figure, axes = _axes(1 + 0.4 * len(models))
    means = [fmean(values(model)) for model in models]
    spread = [stdev(values(model)) if len(model.done) > 1 else 0.0 for model in models]
    colors = [f"C{number}" for number in range(len(models))]
    drawn = axes.barh([model.name for model in models], means, xerr=spread, color=colors, height=0.6)
    axes.bar_label(drawn, [f"{mean:,.3g}" if mean < 100 else f"{mean:,.0f}" for mean in means], padding=4)
    axes.invert_yaxis()
    axes.set(xlabel=unit)
    axes.margins(x=0.12)
    return figure


def groups(models: list[Model], column: str, metric: str):
    """Accuracy in groups of test targets."""
    figure, axes = _axes()
    table = by_group(models, column, metric)
    for number, (name, part) in enumerate(table.groupby("model", sort=False)):
        shift = (number - (len(models) - 1) / 2) * 0.12
        places = [place + shift for place in range(len(part))]
        axes.errorbar(
            places, part["mean"], yerr=part["sd"], color=f"C{number}", label=name, marker="o", capsize=3, lw=1
        )
    first = table[table["model"] == table["model"].iloc[0]]
    axes.set_xticks(range(len(first)), [f"{g}\n{n:,} targets" for g, n in zip(first["group"], first["targets"])])
    axes.set(xlabel=BY[column], ylabel=f"test {metric}")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def _epoch_seconds(model: Model) -> list[float]:
    return [epoch_s(record) for record in model.done]


def _peak_mb(model: Model) -> list[float]:
    """Of the GPU where the run had one."""
    return [record.result["peak_gpu_mb"] or record.result["peak_rss_mb"] or float("nan") for record in model.done]
