import pytest
import torch

from recbole_ssd.layers.mixture import GATES, Gate
from recbole_ssd.ops.packing import Segments

SEGMENTS = Segments(torch.tensor([0, 3, 4, 74]))


def gate(name, seed=0) -> Gate:
    torch.manual_seed(seed)
    return Gate(8, name).double()


def tokens(seed=1):
    return torch.randn(74, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["running_mean", "token"])
def test_soft_gates_are_their_definition(name):
    g, x = gate(name), tokens()
    means = torch.cat([part.cumsum(0) / torch.arange(1, len(part) + 1)[:, None] for part in x.split([3, 1, 70])])
    want = g.proj(means if name == "running_mean" else x).softmax(-1)
    torch.testing.assert_close(g(x, SEGMENTS), want, rtol=1e-12, atol=1e-13)


def test_top1_keeps_the_larger_weight_and_learns_through_it():
    g, x = gate("top1"), tokens()
    probabilities = g.proj(x).softmax(-1)
    weights = g(x, SEGMENTS)
    assert ((weights > 0).sum(1) == 1).all()
    torch.testing.assert_close(weights.sum(1), probabilities.max(1).values)
    weights.sum().backward()
    assert g.proj.weight.grad.abs().max() > 0


def test_balance_is_1_for_equal_shares_and_2_for_one_expert():
    g, x = gate("top1"), tokens()
    with torch.no_grad():
        g.proj.weight.zero_()
        g.proj.bias.copy_(torch.tensor([50.0, -50.0]))
        g(x, SEGMENTS)
        assert g.balance.item() == pytest.approx(2)
        g.proj.bias.zero_()
        g.proj.weight[0, 0] = 1e3  # one coordinate decides, hard
        x[:, 0] = torch.tensor([1.0, -1.0]).repeat(37)
        g(x, SEGMENTS)
        assert g.balance.item() == pytest.approx(1)


@pytest.mark.parametrize("name", GATES)
def test_shares_are_those_of_training_since_the_last_reading(name):
    g, x = gate(name), tokens()
    weights = g(x, SEGMENTS)
    g.eval()(tokens(seed=2), SEGMENTS)
    want = ((weights > 0).double() if name == "top1" else weights).mean(0)
    torch.testing.assert_close(torch.tensor(g.shares()), want.float(), rtol=1e-5, atol=1e-6)
    assert g._shares.sum() == 0


def test_soft_gates_have_no_balancing_loss():
    g = gate("token")
    g(tokens(), SEGMENTS)
    assert g.balance is None
