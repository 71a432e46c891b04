"""Settings that are fine alone and wrong together."""

from __future__ import annotations

import re

from recbole.evaluator import metric_types
from recbole.utils import EvaluatorType

from recbole_ssd.model_lookup import did_you_mean

CE_ONLY = ("CORE", "GRU4RecCPR", "SASRecCPR")  # of RecBole; two of them end the process at another loss
MODES = re.compile(r"full|(uni|pop)[1-9]\d*")


def check_together(settings: dict, sources: dict, packed: bool) -> None:
    """Refuses settings that contradict each other.

    Args:
        settings: all settings, merged.
        sources: for each key that the user set, where.
        packed: whether the model reads packed streams.

    Raises:
        ValueError: with a sentence about the first contradiction.
    """
    _check_metrics(settings)
    _check_loss(settings, sources, packed)
    _check_training(settings)
    _check_precision(settings, packed)
    _check_files(settings)
    _check_evaluation(settings)
    _check_model(settings, packed)


def _check_metrics(settings: dict) -> None:
    metrics = settings["metrics"]
    metrics = [metrics] if isinstance(metrics, str) else metrics
    if not metrics or not isinstance(metrics, (list, tuple)):
        raise ValueError(f"'metrics' should be a list of names, such as [Hit, NDCG], it is {metrics!r}")
    for metric in metrics:
        if str(metric).lower() not in metric_types:
            raise ValueError(f"there is no metric '{metric}'{did_you_mean(str(metric), metric_types)}")
        if metric_types[str(metric).lower()] == EvaluatorType.VALUE:
            raise ValueError(
                f"metric '{metric}' measures single values and next-item models rank: use Hit, NDCG, MRR, ..."
            )
    topk = settings["topk"] if isinstance(settings["topk"], (list, tuple)) else [settings["topk"]]
    if not topk or not all(isinstance(k, int) and k > 0 for k in topk):
        raise ValueError(f"'topk' should be a whole number greater than 0 or a list of them, it is {settings['topk']}")
    name, _, k = str(settings["valid_metric"]).partition("@")
    has_k = k in map(str, topk) or name.lower() == "gauc" and not k
    measured = name.lower() in [metric.lower() for metric in metrics] and has_k
    if not measured:
        raise ValueError(
            f"valid_metric '{settings['valid_metric']}' is not measured: metrics are {metrics} at "
            f"{list(topk)}; add it to 'metrics' and 'topk', or choose another"
        )
    if not settings["valid_metric_bigger"]:
        raise ValueError(f"of '{settings['valid_metric']}' more is better: take 'valid_metric_bigger' away")


def _check_loss(settings: dict, sources: dict, packed: bool) -> None:
    loss = settings.get("loss_type")
    if loss is None:
        return
    losses = ("CE", "BPR", "BCE") if packed else ("CE",) if settings["model"] in CE_ONLY else ("CE", "BPR")
    if loss not in losses:
        raise ValueError(f"'loss_type' of {settings['model']} should be one of {', '.join(losses)}, it is '{loss}'")
    negatives = settings.get("train_neg_sample_args")
    if isinstance(negatives, dict) and negatives.get("distribution", "uniform") in (None, "None", "none"):
        negatives = None
    if loss == "CE" and negatives and "train_neg_sample_args" in sources:
        raise ValueError(
            "loss_type 'CE' ranks all items and samples no negatives: take 'train_neg_sample_args' "
            f"({sources['train_neg_sample_args']}) away, or choose loss_type BPR{' or BCE' if packed else ''}"
        )
    if loss != "CE" and not negatives:
        raise ValueError(
            f"loss_type '{loss}' needs negatives and 'train_neg_sample_args' turns them off: take it away, "
            "or choose loss_type CE"
        )
    if loss != "CE":
        _check_negatives(negatives)
    if packed and loss != "CE" and settings["label_smoothing"]:
        raise ValueError(
            f"'label_smoothing' spreads the target of loss_type CE over all items, and loss_type is '{loss}': "
            "set label_smoothing to 0, or choose loss_type CE"
        )
    if packed and loss != "CE" and negatives.get("dynamic"):
        raise ValueError(
            f"dynamic negatives are scored by RecBole's padded loader, {settings['model']} has packed ones: "
            "set 'dynamic' of 'train_neg_sample_args' to False"
        )


def _check_negatives(negatives: dict) -> None:
    distribution, number = negatives.get("distribution"), negatives.get("sample_num")
    if distribution not in ("uniform", "popularity"):
        raise ValueError(
            f"'distribution' of 'train_neg_sample_args' should be uniform or popularity, it is {distribution!r}"
        )
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"'sample_num' of 'train_neg_sample_args' should be a whole number above 0, it is {number!r}")


def _check_training(settings: dict) -> None:
    if settings.get("bidirectional") == "flip" and settings.get("supervision") == "all_positions":
        raise ValueError(
            "'bidirectional: flip' reads the whole segment at every position and would see its targets under "
            "'supervision: all_positions': set supervision to prefixes, or bidirectional to readout"
        )

    if settings["time_gaps"] and settings["time_order"] == "recbole":
        raise ValueError(
            "'time_gaps' reads the time between events and 'time_order: recbole' rounds it to float32, by minutes: set "
            "time_order to exact, or time_gaps to False"
        )
    if settings["lr_schedule"] != "constant" and settings["warmup_epochs"] >= settings["epochs"] > 0:
        raise ValueError(
            f"'warmup_epochs' ({settings['warmup_epochs']}) leaves none of {settings['epochs']} 'epochs' for the "
            f"lr_schedule '{settings['lr_schedule']}': lower it, or raise epochs"
        )


def _check_precision(settings: dict, packed: bool) -> None:
    half = settings["amp_dtype"] == "float16"
    if half and not settings["enable_amp"]:
        raise ValueError(
            "'amp_dtype: float16' has no effect while 'enable_amp' is False: set enable_amp to True, or take "
            "amp_dtype away"
        )
    if settings.get("enable_scaler") and not half:
        raise ValueError(
            "'enable_scaler' scales the losses of float16, and this run trains in "
            f"{settings['amp_dtype'] if settings['enable_amp'] else 'float32'}: take enable_scaler away, or set "
            "enable_amp to True and amp_dtype to float16"
        )
    if settings.get("enable_scaler") and settings.get("clip_grad_norm") and not packed:
        raise ValueError(
            "'enable_scaler' with 'clip_grad_norm' would clip the scaled gradients (RecBole's trainer does "
            "not unscale them first): set one of the two"
        )


def _check_files(settings: dict) -> None:
    if settings.get("save_ranks") and not settings.get("result_file"):
        raise ValueError("'save_ranks' writes beside 'result_file', which is not set: set it too")
    for key in ("save_dataset", "dataset_save_path", "save_dataloaders", "dataloaders_save_path"):
        if settings.get(key):
            raise ValueError(
                f"'{key}' is refused: preparing the data costs less than loading a copy of them, and a copy "
                "ignores changed settings. Take the key away"
            )


def _check_evaluation(settings: dict) -> None:
    args = settings["eval_args"]
    if args.get("order") != "TO":
        raise ValueError(
            "'order' of 'eval_args' should be TO, the order of time, for a sequential model; it is "
            f"'{args.get('order')}'"
        )
    mode = args.get("mode", "full")
    modes = list(mode.values()) if isinstance(mode, dict) else [mode]
    if not modes or not all(isinstance(one, str) and MODES.fullmatch(one) for one in modes):
        raise ValueError(
            f"'mode' of 'eval_args' should be full, uniN or popN (such as uni100), or a dict of them such as "
            f"{{'valid': 'uni100', 'test': 'full'}}; it is {mode!r}"
        )
    tested = mode.get("test", "full") if isinstance(mode, dict) else mode
    if settings["both_protocols"] and tested != "full":
        raise ValueError(
            f"'both_protocols' is for full ranking, and 'mode' of 'eval_args' tests among candidates ({tested}): set "
            "one of the two"
        )
    if isinstance(mode, dict) and not set(mode) <= {"valid", "test"}:
        raise ValueError(f"'mode' of 'eval_args' takes the keys valid and test, it has {', '.join(mode)}")


def _check_model(settings: dict, packed: bool) -> None:
    model = settings["model"]
    if not packed and settings.get("MAX_ITEM_LIST_LENGTH") is None:
        raise ValueError(f"'MAX_ITEM_LIST_LENGTH' should be a number: RecBole's {model} reads padded rows")
    if packed and settings.get("transform"):
        raise ValueError(
            f"transform '{settings['transform']}' changes RecBole's padded rows and {model} reads packed "
            "streams: take 'transform' away"
        )
    if not settings["repeatable"]:
        raise ValueError("'repeatable: False' is for models without histories: sequential ones need True")
