"""Ours against the code of those who invented it: causal-conv1d's and mamba-ssm's own references and Triton kernels.

Ours computes in float64. Where theirs can, the tolerance is 1e-11 of the largest entry; where it cannot, 1e-5.
"""

from __future__ import annotations

import pytest
import torch

from recbole_ssd.layers.mamba import Mamba
from recbole_ssd.layers.mamba2 import Mamba2
from recbole_ssd.ops.causal_conv1d import causal_conv1d
from recbole_ssd.ops.packing import Segments
from recbole_ssd.ops.selective_scan import selective_scan
from recbole_ssd.ops.selective_scan_mamba import load_kernel, selective_scan_mamba
from recbole_ssd.ops.ssd import ssd
from tests.ops.streams import borders, error, run, ssd_inputs

from .conftest import MISSING, in_float64

pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (tests/oracle/README.md says how, without CUDA)"
)

LENGTHS = (5, 1, 17, 3, 40, 2)  # a chunk of 16 holds several segments, a segment spans several chunks
MAMBA = {
    "default": {"d_model": 32},
    "narrow state, short filter": {"d_model": 40, "d_state": 4, "d_conv": 2},
    "wide filter, no expansion": {"d_model": 24, "d_state": 8, "d_conv": 7, "expand": 1},
    "rank 4": {"d_model": 64, "d_state": 16, "d_conv": 3, "expand": 3},
}
MAMBA2 = {
    "one group": {"d_model": 32, "d_state": 16, "headdim": 16},
    "one head": {"d_model": 16, "d_state": 8, "headdim": 32, "d_conv": 2},
    "two groups": {"d_model": 32, "d_state": 8, "headdim": 8, "ngroups": 2},
    "a group a head": {"d_model": 48, "d_state": 16, "headdim": 16, "ngroups": 3, "expand": 1, "d_conv": 3},
}


def agree(ours, theirs, tolerance):
    """Both as `run` gives them. Prints the errors, for `pytest -rA`."""
    errors = [error(got, want) for got, want in zip(ours, theirs)]
    print(" ".join(f"{e:.1e}" for e in errors))
    assert len(ours) == len(theirs) and max(errors) < tolerance


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_convolution_is_that_of_causal_conv1d(theirs, packed, width):
    cu = borders(LENGTHS)
    x = torch.randn(1 if packed else 3, sum(LENGTHS), 6, dtype=torch.float64)
    weight, bias = torch.randn(6, width, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    segments = Segments(cu).seq_idx if packed else None

    def their_convolution(x, weight, bias):
        return theirs.conv.causal_conv1d_ref(x.mT, weight, bias, activation="silu", seq_idx=segments).mT

    inputs, dy = (x, weight, bias), torch.randn_like(x)
    ours = run(lambda *i: causal_conv1d(*i, cu_seqlens=cu if packed else None), inputs, dy)
    agree(ours, run(their_convolution, inputs, dy), 1e-11)


@pytest.fixture(params=[1, 2, 4], ids="groups={}".format)
def dense_ssd(request):
    """ssd's inputs for two rows of 64 tokens, four heads; the gradient of its output."""
    rows = [ssd_inputs(64, groups=request.param, seed=seed) for seed in range(2)]
    inputs = [torch.cat(both) if both[0].dim() > 1 else both[0] for both in zip(*rows)]
    return inputs, torch.randn_like(inputs[0])


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_ssd_is_ssd_minimal_discrete(theirs, dense_ssd, backend):
    def minimal(x, dt, A, B, C, D):  # it knows neither dt nor groups nor D
        B, C = (t.repeat_interleave(x.shape[2] // t.shape[2], 2) for t in (B, C))
        return theirs.minimal.ssd_minimal_discrete(x * dt[..., None], dt * A, B, C, 16)[0] + D[:, None] * x

    agree(run(lambda *i: ssd(*i, backend=backend), *dense_ssd), run(minimal, *dense_ssd), 1e-11)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_ssd_is_ssd_chunk_scan_combined_ref(theirs, dense_ssd, backend):
    @in_float64()
    def chunk_scan(*inputs):
        return theirs.ssd.ssd_chunk_scan_combined_ref(*inputs[:5], 16, D=inputs[5])

    agree(run(lambda *i: ssd(*i, backend=backend), *dense_ssd), run(chunk_scan, *dense_ssd), 1e-11)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_ssd_is_ssd_selective_scan(theirs, dense_ssd, backend):
    want = run(theirs.ssd.ssd_selective_scan, *dense_ssd, torch.float32)
    agree(run(lambda *i: ssd(*i, backend=backend), *dense_ssd), want, 1e-5)


def their_ssd_kernels(theirs, cu_seqlens, dy, *inputs):
    def kernels(*i):
        return theirs.ssd.mamba_chunk_scan_combined(*i[:5], chunk_size=16, D=i[5], seq_idx=Segments(cu_seqlens).seq_idx)

    return run(kernels, inputs, dy, torch.float32)


def test_packed_ssd_is_that_of_their_triton_kernels(interpreted):
    cu, inputs = borders(LENGTHS), ssd_inputs(sum(LENGTHS), heads=4, headdim=16, groups=2)
    dy = torch.randn_like(inputs[0])
    want = interpreted(their_ssd_kernels, cu, dy, *inputs)
    for backend in ("torch", "reference"):
        agree(run(lambda *i, b=backend: ssd(*i, cu_seqlens=cu, backend=b), inputs, dy), want, 1e-5)


def scan_inputs(batch, length, channels=6, state=5):
    """selective_scan's x, dt, A, B, C, D."""
    f64 = {"dtype": torch.float64}
    return [
        torch.randn(batch, length, channels, **f64),
        torch.rand(batch, length, channels, **f64),
        -0.1 - 4 * torch.rand(channels, state, **f64),
        torch.randn(batch, length, state, **f64),
        torch.randn(batch, length, state, **f64),
        torch.randn(channels, **f64),
    ]


@pytest.mark.parametrize("length", [1, 2, 64, 100])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_selective_scan_is_selective_scan_ref(theirs, backend, length):
    inputs = scan_inputs(2, length)
    dy = torch.randn_like(inputs[0])

    @in_float64()
    def their_scan(x, dt, A, B, C, D):
        return theirs.scan.selective_scan_ref(x.mT, dt.mT, A, B.mT, C.mT, D).mT

    agree(run(lambda *i: selective_scan(*i, backend=backend), inputs, dy), run(their_scan, inputs, dy), 1e-11)


@pytest.fixture
def their_scan_as_kernel(theirs):
    """What the adapter finds as mamba-ssm's kernel is selective_scan_ref."""
    load_kernel.cache_clear()
    assert load_kernel() == (theirs.scan.selective_scan_ref, None)
    yield
    load_kernel.cache_clear()


@pytest.mark.parametrize("lengths", [LENGTHS, (9,) * 5], ids=["unequal", "equal"])
def test_adapter_makes_their_dense_scan_a_packed_one(their_scan_as_kernel, lengths):
    cu, inputs = borders(lengths), scan_inputs(1, sum(lengths))
    dy = torch.randn_like(inputs[0])

    def adapter(x, dt, A, B, C, D):
        return selective_scan_mamba(x[0], dt[0], A, B[0], C[0], D, Segments(cu))[None]

    want = run(lambda *i: selective_scan(*i, cu_seqlens=cu, backend="reference"), inputs, dy)
    agree(run(in_float64()(adapter), inputs, dy), want, 1e-11)
    agree(run(adapter, inputs, dy, torch.float32), want, 1e-5)  # as the kernel computes


def random_weights(module):
    """No parameter at a value such as D = 1, which would hide its absence; steps so large that the state counts."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return module


def module_run(module, u, dy, *args, **kwargs):
    """[output, gradient of u, of every parameter in the order of their names]."""
    u = u.clone().requires_grad_()
    module.zero_grad()
    out = module(u, *args, **kwargs)
    out.backward(dy)
    return [t.detach().double() for t in (out, u.grad, *(p.grad for _, p in sorted(module.named_parameters())))]


def same_block(ours, theirs):
    """The same weights give the same, as float32 outputs and as float64 outputs and gradients, dense and packed."""
    ours.load_state_dict(theirs.state_dict(), strict=True)
    cu = borders(LENGTHS)
    batch, stream = torch.randn(2, 50, theirs.d_model), torch.randn(1, sum(LENGTHS), theirs.d_model)
    agree([ours(batch)], [theirs(batch)], 1e-5)
    agree([ours(stream, cu)], [torch.cat([theirs(stream[:, i:j]) for i, j in zip(cu, cu[1:])], 1)], 1e-5)

    ours, theirs, batch, stream = ours.double(), theirs.double(), batch.double(), stream.double()
    their_run = in_float64()(module_run)
    agree(module_run(ours, batch, batch.flip(1)), their_run(theirs, batch, batch.flip(1)), 1e-11)
    alone = [their_run(theirs, stream[:, i:j], stream[:, i:j].flip(2)) for i, j in zip(cu, cu[1:])]
    y, du, *parameters = zip(*alone)
    want = [torch.cat(y, 1), torch.cat(du, 1), *(sum(grads) for grads in parameters)]
    agree(module_run(ours, stream, stream.flip(2), cu), want, 1e-11)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("sizes", MAMBA.values(), ids=MAMBA)
def test_mamba_is_that_of_mamba_ssm(theirs, sizes, backend):
    same_block(Mamba(**sizes, backend=backend), random_weights(theirs.mamba.Mamba(**sizes, use_fast_path=False)))


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("sizes", MAMBA2.values(), ids=MAMBA2)
def test_mamba2_is_that_of_mamba_ssm(theirs, sizes, backend):
    same_block(Mamba2(**sizes, backend=backend), random_weights(theirs.mamba2.Mamba2(**sizes, use_mem_eff_path=False)))


@pytest.mark.parametrize("sizes", ["one group", "one head"])  # mamba_split_conv1d_scan_ref norms all groups together
def test_mamba2_is_mamba_split_conv1d_scan_ref(theirs, sizes):
    their = random_weights(theirs.mamba2.Mamba2(**MAMBA2[sizes]))
    ours, u = Mamba2(**MAMBA2[sizes]), torch.randn(2, 50, their.d_model)
    ours.load_state_dict(their.state_dict(), strict=True)
    agree([ours(u)], [their(u)], 1e-5)


def their_mamba2(theirs, sizes, weights, u, dy, cu_seqlens):
    theirs.mamba2.causal_conv1d_fn = theirs.conv.causal_conv1d_ref  # the one part that is not in Triton
    module = theirs.mamba2.Mamba2(**sizes, chunk_size=16, use_mem_eff_path=False)
    module.load_state_dict(weights, strict=True)
    return module_run(module, u, dy, seq_idx=Segments(cu_seqlens).seq_idx)


@pytest.mark.parametrize("sizes", ["one group", "two groups"])
def test_packed_mamba2_is_that_of_their_triton_kernels(interpreted, sizes):
    ours, cu = random_weights(Mamba2(**MAMBA2[sizes])), borders(LENGTHS)
    u = torch.randn(1, sum(LENGTHS), MAMBA2[sizes]["d_model"])
    want = interpreted(their_mamba2, MAMBA2[sizes], ours.state_dict(), u, u.flip(2), cu)
    agree(module_run(ours.double(), u.double(), u.flip(2).double(), cu), want, 1e-5)
