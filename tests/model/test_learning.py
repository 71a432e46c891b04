"""A model learns a rule, and nothing where there is none."""

import pytest
import torch

from .conftest import N_ITEMS, packed
from .test_contract import DROPOUT, SUPERVISED

STEPS = 60


def histories_with_a_rule(users, length, generator):
    """The next item is 7 times this one plus the one before, modulo the catalogue."""
    rows = torch.randint(1, N_ITEMS, (users, length), generator=generator)
    for t in range(2, length):
        rows[:, t] = (rows[:, t - 1] + 7 * (rows[:, t - 2] % 2)) % (N_ITEMS - 1) + 1
    return rows


def histories_of_noise(users, length, generator):
    return torch.randint(1, N_ITEMS, (users, length), generator=generator)


def hit_rate_after_training(model, make, supervision) -> float:
    """Share of unseen users whose next item is ranked first."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(STEPS):
        rows = make(48, 17, generator)
        histories, targets = rows[:, :-1].tolist(), rows[:, 1:].flatten()
        if supervision == "prefixes":
            targets = rows[:, -1]
        optimizer.zero_grad()
        model.calculate_loss(packed(histories, targets)).backward()
        optimizer.step()
    rows = make(200, 17, torch.Generator().manual_seed(2))
    with torch.no_grad():
        scores = model.eval().full_sort_predict(packed(rows[:, :-1].tolist()))
    scores[:, 0] = -torch.inf
    return (scores.argmax(1) == rows[:, -1]).float().mean().item()


@pytest.mark.parametrize(("name", "settings", "supervision"), SUPERVISED.values(), ids=SUPERVISED)
def test_learns_a_rule_and_not_noise(build, name, settings, supervision):
    quick = {"initializer_range": 0.1, "hidden_size": 32, "mask_ratio": 0.0, **dict.fromkeys(DROPOUT, 0.0)}
    hit, noise = (
        hit_rate_after_training(build(name, **{**quick, **settings}), make, supervision)
        for make in (histories_with_a_rule, histories_of_noise)
    )
    assert hit > 0.9, (hit, noise)
    assert noise < 0.1, (hit, noise)
