"""The command line: `--key=value` for any setting, and sentences for everything else."""

from __future__ import annotations

import dis
import shlex
import sys
from pathlib import Path

import recbole

from recbole_ssd.comparison.command import compare
from recbole_ssd.comparison.options import is_comparison
from recbole_ssd.model_lookup import model_lines
from recbole_ssd.quick_start import run_recbole_ssd
from recbole_ssd.settings import read_yaml
from recbole_ssd.signals import termination_as_interrupt
from recbole_ssd.version import __version__

DEFAULT_MODEL = "SSD4Rec"
DEFAULT_DATASET = "ml-100k"

HELP = f"""python run_recbole_ssd.py [--model=NAME] [--dataset=NAME] [--config_files="A B"] [--KEY=VALUE ...]

Trains a model and evaluates its best epoch, or compares several models.
Without arguments: {DEFAULT_MODEL} on {DEFAULT_DATASET}.

  --model=NAME           a model of ours or a sequential one of RecBole's
  --dataset=NAME         reads DATA_PATH/NAME/NAME.inter; ml-100k comes with RecBole
  --data_path=FOLDER     where data sets lie (dataset/)
  --config_files="A B"   YAML files of settings, a later one wins
  --KEY=VALUE            any setting of properties/*.yaml or RecBole's; wins over files
  --result_file=PATH     the result as JSON
  --model=A,B --seeds=3  compares models: every run in a process of its own, a table and a report at the end;
                         called again, it goes on where it stopped
  --dry_run              tells what a comparison would run
  --max_train_s=SECONDS  ends a training at the first validation beyond it; marked as cut in every table
  --search=SPACE.yaml    tunes models by validation before comparing them (or RecBole's .hyper file);
                         --search_s=SECONDS, --search_trials=N limit it for each model
  --output=FOLDER        of a comparison (comparison/<dataset>); --export=latex  adds table.tex; --jobs=N at a time
  --list_models          names the models, one line each
  --state=DEBUG          more log lines, and tracebacks instead of sentences
  --help, --version      this text; the version

Later wins: RecBole's settings, properties/overall.yaml, the folders model, dataset and tuned beside it,
config files, this line."""


FLAGS = ("--dry_run",)  # may stand without a value
ALONE = ("--help", "--version", "--list_models")  # answered at once, whatever else is asked


class Settings(dict):
    """Settings that know where they come from, so that a sentence can say it."""

    source = "the command line"


def parse(arguments: list[str]) -> Settings:
    """The settings on a command line, as text.

    Args:
        arguments: what follows the program's name.

    Returns:
        value by key; `config_files` is a list. A value may hold '='.

    Raises:
        ValueError: if an argument is not of the form --key=value, or a key comes twice.

    >>> parse(["--model=SASRec", "--config_files=a.yaml b.yaml"])
    {'model': 'SASRec', 'config_files': ['a.yaml', 'b.yaml']}
    """
    settings = Settings()
    for argument in arguments:
        argument = f"{argument}=True" if argument in FLAGS else argument
        key, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not equals or not key:
            raise ValueError(
                f"argument '{argument}' is not of the form --key=value: write {_meant(argument)}, or see --help"
            )
        if key in settings:
            raise ValueError(f"'--{key}' is given twice, as '{settings[key]}' and as '{value}'")
        settings[key] = value
    if "config_files" in settings:
        files = settings["config_files"]  # the name of one may hold a space
        settings["config_files"] = [files] if Path(files).is_file() else files.split()
    return settings


def _meant(argument: str) -> str:
    """What a user may have meant by something else than --key=value."""
    key, equals, value = argument.lstrip("-").partition("=")
    key = key.replace("-", "_")
    flag = f"--{key}" in (*FLAGS, *ALONE)
    return f"--{key}" if flag and not equals else f"--{key or 'key'}={value or 'VALUE'}"


def main(arguments: list[str] | None = None) -> int:
    """Runs what a command line asks for.

    Args:
        arguments: what follows the program's name; None: this process's own.

    Returns:
        the exit status: 0, 1 if a run of a comparison failed, 2 after a sentence about wrong input, 130 after Ctrl-C
        or a termination.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments or "-h" in arguments:
        print(HELP)
        return 0
    if "--version" in arguments:
        print(f"recbole-ssd {__version__}")
        return 0
    try:
        if "--list_models" in arguments:
            print("\n".join(model_lines()))
            return 0
        with termination_as_interrupt():
            return _run(parse(arguments))
    except KeyboardInterrupt:
        return 130
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        raised_by = raiser(error)
        if "--state=DEBUG" in arguments or raised_by is None:
            raise
        refuses = "RecBole refuses this: " if raised_by == "recbole" else ""
        print(f"\n{refuses}{error}", file=sys.stderr)
        return 2


def _run(settings: dict) -> int:
    files = settings.pop("config_files", [])
    if is_comparison(settings, files):
        command = shlex.join([Path(sys.executable).name, *sys.argv])
        return compare(settings, files, (DEFAULT_MODEL, DEFAULT_DATASET), command)
    in_files = {key for file in files for key in read_yaml(file)}
    for key, default in (("model", DEFAULT_MODEL), ("dataset", DEFAULT_DATASET)):
        if key not in in_files:
            settings.setdefault(key, default)
    run_recbole_ssd(config_file_list=files, config_dict=settings)
    return 0


def raiser(error: BaseException) -> str | None:
    """Whose `raise` an error comes from, `recbole_ssd` or `recbole`: then it is a message to the user.

    What breaks inside another library, or in a line that is no `raise`, is a bug and keeps its traceback:
    None.
    """
    frames = error.__traceback__
    while frames is not None and frames.tb_next is not None:
        frames = frames.tb_next
    if frames is None:
        return None
    code = frames.tb_frame.f_code
    if dis.opname[code.co_code[frames.tb_lasti]] != "RAISE_VARARGS":
        return None
    folders = Path(code.co_filename).resolve().parents
    packages = {"recbole_ssd": Path(__file__), "recbole": Path(recbole.__file__)}
    return next((name for name, file in packages.items() if file.resolve().parent in folders), None)
