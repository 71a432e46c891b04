"""What a comparison is asked for: its own keys, and the settings of every model in it.

A config file may hold `models`, a section for each row of the table:

    models:
      SSD4Rec: {dropout_prob: 0.1}                      # a model's name
      forward only: {model: SSD4Rec, bidirectional: none}   # any label, with the model in its section

Later wins: the files' settings for all, a model's section, the command line. Of the comparison's own keys a section may
hold `seeds`: a slow model gets fewer.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, fields
from pathlib import Path

from recbole_ssd.settings import parse_value, read_yaml

EXPORTS = ("latex",)
WRITTEN_BY_US = ("result_file", "save_ranks", "checkpoint_dir")


@dataclass(frozen=True)
class Options:
    """The keys of a comparison, as --key=value or in a config file.

    Attributes:
        seeds: runs of each model, with the seeds `seed`, `seed` + 1, ...
        jobs: runs at a time. Seconds and memory are clean with one.
        output: the folder; None: comparison/<dataset>.
        runs: the folder of the runs; None: `runs` in `output`. Comparisons that name the same one share what is done.
        dry_run: tell what would run, and run nothing.
        export: `latex` writes table.tex beside the report.
        search: a file of what to tune before comparing, YAML or RecBole's .hyper.
        search_s: no trial of a model starts after so many seconds of its trials.
        search_trials: most trials of a model.
        separate_tables: models that are measured differently are allowed, each kind in a table of its own.
    """

    seeds: int = 1
    jobs: int = 1
    output: str | None = None
    runs: str | None = None
    dry_run: bool = False
    export: str | None = None
    search: str | None = None
    search_s: float | None = None
    search_trials: int | None = None
    separate_tables: bool = False

    def __post_init__(self):
        for key in ("seeds", "jobs", "search_trials", "search_s"):
            value = getattr(self, key)
            whole = key != "search_s"
            is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
            if value is not None and not (is_number and value > 0):
                kind = "whole number, 1 or more" if whole else "number of seconds above 0"
                raise ValueError(f"'{key}' should be a {kind}, it is {value!r}")
        for key in ("dry_run", "separate_tables"):
            if not isinstance(getattr(self, key), bool):
                raise ValueError(f"'{key}' should be True or False, it is {getattr(self, key)!r}")
        if self.export is not None and self.export not in EXPORTS:
            raise ValueError(f"'export' should be one of {', '.join(EXPORTS)}, it is '{self.export}'")
        if self.search is None and (self.search_s or self.search_trials):
            raise ValueError("'search_s' and 'search_trials' limit a search: name its file with --search=SPACE.yaml")


KEYS = (*(field.name for field in fields(Options)), "models")


class ModelSettings(dict):
    """The settings of one row of the table.

    Attributes:
        source: tells the config whose they are.
        seeds: runs of this model; None: as many as of the others.
        fixed: keys that its own section or the command line sets: no search changes them.
    """

    source = ""
    seeds: int | None = None
    fixed: frozenset[str] = frozenset()

    def but(self, changed: dict) -> ModelSettings:
        """The same with some of them changed."""
        settings = copy(self)
        settings.update(changed)
        return settings


def is_comparison(settings: dict, files: list) -> bool:
    """Whether a command line asks for more than one run: by a key of a comparison, or by several models."""
    everything = [settings, *(read_yaml(file) for file in files)]
    return any("," in str(part.get("model", "")) or not part.keys().isdisjoint(KEYS) for part in everything)


def read_options(settings: dict, files: list, default_model: str, default_dataset: str):
    """The options and the settings of each model.

    Args:
        settings: of the command line, without `config_files`; values may be text.
        files: config files, a later one wins.
        default_model, default_dataset: where nothing names one.

    Returns:
        Options, a dict of settings by label in the table's order, and a list of notes for the user.

    Raises:
        ValueError: if a key of the comparison has a value that it cannot have, or nothing says what to compare.
    """
    in_files, sections = {}, {}
    for file in files:
        content = read_yaml(file)
        for label, section in _sections(content.pop("models", {}), file).items():
            sections[label] = {**sections.get(label, {}), **section}
        in_files.update(content)
    if "models" in settings:
        raise ValueError("'models' is a section of a config file: on the command line write --model=A,B")
    line = {key: parse_value(key, value) for key, value in settings.items()}
    both = {**in_files, **line}
    options = Options(**{key: both[key] for key in KEYS if key in both})
    for key in WRITTEN_BY_US:
        if key in both:
            raise ValueError(f"'{key}' is the comparison's own: each run's files lie in the folder 'output'")
    shared, line = ({k: v for k, v in part.items() if k not in (*KEYS, "model")} for part in (in_files, line))
    labels = _labels(both.get("model"), sections, default_model)
    models = {}
    for label in labels:
        section = dict(sections.get(label, {}))
        own = Options(seeds=section.pop("seeds")).seeds if "seeds" in section else None
        models[label] = ModelSettings({"model": label, "dataset": default_dataset, **shared, **section, **line})
        models[label].source, models[label].fixed = f"the settings of {label}", frozenset({**section, **line})
        if "seeds" not in settings:
            models[label].seeds = own
    if len({settings["dataset"] for settings in models.values()}) > 1:
        raise ValueError("models are compared on one data set: take 'dataset' out of the sections of 'models'")
    unused = [label for label in sections if label not in models]
    return (
        options,
        models,
        [f"the section '{label}' of 'models' is not used: --model leaves it out" for label in unused],
    )


def _sections(models, file: Path | str) -> dict:
    if isinstance(models, list):
        models = dict.fromkeys(models)
    if not isinstance(models, dict) or not all(isinstance(s, (dict, type(None))) for s in models.values()):
        raise ValueError(
            f"'models' in '{file}' should hold one section for each model, such as 'SASRec: {{learning_rate: 0.001}}'"
        )
    for label in models:
        if "," in str(label):
            raise ValueError(
                f"label '{label}' in '{file}' holds a comma, which parts labels in --model=A,B: leave it out"
            )
    return {str(label): section or {} for label, section in models.items()}


def _labels(model, sections: dict, default_model: str) -> list[str]:
    """The rows of the table, the first of which the others are compared with."""
    if model is None:
        return list(sections) or [default_model]
    labels = model if isinstance(model, list) else [name.strip() for name in str(model).split(",")]
    if not all(labels):
        raise ValueError(f"'model' should be names with commas between them, it is '{model}'")
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(
                f"'{label}' is named twice: to compare it with itself under other settings, give each a label of its "
                f"own in the section 'models' of a config file, as in 'other: {{model: {label}, learning_rate: 0.01}}'"
            )
    return labels
