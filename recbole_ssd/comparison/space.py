"""What a search may choose from: a YAML file of ours, or a .hyper file as RecBole's HyperTuning reads it.

    all: {learning_rate: {loguniform: [0.0003, 0.01]}}      # every model without a section of its own
    SSD4Rec:
      learning_rate: {loguniform: [0.0003, 0.01]}           # the values themselves
      dropout_prob: [0.1, 0.2, 0.5]                         # a choice
      num_layers: {randint: [1, 3]}                         # both ends included
      hidden_size: {quniform: [32, 128, 32]}                # in steps of 32
    SASRec: sasrec.hyper                                    # beside this file

A line of a .hyper file is `learning_rate loguniform -8,0`: there the ends are natural logarithms, as in hyperopt.
"""

from __future__ import annotations

import ast
import json
import math
from dataclasses import dataclass
from pathlib import Path

from recbole_ssd.model_lookup import did_you_mean
from recbole_ssd.settings import read_yaml

KINDS = {"choice": None, "uniform": 2, "loguniform": 2, "quniform": 3, "randint": 2}
ALL = "all"


@dataclass(frozen=True)
class Dimension:
    """One key and the values that it may take."""

    key: str
    kind: str
    values: tuple

    def __post_init__(self):
        number = KINDS.get(self.kind, 0)
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in self.values)
        if number == 0:
            raise ValueError(f"'{self.key}' is searched by '{self.kind}', which is none of {', '.join(KINDS)}")
        if number is None and not self.values:
            raise ValueError(f"'{self.key}' has nothing to choose from")
        if number and (len(self.values) != number or not numbers or self.values[0] >= self.values[1]):
            raise ValueError(
                f"'{self.key}': {self.kind} needs {number} numbers, the lower end first; it has {self.values}"
            )
        if self.kind == "loguniform" and self.values[0] <= 0:
            raise ValueError(f"'{self.key}': the lower end of loguniform must be above 0, it is {self.values[0]}")

    def suggest(self, trial):
        """A value for an Optuna trial."""
        if self.kind == "choice":  # as text, for Optuna stores no lists
            return json.loads(trial.suggest_categorical(self.key, [json.dumps(value) for value in self.values]))
        low, high = self.values[:2]
        if self.kind == "randint":
            return trial.suggest_int(self.key, low, high)
        if self.kind == "quniform":
            step = self.values[2]
            whole = all(float(value).is_integer() for value in self.values)
            if whole:
                return trial.suggest_int(self.key, int(low), int(high), step=int(step))
            return trial.suggest_float(self.key, low, high, step=step)
        return trial.suggest_float(self.key, low, high, log=self.kind == "loguniform")

    def ends(self) -> list:
        """Values that a config should take if it takes all: those of a choice, else both ends."""
        return list(self.values if self.kind == "choice" else self.values[:2])

    def __str__(self):
        shown = ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in self.values)
        return f"{self.key} {self.kind} [{shown}]"


def read_space(path: str, labels: dict[str, str]) -> dict[str, list[Dimension]]:
    """What is searched for each row of the table.

    Args:
        path: a YAML file of ours or a .hyper file, which then holds for all models.
        labels: the model by the label of each row.

    Raises:
        ValueError: if the file is missing, cannot be understood, or names a model that is not compared.
    """
    if Path(path).suffix == ".hyper":
        return dict.fromkeys(labels, read_hyper(Path(path)))
    if not Path(path).is_file():
        raise ValueError(f"search file '{path}' does not exist (looked from '{Path.cwd()}')")
    content = read_yaml(path)
    known = {ALL, *labels, *labels.values()}
    for name in content:
        if name not in known:
            raise ValueError(
                f"search file '{path}' has a section '{name}', which is not compared{did_you_mean(name, known)}"
            )
    spaces = {}
    for label, model in labels.items():
        section = next((content[name] for name in (label, model, ALL) if name in content), None)
        if section is not None:
            spaces[label] = _section(section, label, Path(path))
    if not spaces:
        raise ValueError(
            f"search file '{path}' has a section for none of the models: add one named {', '.join(labels)} or {ALL}"
        )
    return spaces


def _section(section, label: str, path: Path) -> list[Dimension]:
    if isinstance(section, str):
        return read_hyper(path.parent / section)
    if not isinstance(section, dict) or not section:
        raise ValueError(f"section '{label}' of '{path}' should hold lines 'key: values' or name a .hyper file")
    return [_dimension(key, value) for key, value in section.items()]


def _dimension(key: str, value) -> Dimension:
    if isinstance(value, list):
        return Dimension(key, "choice", tuple(value))
    if isinstance(value, dict) and len(value) == 1:
        kind, values = next(iter(value.items()))
        if isinstance(values, list):
            return Dimension(key, kind, tuple(values))
    raise ValueError(
        f"'{key}' should be a list to choose from or such as {{loguniform: [0.0001, 0.01]}}, it is {value!r}"
    )


def read_hyper(path: Path) -> list[Dimension]:
    """The lines of a .hyper file; shorter ones are passed over, as RecBole does.

    Raises:
        ValueError: if the file is missing or a line cannot be understood.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ValueError(f"search file '{path}' does not exist (looked from '{Path.cwd()}')") from None
    found = [_hyper_line(words, path) for words in map(str.split, lines) if len(words) >= 3]
    if not found:
        raise ValueError(f"search file '{path}' holds no line such as 'learning_rate choice [0.01,0.001]'")
    return found


def _hyper_line(words: list[str], path: Path) -> Dimension:
    key, kind, text = words[0], words[1], "".join(words[2:])
    try:
        values = ast.literal_eval(text if kind == "choice" else f"[{text}]")
    except (ValueError, SyntaxError):
        raise ValueError(f"search file '{path}': '{' '.join(words)}' cannot be understood") from None
    if kind == "loguniform":
        values = [math.exp(value) for value in values]
    return Dimension(key, kind, tuple(values))
