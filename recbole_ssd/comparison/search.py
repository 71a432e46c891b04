"""Tunes models before they are compared, all with the same budget, by validation alone.

Optuna proposes settings (its tree-structured Parzen estimator: Bergstra et al., 2011); each trial is a run as any
other, with the first seed, and lies where all runs do: the best one is compared as it is. The journal of a study lies
in the folder: a search that was stopped goes on from there, and as the n-th proposal is drawn with a seed of its own,
it goes on as if it had not been stopped.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from recbole_ssd.comparison.document import Heading, Table, Text
from recbole_ssd.comparison.options import ModelSettings, Options
from recbole_ssd.comparison.progress import Progress, duration
from recbole_ssd.comparison.records import DONE, Record, read_record
from recbole_ssd.comparison.runner import run_all
from recbole_ssd.comparison.runs import Run, file_name, make_run
from recbole_ssd.comparison.space import Dimension, read_space
from recbole_ssd.comparison.tables import words
from recbole_ssd.config import Config

DEFAULT_S = 3600
SAME = 30  # proposals in a row that were all tried: the space is used up
FAILED_FIRST = 5  # trials of a call, without any result: the settings are to blame, not the proposals


@dataclass
class Search:
    """The search of one row of the table.

    Attributes:
        label, settings: of the row, before it is tuned.
        space: what is chosen from what.
        folder: of the study; other settings or another space, another folder.
        runs: the folder of all runs.
        limit_s, limit_trials: the budget; None: no limit of this kind.
        seed: of the trials, and of the proposals.
        metric, bigger: the validation's, and whether more of it is better.
    """

    label: str
    settings: ModelSettings
    space: list[Dimension]
    folder: Path
    runs: Path
    limit_s: float | None
    limit_trials: int | None
    seed: int
    metric: str
    bigger: bool

    def __str__(self):
        budget = [f"{self.limit_trials} trials"] if self.limit_trials else []
        budget += [duration(self.limit_s)] if self.limit_s is not None else []
        return f"{self.label} over {'; '.join(map(str, self.space))} ({' or '.join(budget)})"

    def run(self, found: dict) -> Run:
        """The run of a trial."""
        return make_run(self.label, self.settings.but(found))


def plan_searches(options: Options, models: dict, folder: Path, runs: Path) -> list[Search]:
    """The searches that were asked for, with their studies in `folder`, every end of every range checked.

    Raises:
        ValueError: if the file or a value in it cannot be used, or Optuna is missing.
    """
    if options.search is None:
        return []
    if find_spec("optuna") is None:
        raise ValueError("--search needs Optuna: pip install 'recbole-ssd[compare]'")
    spaces = read_space(options.search, {label: settings["model"] for label, settings in models.items()})
    limit_s = options.search_s if options.search_s or options.search_trials else DEFAULT_S
    searches = []
    for label, space in spaces.items():
        settings = models[label].but({})
        untuned = make_run(label, settings)
        for dimension in space:
            if dimension.key in settings.fixed:
                raise ValueError(
                    f"'{dimension.key}' of {label} is set, by its section or the command line, and searched over too: "
                    "take it out of one of them"
                )
            for value in dimension.ends():
                run = make_run(label, settings.but({dimension.key: value}))
                if (run.protocol, run.seed) != (untuned.protocol, untuned.seed):
                    raise ValueError(
                        f"'{dimension.key}' decides how {label} is measured and not what it learns: "
                        "take it out of the search file, or give it one value for all models"
                    )
        config = Config(config_dict=settings)
        metric, bigger = str(config["valid_metric"]).lower(), config["valid_metric_bigger"]
        text = json.dumps([untuned.identity, [str(dimension) for dimension in space]])
        name = f"{file_name(label)}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
        place = folder / "search" / name
        searches.append(
            Search(label, settings, space, place, runs, limit_s, options.search_trials, untuned.seed, metric, bigger)
        )
    return searches


def tune(searches: list[Search]) -> dict[str, dict]:
    """Goes on with every search until its budget is spent.

    Returns:
        the best settings by label.

    Raises:
        ValueError: if no trial of a model gave a result.
    """
    return {search.label: _tune(search) for search in searches}


def _tune(search: Search) -> dict:
    study = _study(search)
    same = failed = 0
    while same < SAME and failed < FAILED_FIRST and not _spent(study, search):
        found, proposal = _propose(study, search)
        run = search.run(found)
        same = same + 1 if found in [trial.user_attrs["settings"] for trial in study.trials] else 0
        started = time.monotonic()
        record = _run_trial(search, run, _standing(study, search))
        study.add_trial(_trial(found, proposal, record, search, time.monotonic() - started))
        failed = 0 if best_trial(study) else failed + 1
    best = best_trial(study)
    if best is None:
        raise ValueError(f"no trial of {search.label} gave a result: see the run.log files in '{search.runs}'")
    return best.user_attrs["settings"]


def _propose(study, search: Search):
    """The next settings, and the trial that stands for them.

    They are asked of a copy in memory: the journal gets a trial in one piece when it is over, so that no kill leaves
    half of one there.
    """
    import optuna

    number = len(study.trials)
    copy = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=search.seed + number), direction=study.direction)
    copy.add_trials(study.trials)
    trial = copy.ask()
    found = {dimension.key: dimension.suggest(trial) for dimension in search.space}
    return found, copy.trials[-1]


def _run_trial(search: Search, run: Run, standing: str) -> Record:
    before = read_record(search.runs, run)
    if before.state == DONE:
        return before
    print(f"tuning {search.label}, {standing}: {words(_chosen(search, run))}", flush=True)
    run_all([run], search.runs, Progress([run], search.runs, 1))
    return read_record(search.runs, run)


def _standing(study, search: Search) -> str:
    """How far the search is, and the best so far."""
    best, most = best_trial(study), f" of {search.limit_trials}" if search.limit_trials else ""
    parts = [f"trial {len(study.trials) + 1}{most}"]
    parts += [f"{_seconds(study):.0f} of {search.limit_s:.0f} s spent"] if search.limit_s is not None else []
    parts += [f"best valid {search.metric} {best.value:.4f}"] if best else []
    return ", ".join(parts)


def _chosen(search: Search, run: Run) -> dict:
    return {dimension.key: run.settings[dimension.key] for dimension in search.space}


def _trial(found: dict, proposal, record: Record, search: Search, wall_s: float):
    """The finished trial as Optuna stores it: without a result it has failed, and took `wall_s`."""
    import optuna

    value = ((record.result or {}).get("best_valid_result") or {}).get(search.metric)
    ok = record.state == DONE and value is not None
    seconds = record.seconds if ok else wall_s
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState.COMPLETE if ok else optuna.trial.TrialState.FAIL,
        value=value if ok else None,
        params=proposal.params,
        distributions=proposal.distributions,
        user_attrs={"settings": found, "run": record.run.name, "seconds": seconds},
    )


def _study(search: Search):
    """The study in the folder."""
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search.folder.mkdir(parents=True, exist_ok=True)
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(search.folder / "journal.log"))),
        study_name=search.folder.name,
        direction="maximize" if search.bigger else "minimize",
        load_if_exists=True,
    )


def _finished(study) -> list:
    return [trial for trial in study.trials if trial.state.is_finished()]


def _seconds(study) -> float:
    """Of all trials that are over."""
    return sum(trial.user_attrs.get("seconds", 0.0) for trial in _finished(study))


def _spent(study, search: Search) -> bool:
    return (search.limit_trials is not None and len(_finished(study)) >= search.limit_trials) or (
        search.limit_s is not None and _seconds(study) >= search.limit_s
    )


def best_trial(study):
    """The finished trial with the best validation, the earliest of equals; None without any."""
    done = [trial for trial in study.trials if trial.value is not None]
    sign = 1 if study.direction.name == "MAXIMIZE" else -1
    return max(done, key=lambda trial: (sign * trial.value, -trial.number), default=None)


def tuning_blocks(searches: list[Search], models: dict) -> list:
    """What was tuned over what, for the report; a sentence where nothing was."""
    untuned = [label for label in models if label not in {search.label for search in searches}]
    if not searches:
        return [Heading("Tuning"), Text("No model was tuned here: what is not set below is a default.")]
    rows = []
    for search in searches:
        study = _study(search)
        finished = _finished(study)
        failed = sum(trial.value is None for trial in finished)
        best = best_trial(study)
        space = "; ".join(map(str, search.space))
        count = f"{len(finished)} ({failed} failed)" if failed else str(len(finished))
        rows.append(
            [
                search.label,
                space,
                words(best.user_attrs["settings"]),
                count,
                f"{_seconds(study):.0f}",
                f"{best.value:.4f}",
            ]
        )
    header = ["model", "tuned over", "chosen", "trials", "s in all", f"valid {searches[0].metric}"]
    blocks = [Heading("Tuning"), Table(header, rows, left=3)]
    if untuned:
        blocks.append(Text(f"Not tuned: {', '.join(untuned)}. Read the differences with this in mind."))
    blocks.append(
        Text(f"Trials train with seed {searches[0].seed}; the best validation is chosen, the test data play no part.")
    )
    return blocks
