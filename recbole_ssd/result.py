"""What a run leaves behind: its result as a dict, as JSON, as a CSV of ranks, and as lines to read."""

from __future__ import annotations

import csv
import json
import shlex
import statistics
import sys
from pathlib import Path

import torch

from recbole_ssd.data.negatives import training_counts
from recbole_ssd.environment import check_folder, commit, machine, peak_rss_mb, versions, whole

# In the dict that run_recbole_ssd gives, not in the result file.
NOT_IN_FILE = ("best_valid_score", "valid_score_bigger", "train_loss", "checkpoint", "log_file")


def check_result_file(path: Path | str | None) -> None:
    """Refuses a result file that could not be written at the end of the run.

    Raises:
        ValueError: if its folder cannot be written or its name is a folder's.
    """
    if path is None:
        return
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"result_file '{path}' is a folder: name a file in it, such as '{path / 'result.json'}'")
    check_folder(path.parent, "the folder of result_file")


def make_result(
    config,
    trainer,
    train_data,
    best_valid_result: dict | None,
    test_result: dict | None,
    other_result: dict | None = None,
    **more,
) -> dict:
    """The result of a run.

    Args:
        config: of the run.
        trainer: after `fit` and `evaluate`.
        train_data: the loader of the training data.
        best_valid_result: of the best epoch, or None without validation.
        test_result: of the test data, or None without.
        other_result: the same with the history treated the other way, or None without.
        **more: entries that only the caller knows.
    """
    gpu = trainer.device.type == "cuda"
    return {
        "model": config["model"],
        "dataset": config["dataset"],
        "seed": config["seed"],
        "best_valid_result": _numbers(best_valid_result),
        "test_result": _numbers(test_result),
        "test_result_other_history": _numbers(other_result),
        "best_epoch": trainer.best_epoch,
        "cut": trainer.cut,
        "valid_by_epoch": [{**entry, "result": _numbers(entry["result"])} for entry in trainer.valid_by_epoch],
        "epoch_s": trainer.epoch_s,
        "train_s": sum(trainer.epoch_s),
        "eval_s": sum(trainer.eval_s),
        "tokens_per_epoch": getattr(train_data, "n_tokens", None),
        "targets_per_epoch": getattr(train_data, "n_targets", None),
        "peak_rss_mb": peak_rss_mb(),
        "peak_gpu_mb": torch.cuda.max_memory_allocated(trainer.device) / 2**20 if gpu else None,
        "n_params": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "protocol": protocol(config),
        "versions": versions(),
        "commit": commit(),
        "machine": machine(trainer.device),
        "command": shlex.join(sys.argv),
        "config": config.given(),
        **more,
    }


def write_result(result: dict, path: Path | str) -> None:
    """Writes a result as JSON, whole or not at all. What only the caller in this process needs stays out."""
    kept = {key: value for key, value in result.items() if key not in NOT_IN_FILE}
    with whole(path) as part:
        part.write_text(json.dumps(kept, indent=1, allow_nan=True) + "\n", encoding="utf-8")


def write_ranks(ranks: list, train_data, test_data, config) -> Path:
    """Writes one line for every test target, with the tokens of the data set's files; whole or not at all.

    The columns are user, item, `rank` (1 is the best; it counts the items that scored as high or higher, itself
    included), `history_length` (all events of the user before the target, whatever the model read of them) and
    `item_count` (how often the item occurs in the training events).

    Args:
        ranks: the trainer's `ranks` after evaluating `test_data`.
        train_data, test_data: the loaders.
        config: names fields and result file.
    """
    path, dataset = ranks_file(config["result_file"]), test_data.dataset
    fields = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
    lengths = dataset.inter_feat.history_lengths()  # in the order of the loader, and so of the ranks
    counts = training_counts(train_data.dataset.inter_feat, dataset.item_num)
    with whole(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*fields, "rank", "history_length", "item_count"])
        done = 0
        for users, items, values in ranks:
            columns = [dataset.id2token(fields[0], users.numpy()), dataset.id2token(fields[1], items.numpy())]
            columns += [values.tolist(), lengths[done : done + len(items)], counts[items.numpy()]]
            writer.writerows(zip(*columns, strict=True))
            done += len(items)
    return path


def ranks_file(result_file: Path | str) -> Path:
    """The place of the ranks: beside the result file.

    >>> ranks_file("out/ssd4rec.json").name
    'ssd4rec.ranks.csv'
    >>> ranks_file("out/rate0.01").name
    'rate0.01.ranks.csv'
    """
    file = Path(result_file)
    return file.with_name(f"{file.name.removesuffix('.json')}.ranks.csv")


def protocol(config) -> dict:
    """What a metric of this run means; only runs of one protocol, data set and split fingerprint compare.

    `letter` is A for leave-one-out, full ranking and history kept among the candidates, B for the same with
    history excluded, and None for everything else.
    """
    args = config["eval_args"]
    usual = args["split"] == {"LS": "valid_and_test"} and set(args["mode"].values()) == {"full"}
    return {
        "letter": ("B" if config["exclude_history"] else "A") if usual else None,
        "split": args["split"],
        "order": args["order"],
        "group_by": args["group_by"],
        "time_order": config["time_order"],
        "mode": args["mode"],
        "history": "excluded" if config["exclude_history"] else "kept",
        "candidate_seed": config["candidate_seed"],
        "MAX_ITEM_LIST_LENGTH": config["MAX_ITEM_LIST_LENGTH"],
        "user_inter_num_interval": config["user_inter_num_interval"],
        "item_inter_num_interval": config["item_inter_num_interval"],
    }


def describe(result: dict) -> str:
    """The result as lines for a reader."""
    kept = result["protocol"]
    letter = f"protocol {kept['letter']}: " if kept["letter"] else ""
    mode = " / ".join(dict.fromkeys(kept["mode"].values()))
    epochs, other = len(result["epoch_s"]), result.get("test_result_other_history")
    seconds = f"{statistics.median(result['epoch_s']):.2f} (median of {epochs})" if epochs else "none was trained"
    cut = ", ended by max_train_s" if result["cut"] else ""
    peak = [f"{result['peak_rss_mb']:,.0f} MB"] if result["peak_rss_mb"] else []
    peak += [f"{result['peak_gpu_mb']:,.0f} MB on the GPU"] if result["peak_gpu_mb"] else []
    lines = {
        "model": f"{result['model']}, seed {result['seed']}, {result['n_params']:,} parameters",
        "data": f"{result['dataset']}, split {result['split_fingerprint']}, time order {kept['time_order']}",
        "measured": f"{letter}{kept['split']}, {mode} ranking, history {kept['history']}",
        "validation": f"{_line(result['best_valid_result'])}  (best epoch {result['best_epoch']})",
        "test": _line(result["test_result"]),
        **({f"test, {other_history(kept)}": _line(other)} if other else {}),
        "epoch seconds": seconds,
        "total seconds": f"{result['train_s'] + result['eval_s']:.1f} (training {result['train_s']:.1f}{cut})",
        "peak memory": ", ".join(peak),
        "checkpoint": result.get("checkpoint") or "not saved",
    }
    return "\n".join(f"  {name:<15}{text}" for name, text in lines.items())


def other_history(kept: dict) -> str:
    """What a protocol does not do with the history: `kept` or `excluded`."""
    return "kept" if kept["history"] == "excluded" else "excluded"


def _line(metrics: dict | None) -> str:
    return "   ".join(f"{name} {value:.4f}" for name, value in metrics.items()) if metrics else "none"


def _numbers(metrics: dict | None) -> dict | None:
    return metrics and {name: float(value) for name, value in metrics.items()}
