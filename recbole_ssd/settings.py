"""Settings files: where they lie, how they are read, and which keys anybody knows."""

from __future__ import annotations

import ast
import copy
import os
from functools import cache
from pathlib import Path

import recbole
import yaml
from recbole.config import Config as RecBoleConfig
from recbole.utils import (
    dataset_arguments,
    evaluation_arguments,
    general_arguments,
    training_arguments,
)

from recbole_ssd.plugins import folder_of

RECBOLE_PROPERTIES = Path(recbole.__file__).parent / "properties"

# Keys that RecBole 1.2.1 reads and names in no list and no YAML of its own, and where it reads them.
READ_BUT_NOWHERE_LISTED = {
    "encoding": "data/dataset/dataset.py: the text encoding of the atomic files",
    "enable_scaler": "trainer/trainer.py: loss scaling",
    "worker": "data/dataloader: the number of worker processes",
    "shuffle": "data/utils.py: whether the training data are shuffled",
    "tail_ratio": "evaluator/metrics.py: TailPercentage",
    "eta": "data/transform.py: crop_itemseq",
    "transform": "data/transform.py: the transformation of a padded batch",
    "wandb_project": "utils/wandblogger.py",
    "require_pow": "model/loss.py",
}

# The same, where a model reads them; others may list them in a YAML of theirs.
READ_BY = {"reg_weight": "HRM", "contrast": "FEARec", "tau": "FEARec", "sim": "FEARec", "use_filter": "FEARec"}

# A shell leaves the ~ of --key=~/folder to the program.
PATH_KEYS = {"data_path", "checkpoint_dir", "result_file", "output", "runs", "search"}

# Text stays text: a data set called 2020 is no number, an interval [1,5] is no list.
TEXT_KEYS = PATH_KEYS | {
    "model",
    "dataset",
    "gpu_id",
    "user_inter_num_interval",
    "item_inter_num_interval",
    "reranker_CAN_NUM",
}


def properties_folder() -> Path:
    """The folder of our YAML files.

    In a wheel it lies inside the package; in a checkout, and so in an editable install, beside it.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "properties", package.parent / "properties"):
        if (folder / "overall.yaml").is_file():
            return folder
    raise RuntimeError(
        f"'properties/overall.yaml' lies neither in '{package}' nor beside it: "
        "install the package again (pip install --force-reinstall --no-deps recbole-ssd)"
    )


def own_files(model_class: type, dataset: str) -> list[Path]:
    """The files, RecBole's apart, that this pair of model and data set reads, in the order of reading."""
    folder, model = properties_folder(), model_class.__name__
    outside = folder_of(model_class)
    candidates = (
        folder / "overall.yaml",
        model_file(model_class),
        folder / "dataset" / f"{dataset}.yaml",
        outside / f"{model}-{dataset}.yaml" if outside else folder / "tuned" / f"{model}-{dataset}.yaml",
    )
    return [file for file in candidates if file.is_file()]


def model_file(model_class: type) -> Path:
    """Where the settings of a model stand: in our properties/model, or beside the module of a model from outside."""
    return (folder_of(model_class) or properties_folder() / "model") / f"{model_class.__name__}.yaml"


def recbole_files(model: str, dataset: str) -> list[Path]:
    """The files of RecBole's own that a sequential model reads, in the order of reading."""
    names = [
        "overall",
        f"model/{model}",
        "dataset/sample",
        f"dataset/{dataset}",
        "quick_start_config/sequential",
    ]
    return [file for name in names if (file := RECBOLE_PROPERTIES / f"{name}.yaml").is_file()]


class Loader(getattr(yaml, "CFullLoader", yaml.FullLoader)):
    """RecBole's rules, which know 1e-3 as a number, and libyaml's parser where PyYAML has it, ten times as fast.

    RecBole adds its rule to yaml's own class once more with every Config, and reading gets slower and slower.
    """

    yaml_implicit_resolvers = copy.deepcopy(RecBoleConfig._build_yaml_loader(None).yaml_implicit_resolvers)


def read_yaml(file: Path | str) -> dict:
    """The settings of one file.

    Raises:
        ValueError: if the file is missing, no valid YAML, or holds something else than `key: value` lines.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"config file '{file}' does not exist (looked from '{Path.cwd()}')") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"config file '{file}' cannot be read: {error}") from None
    try:
        settings = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"config file '{file}' is not valid YAML: {error}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ValueError(f"config file '{file}' should hold lines 'key: value', it holds a {type(settings).__name__}")
    return settings


def parse_value(key: str, value):
    """The value that a text stands for, as RecBole reads it: numbers, lists, dicts, None and booleans.

    RecBole calls `eval`, so that a value can run code; here only literals are read, and lists and dicts as
    YAML has them.

    >>> parse_value("topk", "[5, 10]"), parse_value("learning_rate", "1e-3"), parse_value("use_gpu", "false")
    ([5, 10], 0.001, False)
    >>> parse_value("loss_type", "CE"), parse_value("dataset", "2020")
    ('CE', '2020')
    >>> parse_value("metrics", "[Hit, NDCG]"), parse_value("metrics", "Hit,NDCG")
    (['Hit', 'NDCG'], ['Hit', 'NDCG'])
    >>> parse_value("result_file", "~/results.json").startswith("~")
    False
    >>> parse_value("load_col", "{item: [item_id]}")
    {'item': ['item_id']}
    """
    if not isinstance(value, str) or key in TEXT_KEYS and value != "None":
        return os.path.expanduser(value) if key in PATH_KEYS and isinstance(value, str) else value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    if key == "metrics" and value[:1].isalpha():
        return [name.strip() for name in value.split(",")]
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return _parse_yaml(value)


def _parse_yaml(text: str):
    """A list or dict in YAML's short form, where quotation marks are not needed; any other text as it is."""
    if not text.startswith(("[", "{")):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


@cache
def _keys_in(folder: Path) -> frozenset[str]:
    return frozenset(key for file in folder.rglob("*.yaml") for key in read_yaml(file))


def listed_keys() -> set[str]:
    """The keys that stand in a list of RecBole's or concern every run, whatever the model."""
    lists = (general_arguments, training_arguments, evaluation_arguments, dataset_arguments)
    keys = {key for arguments in lists for key in arguments}
    for file in (RECBOLE_PROPERTIES / "overall.yaml", RECBOLE_PROPERTIES / "dataset" / "sample.yaml"):
        keys.update(read_yaml(file))
    keys.update(read_yaml(properties_folder() / "overall.yaml"), READ_BUT_NOWHERE_LISTED, {"model", "dataset"})
    return keys


def known_keys() -> set[str]:
    """Every key that a list of RecBole's or any YAML, RecBole's or ours, knows."""
    known = listed_keys() | set(READ_BY) | _keys_in(properties_folder())
    for part in ("model", "quick_start_config"):
        known |= _keys_in(RECBOLE_PROPERTIES / part)
    return known | set(read_yaml(RECBOLE_PROPERTIES / "dataset" / "ml-100k.yaml"))
