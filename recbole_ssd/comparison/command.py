"""One command: plan, search, run, report.

comparison/ml-100k/
  report.md  report.html  summary.json  results.csv  groups.csv  *.png  table.tex
  runs/SSD4Rec-2020-1a2b3c4d5e/    result.json  result.ranks.csv  settings.yaml  run.log  saved/
  search/SSD4Rec-6f7a8b9c0d/       journal.log, the trials of --search; their runs are among the others
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from logging import getLogger
from pathlib import Path

from recbole_ssd.comparison import plots
from recbole_ssd.comparison.options import read_options
from recbole_ssd.comparison.progress import Progress
from recbole_ssd.comparison.records import DONE, PENDING, read_record
from recbole_ssd.comparison.report import Report, write_report
from recbole_ssd.comparison.runner import folder_lock, run_all
from recbole_ssd.comparison.runs import Run, check_one_protocol, plan_runs
from recbole_ssd.comparison.search import plan_searches, tune, tuning_blocks
from recbole_ssd.comparison.tables import words
from recbole_ssd.config import Config
from recbole_ssd.data.download import check_known, fetch
from recbole_ssd.environment import check_folder


def compare(settings: dict, files: list, defaults: tuple[str, str], command: str) -> int:
    """Runs a comparison as far as it is not done yet, and reports it.

    Args:
        settings: of the command line, without `config_files`.
        files: config files.
        defaults: model and data set where nothing names one.
        command: of this process, for the report.

    Returns:
        0 if every run is done, 1 if one failed.

    Raises:
        ValueError: if what is asked for cannot be run or compared.
        KeyboardInterrupt: after Ctrl-C, when all runs have stopped.
    """
    options, models, notes = read_options(settings, files, *defaults)
    config = Config(config_dict=next(iter(models.values())))
    check_known(config["dataset"], config["data_path"])
    if not (options.dry_run or Path(config["data_path"]).is_dir()):
        fetch(config["dataset"], config["data_path"], getLogger())  # before the plan, which looks into the files
    runs = plan_runs(models, options.seeds)
    check_one_protocol(runs, options.separate_tables)
    folder = Path(options.output or Path("comparison") / runs[0].settings["dataset"])
    runs_folder = Path(options.runs or folder / "runs")
    searches = plan_searches(options, models, folder, runs_folder)
    for note in notes:
        print(note)
    if options.dry_run:
        print("\n".join(dry_run_lines(runs, runs_folder, searches)))
        return 0
    check_folder(folder, "the folder of the comparison")
    check_folder(runs_folder, "the folder of the runs")
    _claim(folder, runs[0].settings["dataset"])
    try:
        with folder_lock(folder), nullcontext() if runs_folder == folder else folder_lock(runs_folder):
            found = tune(searches)
            if found:
                for label, best in found.items():
                    models[label].update(best)
                runs = plan_runs(models, options.seeds)
            run_all(runs, runs_folder, Progress(runs, runs_folder, options.jobs), options.jobs)
            records = [read_record(runs_folder, run) for run in runs]
            tuning = tuning_blocks(searches, models)
            return _report(records, Report(folder, command, tuning, options.export == "latex", options.jobs))
    except KeyboardInterrupt:
        print(f"\nstopped; what is done stays in {folder}: the same command goes on from there", flush=True)
        raise


def _report(records: list, report: Report) -> int:
    for table in write_report(records, report):
        print(f"\n{table.format('simple')}")
    if not plots.can_plot():
        print(f"\n{plots.MISSING}")
    folder = report.folder
    print(f"\nreport: {folder / 'report.html'}, {folder / 'report.md'}; each run: {folder / 'results.csv'}")
    return 0 if all(record.state == DONE for record in records) else 1


def _claim(folder: Path, dataset: str) -> None:
    """Refuses a folder that holds another data set's runs."""
    file = folder / "comparison.json"
    if file.is_file():
        other = json.loads(file.read_text(encoding="utf-8"))["dataset"]
        if other != dataset:
            raise ValueError(
                f"'{folder}' holds a comparison on '{other}', this one is on '{dataset}': choose another folder"
            )
    file.write_text(json.dumps({"dataset": dataset}) + "\n", encoding="utf-8")


def dry_run_lines(runs: list[Run], folder: Path, searches: list) -> list[str]:
    """What the command would do, with its runs in `folder`."""
    lines = [f"tune {search}" for search in searches]
    states = []
    for run in runs:
        states.append(read_record(folder, run).state)
        own = {key: value for key, value in run.settings.items() if key not in ("model", "dataset", "seed")}
        state = (
            "would run"
            if states[-1] == PENDING
            else states[-1]
            if states[-1] == DONE
            else f"{states[-1]}, would run again"
        )
        lines.append(f"{str(run):<28} {state:<28} {run.settings['model']}  {words(own)}".rstrip())
    todo = len(states) - states.count(DONE)
    lines.append(f"{todo} of {len(runs)} runs to do, in {folder}; nothing was run")
    if searches:
        lines.append("(tuned models run with the settings that their search finds)")
    return lines
