"""Our adapters on the packages' own code: mamba-ssm's Triton kernels, and causal-conv1d around its compiled part."""

from __future__ import annotations

import pytest
import torch

from recbole_ssd.ops import causal_conv1d_package as conv
from recbole_ssd.ops.causal_conv1d import causal_conv1d
from recbole_ssd.ops.packing import Segments
from recbole_ssd.ops.ssd import ssd
from recbole_ssd.ops.ssd_mamba import ssd_mamba
from tests.ops.streams import borders, run, ssd_inputs

from .conftest import MISSING
from .test_mamba_ssm import LENGTHS, agree

pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (tests/oracle/README.md says how, without CUDA)"
)


def adapted_ssd(theirs, cu, dy, chunk_size, inputs):
    def adapter(x, dt, A, B, C, *D):
        return ssd_mamba(x[0], dt[0], A, B[0], C[0], *(D or [None]), Segments(cu), chunk_size)[None]

    return run(adapter, inputs, dy, torch.float32)


@pytest.mark.parametrize(
    ("lengths", "chunk_size", "groups", "skip"),
    [
        (LENGTHS, 16, 2, "heads"),
        (LENGTHS, None, 1, "no"),  # our own chunk: all segments but the last in one
        ((64, 64, 1), None, 4, "channels"),
        ((1,), 16, 1, "heads"),
    ],
)
def test_scan_is_the_reference(interpreted, lengths, chunk_size, groups, skip):
    cu, inputs = borders(lengths), ssd_inputs(sum(lengths), heads=4, headdim=16, groups=groups)
    inputs[5:] = {"heads": inputs[5:], "no": [], "channels": [torch.randn(4, 16, dtype=torch.float64)]}[skip]
    dy = torch.randn_like(inputs[0])
    got = interpreted(adapted_ssd, cu, dy, chunk_size, inputs)
    agree(got, run(lambda *i: ssd(*i, cu_seqlens=cu, backend="reference"), inputs, dy), 1e-5)


@pytest.fixture
def calls(theirs, monkeypatch):
    """causal-conv1d with its compiled part replaced by its own reference; the addresses of what reached it."""
    addresses = []

    def demand(rows):  # what the compiled part checks of x, and of a gradient that it need not copy
        addresses.append(rows.data_ptr())
        assert rows.stride(1) == 1 and rows.stride(2) % 8 == rows.stride(0) % 8 == 0 and rows.data_ptr() % 16 == 0

    def forward(x, weight, bias, seq_idx, initial_states, final_states_out, silu):
        demand(x)
        assert seq_idx.dtype == torch.int32 and seq_idx.is_contiguous() and seq_idx.shape == (1, x.shape[2])
        return theirs.conv.causal_conv1d_ref(x, weight, bias, activation="silu" if silu else None, seq_idx=seq_idx)

    def backward(x, weight, bias, dout, seq_idx, initial_states, dfinal_states, dx, return_dinitial_states, silu):
        demand(dout)
        leaves = [t.detach().requires_grad_() for t in (x, weight, bias) if t is not None]
        with torch.enable_grad():
            y = forward(*leaves, *([None] if bias is None else []), seq_idx, None, None, silu)
        return *torch.autograd.grad(y, leaves, dout), *([None] if bias is None else []), None

    monkeypatch.setattr(theirs.conv, "causal_conv1d_fwd_function", forward)
    monkeypatch.setattr(theirs.conv, "causal_conv1d_bwd_function", backward)
    conv.load_kernel.cache_clear()
    assert conv.load_kernel() == (theirs.conv.causal_conv1d_fn, None)
    yield addresses
    conv.load_kernel.cache_clear()


def adapted_conv(cu, reverse=False, silu=True):
    def adapter(x, weight, bias=None):
        return conv.causal_conv1d_package(x[0], weight, bias, Segments(cu), reverse, silu)[None]

    return adapter


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("width", [2, 3, 4])
def test_convolution_is_ours(calls, width, reverse):
    cu, x = borders(LENGTHS), torch.randn(1, sum(LENGTHS), 8, dtype=torch.float64)
    inputs = x, torch.randn(8, width, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    dy = torch.randn_like(x)
    ours = run(lambda *i: causal_conv1d(*i, cu_seqlens=cu, reverse=reverse), inputs, dy)
    agree(run(adapted_conv(cu, reverse), inputs, dy), ours, 1e-11)


def test_convolution_without_bias_and_activation(calls):
    cu, x = borders(LENGTHS), torch.randn(1, sum(LENGTHS), 16, dtype=torch.float64)
    inputs, dy = (x, torch.randn(16, 4, dtype=torch.float64)), torch.randn_like(x)
    ours = run(lambda *i: causal_conv1d(*i, cu_seqlens=cu, activation=None), inputs, dy)
    agree(run(adapted_conv(cu, silu=False), inputs, dy), ours, 1e-11)


@pytest.mark.parametrize(("extra", "copied"), [(8, False), (3, True)])
def test_a_slice_is_copied_only_where_its_rows_do_not_suit(calls, extra, copied):
    cu, wide, weight = borders(LENGTHS), torch.randn(sum(LENGTHS), 16 + extra), torch.randn(8, 4)
    x = wide[:, 8:16].requires_grad_()
    results = []
    for convolve in (adapted_conv(cu), lambda *i: causal_conv1d(*i, cu_seqlens=cu)):
        y = convolve(x[None], weight).squeeze(0)
        torch.cat([y, wide[:, :extra]], 1).square().sum().backward()  # the gradient is a slice, too
        results.append([y, x.grad])
        x.grad = None
    agree(*results, 1e-6)
    assert (calls[0] != x.data_ptr()) == copied
