import pytest
import torch
import torch.nn.functional as F

from recbole_ssd.ops.cross_entropy import linear_cross_entropy

from .streams import error, run


def inputs_of(targets=70, items=301, size=16):
    hidden, weight = (torch.randn(n, size, dtype=torch.float64) for n in (targets, items))
    return [hidden, weight], torch.randint(items, (targets,))


@pytest.mark.parametrize("rows", [1, 7, 70, 1000])
def test_equals_torch(rows):
    inputs, target = inputs_of()
    budget_mb = rows * 301 * 8 / 2**20
    dy = torch.tensor(1.7, dtype=torch.float64)
    ours = run(lambda h, w: linear_cross_entropy(h, w, target, budget_mb), inputs, dy)
    theirs = run(lambda h, w: F.cross_entropy(h @ w.t(), target), inputs, dy)
    for got, want in zip(ours, theirs):
        assert error(got, want) < 1e-13


def test_float32_is_as_accurate_as_torch():
    inputs, target = inputs_of(targets=3000)
    dy = torch.ones((), dtype=torch.float64)
    ours, theirs = (
        lambda h, w: linear_cross_entropy(h, w, target, 0.1),
        lambda h, w: F.cross_entropy(h @ w.t(), target),
    )
    truth = run(theirs, inputs, dy)
    for got, other, want in zip(run(ours, inputs, dy, torch.float32), run(theirs, inputs, dy, torch.float32), truth):
        assert error(got, want) <= max(2 * error(other, want), 1e-6)


def test_no_gradient_is_made_where_none_is_asked_for():
    (hidden, weight), target = inputs_of()
    loss = linear_cross_entropy(hidden.requires_grad_(), weight, target)
    loss.backward()
    assert hidden.grad is not None and weight.grad is None
    assert not linear_cross_entropy(hidden.detach(), weight, target).requires_grad


def test_wrong_input_gets_a_sentence():
    (hidden, weight), target = inputs_of()
    with pytest.raises(ValueError, match=r"target \(N,\)"):
        linear_cross_entropy(hidden, weight, target[:3])
    with pytest.raises(ValueError, match="no target"):
        linear_cross_entropy(hidden[:0], weight, target[:0])
