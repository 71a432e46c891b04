"""In Triton's interpreter a token costs milliseconds: the stream is short, and so are the chunks."""

import pytest
import torch

from recbole_ssd.ops.kernels import readout as kernels
from recbole_ssd.ops.kernels import readout_backward as backward
from recbole_ssd.ops.kernels import readout_forward as forward
from recbole_ssd.ops.kernels import support
from recbole_ssd.ops.packing import Segments
from recbole_ssd.ops.readout import _Readout, prefix_readout

from ..streams import borders, error, run
from .compiler import SHARED_LIMIT, usages

LENGTHS = (1, 2, 3, 19, 5)  # with chunks of 8: one segment is cut, one span holds several
TOTAL = sum(LENGTHS)
HEADS, HEADDIM, STATE = 6, 3, 5
ROUNDING = 1e-6  # below it both errors are noise


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK", 8)


def inputs_of(width, groups, lengths=LENGTHS, seed=0):
    """xBC, wdt, C_first, skip, weight, bias in float64."""
    g = torch.Generator().manual_seed(seed)
    f64 = {"dtype": torch.float64, "generator": g}
    channels = HEADS * HEADDIM + 2 * groups * STATE
    return [
        torch.randn(sum(lengths), channels, **f64),
        torch.rand(sum(lengths), HEADS, **f64),
        torch.randn(len(lengths), width, groups, STATE, **f64),
        torch.randn(len(lengths), width, HEADS, HEADDIM, **f64),
        torch.randn(channels, width, **f64),
        torch.randn(channels, **f64),
    ]


def op(name, cu):
    sums = {"triton": kernels.readout_triton, "torch": _Readout.apply}[name]
    return lambda *inputs: sums(*inputs, Segments(cu))


@pytest.mark.parametrize(
    ("width", "groups", "room"), [(1, 2, 64), (2, 1, 64), (3, 2, 8), (4, 1, 64), (4, 2, 64), (11, 1, 64)]
)
def test_triton_is_as_accurate_as_torch(width, groups, room, monkeypatch):
    monkeypatch.setattr(forward, "CHANNELS", room)  # 8 have place for two heads of a group's three
    cu, inputs = borders(LENGTHS), inputs_of(width, groups)
    dy = torch.randn(TOTAL, HEADS, HEADDIM, dtype=torch.float64)
    truth = run(op("torch", cu), inputs, dy)
    ours, plain = (run(op(name, cu), inputs, dy, torch.float32) for name in ("triton", "torch"))
    for got, other, want in zip(ours, plain, truth, strict=True):
        assert error(got, want) <= max(2 * error(other, want), ROUNDING)


def readout_inputs(width, groups):
    """xBC, dt, A, D, weight, bias of `prefix_readout`, in float64."""
    xBC, dt, _, _, weight, bias = inputs_of(width, groups)
    return [xBC, dt / 2, -3 * torch.rand(HEADS).double(), torch.randn(HEADS).double(), weight, bias]


def test_the_door_gives_the_same_function():
    sizes = {"headdim": HEADDIM, "ngroups": 2, "cu_seqlens": borders(LENGTHS)}
    inputs, dy = readout_inputs(4, 2), torch.randn(TOTAL, HEADS, HEADDIM, dtype=torch.float64)
    truth = run(lambda *t: prefix_readout(*t, **sizes), inputs, dy)
    ours = run(lambda *t: prefix_readout(*t, **sizes, backend="triton"), inputs, dy, torch.float32)
    for got, want in zip(ours, truth, strict=True):
        assert error(got, want) < 2e-6


def in_float32(inputs, lengths, dy):
    """y, dxBC, dwdt, dC_first, dskip to the bit."""
    return run(op("triton", borders(lengths)), inputs, dy, torch.float32)[:5]


def test_packed_equals_alone_to_the_bit():
    inputs, dy = inputs_of(3, 2), torch.randn(TOTAL, HEADS, HEADDIM)
    packed, cu = in_float32(inputs, LENGTHS, dy), borders(LENGTHS)
    for number, (begin, end) in enumerate(zip(cu, cu[1:])):
        tokens, segment = slice(begin, end), slice(number, number + 1)
        part = [*(t[tokens] for t in inputs[:2]), *(t[segment] for t in inputs[2:4]), *inputs[4:]]
        alone = in_float32(part, LENGTHS[segment], dy[tokens])
        for got, want, rows in zip(packed, alone, [tokens, tokens, tokens, segment, segment]):
            assert torch.equal(got[rows], want)


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # the infinity
def test_changing_one_segment_leaves_all_others_bit_identical():
    before, after, other = inputs_of(4, 1), inputs_of(4, 1), inputs_of(4, 1, seed=1)
    changed, segment = slice(6, 25), 3
    for t, new in zip(after[:2], other[:2]):
        t[changed] = new[changed]
    for t, new in zip(after[2:4], other[2:4]):
        t[segment] = new[segment]
    after[0][changed.start] = after[0][changed.stop - 1] = torch.inf
    dy = torch.randn(TOTAL, HEADS, HEADDIM)
    other_dy = dy.clone()
    other_dy[changed] *= 2
    for i, (one, two) in enumerate(zip(in_float32(before, LENGTHS, dy), in_float32(after, LENGTHS, other_dy))):
        same = torch.ones(len(one), dtype=torch.bool)
        same[changed if i < 3 else segment] = False
        assert torch.equal(one[same], two[same])
        assert not torch.equal(one[~same], two[~same])


@pytest.mark.parametrize("cut", [17, 16, 2])
def test_changing_the_future_leaves_the_past_bit_identical(cut):
    before, after, other = (inputs_of(4, 1, (23,), seed=seed) for seed in (0, 0, 1))
    for t, new in zip(after[:2], other[:2]):
        t[cut:] = new[cut:]
    one, two = (op("triton", borders([23]))(*(t.float() for t in inputs)) for inputs in (before, after))
    assert torch.equal(one[:cut], two[:cut])
    assert not torch.equal(one[cut:], two[cut:])


def test_gradients_are_deterministic_and_no_scratch_is_read_before_it_is_written():
    cu, inputs = borders(LENGTHS), inputs_of(2, 2)
    dy = torch.randn(TOTAL, HEADS, HEADDIM)
    first = run(op("triton", cu), inputs, dy, torch.float32)
    torch.use_deterministic_algorithms(True)  # fills what is empty with NaN
    try:
        second = run(op("triton", cu), inputs, dy, torch.float32)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(*pair) for pair in zip(first, second))


def test_rows_of_xBC_may_lie_apart():
    xBC, *rest = (t.float() for t in inputs_of(4, 1, (9, 2)))
    wide = torch.cat([torch.randn(11, 7), xBC], dim=1)
    sums = op("triton", borders([9, 2]))
    assert torch.equal(sums(wide[:, 7:], *rest), sums(xBC, *rest))
    assert torch.equal(sums(xBC.t().contiguous().t(), *rest), sums(xBC, *rest))


def test_auto_takes_numba_on_a_cpu():
    sizes = {"headdim": HEADDIM, "ngroups": 1, "cu_seqlens": borders(LENGTHS)}
    inputs = [t.float() for t in readout_inputs(4, 1)]
    auto, compiled, plain = (prefix_readout(*inputs, **sizes, backend=name) for name in ("auto", "numba", "torch"))
    assert torch.equal(auto, compiled) and not torch.equal(auto, plain)


def test_the_backend_refuses_in_a_sentence(monkeypatch):
    inputs, sizes = readout_inputs(4, 1), {"headdim": HEADDIM, "ngroups": 1, "cu_seqlens": borders(LENGTHS)}
    with pytest.raises(ValueError, match="the backends auto, torch, numba, triton; got 'cuda'"):
        prefix_readout(*inputs, **sizes, backend="cuda")
    with pytest.raises(
        RuntimeError, match="'triton': its kernels compute in float32 or bfloat16, not in torch.float64"
    ):
        prefix_readout(*inputs, **sizes, backend="triton")
    monkeypatch.setattr(support, "INTERPRETED", False)
    with pytest.raises(RuntimeError, match="'triton': it needs a CUDA device and the tensors are on 'cpu'"):
        prefix_readout(*(t.float() for t in inputs), **sizes, backend="triton")


def cases(dtype, heads, headdim, state):
    """All kernels as they are launched for four taps and one group."""
    sizes = {"HEADS": heads, "GROUPS": 1, "HEADDIM": headdim, "STATE": state, "K": 4}
    blocks, _ = forward.heads_of(sizes)
    over_heads, over_state = blocks.pop("num_warps"), forward.warps_of(state)
    token = dict.fromkeys(("xBC", "y", "dy", "dxBC"), dtype)
    plan = dict.fromkeys(("position", "owner", "table", "chunks", "chains"), "*i32")
    numbers = dict.fromkeys(("T", "width", "inner"), "i32")
    constants = {"AHEAD": forward.AHEAD, "BLOCK": 128, "REVERSE": True, **sizes, **blocks}
    constants |= {
        "ROW": 2 * heads * headdim + 2 * state + heads,
        "BLOCK_N": state,
        "ROWS": min(16, forward.CELLS // state),
    }
    known = token | plan | numbers | constants
    launched = [
        (forward, "_products", 4),
        (forward, "_sums", over_heads),
        (forward, "_pass_sums", 1),
        (backward, "_later_parts", 1),
        (backward, "_term_gradients", over_heads),
        (backward, "_product_gradients", over_state),
    ]
    return [
        {
            "module": module.__name__,
            "kernel": name,
            "arguments": {
                argument: (known | {"TOTALS": totals, "STEPS": module.STEPS}).get(argument, "*fp32")
                for argument in getattr(module, name).arg_names
            },
            "num_warps": warps,
        }
        for module, name, warps in launched
        for totals in ([False, True] if "TOTALS" in getattr(module, name).arg_names else [False])
    ]


def test_kernels_compile_without_spills():
    sizes = [("*fp32", 32, 16, 64), ("*bf16", 32, 16, 64), ("*fp32", 8, 64, 128)]
    for usage in usages([case for size in sizes for case in cases(*size)]):
        assert usage.stack == 0 and usage.shared < SHARED_LIMIT[usage.capability], usage
