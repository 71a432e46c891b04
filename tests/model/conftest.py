"""Models on a catalogue of 50 items, and batches made by hand."""

from __future__ import annotations

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_ssd import Config, get_model

N_ITEMS = 50


class Catalogue:
    """All that a packed model asks of a data set."""

    def num(self, field):
        return N_ITEMS


@pytest.fixture
def build():
    """build(name, **settings) -> the model, in evaluation mode, weights large enough for differences to show."""

    def _build(name="SSD4Rec", model_class=None, **settings):
        small = {"hidden_size": 16, "inner_size": 32, "d_state": 8, "headdim": 8, "initializer_range": 0.3}
        config = Config(name, "tiny", config_dict={**small, "gpu_id": "", **settings})
        torch.manual_seed(0)
        model = (model_class or get_model(name))(config, Catalogue()).eval()
        if model.repeat_bias is not None:
            torch.nn.init.constant_(model.repeat_bias, -0.2)
        return model

    return _build


def packed(histories, targets=None, negatives=None, gaps=None) -> Interaction:
    """A packed batch of lists of items."""
    fields = {
        "item_id_list": torch.tensor([item for history in histories for item in history]),
        "cu_seqlens": torch.tensor([0, *map(len, histories)]).cumsum(0).int(),
    }
    if gaps is not None:
        fields["time_gaps"] = torch.as_tensor(gaps)
    if targets is not None:
        fields["item_id"] = torch.as_tensor(targets)
    if negatives is not None:
        fields["neg_item_id"] = torch.as_tensor(negatives)
    return Interaction(fields)


def padded(histories, targets=None) -> Interaction:
    """The same as RecBole's padded rows."""
    rows = torch.zeros(len(histories), max(map(len, histories)) + 3, dtype=torch.int64)
    for row, history in zip(rows, histories):
        row[: len(history)] = torch.tensor(history)
    fields = {"item_id_list": rows, "item_length": torch.tensor([len(history) for history in histories])}
    if targets is not None:
        fields["item_id"] = torch.as_tensor(targets)
    return Interaction(fields)


def random_histories(lengths=(7, 1, 70, 2, 33), seed=0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, N_ITEMS, (n,), generator=generator).tolist() for n in lengths]
