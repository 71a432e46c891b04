"""What a config refuses, and what it warns of. Each refusal names the key, the value and the way out."""

from __future__ import annotations

import re
from math import isfinite
from numbers import Real

from recbole_ssd.model_lookup import did_you_mean
from recbole_ssd.settings import READ_BY, known_keys, listed_keys, own_files, read_yaml, recbole_files

SEVERAL_PROCESSES = ("nproc", "world_size", "local_rank", "ip", "port", "offset", "group_offset")
WORKED_OUT = (
    "MODEL_TYPE",
    "MODEL_INPUT_TYPE",
    "eval_type",
    "device",
    "single_spec",
    "valid_neg_sample_args",
    "test_neg_sample_args",
)
RENAMED = {
    "neg_sampling": "train_neg_sample_args",
    "training_neg_sample_num": "train_neg_sample_args",
    "config_file": "config_files",
}
PACKED_ONLY = ("supervision", "loss_precision", "label_smoothing", "cosine_temperature", "repeat_bias", "time_gaps")

ONE_OF = {
    "time_order": ("exact", "recbole"),
    "supervision": ("all_positions", "prefixes"),
    "learner": ("adam", "adamw", "sgd", "adagrad", "rmsprop"),  # sparse_adam needs sparse embeddings
    "rm_dup_inter": (None, "first", "last"),
    "state": ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
    "ssd_backend": ("auto", "torch", "numba", "triton", "mamba_ssm", "reference"),
    "conv_backend": ("auto", "torch", "numba", "triton", "causal_conv1d"),
    "scan_backend": ("auto", "torch", "numba", "triton", "mamba_ssm", "reference"),
    "amp_dtype": ("bfloat16", "float16"),
    "loss_precision": ("float32", "bfloat16"),
    "lr_schedule": ("constant", "linear", "cosine"),
    "bidirectional": ("readout", "flip", "none"),
    "dropout_place": ("output", "residual"),
    "block": ("full", "mixer"),
    "ssm": ("mamba1", "mamba2"),
    "dt_init": ("paper", "authors"),
    "gate": ("running_mean", "token", "top1"),
}
POSITIVE = (
    "epochs",
    "train_batch_size",
    "eval_batch_size",
    "max_batch_tokens",
    "MAX_ITEM_LIST_LENGTH",
    "learning_rate",
    "max_train_s",
    "cosine_temperature",
    "hidden_size",
    "embedding_size",
    "inner_size",
    "num_layers",
    "n_layers",
    "n_heads",
    "d_state",
    "d_conv",
    "expand",
    "headdim",
    "chunk_size",
    "max_position",
    "layer_norm_eps",
    "initializer_range",
)
NOT_NEGATIVE = (
    "seed",
    "candidate_seed",
    "stopping_step",
    "warmup_epochs",
    "worker",
    "weight_decay",
    "metric_decimal_place",
    "balance_weight",
)
SEEDS = ("seed", "candidate_seed")
SHARES = ("dropout_prob", "hidden_dropout_prob", "attn_dropout_prob", "mask_ratio", "label_smoothing")
WHOLE = (
    "epochs",
    "train_batch_size",
    "eval_batch_size",
    "max_batch_tokens",
    "MAX_ITEM_LIST_LENGTH",
    "max_position",
    "chunk_size",
    "seed",
)
OPTIONAL = ("MAX_ITEM_LIST_LENGTH", "max_position", "chunk_size", "reranker_CAN_NUM")  # a number, None or text
DICTS = {
    "clip_grad_norm": "{'max_norm': 5}",
    "val_interval": "{'rating': '[3,inf)'}",
    "threshold": "{'rating': 3}",
}
INTERVALS = ("user_inter_num_interval", "item_inter_num_interval")
INTERVAL = re.compile(r"[\[(]\s*([^,;]+),([^,;]+)[\])]")
INNER_KEYS = {
    "eval_args": ("split", "order", "group_by", "mode"),
    "clip_grad_norm": ("max_norm", "norm_type", "error_if_nonfinite", "foreach"),
    "train_neg_sample_args": ("distribution", "sample_num", "alpha", "dynamic", "candidate_num"),
}


def check(settings: dict, defaults: dict, sources: dict) -> None:
    """Refuses unknown keys, and values of the wrong type, out of range, or not among a key's words.

    Whole numbers that were written as floats become whole.

    Args:
        settings: all settings, merged.
        defaults: the settings before the user's own.
        sources: for each key that the user set, where.

    Raises:
        ValueError: with a sentence about the first thing that is wrong.
    """
    _check_keys(sources, known_keys() | set(defaults))
    for key, source in sources.items():
        default = defaults.get(key)
        _check_value(key, settings[key], default, source)
        if isinstance(settings[key], float) and _is_whole(key, default):
            settings[key] = int(settings[key])  # 1e2 is a float to YAML


def unused_keys(settings: dict, defaults: dict, sources: dict, model_class: type) -> list[str]:
    """Warnings about keys of the user's that exist and that this model never reads."""
    model, packed = model_class.__name__, getattr(model_class, "packed", False)
    used = listed_keys() | {key for key, reader in READ_BY.items() if reader == model}
    for file in (*recbole_files(model, ""), *own_files(model_class, "")):
        used.update(read_yaml(file))
    return [
        f"'{key}' (set in {source}) is not used: {model} does not read it"
        for key, source in sources.items()
        if key not in used or key in PACKED_ONLY and not packed and settings[key] != defaults[key]
    ]


def plain(value, key: str = ""):
    """The same value in plain Python types, which any torch and any JSON reader load without running code.

    Raises:
        ValueError: if it has no such form.
    """
    if value is None or isinstance(value, (bool, int, float, str)) and type(value).__module__ == "builtins":
        return value
    if isinstance(value, dict):
        return {name: plain(item, key or str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, key) for item in value]
    if hasattr(value, "item"):
        return value.item()
    if hasattr(value, "__fspath__"):
        return str(value)
    raise ValueError(f"'{key}' should be plain data (number, text, list, dict), it is a {type(value).__name__}")


def _check_keys(sources: dict, known: set) -> None:
    for key, source in sources.items():
        if key in SEVERAL_PROCESSES:
            raise ValueError(
                f"'{key}' ({source}) asks for several processes: recbole-ssd trains in one process for now, "
                "take the key away"
            )
        if key in WORKED_OUT:
            raise ValueError(f"'{key}' ({source}) is worked out from the other settings: take the key away")
        if key in RENAMED:
            raise ValueError(f"'{key}' ({source}) has no effect: use '{RENAMED[key]}'")
        outer, dot, inner = str(key).partition(".")
        if dot and outer in INNER_KEYS:
            raise ValueError(f"'{key}' ({source}) is a part of '{outer}': write {outer}=\"{{{inner}: VALUE}}\"")
        if key not in known:
            names = known - {*RENAMED, *WORKED_OUT, *SEVERAL_PROCESSES} | {"config_files"}
            raise ValueError(f"unknown key '{key}' in {source}{did_you_mean(str(key), names)}")


def _check_value(key: str, value, default, source: str) -> None:
    """Refuses a value of the wrong type, out of its range, or not among the words that the key takes."""
    if key in ONE_OF and value not in ONE_OF[key] and str(value).upper() not in ONE_OF[key]:
        raise ValueError(f"'{key}' ({source}) should be one of {', '.join(map(str, ONE_OF[key]))}, it is '{value}'")
    if key in DICTS and value is not None and not isinstance(value, dict):
        raise ValueError(f"'{key}' ({source}) should be a dict such as {DICTS[key]}, it is {value!r}")
    if key in INNER_KEYS and (value is not None or key == "eval_args"):
        _check_inner_keys(key, value, INNER_KEYS[key], source)
    if key == "clip_grad_norm" and value is not None:
        highest = value.get("max_norm")
        if not _is_number(highest) or highest <= 0:
            raise ValueError(f"'{key}' ({source}) needs a 'max_norm' greater than 0, it is {value!r}")
    if key in INTERVALS and value is not None:
        _check_intervals(key, value, source)
    if key == "val_interval" and value:
        for column, interval in value.items():
            if isinstance(interval, str):  # a list names the tokens to keep
                _check_intervals(f"{key}['{column}']", interval, source)
    if isinstance(default, bool) and not isinstance(value, bool):
        raise ValueError(f"'{key}' ({source}) should be True or False, it is {value!r}")
    if _is_number(value):
        _check_range(key, value, _is_whole(key, default), source)
        return
    needed = _is_number(default) and key not in OPTIONAL
    if needed or (value is not None and key in POSITIVE + NOT_NEGATIVE):
        raise ValueError(f"'{key}' ({source}) should be a number, it is {value!r}")


def _check_intervals(key: str, value, source: str) -> None:
    """RecBole only warns of an interval that it cannot read, and then filters nothing or everything."""
    for part in str(value).split(";"):
        found = INTERVAL.fullmatch(part.strip())
        try:
            low, high = (float(end) for end in found.groups()) if found else (1, 0)
        except ValueError:
            low, high = 1, 0
        if low > high:
            raise ValueError(
                f"'{key}' ({source}) should be an interval such as [5,inf), or several with ';' between "
                f"them, it is {value!r}"
            )


def _check_range(key: str, value: Real, whole: bool, source: str) -> None:
    if not isfinite(value):
        raise ValueError(f"'{key}' ({source}) should be a finite number, it is {value}")
    if key in SHARES and not 0 <= value < 1:
        raise ValueError(f"'{key}' ({source}) should be at least 0 and below 1, it is {value}")
    if key in POSITIVE and not value > 0:
        raise ValueError(f"'{key}' ({source}) should be greater than 0, it is {value}")
    if key in NOT_NEGATIVE and not value >= 0:
        raise ValueError(f"'{key}' ({source}) should be 0 or greater, it is {value}")
    if key in SEEDS and value >= 2**32:
        raise ValueError(f"'{key}' ({source}) should be below 2^32, which numpy's generator takes, it is {value}")
    if whole and value != int(value):
        raise ValueError(f"'{key}' ({source}) should be a whole number, it is {value}")


def _is_number(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_whole(key: str, default) -> bool:
    return key in WHOLE or isinstance(default, int) and not isinstance(default, bool)


def _check_inner_keys(key: str, value, allowed: tuple, source: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"'{key}' ({source}) should be a dict with the keys {', '.join(allowed)}, it is {value!r}")
    for name in value:
        if name not in allowed:
            raise ValueError(f"unknown key '{name}' in '{key}' ({source}){did_you_mean(str(name), allowed)}")
