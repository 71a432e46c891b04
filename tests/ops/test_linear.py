from functools import partial
from importlib.util import find_spec

import pytest
import torch

from recbole_ssd.ops.linear import linear

from .streams import assert_threads_change_no_bit, error, run

with_numba = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")
on_cpu = pytest.mark.parametrize("backend", ["torch", pytest.param("numba", marks=with_numba)])
SIZES = 24, 3, 50


def inputs_of(tokens, d=20):
    """x, three weights and two biases."""
    torch.manual_seed(tokens)
    shapes = (tokens, d), *((e, d) for e in SIZES), SIZES[:1], SIZES[2:]
    return [torch.randn(*shape, dtype=torch.float64) for shape in shapes]


def definition(x, a, b, c, of_a, of_c):
    return torch.cat([x @ a.t() + of_a, x @ b.t(), x @ c.t() + of_c], dim=-1)


def ours(x, a, b, c, of_a, of_c, backend="auto"):
    return torch.cat(linear(x, [a, b, c], [of_a, None, of_c], backend=backend), dim=-1)


@on_cpu
@pytest.mark.parametrize("tokens", [0, 1, 31, 300, 5000])
def test_equals_its_definition(backend, tokens):
    inputs, dy = inputs_of(tokens), torch.randn(tokens, sum(SIZES), dtype=torch.float64)
    for got, want in zip(run(partial(ours, backend=backend), inputs, dy), run(definition, inputs, dy), strict=True):
        assert got.shape == want.shape and (not want.numel() or error(got, want) < 1e-12)


@on_cpu
@pytest.mark.parametrize("count", [1, 2, 4, 7])
def test_takes_any_number_of_weights(backend, count):
    torch.manual_seed(count)
    shapes = (33, 8), *((2 + k, 8) for k in range(count)), *((2 + k,) for k in range(count))
    inputs = [torch.randn(*shape, dtype=torch.float64) for shape in shapes]
    dy = torch.randn(33, sum(2 + k for k in range(count)), dtype=torch.float64)

    def several(x, *parameters):
        return torch.cat(linear(x, parameters[:count], parameters[count:], backend=backend), dim=-1)

    def one(x, *parameters):
        return x @ torch.cat(parameters[:count]).t() + torch.cat(parameters[count:])

    for got, want in zip(run(several, inputs, dy), run(one, inputs, dy), strict=True):
        assert error(got, want) < 1e-12


@on_cpu
def test_its_backward_is_the_derivative_of_its_forward(backend):
    inputs = [t.requires_grad_() for t in inputs_of(5, 4)]
    assert torch.autograd.gradcheck(partial(ours, backend=backend), inputs)


@with_numba
def test_numba_is_as_accurate_as_torch_in_float32():
    inputs, dy = inputs_of(3000, 64), torch.randn(3000, sum(SIZES), dtype=torch.float64)
    got, plain = (run(partial(ours, backend=b), inputs, dy, torch.float32) for b in ("numba", "torch"))
    for here, other, want in zip(got, plain, run(definition, inputs, dy), strict=True):
        assert error(here, want) <= max(2 * error(other, want), 1e-6)


@with_numba
def test_numba_gives_the_same_bits_whatever_the_number_of_threads():
    assert_threads_change_no_bit(partial(ours, backend="numba"), inputs_of(1500), torch.randn(1500, sum(SIZES)))


@with_numba
def test_a_row_does_not_depend_on_the_others():
    x, *parameters = (t.float() for t in inputs_of(700))
    assert (ours(x, *parameters)[300:303] == ours(x[300:303].clone(), *parameters)).all()


@on_cpu
def test_takes_any_leading_dimensions_and_strides(backend):
    x, weight, *_ = inputs_of(24)
    wide = torch.cat([x, x], dim=1)
    bias = torch.randn(48, dtype=torch.float64)[::2]
    (got,) = linear(wide[:, 20:].view(4, 6, 20), [weight.t().contiguous().t()], [bias], backend=backend)
    torch.testing.assert_close(got, (x @ weight.t() + bias).view(4, 6, -1))


@with_numba
def test_weights_that_leave_the_cache_go_to_torch():
    x, weight = torch.randn(3, 600), torch.randn(500, 600)
    with pytest.raises(RuntimeError, match="room for 262,144 numbers of a weight .* these are 300,000"):
        linear(x, [weight[:9], weight], backend="numba")
    torch.testing.assert_close(linear(x, [weight])[0], x @ weight.t())


def test_wrong_input_gets_a_sentence():
    x, weight, *_ = inputs_of(4)
    for sentence, parameters in (
        (r"x is \(\.\.\., 20\): expected weights \(e, 20\).*got \(24, 19\) and None", ([weight[:, 1:]],)),
        (r"biases \(e,\), got \(24, 20\) and \(23,\)", ([weight], [weight[1:, 0]])),
    ):
        with pytest.raises(ValueError, match=sentence):
            linear(x, *parameters)
    with pytest.raises(ValueError, match="auto, torch, numba; got 'cuda'"):
        linear(x, [weight], backend="cuda")
