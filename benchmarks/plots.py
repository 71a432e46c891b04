"""Pictures of the data files in benchmarks/results: python benchmarks/plots.py writes them there. Needs matplotlib."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from tables import RESULTS, model_records


def models_curves() -> None:
    """Validation NDCG@10 over seconds of training, one line a run, one colour a model."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for number, (model, runs) in enumerate(model_records().items()):
        for run in runs:
            seconds = [entry["seconds"] for entry in run["valid_by_epoch"]]
            ndcg = [entry["result"]["ndcg@10"] for entry in run["valid_by_epoch"]]
            label = model + (" (cut)" if run["cut"] else "") if run is runs[0] else None
            axes.plot(seconds, ndcg, color=f"C{number}", label=label, linewidth=1)
    axes.set(xscale="log", xlabel="CPU seconds, one thread", ylabel="validation NDCG@10", title="ml-100k")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(RESULTS / "models.png", dpi=110)


if __name__ == "__main__":
    models_curves()
