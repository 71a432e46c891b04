from functools import partial
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

from recbole_ssd.ops.add_norm import add_norm
from recbole_ssd.ops.dropout import dropout

from .streams import assert_threads_change_no_bit, error, run

with_numba = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")
on_cpu = pytest.mark.parametrize("backend", ["torch", pytest.param("numba", marks=with_numba)])
EPS = 1e-12


def definition(branch, x, weight, bias):
    r = branch + x
    centered = r - r.mean(-1, keepdim=True)
    return weight * centered / (centered.square().mean(-1, keepdim=True) + EPS).sqrt() + bias


def inputs_of(tokens, d):
    torch.manual_seed(tokens)
    return [torch.randn(*shape, dtype=torch.float64) for shape in ((tokens, d), (tokens, d), (d,), (d,))]


@on_cpu
@pytest.mark.parametrize("tokens", [1, 10, 300, 1025])
def test_equals_its_definition(backend, tokens):
    inputs, dy = inputs_of(tokens, 12), torch.randn(tokens, 12, dtype=torch.float64)
    ours = run(lambda *i: add_norm(*i, eps=EPS, backend=backend), inputs, dy)
    for got, want in zip(ours, run(definition, inputs, dy), strict=True):
        assert error(got, want) < 1e-13


@on_cpu
def test_its_backward_is_the_derivative_of_its_forward(backend):
    inputs = [t.requires_grad_() for t in inputs_of(7, 6)]
    assert torch.autograd.gradcheck(lambda *i: add_norm(*i, eps=EPS, backend=backend), inputs)


@on_cpu
def test_drops_what_dropout_drops(backend):
    def apart(branch, x, weight, bias):
        torch.manual_seed(3)
        return definition(dropout(branch, 0.3, backend=backend), x, weight, bias)

    def at_once(*inputs):
        torch.manual_seed(3)
        return add_norm(*inputs, p=0.3, eps=EPS, backend=backend)

    inputs, dy = inputs_of(300, 12), torch.randn(300, 12, dtype=torch.float64)
    for got, want in zip(run(at_once, inputs, dy), run(apart, inputs, dy), strict=True):
        assert error(got, want) < 1e-12


@with_numba
def test_numba_is_as_accurate_as_torch_in_float32():
    inputs, dy = inputs_of(700, 12), torch.randn(700, 12, dtype=torch.float64)
    truth = run(definition, inputs, dy)
    got, plain = (run(partial(add_norm, eps=EPS, backend=b), inputs, dy, torch.float32) for b in ("numba", "torch"))
    for ours, other, want in zip(got, plain, truth, strict=True):
        assert error(ours, want) <= max(2 * error(other, want), 5e-7)


def test_numba_gives_the_same_bits_whatever_the_number_of_threads():
    def op(*inputs):
        torch.manual_seed(5)
        return add_norm(*inputs, p=0.2, eps=EPS, backend="numba")

    assert_threads_change_no_bit(op, inputs_of(700, 12), torch.randn(700, 12))


@on_cpu
def test_takes_any_leading_dimensions_and_slices(backend):
    branch, x, weight, bias = inputs_of(24, 6)
    wide = torch.cat([branch, x], 1)
    got = add_norm(wide[:, :6].view(4, 6, 6), x.view(4, 6, 6), weight, bias, eps=EPS, backend=backend)
    torch.testing.assert_close(got.flatten(0, 1), definition(branch, x, weight, bias))


@with_numba
def test_a_rate_of_one_and_autocast_go_to_torch():
    branch, x, weight, bias = (t.float() for t in inputs_of(5, 6))
    torch.testing.assert_close(
        add_norm(branch, x, weight, bias, p=1.0, eps=EPS), F.layer_norm(x, (6,), weight, bias, EPS)
    )
    with torch.autocast("cpu"), pytest.raises(RuntimeError, match="autocast wants other precisions"):
        add_norm(branch, x, weight, bias, eps=EPS, backend="numba")


def test_wrong_input_gets_a_sentence():
    branch, x, weight, bias = inputs_of(4, 6)
    for sentence, change in (
        (r"got \(4, 6\), \(3, 6\), \(6,\), \(6,\)", {"x": x[:3]}),
        (r"got \(4, 6\), \(4, 6\), \(6,\), \(5,\)", {"bias": bias[:5]}),
        (r"p must lie in \[0, 1\], got 1.5", {"p": 1.5}),
        ("auto, torch, numba; got 'cuda'", {"backend": "cuda"}),
    ):
        with pytest.raises(ValueError, match=sentence):
            add_norm(**({"branch": branch, "x": x, "weight": weight, "bias": bias, "eps": EPS} | change))
