"""In Triton's interpreter a tile costs tens of milliseconds: the streams are short, and so are the chunks."""

import pytest
import torch

from recbole_ssd.ops.kernels import support
from recbole_ssd.ops.ssd import ssd

from ..streams import borders, error, run, ssd_inputs

LENGTHS = (1, 2, 19, 16, 33, 1, 5)  # with chunks of 16: two segments are cut, tiles hold several of the others
TOTAL, CHUNK = sum(LENGTHS), 16
SHAPES = {
    "one group": {},
    "two groups": {"groups": 2},
    "a group a head": {"groups": 4},
    "odd sizes": {"headdim": 24, "state": 20},
    "wide": {"headdim": 32, "state": 64},
    "steep": {"decay": 16.0, "dt_max": 20.0},
}
PER_TOKEN = (0, 1, 3, 4)  # x, dt, B, C
ROUNDING = 1e-6  # below it both errors are noise


def inputs(seed=0, length=TOTAL, **shape):
    return ssd_inputs(length, seed=seed, **{"headdim": 16, **shape})


def backend(name, cu, chunk_size=CHUNK):
    return lambda *tensors: ssd(*tensors, cu_seqlens=cu, chunk_size=chunk_size, backend=name)


def triton_in_float32(tensors, cu, dy):
    """y, dx, ddt, dB, dC to the bit."""
    results = run(backend("triton", cu), tensors, dy, torch.float32)
    return [results[0], *(results[1 + i] for i in PER_TOKEN)]


@pytest.mark.parametrize("chunk_size", [CHUNK, None])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_triton_is_as_accurate_as_torch(shape, chunk_size):
    cu, tensors = borders(LENGTHS), inputs(**shape)
    dy = torch.randn_like(tensors[0])
    truth = run(backend("reference", cu), tensors, dy)
    ours, plain = (run(backend(name, cu, chunk_size), tensors, dy, torch.float32) for name in ("triton", "torch"))
    for got, other, want in zip(ours, plain, truth, strict=True):
        assert error(got, want) <= max(2 * error(other, want), ROUNDING)


@pytest.mark.parametrize("per_channel", [True, False])
def test_skip_per_channel_and_no_skip(per_channel):
    *tensors, D = inputs()
    skip = [torch.randn(4, 16, dtype=torch.float64)] if per_channel else []
    dy, cu = torch.randn_like(tensors[0]), borders(LENGTHS)
    want = run(backend("reference", cu), tensors + skip, dy)
    for got, truth in zip(run(backend("triton", cu), tensors + skip, dy, torch.float32), want, strict=True):
        assert error(got, truth) <= ROUNDING


def test_changing_one_segment_leaves_all_others_bit_identical():
    cu, before, other = borders(LENGTHS), inputs(), inputs(seed=1, dt_max=20.0)
    dy = torch.randn_like(before[0])
    unchanged = triton_in_float32(before, cu, dy)
    for place in (2, 5):  # a cut one, and one that shares its tile
        changed = slice(cu[place], cu[place + 1])
        same = torch.ones(TOTAL, dtype=torch.bool)
        same[changed] = False
        after = [t.clone() for t in before]
        for i in PER_TOKEN:
            after[i][:, changed] = other[i][:, changed]
        other_dy = torch.where(same[:, None, None], dy, 2 * dy)
        for one, two in zip(unchanged, triton_in_float32(after, cu, other_dy)):
            assert torch.equal(one[:, same], two[:, same])
            assert not torch.equal(one[:, changed], two[:, changed])


@pytest.mark.parametrize("cut", [32, 21, 1])
def test_changing_the_future_leaves_the_past_bit_identical(cut):
    before, after = ([t.float() for t in inputs(seed, length=40)] for seed in (0, 1))
    for i in PER_TOKEN:
        after[i][:, :cut] = before[i][:, :cut]
    after[2], after[5] = before[2], before[5]
    one, two = (backend("triton", borders([40]))(*tensors) for tensors in (before, after))
    assert torch.equal(one[:, :cut], two[:, :cut])
    assert not torch.equal(one[:, cut:], two[:, cut:])


def test_gradients_are_deterministic_and_no_scratch_is_read_before_it_is_written():
    cu, tensors = borders(LENGTHS), inputs(groups=2)
    dy = torch.randn_like(tensors[0])
    first = run(backend("triton", cu), tensors, dy, torch.float32)
    torch.use_deterministic_algorithms(True)  # fills what is empty with NaN
    try:
        second = run(backend("triton", cu), tensors, dy, torch.float32)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(*pair) for pair in zip(first, second))


def test_slices_of_a_wider_tensor_are_read_where_they_lie():
    cu, (x, dt, A, B, C, D) = borders(LENGTHS), [t.float() for t in inputs()]
    wide = torch.cat([t.flatten(2) for t in (x, B, C)], dim=2)
    apart = [t.unflatten(2, like.shape[2:]) for t, like in zip(wide.split([64, 16, 16], dim=2), (x, B, C))]
    scan = backend("triton", cu)
    assert not apart[0].is_contiguous()
    assert torch.equal(scan(apart[0], dt, A, *apart[1:], D), scan(x, dt, A, B, C, D))


def test_the_backend_refuses_in_a_sentence(monkeypatch):
    with pytest.raises(
        RuntimeError, match="'triton': its kernels compute in float32 or bfloat16, not in torch.float64"
    ):
        ssd(*inputs(), backend="triton")
    with pytest.raises(RuntimeError, match="'triton': its kernels have room for heads and states of 128"):
        ssd(*(t.float() for t in inputs(headdim=256)), backend="triton")
    monkeypatch.setattr(support, "INTERPRETED", False)
    with pytest.raises(RuntimeError, match="'triton': it needs a CUDA device and the tensors are on 'cpu'"):
        ssd(*(t.float() for t in inputs()), backend="triton")
