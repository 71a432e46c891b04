"""Checkpoints as plain data: tensors, numbers and text, so that reading one runs no code."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import torch

from recbole_ssd.environment import whole

_NEEDED = ("config", "epoch", "cur_step", "best_valid_score", "state_dict", "optimizer")


def plain_other(others: dict | None, model: str) -> dict | None:
    """What a model's `other_parameter()` gives, less the modules: `state_dict` has their weights.

    RecBole's GRU4RecF, SASRecF and FDSA name a whole module there, which only a pickle can hold.

    Raises:
        ValueError: if something else than tensors, arrays, numbers and text is left.
    """
    kept = {name: value for name, value in (others or {}).items() if not isinstance(value, torch.nn.Module)}
    for name, value in kept.items():
        if not isinstance(value, (torch.Tensor, bool, int, float, str, list, dict, type(None))):
            raise ValueError(
                f"{model} keeps a {type(value).__name__} as '{name}' in other_parameter_name, which no plain "
                "checkpoint holds: make it a tensor (register_buffer), a number or text"
            )
    return kept or None


def random_state(device: torch.device) -> dict:
    """What dropout and masks are drawn from: the state of torch's generators, on the host and on a GPU."""
    on_gpu = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **on_gpu}


def set_random_state(state: dict, device: torch.device) -> None:
    """Goes on drawing where `random_state` was read, as far as there are the same devices."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def write_checkpoint(state: dict, path: Path | str) -> None:
    """Writes a checkpoint whole or not at all.

    Raises:
        ValueError: if it cannot be written, with the room that is left.
    """
    try:
        with whole(path) as part:
            torch.save(state, part)
    except (OSError, RuntimeError) as error:  # torch's own word for a full disk is a wrong position
        free = shutil.disk_usage(Path(path).parent).free / 2**20
        raise ValueError(f"checkpoint '{path}' cannot be written, {free:,.0f} MB are free there ({error})") from error


def read_checkpoint(path: Path | str, device: torch.device | str = "cpu") -> dict:
    """The content of a checkpoint that our Trainer wrote.

    Raises:
        ValueError: if the file is missing, truncated, no checkpoint, or one that plain RecBole pickled.
    """
    if not os.path.isfile(path):
        raise ValueError(f"checkpoint '{path}' does not exist (looked from '{Path.cwd()}')")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"'{path}' is no checkpoint of recbole-ssd: it holds something else than tensors, numbers "
            "and text. Plain RecBole pickles its Config and is not read; train the model again"
        ) from error
    # Bytes that are no pickle may stand for any operation: torch raises what that one does.
    except (RuntimeError, EOFError, OSError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"checkpoint '{path}' ({os.path.getsize(path)} bytes) is truncated or no checkpoint: "
            "copy it again, or train the model again"
        ) from error
    missing = [key for key in _NEEDED if not isinstance(state, dict) or key not in state]
    if missing:
        raise ValueError(f"'{path}' is no checkpoint of recbole-ssd: it lacks {', '.join(missing)}")
    return state


def load_weights(model: torch.nn.Module, checkpoint: dict, settings: dict, path: Path | str) -> None:
    """Puts the weights of a checkpoint into a model.

    Args:
        model: built from `settings`.
        checkpoint: from `read_checkpoint`.
        settings: `config.given()` of the run that loads.
        path: named in the sentence.

    Raises:
        ValueError: if the checkpoint is of another model or another size.
    """
    there = checkpoint["config"]
    if there["model"] != settings["model"]:
        raise ValueError(f"checkpoint '{path}' is of model {there['model']}, this run is of {settings['model']}")
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ValueError(
            f"checkpoint '{path}' does not fit the model: {_difference(there, settings, error)}"
        ) from error
    model.load_other_parameter(checkpoint.get("other_parameter"))


def check_same_items(there: list[str] | None, names: list[str], path: Path | str) -> None:
    """Refuses weights that were learned of other items: a model knows an item by its place in the data's order.

    Args:
        there: the checkpoint's `items`; None, from an earlier version, passes.
        names: the items of the data set, in its order.
        path: named in the sentence.

    Raises:
        ValueError: that names the first item that differs.
    """
    if there is None or there == names:
        return
    number = next((n for n, pair in enumerate(zip(there, names)) if len(set(pair)) > 1), min(len(there), len(names)))
    first, second = (repr(items[number]) if number < len(items) else "missing" for items in (there, names))
    raise ValueError(
        f"checkpoint '{path}' was trained on other data: its item {number} is {first} and here it is {second}. Items "
        "are numbered as the data file has them: load it with the file as it was, or by load_model, which needs no data"
    )


def check_groups(optimizer: torch.optim.Optimizer, state: dict, path: Path | str) -> None:
    """Refuses the state of an optimizer whose weights were grouped otherwise.

    Raises:
        ValueError: that says what differs.
    """
    here, there = (
        [len(group["params"]) for group in groups] for groups in (optimizer.param_groups, state["param_groups"])
    )
    if here != there:
        raise ValueError(
            f"the optimizer of checkpoint '{path}' has its weights in groups of {there}, this run in groups of {here}: "
            "give both runs the same 'weight_decay', or train the model again"
        )


def _difference(there: dict, here: dict, error: RuntimeError) -> str:
    """What differs between two runs, or torch's first complaint where no setting does."""
    elsewhere = {
        "data_path",
        "checkpoint_dir",
        "result_file",
        "gpu_id",
        "seed",
        "epochs",
        "state",
        "show_progress",
    }
    keys = [key for key in there if key in here and there[key] != here[key] and key not in elsewhere]
    if keys:
        return ", ".join(f"{key} is {there[key]} there and {here[key]} here" for key in keys)
    complaints = str(error).splitlines()
    return (complaints[1] if len(complaints) > 1 else complaints[0]).strip()
