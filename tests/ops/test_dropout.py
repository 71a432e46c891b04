from importlib.util import find_spec

import pytest
import torch

from recbole_ssd.layers.dropout import Dropout
from recbole_ssd.ops.dropout import dropout

from .streams import assert_threads_change_no_bit

with_numba = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")
on_cpu = pytest.mark.parametrize("backend", ["torch", pytest.param("numba", marks=with_numba)])


def kept(seed, backend, shape=(1000, 257), p=0.3):
    torch.manual_seed(seed)
    return (dropout(torch.ones(shape), p, backend=backend) != 0).float()


@on_cpu
@pytest.mark.parametrize("p", [0.001, 0.3, 0.9])
def test_rate_scale_and_gradient(backend, p):
    torch.manual_seed(0)
    x, dy = torch.randn(1000, 257, dtype=torch.float64, requires_grad=True), torch.randn(1000, 257, dtype=torch.float64)
    y = dropout(x, p, backend=backend)
    stays = y != 0
    assert abs(stays.double().mean().item() - (1 - p)) < 5 * (p * (1 - p) / x.numel()) ** 0.5
    torch.testing.assert_close(y[stays], x[stays] / (1 - p), rtol=2**-16 / (1 - p), atol=0)
    y.backward(dy)
    torch.testing.assert_close(x.grad, torch.where(stays, dy / (1 - p), 0), rtol=2**-16 / (1 - p), atol=0)


@on_cpu
def test_elements_are_independent(backend):
    mask = kept(1, backend)
    for counts, of in ((mask.mean(1), 257), (mask.mean(0), 1000)):
        assert 0.7 < counts.var().item() * of / 0.21 < 1.3
    centered = mask.flatten() - mask.mean()
    for distance in (1, 2, 3, 4, 8, 64, 256, 257):
        correlation = (centered[distance:] * centered[:-distance]).mean() / 0.21
        assert abs(correlation.item()) < 5 / centered.numel() ** 0.5, distance


@on_cpu
def test_seeds_and_calls_are_independent_and_a_seed_repeats(backend):
    first = kept(3, backend)
    again = (dropout(torch.ones_like(first), 0.3, backend=backend) != 0).float()  # the generator has gone on
    for other in (again, kept(4, backend)):
        correlation = ((first - 0.7) * (other - 0.7)).mean() / 0.21
        assert abs(correlation.item()) < 5 / first.numel() ** 0.5
    assert torch.equal(first, kept(3, backend))


@with_numba
def test_numba_gives_the_same_bits_whatever_the_number_of_threads():
    def op(x):
        torch.manual_seed(5)
        return dropout(x, 0.4, backend="numba")

    assert_threads_change_no_bit(op, [torch.randn(300, 257)], torch.randn(300, 257))


@on_cpu
def test_takes_slices_and_nothing(backend):
    x = torch.ones(64, 64).t()[:, ::2]
    assert set(dropout(x, 0.5, backend=backend).unique().tolist()) == {0.0, 2.0}
    assert dropout(torch.ones(0, 5), 0.5, backend=backend).shape == (0, 5)


def test_ends_of_the_range_and_half_precision():
    x = torch.ones(64, 64, dtype=torch.bfloat16)
    assert torch.equal(dropout(x, 0.0), x) and not dropout(x, 1.0).any()
    y = dropout(x, 0.5)
    assert y.dtype == x.dtype and set(y.float().unique().tolist()) == {0.0, 2.0}
    with pytest.raises(ValueError, match="p must lie in"):
        dropout(x, 1.5)


def test_layer_drops_in_training_only():
    x, layer = torch.ones(64, 64), Dropout(0.5)
    assert not torch.equal(layer(x), x)
    assert torch.equal(layer.eval()(x), x)
