"""Finds a model by its name: ours, RecBole's sequential ones, those of other packages, else a suggestion."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from importlib.util import find_spec
from pathlib import Path

import recbole
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import ModelType

from recbole_ssd.compat import sequential_models
from recbole_ssd.plugins import load_plugin, package_of, plugins

_OURS = "recbole_ssd.model"
_RECBOLE = "recbole.model.sequential_recommender"
_RECBOLE_MODELS = Path(recbole.__file__).parent / "model"
_OTHER_KINDS = {
    "general_recommender": "general",
    "context_aware_recommender": "context-aware",
    "knowledge_aware_recommender": "knowledge-aware",
    "exlib_recommender": "decision tree",
}

# Sequential models of RecBole that need another data set or training than next-item histories.
_NOT_HERE = {
    "DIEN": "it needs RecBole's own DIENDataset, with sampled negative histories",
    "DIN": "it is trained as a classifier of clicks and measured by AUC, not by ranking",
    "GRU4RecKG": "it needs RecBole's GRU4RecKGDataset, with pretrained entity vectors",
    "KSR": "it needs RecBole's KSRDataset, with pretrained entity and relation vectors",
    "S3Rec": "it is trained in two stages by RecBole's S3RecTrainer",
}

_FIRST_LINES = {
    "BERT4Rec": "bidirectional Transformer, trained on masked items",
    "CORE": "self-attention over items in one space with the catalogue",
    "Caser": "convolutions over the last items, horizontal and vertical",
    "FDSA": "self-attention over items and over their features",
    "FEARec": "self-attention in the time and in the frequency domain",
    "FOSSIL": "item similarity with a Markov chain of high order",
    "FPMC": "matrix factorization with a first-order Markov chain",
    "GCSAN": "graph network with self-attention",
    "GRU4Rec": "gated recurrent network",
    "GRU4RecCPR": "GRU4Rec with a context partition of the softmax",
    "GRU4RecF": "GRU4Rec with item features",
    "HGN": "gates over features and instances of the last items",
    "HRM": "two layers of pooling over user and last items",
    "LightSANs": "self-attention of low rank",
    "NARM": "recurrent network with attention",
    "NPE": "neural personalized embedding",
    "NextItNet": "dilated convolutions",
    "RepeatNet": "recurrent network that chooses between repeating and exploring",
    "SASRec": "causal Transformer",
    "SASRecCPR": "SASRec with a context partition of the softmax",
    "SASRecF": "SASRec with item features",
    "SHAN": "two layers of attention, long and short term",
    "SINE": "several interests out of a sparse set",
    "SRGNN": "graph network over the session",
    "STAMP": "attention and the last item",
    "TransRec": "translation from item to item by the user's vector",
}


def own_models() -> dict[str, type]:
    """Our models by name."""
    package = importlib.import_module(_OURS)
    modules = (importlib.import_module(f"{_OURS}.{info.name}") for info in pkgutil.iter_modules(package.__path__))
    found = {}
    for module in modules:
        file_name = module.__name__.rpartition(".")[2]
        for name, item in vars(module).items():
            if name.lower() == file_name and isinstance(item, type) and issubclass(item, SequentialRecommender):
                found[name] = item
    return found


def builtin_models() -> dict[str, type]:
    """RecBole's sequential models that run here, by name."""
    return {
        name: item
        for name, item in vars(sequential_models()).items()
        if isinstance(item, type) and issubclass(item, SequentialRecommender) and name not in _NOT_HERE
    }


def model_lines() -> list[str]:
    """One line for each model: ours first, with the first line of its docstring, then plug-ins, then RecBole's."""
    ours = {name: _first_line(item) for name, item in own_models().items()}
    outside = {entry.name: f"({package_of(entry)})" for entry in plugins()}  # not imported: it may be broken
    theirs = {name: _FIRST_LINES.get(name, "") + " (RecBole)" for name in sorted(builtin_models())}
    lines = {**ours, **outside, **theirs}
    width = max(map(len, lines))
    return [f"{name:<{width}}  {line}".rstrip() for name, line in lines.items()]


def _first_line(model_class: type) -> str:
    return (model_class.__doc__ or "").strip().partition("\n")[0]


def get_model(name: str) -> type:
    """The class of a model: ours, one of RecBole's sequential ones, or that of an entry point.

    Raises:
        ValueError: if no such model exists, it cannot run here, or two packages have a model of that name.
    """
    found = _from_package(_OURS, name) or _from_package(sequential_models().__name__, name)
    entries = [entry for entry in plugins() if entry.name == name]
    if len(entries) + bool(found) > 1:
        owners = [found.__module__] * bool(found) + [package_of(entry) for entry in entries]
        raise ValueError(
            f"several models are called '{name}', those of {' and '.join(owners)}: uninstall or rename one"
        )
    if not found and not entries:
        raise ValueError(_unknown_model(name))
    return check_model(found or load_plugin(entries[0]))


def _from_package(package: str, name: str) -> type | None:
    """The class that has this name in the module of this name, in lower case."""
    module = f"{package}.{name.lower()}"
    if not name.isidentifier() or not find_spec(module):
        return None
    item = getattr(importlib.import_module(module), name, None)
    return item if isinstance(item, type) else None


def check_model(model_class: type) -> type:
    """Gives the class back if it recommends next items.

    Raises:
        ValueError: if it is a model of another kind, or needs other data or another training.
    """
    name = model_class.__name__
    if name in _NOT_HERE and model_class.__module__.startswith(_RECBOLE):
        raise ValueError(f"RecBole's {name} does not run in recbole-ssd: {_NOT_HERE[name]}. Run it with RecBole itself")
    if getattr(model_class, "type", None) != ModelType.SEQUENTIAL:
        raise ValueError(
            f"model '{name}' is not sequential: recbole-ssd trains next-item models, "
            "whose class attribute 'type' is ModelType.SEQUENTIAL"
        )
    return model_class


MOST_NAMES = 5000  # to look for a near one among more takes seconds


def did_you_mean(name: str, names) -> str:
    """A sentence that suggests the nearest of `names`, or nothing, as of more than MOST_NAMES.

    >>> did_you_mean("lerning_rate", ["learning_rate", "epochs"])
    ". Did you mean 'learning_rate'?"
    """
    if len(names) > MOST_NAMES:
        return ""
    by_lower = {other.lower(): other for other in names}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f". Did you mean '{by_lower[near[0]]}'?" if near else ""


def _unknown_model(name: str) -> str:
    runnable = {*own_models(), *builtin_models(), *(entry.name for entry in plugins())}
    for package, kind in _OTHER_KINDS.items():
        # A look at the file: importing the package of decision trees dies without lightgbm.
        if name not in runnable and (_RECBOLE_MODELS / package / f"{name.lower()}.py").is_file():
            return (
                f"model '{name}' is one of RecBole's {kind} recommenders: recbole-ssd runs next-item models "
                "(--list_models names them), run it with RecBole itself"
            )
    suggestion = did_you_mean(name, runnable) or " (--list_models names all)"
    return f"there is no model '{name}'{suggestion}"
