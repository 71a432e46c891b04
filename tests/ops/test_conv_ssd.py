from importlib.util import find_spec

import pytest
import torch

from recbole_ssd.ops import conv_ssd as module
from recbole_ssd.ops.compiled import support
from recbole_ssd.ops.conv_ssd import conv_ssd

from .streams import ORDERS, assert_threads_change_no_bit, borders, error, run

with_numba = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")
HEADS, HEADDIM, STATE = 4, 3, 5
MIXED = ORDERS["mixed"]
TOTAL = sum(MIXED)


def inputs_of(width, groups, length=TOTAL, rows_of_D=()):
    g = torch.Generator().manual_seed(width + groups)
    f64, channels = {"dtype": torch.float64, "generator": g}, HEADS * HEADDIM + 2 * groups * STATE
    return [
        torch.randn(length, channels, **f64),
        torch.rand(length, HEADS, **f64) * 0.5,
        -torch.rand(HEADS, **f64) * 3,
        torch.randn(HEADS, *rows_of_D, **f64),
        torch.randn(channels, width, **f64),
        torch.randn(channels, **f64),
    ]


def scan(groups, lengths=MIXED, backend="numba", conv_backend=None):
    how = {"headdim": HEADDIM, "ngroups": groups, "cu_seqlens": borders(lengths)}
    return lambda *inputs: conv_ssd(*inputs, **how, backend=backend, conv_backend=conv_backend or backend)


@with_numba
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("width", [1, 2, 4, 7, 40])  # the last is longer than a chunk
@pytest.mark.parametrize("order", ORDERS)
def test_one_kernel_is_a_convolution_and_a_scan(order, width, groups):
    inputs, dy = inputs_of(width, groups), torch.randn(TOTAL, HEADS, HEADDIM, dtype=torch.float64)
    truth = run(scan(groups, ORDERS[order], "reference", "torch"), inputs, dy)
    for got, want in zip(run(scan(groups, ORDERS[order]), inputs, dy), truth, strict=True):
        assert error(got, want) < 1e-12


@with_numba
def test_gradcheck():
    inputs = [t.requires_grad_() for t in inputs_of(4, 2, length=41)]
    assert torch.autograd.gradcheck(scan(2, (2, 1, 38)), inputs)


@with_numba
def test_D_may_be_by_channel():
    inputs, dy = inputs_of(4, 2, rows_of_D=(HEADDIM,)), torch.randn(TOTAL, HEADS, HEADDIM, dtype=torch.float64)
    for got, want in zip(run(scan(2), inputs, dy), run(scan(2, backend="torch"), inputs, dy), strict=True):
        assert error(got, want) < 1e-12


@with_numba
def test_columns_of_a_wider_tensor_are_taken_as_they_are():
    inputs = inputs_of(4, 1)
    wider = torch.cat([inputs[0], inputs[0]], dim=1)[:, 22:]
    assert not wider.is_contiguous()
    dy = torch.randn(TOTAL, HEADS, HEADDIM, dtype=torch.float64)
    leaf = wider.detach().requires_grad_()
    y = scan(1)(leaf, *inputs[1:])
    y.backward(dy)
    got, dxBC, *_ = run(scan(1), inputs, dy)
    assert torch.equal(y, got) and torch.equal(leaf.grad, dxBC)


@with_numba
def test_threads_change_no_bit():
    lengths = (300, 7, 280, 260, 1, 500)
    dy = torch.randn(sum(lengths), HEADS, HEADDIM)
    assert_threads_change_no_bit(scan(1, lengths), inputs_of(4, 1, sum(lengths)), dy)


@with_numba
@pytest.mark.parametrize("changed", ["future", "neighbour"])
def test_nothing_leaks_not_even_in_rounding(changed):
    lengths = (5, 40, 70)
    inputs = [t.float() for t in inputs_of(4, 1, sum(lengths))]
    rows = slice(85, 115) if changed == "future" else slice(5, 45)  # the last segment's end, or the one before it
    mixed = [t.clone() for t in inputs]
    mixed[0][rows] = torch.randn_like(mixed[0][rows])
    mixed[1][rows] = torch.rand_like(mixed[1][rows])
    dy = torch.randn(sum(lengths), HEADS, HEADDIM)
    dy[rows] = 0  # nobody is asked there
    before, after = (run(scan(1, lengths), tensors, dy, torch.float32) for tensors in (inputs, mixed))
    same = torch.ones(sum(lengths), dtype=torch.bool)
    same[rows] = False
    for one, other in zip(before[:3], after[:3]):  # y, dxBC, ddt
        assert torch.equal(one[same], other[same])
    assert not torch.equal(before[0][rows], after[0][rows])


@with_numba
def test_is_as_accurate_in_float32_as_the_two_ops():
    lengths = (3000, 20)
    inputs, dy = inputs_of(4, 1, 3020), torch.rand(3020, HEADS, HEADDIM, dtype=torch.float64)
    truth = run(scan(1, lengths, "torch"), inputs, dy)
    plain = run(scan(1, lengths, "torch"), inputs, dy, torch.float32)
    for got, other, want in zip(run(scan(1, lengths), inputs, dy, torch.float32), plain, truth, strict=True):
        assert error(got, want) <= max(2 * error(other, want), 5e-7)


@pytest.fixture
def convolutions(monkeypatch):
    """The backend of every convolution that runs by itself."""
    seen = []

    def looked(*args, backend, **kwargs):
        seen.append(backend)
        return convolve(*args, backend=backend, **kwargs)

    convolve = module.causal_conv1d
    monkeypatch.setattr(module, "causal_conv1d", looked)
    return seen


@with_numba
@pytest.mark.parametrize("backend", ["auto", "numba"])
def test_is_one_kernel_where_nothing_else_is_asked_for(convolutions, backend):
    scan(1, backend=backend)(*inputs_of(4, 1))
    assert not convolutions


@pytest.mark.parametrize(
    "asked", [{"backend": "reference"}, {"backend": "torch", "chunk_size": 16}, {"conv_backend": "torch"}], ids=str
)
def test_is_two_ops_where_a_backend_or_chunks_are_asked_for(convolutions, asked):
    inputs = inputs_of(4, 1)
    y = conv_ssd(*inputs, headdim=HEADDIM, ngroups=1, cu_seqlens=borders(MIXED), **asked)
    assert convolutions == [asked.get("conv_backend", "auto")]
    torch.testing.assert_close(y, scan(1, backend="torch")(*inputs))


def test_is_two_ops_where_numba_cannot_run(convolutions, monkeypatch):
    inputs = inputs_of(4, 1)
    with monkeypatch.context() as patch:
        patch.setattr(support, "refusal", lambda x: "it is Tuesday")
        y = scan(1, backend="auto")(*inputs)
    assert convolutions == ["auto"]
    torch.testing.assert_close(y, scan(1, backend="torch")(*inputs))


@with_numba
def test_several_dtypes_are_two_ops(convolutions):
    xBC, dt, A, D, weight, bias = inputs_of(4, 1)
    y = scan(1, backend="auto")(xBC, dt, A, D.float(), weight, bias)
    assert convolutions == ["auto"]
    torch.testing.assert_close(y, scan(1)(xBC, dt, A, D.float().double(), weight, bias))


def test_chunks_are_none_of_numbas():
    with pytest.raises(RuntimeError, match="ssd cannot use the backend 'numba'.*chunk_size is 16"):
        conv_ssd(
            *inputs_of(4, 1), headdim=HEADDIM, ngroups=1, cu_seqlens=borders(MIXED), chunk_size=16, backend="numba"
        )


def test_wrong_shapes_are_refused_in_a_sentence():
    xBC, dt, A, D, weight, bias = inputs_of(4, 1)
    with pytest.raises(ValueError, match="for these cu_seqlens and A, got"):
        scan(1, (3, 4))(xBC, dt, A, D, weight, bias)
    with pytest.raises(ValueError, match="h be a multiple of ngroups, got 22 channels"):
        scan(3)(xBC, dt, A, D, weight, bias)
    for changed in ((weight, bias[1:]), (weight[:, :0], bias)):
        with pytest.raises(ValueError, match=r"weight must be \(22, K\)"):
            scan(1)(xBC, dt, A, D, *changed)
    with pytest.raises(ValueError, match=r"D must have shape \(4,\) or \(4, 3\), got \(12,\)"):
        scan(1)(xBC, dt, A, torch.ones(12), weight, bias)
    with pytest.raises(ValueError, match="auto, torch, triton, numba, mamba_ssm, reference; got 'cuda'"):
        scan(1, backend="cuda", conv_backend="torch")(xBC, dt, A, D, weight, bias)
