from functools import partial
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

from recbole_ssd.ops import gated_rms_norm as module
from recbole_ssd.ops.gated_rms_norm import gated_rms_norm

from .streams import assert_threads_change_no_bit, error, run

with_numba = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")
on_cpu = pytest.mark.parametrize("backend", ["torch", pytest.param("numba", marks=with_numba)])


def definition(y, z, weight, groups):
    v = (y * F.silu(z)).unflatten(1, (groups, -1))
    return (v / (v.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(1) * weight


def inputs_of(tokens, channels):
    return [torch.randn(*shape, dtype=torch.float64) for shape in ((tokens, channels), (tokens, channels), (channels,))]


@pytest.mark.parametrize("block", [2**17, 50, 5], ids=["one block", "a rest", "row by row"])
@pytest.mark.parametrize("groups", [1, 3])
def test_equals_its_definition(monkeypatch, groups, block):
    monkeypatch.setattr(module, "BLOCK", block)
    inputs, dy = inputs_of(10, 12), torch.randn(10, 12, dtype=torch.float64)
    ours = run(lambda *i: gated_rms_norm(*i, groups=groups, backend="torch"), inputs, dy)
    for got, want in zip(ours, run(lambda *i: definition(*i, groups), inputs, dy)):
        assert error(got, want) < 1e-13


@with_numba
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("tokens", [1, 10, 300, 1025])
def test_numba_equals_its_definition(tokens, groups):
    inputs, dy = inputs_of(tokens, 12), torch.randn(tokens, 12, dtype=torch.float64)
    ours = run(lambda *i: gated_rms_norm(*i, groups=groups, backend="numba"), inputs, dy)
    for got, want in zip(ours, run(lambda *i: definition(*i, groups), inputs, dy)):
        assert error(got, want) < 1e-13


@with_numba
def test_numba_is_as_accurate_as_torch_in_float32():
    inputs, dy = inputs_of(700, 12), torch.randn(700, 12, dtype=torch.float64)
    truth = run(lambda *i: definition(*i, 3), inputs, dy)
    got, plain = (
        run(partial(gated_rms_norm, groups=3, backend=b), inputs, dy, torch.float32) for b in ("numba", "torch")
    )
    for ours, other, want in zip(got, plain, truth, strict=True):
        assert error(ours, want) <= max(2 * error(other, want), 5e-7)


def test_numba_gives_the_same_bits_whatever_the_number_of_threads():
    op, dy = partial(gated_rms_norm, groups=3, backend="numba"), torch.randn(700, 12)
    assert_threads_change_no_bit(op, inputs_of(700, 12), dy)


@on_cpu
def test_its_backward_is_the_derivative_of_its_forward(backend):
    inputs = [t.requires_grad_() for t in inputs_of(7, 6)]
    assert torch.autograd.gradcheck(lambda *i: gated_rms_norm(*i, groups=2, backend=backend), inputs)


@on_cpu
def test_the_gate_may_be_a_slice(backend):
    (y, z, weight), dy = inputs_of(9, 8), torch.randn(9, 8, dtype=torch.float64)
    op = partial(gated_rms_norm, backend=backend)
    wide = run(lambda y, z, weight: op(y, torch.cat([y, z], 1)[:, 8:], weight), (y, z, weight), dy)
    for got, want in zip(wide, run(op, (y, z, weight), dy)):
        assert error(got, want) < 1e-13


def test_wrong_input_gets_a_sentence():
    y, z, weight = inputs_of(4, 6)
    for error_, sentence, change in (
        (ValueError, r"\(4, 6\), \(4, 5\), \(6,\)", {"z": z[:, :5]}),
        (ValueError, "divide the 6 channels of y, got 4", {"groups": 4}),
        (ValueError, "auto, torch, triton, numba; got 'cuda'", {"backend": "cuda"}),
        (RuntimeError, "float32 or bfloat16, not in torch.float64", {"backend": "triton"}),
    ):
        with pytest.raises(error_, match=sentence):
            gated_rms_norm(**({"y": y, "z": z, "weight": weight} | change))


def test_a_group_too_wide_for_the_kernels_gets_a_sentence():
    y = torch.ones(2, 5000)
    with pytest.raises(RuntimeError, match="4096 channels of a group and there are 5000"):
        gated_rms_norm(y, y, y[0], backend="triton")
