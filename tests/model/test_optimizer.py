"""What weight decay draws towards zero, and what it leaves alone."""

import pytest
import torch

from recbole_ssd.optimizer import KEPT, decay_groups, for_packed


@pytest.mark.parametrize("model", ["SSD4Rec", "Mamba4Rec", "MoEMaTrRec"])
def test_weight_decay_draws_matrices_alone(build, model):
    model = build(model)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = for_packed(torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5), model)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    drawn = {name for name, weight in model.named_parameters() if torch.equal(weight, 0.95 * before[name])}
    kept = {name for name, weight in model.named_parameters() if torch.equal(weight, before[name])}
    assert drawn | kept == set(before) and not (drawn & kept) - {n for n, w in before.items() if not w.any()}
    assert {"item_embedding.weight"} <= drawn
    assert all(name.rpartition(".")[2] in (*KEPT, "bias") or before[name].dim() == 1 for name in kept)
    assert any(name.endswith("A_log") for name in kept)
    assert any(name.endswith("in_proj.weight") for name in drawn)


def test_without_weight_decay_there_is_one_group(build):
    model = build()
    (group,) = decay_groups(model, 0.0)
    assert len(group["params"]) == len(list(model.parameters()))
