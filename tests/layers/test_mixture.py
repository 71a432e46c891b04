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
        assert g.take_balance().item() == pytest.approx(2)
        g.proj.bias.zero_()
        g.proj.weight[0, 0] = 1e3  # one coordinate decides, hard
        x[:, 0] = torch.tensor([1.0, -1.0]).repeat(37)
        g(x, SEGMENTS)
        assert g.take_balance().item() == pytest.approx(1)
        assert g.take_balance() is None


@pytest.mark.parametrize("name", GATES)
def test_shares_are_those_of_training_since_the_last_reading(name):
    g, x = gate(name), tokens()
    weights = g(x, SEGMENTS)
    g.eval()(tokens(seed=2), SEGMENTS)
    want = ((weights > 0).double() if name == "top1" else weights).mean(0)
    torch.testing.assert_close(torch.tensor(g.take_shares()), want.float(), rtol=1e-5, atol=1e-6)
    assert g.take_shares() is None


def test_balancing_loss_moves_a_skewed_gate_towards_equal_shares():
    g, x = gate("top1"), tokens()
    optimizer = torch.optim.SGD(g.parameters(), lr=1.0)
    with torch.no_grad():
        g.proj.bias += torch.tensor([3.0, 0.0])
    g(x, SEGMENTS)
    before = g.take_balance()
    before.backward()
    optimizer.step()
    g(x, SEGMENTS)
    assert g.take_balance() < before


@pytest.mark.parametrize("name", ["running_mean", "token"])
def test_soft_gates_have_no_balancing_loss(name):
    g = gate(name)
    g(tokens(), SEGMENTS)
    assert g.take_balance() is None


@pytest.mark.parametrize("name", GATES)
def test_last_tokens_are_those_of_all_and_only_they_count(name):
    g, x = gate(name), tokens()
    want = g(x, SEGMENTS)[SEGMENTS.last]
    g.take_shares()
    torch.testing.assert_close(g(x, SEGMENTS, last=True), want)
    counted = (want > 0).double() if name == "top1" else want
    torch.testing.assert_close(torch.tensor(g.take_shares()), counted.mean(0).float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", GATES)
def test_autocast_leaves_the_gate_in_float32(name):
    g, x = gate(name).float(), tokens().float()
    plain = g(x, SEGMENTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(g(x, SEGMENTS), plain)
