"""The kernels in Triton's interpreter, float32, against torch's convolution in float64; and compiled for two GPUs."""

import pytest
import torch

from recbole_ssd.ops.causal_conv1d import causal_conv1d
from recbole_ssd.ops.kernels import causal_conv1d as kernels
from recbole_ssd.ops.packing import Segments
from tests.ops.streams import LENGTHS, ORDERS, borders, error, run
from tests.ops.test_causal_conv1d import inputs_of, torch_conv

from .compiler import SHARED_LIMIT, usages

MODULE = "recbole_ssd.ops.kernels.causal_conv1d"


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan():
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def by_kernels(cu, **options):
    return lambda *inputs: causal_conv1d(*inputs, cu_seqlens=Segments(cu), backend="triton", **options)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_equals_torch_segment_by_segment(width, reverse):
    lengths = list(ORDERS.values())[width % 3]
    cu, inputs = borders(lengths), inputs_of(sum(lengths), width)
    dy = torch.randn_like(inputs[0])
    ours = run(by_kernels(cu, reverse=reverse), inputs, dy, torch.float32)
    for got, want in zip(ours, run(torch_conv(cu, reverse), inputs, dy)):
        assert error(got, want) < 1e-6


@pytest.mark.parametrize(
    ("lengths", "width", "channels"),
    [((1,), 4, 1), ((2,), 7, 3), ((33, 1), 2, 130), ((9, 40), 4, 256)],
    ids=["one token", "shorter than the filter", "a rest of channels", "whole blocks of channels"],
)
def test_any_size(lengths, width, channels):
    cu, inputs = borders(lengths), inputs_of(sum(lengths), width, channels)
    dy = torch.randn_like(inputs[0])
    ours = run(by_kernels(cu), inputs, dy, torch.float32)
    for got, want in zip(ours, run(torch_conv(cu, False), inputs, dy)):
        assert error(got, want) < 1e-6


def test_dense_batch_without_bias_and_activation():
    x, weight, _ = inputs_of(24, 4)
    rows, dy = x.view(3, 8, 5), torch.randn(3, 8, 5, dtype=torch.float64)
    ours = run(lambda *i: causal_conv1d(*i, activation=None, backend="triton"), (rows, weight), dy, torch.float32)
    for got, want in zip(ours, run(lambda *i: causal_conv1d(*i, activation=None), (rows, weight), dy)):
        assert error(got, want) < 1e-6


def test_slices_and_gradients_of_any_layout_are_read_where_they_lie(monkeypatch):
    cu, (x, weight, bias) = borders((3, 9, 1)), (t.float() for t in inputs_of(13, 3))
    contiguous = run(by_kernels(cu), (x, weight, bias), torch.ones_like(x), torch.float32)
    leaf = torch.cat([x, x, x], -1)[..., 5:10].detach().requires_grad_()
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda t: t if t.is_contiguous() else pytest.fail("copied"))
    y = by_kernels(cu)(leaf, weight, bias)
    monkeypatch.undo()
    y.sum().backward()  # the gradient is one number, of strides 0
    assert torch.equal(y.double(), contiguous[0]) and torch.equal(leaf.grad.double(), contiguous[1])


def test_long_walks_give_what_short_ones_give(monkeypatch):
    cu, inputs = borders((150, 50, 1)), inputs_of(201, 3, channels=2)
    dy = torch.randn_like(inputs[0])
    y, dx, *short = run(by_kernels(cu), inputs, dy, torch.float32)
    monkeypatch.setattr(kernels, "LONG", 0)
    y_long, dx_long, *long = run(by_kernels(cu), inputs, dy, torch.float32)
    assert torch.equal(y, y_long) and torch.equal(dx, dx_long)
    for one, other in zip(short, long):
        assert 0 < error(one, other) < 1e-6  # added up in another order


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's, of the infinite tokens
@pytest.mark.parametrize("reverse", [False, True])
def test_neighbours_and_what_a_token_does_not_see_stay_bit_identical(reverse):
    """Even when they become infinite: nothing is multiplied by 0."""
    cu, (x, weight, bias) = borders((3, 1, 9, 2)), (t.float() for t in inputs_of(15, 4))
    unseen = slice(4, 8) if reverse else slice(8, 13)  # of the third segment, tokens 4 to 12
    outputs = []
    for number in (1.0, torch.inf):
        leaf = x.clone()
        leaf[:, unseen] = number
        y = by_kernels(cu, reverse=reverse)(leaf.requires_grad_(), weight, bias)
        seen = [t for t in range(15) if t not in range(4, 13)]
        y[:, seen].sum().backward()
        before = [t for t in range(4, 13) if t not in range(unseen.start, unseen.stop)]
        outputs.append((y[:, seen], y[:, before], leaf.grad[:, seen]))
    for one, other in zip(*outputs):
        assert torch.isfinite(one).all() and torch.equal(one, other)


def test_what_the_kernels_cannot_do_gets_a_sentence():
    x, weight, bias = (t.float() for t in inputs_of(9, 4))
    for sentence, change in (
        ("float32 or bfloat16, not in torch.float64", {"x": x.double()}),
        ("no bfloat16", {"x": x.bfloat16()}),
        ("filters of 8 taps and this one has 9", {"weight": torch.ones(5, 9)}),
    ):
        with pytest.raises(RuntimeError, match=f"'triton': .*{sentence}.*; 'torch' runs anywhere"):
            causal_conv1d(**({"x": x, "weight": weight, "bias": bias, "backend": "triton"} | change))


def test_kernels_compile_without_a_spill():
    cases = []
    for dtype in ("*fp32", "*bf16"):
        for width, reverse, unit in ((4, False, 8), (4, True, 1), (8, False, 8)):
            names = "x_ptr weight_ptr bias_ptr before_ptr tokens channels x_row UNIT K REVERSE SILU BIAS".split()
            types = [dtype, "*fp32", "*fp32", "*i32", "i32", "i32", "i32", unit, width, reverse, True, True]
            both = dict(zip(names, types))
            forward = both | {"y_ptr": dtype, "ROWS": kernels.ROWS, "COLUMNS": kernels.COLUMNS}
            backward = both | {"dy_ptr": dtype, "after_ptr": "*i32", "dx_ptr": dtype, "sums_ptr": "*fp32"}
            backward |= {"dy_row": "i32", "OWN": 137 - width, "AHEAD": kernels.AHEAD, "COLUMNS": kernels.WALKED}
            for name, arguments, warps in (("forward_kernel", forward, 8), ("backward_kernel", backward, 2)):
                cases.append({"module": MODULE, "kernel": name, "arguments": arguments, "num_warps": warps})
    for usage in usages(cases):
        assert usage.stack == 0, usage
        assert usage.shared <= SHARED_LIMIT[usage.capability], usage


def test_lengths_reach_beyond_one_walk():
    assert max(LENGTHS) > kernels.SHORT_WALK  # or no test above would see a segment go on in another program
