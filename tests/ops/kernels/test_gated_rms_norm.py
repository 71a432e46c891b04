"""The kernels in Triton's interpreter, in float32, against the definition in float64; and compiled for two GPUs."""

import pytest
import torch

from recbole_ssd.ops.gated_rms_norm import gated_rms_norm
from recbole_ssd.ops.kernels import gated_rms_norm as kernels
from tests.ops.streams import LENGTHS, error, run
from tests.ops.test_gated_rms_norm import definition, inputs_of

from .compiler import SHARED_LIMIT, usages

MODULE = "recbole_ssd.ops.kernels.gated_rms_norm"


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan():
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def by_kernels(groups):
    return lambda y, z, weight: gated_rms_norm(y, z, weight, groups, backend="triton")


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("channels", [6, 62, 96])
@pytest.mark.parametrize("tokens", LENGTHS)
def test_equals_its_definition(tokens, channels, groups):
    inputs, dy = inputs_of(tokens, channels), torch.randn(tokens, channels, dtype=torch.float64)
    ours = run(by_kernels(groups), inputs, dy, torch.float32)
    for got, want in zip(ours, run(lambda *i: definition(*i, groups), inputs, dy)):
        assert error(got, want) < 1e-6


@pytest.mark.parametrize("channels", [3, 7, 1500])
def test_any_number_of_channels(channels):
    inputs, dy = inputs_of(5, channels), torch.randn(5, channels, dtype=torch.float64)
    ours = run(by_kernels(1), inputs, dy, torch.float32)
    for got, want in zip(ours, run(lambda *i: definition(*i, 1), inputs, dy)):
        assert error(got, want) < 1e-6


def test_slices_and_gradients_of_any_layout_are_read_where_they_lie():
    y, z, weight = (t.float() for t in inputs_of(33, 24))
    wide, ones = torch.cat([y, z, y], 1), torch.ones(33, 24)
    contiguous = run(by_kernels(2), (y, z, weight), ones, torch.float32)
    slices = wide[:, :24].requires_grad_(), wide[:, 24:48].detach().requires_grad_(), weight.requires_grad_()
    out = by_kernels(2)(*slices)
    out.sum().backward()  # the gradient is one number, of strides 0
    for got, want in zip([out, *(t.grad for t in slices)], contiguous):
        assert torch.equal(got.double(), want)


def test_long_walks_give_what_short_ones_give(monkeypatch):
    inputs, dy = inputs_of(300, 6), torch.randn(300, 6, dtype=torch.float64)
    *short, dweight = run(by_kernels(1), inputs, dy, torch.float32)
    monkeypatch.setattr(kernels, "LONG", 0)
    *long, dweight_long = run(by_kernels(1), inputs, dy, torch.float32)
    assert all(torch.equal(*both) for both in zip(short, long))
    assert 0 < error(dweight_long, dweight) < 1e-6  # added up in another order


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's, of the infinite token
def test_a_token_keeps_its_numbers_whatever_the_others_are():
    y, z, weight = (t.float() for t in inputs_of(40, 6))
    outs = []
    for other in (1.0, torch.inf):
        leaves = [t.clone() for t in (y, z)]
        for t in leaves:
            t[7] = other
            t.requires_grad_()
        out = by_kernels(2)(*leaves, weight)
        out.backward(torch.ones_like(out))
        outs.append([torch.cat([t[:7], t[8:]]) for t in (out, leaves[0].grad, leaves[1].grad)])
    for before, after in zip(*outs):
        assert torch.isfinite(before).all() and torch.equal(before, after)


def test_kernels_compile_without_a_spill():
    cases = []
    for dtype in ("*fp32", "*bf16"):
        for channels in (512, 1160, 4096):
            size, rows, warps = kernels._block(torch.empty(1, channels, device="meta"), 1)
            names = "y_ptr z_ptr weight_ptr scale_ptr tokens y_row z_row UNIT GROUPS CHANNELS ROWS SIZE".split()
            types = [dtype, dtype, "*fp32", "*fp32", "i32", "i32", "i32", 8, 1, channels, rows, size]
            both = dict(zip(names, types))
            forward = both | {"out_ptr": dtype, "eps": "fp32"}
            backward = both | {"dout_ptr": dtype, "dy_ptr": dtype, "dz_ptr": dtype, "sums_ptr": "*fp32"}
            backward |= {"dout_row": "i32", "WALK": kernels.LONG_WALK}
            for name, arguments in (("forward_kernel", forward), ("backward_kernel", backward)):
                cases.append({"module": MODULE, "kernel": name, "arguments": arguments, "num_warps": warps})
    for usage in usages(cases):
        assert usage.stack == 0, usage
        assert usage.shared <= SHARED_LIMIT[usage.capability], usage
