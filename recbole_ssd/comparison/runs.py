"""What is to run: one training of one row of the table with one seed, and the name that its settings give it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from recbole_ssd.comparison.options import ModelSettings
from recbole_ssd.comparison.statistics import at_k
from recbole_ssd.config import Config
from recbole_ssd.data.fingerprint import files_fingerprint
from recbole_ssd.result import protocol, ranks_file
from recbole_ssd.settings import parse_value, read_yaml

# Change no number of a result: a run is the same with others of these. What `data_path` leads to does.
NOT_DECISIVE = (
    "data_path",
    "checkpoint_dir",
    "result_file",
    "save_ranks",
    "show_progress",
    "state",
    "worker",
    "log_wandb",
    "wandb_project",
)


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        label: the row of the table.
        seed: of this training.
        settings: what the user set, with model, data set and seed.
        identity: a hash of all settings that decide the result, defaults included, and of the data files: with other
            ones it is another run.
        protocol: what its metrics mean, without the window of the model.
        shipped: what `properties/tuned` sets for this pair of model and data set and the user leaves so.
    """

    label: str
    seed: int
    settings: dict
    identity: str
    protocol: dict
    shipped: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its folder.

        >>> Run("forward only", 2020, {"model": "SSD4Rec"}, "0123456789", {}).name
        'SSD4Rec-2020-0123456789'
        """
        return f"{file_name(self.settings['model'])}-{self.seed}-{self.identity}"

    @property
    def metric(self) -> str:
        """What decides on the best epoch, as results spell it, such as `ndcg@10`."""
        return str(self.protocol["valid_metric"]).lower()

    def __str__(self):
        return f"{self.label}, seed {self.seed}"


class RunFolder:
    """Where a run leaves its files. `result.json` comes last: a run that has it is done.

    Args:
        folder: of all runs of a comparison.
        run: whose.
    """

    def __init__(self, folder: Path, run: Run):
        self.path = folder / run.name
        self.settings = self.path / "settings.yaml"
        self.log = self.path / "run.log"
        self.result = self.path / "result.json"
        self.ranks = ranks_file(self.result)
        self.failure = self.path / "failure.json"

    def write_settings(self, run: Run) -> None:
        """The config file of the run."""
        own = {
            "result_file": str(self.result),
            "checkpoint_dir": str(self.path / "saved"),
            "save_ranks": True,
            "show_progress": False,
        }
        text = yaml.safe_dump({**run.settings, **own}, sort_keys=False, allow_unicode=True)
        self.settings.write_text(text, encoding="utf-8")


def file_name(label: str) -> str:
    """A label as part of a file's name."""
    return re.sub(r"[^\w.+=-]+", "_", label)


def plan_runs(models: dict[str, ModelSettings], seeds: int) -> list[Run]:
    """The runs of a comparison: every model with the first seed, then with the second, ...

    So the table fills evenly, and a comparison that is stopped early has all models in it.

    Args:
        models: `ModelSettings` by label.
        seeds: how many, of the models that have no number of their own.

    Raises:
        ValueError: if settings cannot be used, or two rows ask for the same run.
    """
    wanted = {label: settings.seeds or seeds for label, settings in models.items()}
    turns = [(number, label) for number in range(max(wanted.values())) for label in models if number < wanted[label]]
    runs = [make_run(label, models[label], number) for number, label in turns]
    first = {}
    for run in runs:
        other = first.setdefault(run.identity, run)
        if other.label != run.label:
            raise ValueError(
                f"'{other.label}' and '{run.label}' ask for the same run: their settings do not differ in anything "
                "that decides a result (the command line wins over the sections of 'models')"
            )
    return runs


def make_run(label: str, settings: ModelSettings, number: int = 0) -> Run:
    """The run of one model with its `number`-th seed, all settings checked."""
    config = Config(config_dict=settings)
    seed = config["seed"] + number
    if number:
        config = Config(config_dict=settings.but({"seed": seed}))
    decisive = {key: value for key, value in config.given().items() if key not in NOT_DECISIVE}
    decisive["files"] = files_fingerprint(config["data_path"], config["dataset"])
    text = json.dumps(decisive, sort_keys=True, default=str)
    # What a model reads of a history is its own affair; what chooses its best epoch is not.
    measured = {key: value for key, value in protocol(config).items() if key != "MAX_ITEM_LIST_LENGTH"}
    measured["valid_metric"] = config["valid_metric"]
    own = {key: parse_value(key, value) for key, value in settings.items()}
    pair = f"{config['model']}-{config['dataset']}.yaml"
    shipped = [read_yaml(file) for file in config.files_read if Path(file).name == pair]
    kept = {key: value for part in shipped for key, value in part.items() if key not in own}
    identity = hashlib.sha256(text.encode()).hexdigest()[:10]
    return Run(label, seed, {**own, "seed": seed}, identity, measured, kept)


def check_one_protocol(runs: list[Run], separate_tables: bool) -> None:
    """Refuses, before hours of training, what could not stand in one table.

    Raises:
        ValueError: that says which label is measured how, or that no rank tells the deciding metric.
    """
    groups = by_protocol(runs)
    for run, *_ in groups:
        if at_k(run.metric) is None:
            raise ValueError(
                f"models cannot be compared by '{run.protocol['valid_metric']}', which does not follow from the ranks "
                "of the targets: set valid_metric to one that does, such as NDCG@10, Hit@10 or MRR@10"
            )
    if len(groups) > 1 and not separate_tables:
        common = [key for key in groups[0][0].protocol if len({str(g[0].protocol[key]) for g in groups}) == 1]
        told = "; ".join(
            f"{', '.join(dict.fromkeys(run.label for run in group))}: "
            + ", ".join(f"{key} {value}" for key, value in group[0].protocol.items() if key not in common)
            for group in groups
        )
        raise ValueError(
            f"these models are not measured alike and cannot stand in one table ({told}): give them the same settings, "
            "or set separate_tables to True for a table each"
        )


def by_protocol(runs: list) -> list[list]:
    """Runs (or what else has a `protocol`) in groups that may be compared, in order of appearance."""
    groups = {}
    for run in runs:
        groups.setdefault(json.dumps(run.protocol, sort_keys=True, default=str), []).append(run)
    return list(groups.values())
