"""A model learns a rule, and nothing where there is none."""

import math

import pytest
import torch

from .broken import UncausalMoEMaTrRec
from .conftest import N_ITEMS, packed
from .test_contract import DROPOUT, SUPERVISED

STEPS = 60
CHANCE = math.log(N_ITEMS - 1)  # the loss of a model that knows nothing but how many items there are
MARGIN = 0.02
QUICK = {"initializer_range": 0.1, "hidden_size": 32, "mask_ratio": 0.0, **dict.fromkeys(DROPOUT, 0.0)}


def histories_with_a_rule(users, length, generator):
    """The next item is the one after this, or the eighth after it where the item before was odd."""
    rows = torch.randint(1, N_ITEMS, (users, length), generator=generator)
    for t in range(2, length):
        rows[:, t] = (rows[:, t - 1] + 7 * (rows[:, t - 2] % 2)) % (N_ITEMS - 1) + 1
    return rows


def histories_of_noise(users, length, generator):
    return torch.randint(1, N_ITEMS, (users, length), generator=generator)


def train(model, make, supervision="all_positions"):
    """(share of unseen users whose next item is ranked first, training loss on unseen users)."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        model.calculate_loss(batch(make(48, 17, generator), supervision)).backward()
        optimizer.step()
    rows = make(200, 17, torch.Generator().manual_seed(2))
    with torch.no_grad():
        loss = model.eval().calculate_loss(batch(rows, supervision)).item()
        scores = model.full_sort_predict(batch(rows, supervision))
    scores[:, 0] = -torch.inf
    return (scores.argmax(1) == rows[:, -1]).float().mean().item(), loss


def batch(rows, supervision):
    return packed(rows[:, :-1].tolist(), rows[:, -1] if supervision == "prefixes" else rows[:, 1:].flatten())


@pytest.mark.parametrize(("name", "settings", "supervision"), SUPERVISED.values(), ids=SUPERVISED)
def test_learns_a_rule_and_not_noise(build, name, settings, supervision):
    hit, _ = train(build(name, **{**QUICK, **settings}), histories_with_a_rule, supervision)
    assert hit > 0.9
    hit, loss = train(build(name, **{**QUICK, **settings}), histories_of_noise, supervision)
    assert hit < 0.1
    assert loss > CHANCE - MARGIN


def test_noise_that_a_model_learns_is_noticed(build):
    """One that reads its labels: the original attention of MoEMaTrRec."""
    _, loss = train(build("MoEMaTrRec", UncausalMoEMaTrRec, **QUICK), histories_of_noise)
    assert loss < CHANCE - MARGIN
