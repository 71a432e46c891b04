"""A trained model where its data set is not: the checkpoint holds the weights, the settings and the names of items."""

from __future__ import annotations

import numpy as np
import torch

from recbole_ssd.checkpoint import load_weights, read_checkpoint
from recbole_ssd.config import Config


class Items:
    """The items of a data set, in its place: what a model is built from and what `recommend` asks for.

    Args:
        field: name of the column.
        names: of all items as the model numbers them, the padding first.
    """

    def __init__(self, field: str, names: list[str]):
        self.iid_field, self.names = field, np.array(names)
        self.field2token_id = {field: {name: number for number, name in enumerate(names)}}

    def __len__(self) -> int:
        return len(self.names) - 1

    def num(self, field: str) -> int:
        """How many there are, the padding among them, as RecBole's data sets count."""
        if field != self.iid_field:
            raise AttributeError(f"the column '{field}'")
        return len(self.names)

    def id2token(self, field: str, numbers) -> np.ndarray:
        """The names of some items."""
        return self.names[numbers]


def load_model(
    model_file: str, model: type | None = None, device: torch.device | str | None = None
) -> tuple[torch.nn.Module, Items]:
    """A trained model and the items that it knows, to `recommend` on a machine that has no data set.

    Args:
        model_file: a checkpoint of ours. It is read as plain data: no code of the file is run.
        model: the model's class, where its name alone does not find it.
        device: where it is to run; None: on the first GPU, or on the CPU of a machine without one.

    Returns:
        the model, without dropout and masks, and its items.

    Raises:
        ValueError: if the file is no checkpoint, was written before checkpoints named items, is of a model that is
            built from more of its data set than the items, or is to run on a GPU that is not there.
    """
    checkpoint = read_checkpoint(model_file)
    config = Config(model, config_dict={**checkpoint["config"], "gpu_id": ""})  # it trained on another machine
    config["device"] = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if config["device"].type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device '{device}' is asked for and torch sees no GPU here: leave 'device' away for the CPU")
    names = checkpoint.get("items")
    if names is None:
        raise ValueError(
            f"checkpoint '{model_file}' does not name its items, an earlier version wrote it: load it with "
            "load_data_and_model where its data set is"
        )
    items = Items(config["ITEM_ID_FIELD"], names)
    try:
        built = config.model_class(config, items)
    except AttributeError as error:
        raise ValueError(
            f"{config['model']} is built from more of its data set than the items ({error}): load it with "
            "load_data_and_model where its data set is"
        ) from error
    load_weights(built, checkpoint, config.given(), model_file)
    return built.to(config["device"]).eval(), items
