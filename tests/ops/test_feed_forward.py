from functools import partial
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

from recbole_ssd.ops.dropout import dropout
from recbole_ssd.ops.feed_forward import ACTIVATIONS, feed_forward

from .streams import assert_threads_change_no_bit, error, run

with_numba = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")
on_cpu = pytest.mark.parametrize("backend", ["torch", pytest.param("numba", marks=with_numba)])
activations = pytest.mark.parametrize("activation", ACTIVATIONS)
EPS = 1e-12


def definition(x, w1, b1, w2, b2, weight, bias, activation, drop=lambda x, p: x):
    inner = drop(ACTIVATIONS[activation](x @ w1.t() + b1), 0.4)
    return F.layer_norm(drop(inner @ w2.t() + b2, 0.3) + x, weight.shape, weight, bias, EPS)


def inputs_of(tokens, d=8, f=24):
    torch.manual_seed(tokens)
    shapes = (tokens, d), (f, d), (f,), (d, f), (d,), (d,), (d,)
    return [torch.randn(*shape, dtype=torch.float64) for shape in shapes]


@on_cpu
@activations
@pytest.mark.parametrize("tokens", [1, 31, 300, 5000])
def test_equals_its_definition(backend, activation, tokens):
    inputs, dy = inputs_of(tokens), torch.randn(tokens, 8, dtype=torch.float64)
    ours = run(partial(feed_forward, activation=activation, eps=EPS, backend=backend), inputs, dy)
    for got, want in zip(ours, run(lambda *i: definition(*i, activation), inputs, dy), strict=True):
        assert error(got, want) < 1e-12


@on_cpu
@activations
def test_its_backward_is_the_derivative_of_its_forward(backend, activation):
    inputs = [t.requires_grad_() for t in inputs_of(5, 4, 6)]
    assert torch.autograd.gradcheck(partial(feed_forward, activation=activation, eps=EPS, backend=backend), inputs)


@on_cpu
def test_drops_what_dropout_drops(backend):
    def apart(*inputs):
        torch.manual_seed(3)
        return definition(*inputs, "gelu", partial(dropout, backend=backend))

    def at_once(*inputs):
        torch.manual_seed(3)
        return feed_forward(*inputs, activation="gelu", inner_p=0.4, p=0.3, eps=EPS, backend=backend)

    inputs, dy = inputs_of(700), torch.randn(700, 8, dtype=torch.float64)
    for got, want in zip(run(at_once, inputs, dy), run(apart, inputs, dy), strict=True):
        assert error(got, want) < 1e-12


@with_numba
@activations
def test_numba_is_as_accurate_as_torch_in_float32(activation):
    inputs, dy = inputs_of(700), torch.randn(700, 8, dtype=torch.float64)
    truth = run(lambda *i: definition(*i, activation), inputs, dy)
    op = partial(feed_forward, activation=activation, eps=EPS)
    got, plain = (run(partial(op, backend=b), inputs, dy, torch.float32) for b in ("numba", "torch"))
    for ours, other, want in zip(got, plain, truth, strict=True):
        assert error(ours, want) <= max(2 * error(other, want), 1e-6)


@with_numba
def test_gelu_in_float32_far_from_zero():
    d = 64
    u = torch.linspace(-12, 12, d, dtype=torch.float64)
    eye, zero, one = torch.eye(d), torch.zeros(d), torch.ones(d)
    x = u.float()[None].requires_grad_()
    y = feed_forward(x, eye, zero, eye, zero, one, zero, activation="gelu", eps=EPS, backend="numba")
    want = F.layer_norm(F.gelu(u) + u, (d,), eps=EPS)
    assert error(y.detach()[0].double(), want) < 1e-6


def test_numba_gives_the_same_bits_whatever_the_number_of_threads():
    def op(*inputs):
        torch.manual_seed(5)
        return feed_forward(*inputs, activation="gelu", inner_p=0.2, p=0.1, eps=EPS, backend="numba")

    assert_threads_change_no_bit(op, inputs_of(1500), torch.randn(1500, 8))


@on_cpu
def test_takes_any_leading_dimensions(backend):
    x, *parameters = inputs_of(24)
    op = partial(feed_forward, activation="relu", eps=EPS, backend=backend)
    torch.testing.assert_close(op(x.view(4, 6, 8), *parameters).flatten(0, 1), op(x, *parameters))
    torch.testing.assert_close(op(x[0], *parameters), op(x, *parameters)[0])


@on_cpu
def test_no_rows_give_no_rows_and_no_gradients(backend):
    inputs = [t.requires_grad_() for t in inputs_of(0)]
    y = feed_forward(*inputs, activation="gelu", inner_p=0.2, p=0.2, eps=EPS, backend=backend)
    y.sum().backward()
    assert y.shape == (0, 8) and not any(t.grad.any() for t in inputs[1:])


def test_weights_that_leave_the_cache_go_to_torch():
    inputs = [t.float() for t in inputs_of(3, 260, 1040)]
    with pytest.raises(RuntimeError, match="room for 262,144 numbers of a weight .* these are 270,400"):
        feed_forward(*inputs, activation="gelu", eps=EPS, backend="numba")
    torch.testing.assert_close(feed_forward(*inputs, activation="gelu", eps=EPS), definition(*inputs, "gelu"))


def test_wrong_input_gets_a_sentence():
    x, w1, b1, w2, b2, weight, bias = inputs_of(4)
    named = {"x": x, "w1": w1, "b1": b1, "w2": w2, "b2": b2, "weight": weight, "bias": bias}
    for sentence, change in (
        (r"x must be \(\.\.\., 8\).*got \(\(7,\)", {"x": x[:, :7]}),
        (r"\(24,\), \(8, 24\).*got \(\(8,\), \(24, 8\), \(23,\)", {"b1": b1[:23]}),
        ("gelu, relu, silu, got 'tanh'", {"activation": "tanh"}),
        (r"p must lie in \[0, 1\], got -1", {"inner_p": -1}),
        ("auto, torch, numba; got 'cuda'", {"backend": "cuda"}),
    ):
        with pytest.raises(ValueError, match=sentence):
            feed_forward(**(named | {"activation": "gelu", "eps": EPS} | change))
