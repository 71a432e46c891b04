from functools import partial
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

from recbole_ssd.ops.gated_directions import gated_directions

from .streams import ORDERS, assert_threads_change_no_bit, borders, error, run

with_numba = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")
on_cpu = pytest.mark.parametrize("backend", ["torch", pytest.param("numba", marks=with_numba)])
BETA = 0.7


def norm(y, z, weight, groups):
    v = (y * F.silu(z)).unflatten(1, (groups, -1))
    return (v / (v.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(1) * weight


def definition(y, r, z, weight, cu, groups):
    parts = [
        norm(y[a:b], z[a:b], weight, groups) + BETA * norm(r[a:b], z[a : a + 1].expand(b - a, -1), weight, groups)
        for a, b in zip(cu, cu[1:])
    ]
    return torch.cat(parts)


def inputs_of(cu, channels=12):
    torch.manual_seed(0)
    shapes = [(int(cu[-1]), channels)] * 3 + [(channels,)]
    return [torch.randn(*shape, dtype=torch.float64) for shape in shapes]


@on_cpu
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("order", ORDERS)
def test_equals_its_definition(backend, groups, order):
    cu = borders(ORDERS[order])
    inputs, dy = inputs_of(cu), torch.randn(int(cu[-1]), 12, dtype=torch.float64)
    ours = run(lambda *i: gated_directions(*i, BETA, cu, groups, backend=backend), inputs, dy)
    for got, want in zip(ours, run(lambda *i: definition(*i, cu, groups), inputs, dy), strict=True):
        assert error(got, want) < 1e-12


@on_cpu
def test_its_backward_is_the_derivative_of_its_forward(backend):
    cu = borders((3, 1, 4))
    inputs = [t.requires_grad_() for t in inputs_of(cu, 6)]
    assert torch.autograd.gradcheck(lambda *i: gated_directions(*i, BETA, cu, 2, backend=backend), inputs)


@with_numba
def test_numba_is_as_accurate_as_torch_in_float32_over_a_long_history():
    cu = borders((5, 20_000, 7))
    inputs, dy = inputs_of(cu), torch.randn(int(cu[-1]), 12, dtype=torch.float64)
    truth = run(lambda *i: definition(*i, cu, 3), inputs, dy)
    op = partial(gated_directions, beta=BETA, cu_seqlens=cu, groups=3)
    got, plain = (run(partial(op, backend=b), inputs, dy, torch.float32) for b in ("numba", "torch"))
    for ours, other, want in zip(got, plain, truth, strict=True):
        assert error(ours, want) <= max(2 * error(other, want), 5e-7)


def test_numba_gives_the_same_bits_whatever_the_number_of_threads():
    cu = borders(ORDERS["mixed"])
    op = partial(gated_directions, beta=BETA, cu_seqlens=cu, groups=3, backend="numba")
    assert_threads_change_no_bit(op, inputs_of(cu), torch.randn(int(cu[-1]), 12))


@on_cpu
def test_the_gate_may_be_a_slice(backend):
    cu = borders((4, 5))
    y, r, z, weight = inputs_of(cu)
    op = partial(gated_directions, weight=weight, beta=BETA, cu_seqlens=cu, backend=backend)
    torch.testing.assert_close(op(y, r, torch.cat([y, z], 1)[:, 12:]), op(y, r, z))


def test_wrong_input_gets_a_sentence():
    cu = borders((4, 5))
    y, r, z, weight = inputs_of(cu)
    named = {"y": y, "r": r, "z": z, "weight": weight, "beta": BETA, "cu_seqlens": cu}
    for sentence, change in (
        (r"\(9, i\).*got \(9, 12\), \(8, 12\)", {"r": r[:8]}),
        (r"\(9, i\).*\(9, 12\), \(11,\)", {"weight": weight[:11]}),
        ("a multiple of 5 groups", {"groups": 5}),
        ("auto, torch, numba; got 'cuda'", {"backend": "cuda"}),
    ):
        with pytest.raises(ValueError, match=sentence):
            gated_directions(**(named | change))
