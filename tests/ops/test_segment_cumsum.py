import pytest
import torch

from recbole_ssd.ops.packing import Segments, flip_index, flipped
from recbole_ssd.ops.segment_cumsum import segment_cumsum, segment_sum, spread_first

from .streams import LENGTHS, borders, error


@pytest.mark.parametrize("reverse", [False, True])
def test_equals_cumsum_of_every_segment(reverse):
    x, cu = torch.randn(sum(LENGTHS), 3, dtype=torch.float64), borders(LENGTHS)
    parts = [x[begin:end] for begin, end in zip(cu, cu[1:])]
    want = torch.cat([p.flip(0).cumsum(0).flip(0) if reverse else p.cumsum(0) for p in parts])
    assert error(segment_cumsum(x, Segments(cu), reverse), want) < 1e-14
    x = x[:10].requires_grad_()
    segments = Segments(borders([1, 4, 5]))
    assert torch.autograd.gradcheck(lambda x: segment_cumsum(x, segments, reverse), [x])


def test_accuracy_does_not_depend_on_the_stream():
    x = torch.rand(50_000) + 100
    cu = torch.arange(0, 50_001, 20)
    truth = x.double().view(-1, 20).cumsum(1).flatten()
    assert error(segment_cumsum(x, Segments(cu)).double(), truth) < 1e-6


def test_spread_first_and_segment_sum():
    segments = Segments(borders([3, 70, 200]))
    first = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    y = spread_first(first, segments)
    assert torch.equal(y, first[[0] * 3 + [1] * 70 + [2] * 200])
    dy = torch.randn_like(y)
    y.backward(dy)
    want = torch.stack([part.sum(0) for part in dy.split([3, 70, 200])])
    assert error(segment_sum(dy, segments), want) < 1e-14
    assert torch.equal(first.grad, segment_sum(dy, segments))


def test_indices():
    cu = torch.tensor([0, 3, 5])
    assert flip_index(cu).tolist() == [2, 1, 0, 4, 3]
    assert Segments(cu).last.tolist() == [2, 4]
    assert Segments(cu).seq_idx.tolist() == [[0, 0, 0, 1, 1]] and Segments(cu).seq_idx.dtype == torch.int32
    segments = Segments(cu)
    assert segments.position.tolist() == [0, 1, 2, 0, 1] and segments.number.tolist() == [0, 0, 0, 1, 1]
    assert [t.tolist() for t in segments.head(2)] == [[2], [0]]
    assert [t.tolist() for t in segments.tail(1)] == [[1, 3], [0, 1]]
    assert torch.equal(flip_index(cu)[flip_index(cu)], torch.arange(5))


def test_flipped_is_its_own_inverse_and_its_gradient_is_flipped_back():
    segments = Segments(torch.tensor([0, 3, 5]))
    x, dy = torch.randn(5, 2, requires_grad=True), torch.randn(5, 2)
    y = flipped(x, segments)
    assert torch.equal(y, torch.cat([x[:3].flip(0), x[3:].flip(0)]))
    assert torch.equal(flipped(y, segments), x)
    y.backward(dy)
    assert torch.equal(x.grad, flipped(dy, segments))
