"""In Triton's interpreter a token costs milliseconds: the streams are short, and so are the chunks."""

import pytest
import torch

from recbole_ssd.ops.kernels import selective_scan as kernels
from recbole_ssd.ops.kernels import spans, support
from recbole_ssd.ops.packing import Segments
from recbole_ssd.ops.selective_scan import selective_scan

from ..streams import borders, error, run
from ..test_selective_scan import GENTLE, PER_TOKEN, STEEP, Largest, backend, inputs
from .compiler import SHARED_LIMIT, usages

LENGTHS = (1, 2, 19, 8, 34, 1, 5)  # with chunks of 16: two segments are cut, three spans hold several
TOTAL = sum(LENGTHS)
ROUNDING = 1e-6  # below it both errors are noise


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr(spans, "CHUNK", 16)


def triton_in_float32(tensors, cu, dy):
    """y, dx, ddt, dB, dC to the bit."""
    results = run(backend("triton", cu), tensors, dy, torch.float32)
    return [results[0], *(results[1 + i] for i in PER_TOKEN)]


@pytest.mark.parametrize("decay", [GENTLE, STEEP], ids=["gentle", "steep"])
@pytest.mark.parametrize(("channels", "state"), [(3, 1), (37, 8), (17, 16), (5, 32)])
def test_triton_is_as_accurate_as_torch(channels, state, decay):
    cu, tensors = borders(LENGTHS), inputs(TOTAL, channels, state, **decay)
    dy = torch.randn_like(tensors[0])
    truth = run(backend("reference", cu), tensors, dy)
    ours, plain = (run(backend(name, cu), tensors, dy, torch.float32) for name in ("triton", "torch"))
    for got, other, want in zip(ours, plain, truth, strict=True):
        assert error(got, want) <= max(2 * error(other, want), ROUNDING)


def test_packed_equals_alone_to_the_bit():
    cu, tensors = borders(LENGTHS), inputs(TOTAL)
    dy = torch.randn_like(tensors[0])
    packed = triton_in_float32(tensors, cu, dy)
    for begin, end in zip(cu, cu[1:]):
        part = [t[:, begin:end] if t.dim() > 2 else t for t in tensors]
        for got, want in zip(packed, triton_in_float32(part, None, dy[:, begin:end])):
            assert torch.equal(got[:, begin:end], want)


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # the infinity
def test_changing_one_segment_leaves_all_others_bit_identical():
    cu, before, other = borders(LENGTHS), inputs(TOTAL), inputs(TOTAL, seed=1)
    changed = slice(cu[2], cu[3])
    same = torch.ones(TOTAL, dtype=torch.bool)
    same[changed] = False
    after = [t.clone() for t in before]
    for i in PER_TOKEN:
        after[i][:, changed] = other[i][:, changed]
    after[0][:, cu[3] - 1] = torch.inf
    dy = torch.randn_like(before[0])
    other_dy = torch.where(same[:, None], dy, 2 * dy)
    for one, two in zip(triton_in_float32(before, cu, dy), triton_in_float32(after, cu, other_dy)):
        assert torch.equal(one[:, same], two[:, same])
        assert not torch.equal(one[:, changed], two[:, changed])


@pytest.mark.parametrize("cut", [32, 21, 1])
def test_changing_the_future_leaves_the_past_bit_identical(cut):
    before, after = ([t.float() for t in inputs(40, seed=seed)] for seed in (0, 1))
    for i in PER_TOKEN:
        after[i][:, :cut] = before[i][:, :cut]
    after[2], after[5] = before[2], before[5]
    one, two = (selective_scan(*tensors, cu_seqlens=borders([40]), backend="triton") for tensors in (before, after))
    assert torch.equal(one[:, :cut], two[:, :cut])
    assert not torch.equal(one[:, cut:], two[:, cut:])


def test_gradients_are_deterministic_and_no_scratch_is_read_before_it_is_written():
    cu, tensors = borders(LENGTHS), inputs(TOTAL)
    dy = torch.randn_like(tensors[0])
    first = run(backend("triton", cu), tensors, dy, torch.float32)
    torch.use_deterministic_algorithms(True)  # fills what is empty with NaN
    try:
        second = run(backend("triton", cu), tensors, dy, torch.float32)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(*pair) for pair in zip(first, second))


def test_rows_may_lie_apart_and_the_skip_may_be_missing():
    segments = Segments(borders([20, 3]))
    x, dt, A, B, C, _ = (t.squeeze(0).float() for t in inputs(23))
    wide = torch.cat([x, dt, B, C], dim=1)
    apart = wide.split([6, 6, 5, 5], dim=1)
    want = kernels.selective_scan_triton(x, dt, A, B, C, torch.zeros(6), segments)
    got = kernels.selective_scan_triton(*apart[:2], A, *apart[2:], None, segments)
    assert not apart[0].is_contiguous() and torch.equal(got, want)
    by_column = (t.t().contiguous().t() for t in apart[:2])
    assert torch.equal(kernels.selective_scan_triton(*by_column, A, *apart[2:], None, segments), want)


def most_bytes(needs_gradient):
    tensors = [t.float().requires_grad_(needs_gradient) for t in inputs(64, channels=16, state=16)]
    with Largest() as largest:  # the interpreter copies what a kernel gets, byte by byte
        y = selective_scan(*tensors, backend="triton")
        if needs_gradient:
            y.sum().backward()
    return largest.numbers


def test_no_tensor_has_a_state_per_token():
    assert most_bytes(needs_gradient=True) == 64 * 16 * 16 / spans.STEPS * 4
    assert most_bytes(needs_gradient=False) == 64 * 16 * 4  # as large as x


def test_the_backend_refuses_in_a_sentence(monkeypatch):
    with pytest.raises(
        RuntimeError, match="'triton': its kernels compute in float32 or bfloat16, not in torch.float64"
    ):
        selective_scan(*inputs(10), backend="triton")
    with pytest.raises(RuntimeError, match="'triton': its kernels have room for 256 states and A has 300"):
        selective_scan(*(t.float() for t in inputs(10, state=300)), backend="triton")
    monkeypatch.setattr(support, "INTERPRETED", False)
    with pytest.raises(RuntimeError, match="'triton': it needs a CUDA device and the tensors are on 'cpu'"):
        selective_scan(*(t.float() for t in inputs(10)), backend="triton")


def cases(dtype, n):
    """All kernels as they are launched for many channels."""
    sizes = kernels._tile(n, 512)
    warps = sizes.pop("num_warps")
    token = dict.fromkeys(("x", "dt", "B", "C", "w", "v", "y", "dy", "dx", "ddt"), dtype)
    shared = dict.fromkeys(("A", "D", "dA", "dD", "dBC", "carried", "states", "time"), "*fp32")
    plan = dict.fromkeys(("position", "spans", "chunks", "chains"), "*i32")
    rows = dict.fromkeys(("x_row", "dt_row", "w_row", "dy_row"), 512) | dict.fromkeys(("B_row", "C_row", "v_row"), n)
    flags = {"KEEP": True, "REVERSE": True, "STEPS": spans.STEPS, "AHEAD": kernels.AHEAD}
    known = token | shared | plan | rows | flags | sizes | {"T": "i32", "channels": 512, "n": n}
    return [
        {
            "module": kernels.__name__,
            "kernel": name,
            "arguments": {argument: known[argument] for argument in getattr(kernels, name).arg_names},
            "num_warps": warps,
        }
        for name in ("_chunk_states", "_pass_states", "_outputs", "_gradients")
    ]


def test_kernels_compile_without_spills():
    sizes = [("*fp32", 16), ("*bf16", 16), ("*fp32", 64)]
    for usage in usages([case for dtype, n in sizes for case in cases(dtype, n)]):
        assert usage.stack == 0 and usage.shared < SHARED_LIMIT[usage.capability], usage
