"""Config: RecBole's settings, plus our properties/, less what would pass in silence.

Order of reading, later wins: RecBole's own files, properties/overall.yaml, properties/model/<Model>.yaml,
properties/dataset/<dataset>.yaml, properties/tuned/<Model>-<dataset>.yaml, the user's files, config_dict.
The command line is read by recbole_ssd/command_line.py alone, which hands it over as a config_dict.
"""

from __future__ import annotations

import copy
import os

import torch
from recbole.config import Config as RecBoleConfig
from recbole.utils import InputType

from recbole_ssd import compat, config_checks
from recbole_ssd.contradictions import check_together
from recbole_ssd.model_lookup import check_model, get_model
from recbole_ssd.settings import Loader, listed_keys, model_file, own_files, parse_value, read_yaml, recbole_files


class Config(RecBoleConfig):
    """The settings of one experiment.

    Args:
        model (str or type, optional): name or class; without it, `model` of a file or of `config_dict`.
        dataset (str, optional): name; without it, `dataset` of a file or of `config_dict`.
        config_file_list (list of str, optional): YAML files, a later one wins.
        config_dict (dict, optional): settings that win over all files. It is not changed.

    Attributes:
        files_read (list of Path): every YAML file that was read, in order.
        notes (list of str): what the user should know and what stops nothing; `init_logger` logs them.

    Raises:
        ValueError: if a key is unknown, has a value that it cannot have, or contradicts another one.
    """

    def __init__(self, model=None, dataset=None, config_file_list=None, config_dict=None):
        self.files_read = []
        self.notes = []
        self._sources = {}  # key -> the config file, or 'config_dict', that set it last
        self._required = set()  # keys that a model asked for
        super().__init__(model, dataset, config_file_list, config_dict)

    def given(self) -> dict:
        """Every setting before anything was worked out from it, as plain Python data.

        `Config(config_dict=config.given())` makes an equal config; checkpoints and results store it.
        """
        return copy.deepcopy(self._given)

    def required(self, key: str):
        """The value of a key that must have been set, be it to None.

        Raises:
            ValueError: if nothing sets it.
        """
        self._required.add(key)
        if key not in self:
            raise ValueError(
                f"'{key}' is not set: add it to {model_file(self.model_class)}, to a config file, "
                f"or to the command line as --{key}=VALUE"
            )
        return self[key]

    def unread(self) -> list[str]:
        """Notes on settings of the user's that the model, now built, knows and did not read beside the others."""
        file = model_file(self.model_class)
        unread = set(read_yaml(file)) - self._required - listed_keys() if file.is_file() else set()
        return [
            f"'{key}' (set in {source}) has no effect: {self['model']} does not read it with these settings"
            for key, source in self._sources.items()
            if key in unread
        ]

    def __setitem__(self, key, value):
        """Changes a setting, also in what checkpoints and results tell of it."""
        super().__setitem__(key, value)
        if key in self._given:
            self._given[key] = config_checks.plain(value, key)

    # The steps of RecBole's constructor, in the order in which it calls them.

    def compatibility_settings(self):
        """Instead of RecBole's, which asks numpy 2 for names that it no longer has."""
        compat.apply()

    def _build_yaml_loader(self):
        return Loader

    def _init_parameters_category(self):
        super()._init_parameters_category()
        # Copies: RecBole appends a data set's keys to its own module's lists.
        self.parameters = {category: list(keys) for category, keys in self.parameters.items()}

    def _load_config_files(self, file_list):
        if isinstance(file_list, (str, os.PathLike)):
            raise ValueError(f"config_file_list should be a list of files, it is '{file_list}'")
        settings = {}
        for file in file_list or []:
            content = read_yaml(file)
            self._sources.update(dict.fromkeys(content, f"config file '{file}'"))
            settings.update(content)
        self._user_files = list(file_list or [])
        return settings

    def _load_variable_config_dict(self, config_dict):
        settings = {key: parse_value(key, value) for key, value in (config_dict or {}).items()}
        self._sources.update(dict.fromkeys(settings, getattr(config_dict, "source", "config_dict")))
        return settings

    def _load_cmd_line(self):
        return {}  # whoever owns the process owns sys.argv

    def _get_model_and_dataset(self, model, dataset):
        model = self.external_config_dict.get("model") if model is None else model
        dataset = self.external_config_dict.get("dataset") if dataset is None else dataset
        for key, value in (("model", model), ("dataset", dataset)):
            if not value:
                raise ValueError(
                    f"no {key} is named: give {key}=... to Config, '{key}: NAME' in a config file, "
                    f"or --{key}=NAME on the command line"
                )
        if os.path.basename(str(dataset)) != str(dataset):
            raise ValueError(
                f"'dataset' should be the name of a folder in data_path, it is '{dataset}': "
                "give the folder above it as data_path"
            )
        model_class = get_model(model) if isinstance(model, str) else check_model(model)
        return model_class.__name__, model_class, str(dataset)

    def _load_internal_config_dict(self, model, model_class, dataset):
        super()._load_internal_config_dict(model, model_class, dataset)
        ours = own_files(model_class, dataset)
        for file in ours:
            self.internal_config_dict.update(_like(self.internal_config_dict, read_yaml(file)))
        self.files_read = [*recbole_files(model, dataset), *ours, *self._user_files]

    def _get_final_config_dict(self):
        defaults = self.internal_config_dict
        model_type = defaults.pop("MODEL_TYPE")
        settings = config_checks.plain({**defaults, **self.external_config_dict})
        settings.update(model=self.model, dataset=self.dataset)
        for key in ("eval_args", "train_neg_sample_args"):
            # A part of them keeps the rest: RecBole would fill eval_args with a random order of events.
            if isinstance(settings.get(key), dict) and isinstance(defaults.get(key), dict):
                settings[key] = {**defaults[key], **settings[key]}
        packed = getattr(self.model_class, "packed", False)
        config_checks.check(settings, defaults, self._sources)
        check_together(settings, self._sources, packed)
        self.notes += config_checks.unused_keys(settings, defaults, self._sources, self.model_class)
        _turn_off_negatives_for_ce(settings)
        _load_needed_columns(settings)
        self._given = copy.deepcopy(settings)
        return {**settings, "MODEL_TYPE": model_type}

    def _set_default_parameters(self):
        settings = self.final_config_dict
        parent = str(settings["data_path"])
        try:
            super()._set_default_parameters()
        except (NotImplementedError, RuntimeError, TypeError) as error:
            raise ValueError(f"RecBole refuses the settings: {error}") from error
        if os.path.isfile(os.path.join(parent, self.dataset, f"{self.dataset}.inter")):
            # RecBole forces ml-100k to the copy in its package; a copy where the user pointed comes first.
            settings["data_path"] = os.path.join(parent, self.dataset)
        if "MODEL_INPUT_TYPE" not in settings:
            settings["MODEL_INPUT_TYPE"] = InputType.PAIRWISE  # BCE with sampled negatives: RecBole sets nothing

    def _init_device(self):
        """Takes the device without overwriting CUDA_VISIBLE_DEVICES, as RecBole does.

        `gpu_id` counts the devices that CUDA_VISIBLE_DEVICES leaves visible, all where it is not set.
        """
        settings = self.final_config_dict
        ids = settings["gpu_id"]
        settings["gpu_id"] = ",".join(map(str, ids)) if isinstance(ids, (list, tuple)) else str(ids)
        settings["single_spec"] = True
        settings["local_rank"] = 0
        settings["device"] = _device(settings["gpu_id"], settings["use_gpu"])
        if settings["device"].type == "cpu" and settings["use_gpu"] and settings["gpu_id"] not in ("", "0"):
            self.notes.append(f"gpu_id '{settings['gpu_id']}' is not used: this machine shows no GPU to torch")


def _like(defaults: dict, settings: dict) -> dict:
    """The settings of a later file, a whole number made a float where the default before it is one.

    A default tells which values a key takes: `warmup_epochs: 1` must not turn parts of an epoch away.
    """
    return {
        key: float(value) if isinstance(defaults.get(key), float) and type(value) is int else value
        for key, value in settings.items()
    }


def _device(gpu_id: str, use_gpu: bool) -> torch.device:
    """The CPU, or the first device that `gpu_id` names."""
    first = gpu_id.split(",")[0].strip()
    if first and not first.isdigit():
        raise ValueError(f"gpu_id should be the number of a GPU, such as 0, or '' for the CPU; it is '{gpu_id}'")
    if not use_gpu or not first or not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if int(first) >= count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        under = f" under CUDA_VISIBLE_DEVICES={visible}" if visible is not None else ""
        raise ValueError(
            f"gpu_id '{gpu_id}' does not exist: this machine shows {count} GPU(s){under}, counted from 0. "
            "Set gpu_id to one of them, or use_gpu to False"
        )
    if int(first) > 0:
        torch.cuda.set_device(int(first))
    return torch.device("cuda", int(first))


def _turn_off_negatives_for_ce(settings: dict) -> None:
    """CE ranks all items and samples none; RecBole asks its users to say so themselves."""
    if settings.get("loss_type") == "CE":
        settings["train_neg_sample_args"] = None


def _load_needed_columns(settings: dict) -> None:
    """Adds to `load_col` what nobody can do without, user, item and time, and the item features that a model reads."""
    columns = settings.get("load_col")
    if not isinstance(columns, dict):
        return
    if columns.get("inter"):
        needed = [settings[key] for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD")]
        columns["inter"] = _with(columns["inter"], needed)
    if settings.get("selected_features"):
        item = columns.get("item") or [settings["ITEM_ID_FIELD"]]
        columns["item"] = _with(item, settings["selected_features"])


def _with(names: list, more: list) -> list:
    return [*names, *(name for name in more if name not in names)]
